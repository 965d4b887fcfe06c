"""Tests of opening the BPF programs and the cgroup of a capture."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ocsf_nft import libbpf, netlink
from ocsf_nft.attribution import bpf_capture
from ocsf_nft.errors import UnsupportedError
from ocsf_nft.libbpf import LoadedPrograms
from ocsf_nft.netns import Namespace

if TYPE_CHECKING:
    from collections.abc import Iterable

_V1 = "33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct"


def test_capture_names_missing_programs_as_the_cause() -> None:
    with pytest.raises(UnsupportedError, match="no BPF programs: it was built without clang"):
        bpf_capture._object("absent")


def test_capture_names_a_kernel_without_cookies_of_namespaces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert bpf_capture.cookie(Namespace()) > 0
    monkeypatch.setattr(netlink, "_SO_NETNS_COOKIE", 0x7FFF)  # an option that no kernel has
    with pytest.raises(
        UnsupportedError, match=r"need Linux 5\.14 or later \(Protocol not available\)"
    ):
        bpf_capture.cookie(Namespace())


@pytest.mark.kernel
def test_bpf_failures_name_the_map_and_the_cause() -> None:
    with contextlib.closing(LoadedPrograms(bpf_capture._object("plain"))) as loaded:
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
            loaded.attach("connect4", -1)
        with pytest.raises(
            UnsupportedError, match=r"program connect4 can't be attached \(Operation"
        ):
            loaded.attach("connect4")
    assert loaded._object is None
    with pytest.raises(UnsupportedError, match="the BPF programs can't be read"):
        LoadedPrograms(b"no object file")


@pytest.mark.kernel
def test_closed_capture_uses_no_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """The details of a process may be asked for after the capture has failed."""
    used: list[str] = []
    with bpf_capture.Capture() as capture:
        monkeypatch.setattr(capture._loaded, "delete_from_map", lambda name, _: used.append(name))
        capture.describe_again(1)
    capture.describe_again(1)  # libbpf has freed the map
    assert used == ["described"]


def test_capture_names_a_cgroup_that_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bpf_capture, "_cgroup_mount", lambda _: tmp_path / "absent")
    capture = object.__new__(bpf_capture.Capture)
    capture._has_cgroup_programs = False
    with pytest.raises(UnsupportedError, match="cgroup v2 can't be opened at"):
        capture._attach_to_cgroups()


@pytest.mark.parametrize("name", ["libc.so.6", "no-such-library.so"])
def test_libbpf_that_is_absent_or_too_old_is_unsupported(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(libbpf, "_LIBRARY", name)
    with pytest.raises(UnsupportedError, match="libbpf is missing"):
        libbpf.load_library()


def test_object_file_of_another_version_raises_with_a_remedy() -> None:
    with contextlib.closing(LoadedPrograms(bpf_capture._object("plain"))) as loaded:
        for use in (lambda: loaded.counter_sums("older", 1), lambda: loaded.attach("older")):
            with pytest.raises(UnsupportedError, match=r"has no (map|program) older \(install"):
                use()


# The mount point of cgroup v2.


def mounted(root: str = "/", at: str = "/sys/fs/cgroup", optional: str = "shared:9 ") -> str:
    return f"29 23 0:26 {root} {at} rw,nosuid {optional}- cgroup2 cgroup2 rw,nsdelegate"


def mount_point(*lines: str) -> Path:
    return bpf_capture._cgroup_mount("".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize("optional", ["", "shared:9 ", "shared:9 master:1 propagate_from:2 "])
def test_mount_point_is_that_of_cgroup_v2(optional: str) -> None:
    assert mount_point("", _V1, mounted(optional=optional)) == Path("/sys/fs/cgroup")


def test_line_of_mountinfo_that_is_cut_is_ignored() -> None:
    assert mount_point("29 - cgroup2", "- cgroup2", mounted()) == Path("/sys/fs/cgroup")


def test_mount_point_beside_cgroup_v1_is_found() -> None:
    tmpfs = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755"
    found = mount_point(tmpfs, _V1, mounted(at="/sys/fs/cgroup/unified"))
    assert found == Path("/sys/fs/cgroup/unified")


@pytest.mark.parametrize(
    "lines",
    [
        (),
        (_V1,),
        ("29 23 0:26 / /cgroup2 rw - tmpfs cgroup2 rw",),
        ("29 23 0:26 cgroup2 / rw cgroup2",),
        ("29 23 0:26 / / rw -",),
    ],
)
def test_missing_cgroup_v2_is_reported(lines: Iterable[str]) -> None:
    with pytest.raises(UnsupportedError, match="cgroup v2 is not mounted"):
        mount_point(*lines)


@pytest.mark.parametrize(
    ("escaped", "path"),
    [
        ("/a\\040b", "/a b"),
        ("/a\\011b\\012c", "/a\tb\nc"),
        ("/a\\134040", "/a\\040"),
        ("/\udcff", "/\udcff"),
    ],
)
def test_escaped_path_is_decoded(escaped: str, path: str) -> None:
    assert mount_point(mounted(at=escaped)) == Path(path)


@pytest.mark.parametrize("root", ["/docker/0a1b", "/..", "/../..", "/kubepods.slice/pod1"])
def test_mount_of_a_part_of_the_hierarchy_is_used(root: str) -> None:
    assert mount_point(mounted(root)) == Path("/sys/fs/cgroup")


@pytest.mark.parametrize(
    "roots", [("/", "/docker/0a1b"), ("/../..", "/.."), ("/..", "/"), ("/..", "/docker")]
)
def test_widest_of_several_mounts_is_used(roots: tuple[str, str]) -> None:
    widest, other = mounted(roots[0], "/widest"), mounted(roots[1], "/other")
    for lines in ((widest, other), (other, widest)):
        assert mount_point(*lines) == Path("/widest")


@pytest.mark.kernel
def test_mount_point_of_this_machine_exists() -> None:
    mounts = bpf_capture._MOUNTS.read_text("utf-8", "surrogateescape")
    assert (bpf_capture._cgroup_mount(mounts) / "cgroup.procs").exists()
