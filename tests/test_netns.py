from __future__ import annotations

import errno
import os
import re
import stat
import threading
from pathlib import Path
from typing import NoReturn

import pytest

from ocsf_nft import netns
from ocsf_nft.errors import AbsentError, OcsfNftError, UnsupportedError

pytestmark = pytest.mark.kernel


def test_failure_to_start_a_thread_is_an_unsupported_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_thread: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(UnsupportedError, match="can't be entered: can't start new thread"):
        netns.in_scratch(lambda: None)


@pytest.mark.parametrize(
    ("code", "kind", "sentence"),
    [
        (errno.ENOENT, AbsentError, "there is no network namespace at /run/netns/x"),
        (errno.EACCES, UnsupportedError, "opening /run/netns/x is not permitted"),
        (errno.EMFILE, UnsupportedError, "opening /run/netns/x failed: Too many open files"),
    ],
)
def test_namespace_that_cannot_be_opened_is_absent_only_if_it_is_missing(
    monkeypatch: pytest.MonkeyPatch, code: int, kind: type[OcsfNftError], sentence: str
) -> None:
    def refuse(*_arguments: object) -> NoReturn:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(kind, match=sentence):
            netns.named("x").call(lambda: None)
    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(kind, match=sentence):
        netns.named("x").identity()


@pytest.mark.parametrize(
    ("path", "remedy"),
    [
        ("/run/netns/no-such", "`ip netns list` shows the names"),
        ("/proc/4194305/ns/net", "name a process that runs"),
        ("/no-such", "name the file of one"),
    ],
)
def test_missing_namespace_has_the_remedy_of_its_kind(path: str, remedy: str) -> None:
    sentence = f"there is no network namespace at {path} (No such file or directory): {remedy}"
    with pytest.raises(AbsentError, match=f"^{re.escape(sentence)}$"):
        netns.Namespace(Path(path)).identity()


@pytest.mark.kernel
@pytest.mark.parametrize("kind", ["fifo", "file", "folder", "device"])
def test_other_file_at_the_path_is_not_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "fifo":
        os.mkfifo(path)  # opening it would wait for a writer
    elif kind == "file":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    else:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))
    with pytest.raises(AbsentError, match=r"/x \(it is another kind of file\): name the file"):
        netns.Namespace(path).call(lambda: None)


def test_deleted_namespace_has_no_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    own = netns.HOST.identity()
    assert netns.HOST.has_identity(own)
    assert not netns.HOST.has_identity(f"{own}0")
    assert not netns.named("no-such-namespace").has_identity(own)

    def refuse(*_arguments: object) -> NoReturn:
        raise PermissionError

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(UnsupportedError, match="is not permitted"):
        netns.HOST.has_identity(own)


def test_pinned_namespace_is_no_other_one_at_its_path(tmp_path: Path) -> None:
    path = tmp_path / "ns"
    path.symlink_to("/proc/self/ns/net")
    found = netns.Namespace(path)
    first = found.pinned()
    assert (first, first.call(os.getpid), first.identity()) == (
        found,
        os.getpid(),
        found.identity(),
    )

    def replaced() -> None:
        path.unlink()
        path.symlink_to(f"/proc/self/task/{threading.get_native_id()}/ns/net")
        found.call(os.getpid)
        assert not first.has_identity(found.identity())
        later = found.pinned(first.pin)
        for work in (first.identity, first.pinned, later.identity, lambda: first.call(os.getpid)):
            with pytest.raises(AbsentError, match=f"^{path} was replaced by another"):
                work()

    netns.in_scratch(replaced)
