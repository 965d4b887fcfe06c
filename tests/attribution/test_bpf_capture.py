"""Tests of opening the BPF programs and the cgroup of a capture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ocsf_nft.attribution import bpf_capture, libbpf
from ocsf_nft.attribution.libbpf import LoadedPrograms
from ocsf_nft.errors import UnsupportedError
from ocsf_nft.netns import Namespace

if TYPE_CHECKING:
    from pathlib import Path


def test_capture_names_missing_programs_as_the_cause() -> None:
    with pytest.raises(UnsupportedError, match="no BPF programs: it was built without clang"):
        bpf_capture._object("absent")


def test_capture_names_a_kernel_without_cookies_of_namespaces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert bpf_capture.cookie(Namespace()) > 0
    monkeypatch.setattr(bpf_capture, "_SO_NETNS_COOKIE", 0x7FFF)  # an option that no kernel has
    with pytest.raises(
        UnsupportedError, match=r"need Linux 5\.14 or later \(Protocol not available\)"
    ):
        bpf_capture.cookie(Namespace())


@pytest.mark.kernel
def test_bpf_failures_name_the_map_and_the_cause() -> None:
    with LoadedPrograms(bpf_capture._object("plain")) as loaded:
        assert loaded.counter_sums("dropped", 1) == (0,)
        with pytest.raises(UnsupportedError, match=r"BPF map dropped can't be read \(No such file"):
            loaded.counter_sums("dropped", 1000)
        with pytest.raises(UnsupportedError, match=r"BPF map watched can't be written \(Invalid"):
            loaded.update_map("watched", b"short", b"short")
        with pytest.raises(UnsupportedError, match=r"BPF ring dropped can't be read \(Invalid"):
            loaded.ring("dropped")
        with pytest.raises(
            UnsupportedError, match=r"program connect4 can't be attached \(Bad file"
        ):
            loaded.attach_to_cgroup("connect4", -1)
        with pytest.raises(
            UnsupportedError, match=r"program connect4 can't be attached \(Operation"
        ):
            loaded.attach("connect4")
    assert loaded._object is None
    with pytest.raises(UnsupportedError, match="the BPF programs can't be read"):
        LoadedPrograms(b"no object file")


def test_capture_names_a_cgroup_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="cgroup v2 can't be opened at"):
        bpf_capture._opened(tmp_path / "absent")


@pytest.mark.parametrize("name", ["libc.so.6", "no-such-library.so"])
def test_libbpf_that_is_absent_or_too_old_is_unsupported(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(libbpf, "_LIBRARY", name)
    with pytest.raises(UnsupportedError, match="libbpf is missing"):
        libbpf.load_library()


def test_object_file_of_another_version_raises_with_a_remedy() -> None:
    with LoadedPrograms(bpf_capture._object("plain")) as loaded:
        for use in (lambda: loaded.counter_sums("older", 1), lambda: loaded.attach("older")):
            with pytest.raises(UnsupportedError, match=r"has no (map|program) older \(install"):
                use()
