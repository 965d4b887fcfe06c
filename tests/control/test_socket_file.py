"""Socket file of the control API: its mode and group, its replacement and its removal."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.control import peer
from ocsf_nft.control.peer import caller_of
from ocsf_nft.control.socket_file import SocketFile
from ocsf_nft.errors import UnsupportedError, UsageError
from ocsf_nft.process import Process
from tests.control.engine import serving
from tests.control.raw_client import ask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: A user and a group that own nothing.
_OVERFLOW_ID = 65534


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def open_folder(folder: Path) -> Path:
    """Return a folder that every user may enter."""
    folder.chmod(0o755)
    return folder


def test_socket_has_its_mode_and_group_and_is_removed(folder: Path) -> None:
    path = folder / "run" / "control.sock"
    with SocketFile(path, 0o640, _OVERFLOW_ID):
        assert (_mode(path), path.stat().st_gid) == (0o640, _OVERFLOW_ID)
        assert _mode(path.parent) == 0o755
        assert list(path.parent.iterdir()) == [path]
    assert list(path.parent.iterdir()) == []


def test_group_may_be_a_name(folder: Path) -> None:
    with SocketFile(folder / "c", 0o660, "root"):
        assert (folder / "c").stat().st_gid == 0
    with (
        pytest.raises(UsageError, match="there is no group nosuchgroup: create it"),
        SocketFile(folder / "c", 0o660, "nosuchgroup"),
    ):
        pass


@pytest.mark.parametrize("mask", [0, 0o777])
def test_other_users_can_never_connect_whatever_the_umask(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch, mask: int
) -> None:
    seen: list[tuple[str, int]] = []
    path = open_folder / "c"

    def note() -> None:
        for root, _, files in os.walk(open_folder):
            reachable = root == str(open_folder) or stat.S_IMODE(os.stat(root).st_mode) & 0o077  # noqa: PTH116
            seen.extend((name, _mode(Path(root, name))) for name in files if reachable)

    def noted(call: Callable[..., None]) -> Callable[..., None]:
        def call_and_note(*arguments: object) -> None:
            note()
            call(*arguments)
            note()

        return call_and_note

    for name in ("chown", "link"):
        monkeypatch.setattr(os, name, noted(getattr(os, name)))
    before = os.umask(mask)
    try:
        with SocketFile(path, 0o600, 0):
            note()
    finally:
        os.umask(before)
    assert set(seen) == {("c", 0o600)}


def test_socket_of_a_service_that_was_killed_is_replaced(folder: Path) -> None:
    path = folder / "c"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.listen()
    dead.close()
    with SocketFile(path, 0o660) as made, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        assert made.path == path
        assert os.listdir(folder) == ["c"]  # noqa: PTH208 - with hidden files


def test_socket_of_another_service_is_left_alone(folder: Path) -> None:
    path = folder / "c"
    with SocketFile(path, 0o660):
        before = path.stat()
        with (
            pytest.raises(UsageError, match=f"another service listens at {path}: stop it, or"),
            SocketFile(path, 0o660),
        ):
            pass
        assert path.stat().st_ino == before.st_ino
        assert os.listdir(folder) == ["c"]  # noqa: PTH208 - with hidden files


def test_service_with_a_full_queue_is_alive(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ocsf_nft.control.socket_file._PROBE_SECONDS", 0.1)
    path = folder / "c"
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as client:
        other.bind(str(path))
        other.listen(0)
        client.connect(str(path))
        with pytest.raises(UsageError, match="another service listens"), SocketFile(path, 0o660):
            pass


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_file_that_is_no_socket_is_left_alone(folder: Path, kind: str) -> None:
    path = folder / "c"
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("elsewhere")
    with pytest.raises(UsageError, match="is no socket: remove it"), SocketFile(path, 0o660):
        pass
    assert path.is_symlink() or path.exists()
    assert os.listdir(folder) == ["c"]  # noqa: PTH208 - with hidden files


def test_socket_that_replaced_ours_is_not_removed(folder: Path) -> None:
    path = folder / "c"
    with SocketFile(path, 0o660):
        path.unlink()
        with SocketFile(path, 0o660):
            pass
        path.write_text("other")
    assert path.read_text() == "other"


def test_folder_that_can_t_be_created_is_one_sentence(folder: Path) -> None:
    path = folder / "none" / "deeper" / "c"
    with (
        pytest.raises(UnsupportedError, match=r"the control socket .* can't be created: No such"),
        SocketFile(path, 0o660),
    ):
        pass


def test_service_that_replaces_the_stale_socket_just_before_keeps_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "c"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    rename = Path.rename
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as client:

        def start_other_and_rename(self: Path, target: Path) -> Path:
            path.unlink()
            other.bind(str(path))
            other.listen()
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", start_other_and_rename)
        with pytest.raises(UsageError, match="another service listens"), SocketFile(path, 0o660):
            pass
        client.connect(str(path))
    assert os.listdir(folder) == ["c"]  # noqa: PTH208 - with hidden files


def test_services_that_start_at_once_do_not_take_each_other_s_socket(folder: Path) -> None:
    path = folder / "c"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    barrier = threading.Barrier(4)
    won: list[SocketFile] = []
    refused: list[str] = []

    def start() -> None:
        barrier.wait()
        try:
            won.append(SocketFile(path, 0o660).__enter__())
        except UsageError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    try:
        assert (len(won), len(refused)) == (1, 3), refused
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    finally:
        for made in won:
            made.__exit__(None, None, None)


#: Process that becomes another user, and then connects.
_OTHER_USER = """
import os, socket, sys
os.setgroups([]), os.setgid(int(sys.argv[3])), os.setuid(int(sys.argv[2]))
try:
    client = socket.socket(socket.AF_UNIX)
    client.connect(sys.argv[1])
except PermissionError:
    sys.exit(13)
client.send(b"PUT /v1/sandboxes/a HTTP/1.0\\r\\nContent-Length: 26\\r\\n\\r\\n"
            b'{"proxy": ["10.0.0.1:31"]}')
print(client.recv(100).split()[1].decode())
print(os.getpid())
"""


def _as_other_user(path: Path, uid: int, gid: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _OTHER_USER, path, str(uid), str(gid)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


async def test_kernel_refuses_users_outside_the_socket_s_group(open_folder: Path) -> None:
    import asyncio  # noqa: PLC0415 - for this test only

    async with serving(open_folder / "c") as served:
        other = _as_other_user(served.path, _OVERFLOW_ID, _OVERFLOW_ID)
        await asyncio.to_thread(other.communicate)
        assert other.returncode == 13
        assert served.sandboxes.calls == []
        os.chown(served.path, -1, _OVERFLOW_ID)
        member = _as_other_user(served.path, 4711, _OVERFLOW_ID)
        status, pid = (await asyncio.to_thread(member.communicate))[0].split()
        assert status == "201"
        ((_, _, caller),) = served.sandboxes.calls
        assert caller is not None
        assert (caller.uid, caller.gid, str(caller.pid)) == (4711, _OVERFLOW_ID, pid)
        assert (await ask(served.path, "GET", "/v1/sandboxes/a")).status == 200


@pytest.fixture
def listener(folder: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(folder / "c"))
        made.listen()
        yield made


def test_program_of_a_caller_that_has_exited_is_unknown(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    done = subprocess.Popen([sys.executable, "-c", code, listener.getsockname()])
    with done, listener.accept()[0] as accepted:
        done.wait()
        caller = caller_of(accepted)
        assert caller == Process(pid=done.pid, uid=0, gid=0)
        # Another process may have its pid.
        monkeypatch.setattr(peer, "_program", lambda _: ("other", "/usr/bin/other"))
        assert caller_of(accepted) == caller
