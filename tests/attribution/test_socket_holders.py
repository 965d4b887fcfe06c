from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from ocsf_nft import proc
from ocsf_nft.attribution import socket_holders
from ocsf_nft.attribution.socket_holders import Holder, Scan, find_holders

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")

#: Opens a socket, prints its inode, and runs until its input ends.
_PROGRAM = """
import os, socket
{before}
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
{after}
print(os.fstat(sock.fileno()).st_ino, flush=True)
os.read(0, 1)
"""
_USER = 65534


class Program:
    def __init__(self, before: str = "", after: str = "") -> None:
        text = _PROGRAM.format(before=before, after=after)
        user = _USER if os.geteuid() == 0 else None
        self._process = subprocess.Popen(
            ["/usr/bin/python3", "-I", "-c", text],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            user=user,
            text=True,
            cwd="/",
        )
        assert self._process.stdout is not None
        self.pid = self._process.pid
        self.inode = int(self._process.stdout.readline())

    def end(self) -> None:
        self._process.communicate(timeout=10)


@pytest.fixture
def program() -> Iterator[Callable[..., Program]]:
    started: list[Program] = []

    def start(before: str = "", after: str = "") -> Program:
        started.append(Program(before, after))
        return started[-1]

    yield start
    for one in started:
        one.end()


def scan(*inodes: int, namespace: str | None = None, seconds: float = 10.0) -> Scan:
    own = str(Path("/proc/self/ns/net").readlink())
    deadline_ns = time.monotonic_ns() + int(seconds * 1e9)
    return find_holders(frozenset(inodes), namespace or own, deadline_ns)


def only(found: Scan) -> Holder:
    (holder,) = found.holders
    return holder


def test_process_that_opened_a_socket_has_no_doubt(program: Callable[..., Program]) -> None:
    one, other = program(), program()
    before_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    holder = only(scan(one.inode))
    assert (holder.pid, set(holder.inodes)) == (one.pid, {one.inode})
    assert holder.doubt is None
    assert before_ns - 10_000_000_000 < holder.started_ns < before_ns
    assert {found.pid for found in scan(one.inode, other.inode).holders} == {one.pid, other.pid}


def test_closed_socket_has_no_holder(program: Callable[..., Program]) -> None:
    program()
    with socket.socket() as sock:
        inode = os.fstat(sock.fileno()).st_ino
    assert scan(inode).holders == ()


@pytest.mark.parametrize(
    ("before", "after", "doubt"),
    [
        ("", "os.set_inheritable(sock.fileno(), True)", "the socket stays open on exec"),
        ("", "os.set_inheritable(os.dup(sock.fileno()), True)", "the socket stays open on exec"),
        ("os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)", "", "a child of it may have"),
        ("", "child = os.fork()\nif not child: os._exit(0)", "a child of it may have"),
        (
            "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
            "",
            "a child of it may have",
        ),
        ("pair = socket.socketpair()", "", "it has a Unix socket"),
        (
            "one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)",
            "",
            "it has a Unix socket",
        ),
    ],
)
def test_holder_has_the_reason_against_it(
    program: Callable[..., Program], before: str, after: str, doubt: str
) -> None:
    started = program(before, after)
    time.sleep(0.05)
    holder = only(scan(started.inode))
    assert holder.pid == started.pid
    assert holder.doubt is not None
    assert holder.doubt.startswith(doubt)


def test_forked_process_may_have_inherited_the_socket(program: Callable[..., Program]) -> None:
    started = program(
        "child = os.fork()\nif child:\n  os.waitpid(child, 0)\n  os._exit(0)",
    )
    holder = only(scan(started.inode))
    assert holder.pid != started.pid
    assert holder.doubt is not None
    assert holder.doubt.startswith("it was forked")


def test_child_is_a_holder_too(program: Callable[..., Program]) -> None:
    started = program("", "child = os.fork()\nif not child:\n  os.read(0, 1)\n  os._exit(0)")
    found = scan(started.inode).holders
    assert len(found) == 2
    assert started.pid in {holder.pid for holder in found}


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("capabilities", "doubt"),
    [
        ("+all", "its user can make packets that seem to come from it"),
        ("-all,+net_raw", "its user can make packets that seem to come from it"),
        ("-net_raw", None),
    ],
)
def test_process_of_a_user_that_can_make_packets_is_in_doubt(
    capabilities: str, doubt: str | None
) -> None:
    text = _PROGRAM.format(before="", after="")
    with subprocess.Popen(
        ["setpriv", f"--bounding-set={capabilities}", "/usr/bin/python3", "-I", "-c", text],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert only(scan(int(process.stdout.readline()))).doubt == doubt


def test_mask_of_a_status_has_all_bits_if_the_text_was_cut() -> None:
    status = b"Name:\tx\nSigIgn:\t0000000001001000\nCapPrm:\t00000000a80425fb\n"
    assert socket_holders._mask(socket_holders._IGNORED, status) == 0x1001000
    assert socket_holders._mask(socket_holders._PERMITTED, status) == 0xA80425FB
    assert socket_holders._mask(socket_holders._PERMITTED, status[:-30]) == -1


def test_process_outside_may_have_received_the_socket(program: Callable[..., Program]) -> None:
    holder = only(scan(program().inode, namespace="net:[1]"))
    assert holder.doubt is not None
    assert holder.doubt.startswith("it is outside the sandbox")


def test_thread_may_have_a_descriptor_table_of_its_own(program: Callable[..., Program]) -> None:
    aside = """
import ctypes, threading
def inside():
  ctypes.CDLL(None).unshare(0x400)
  ready.inner = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
  print(os.fstat(ready.inner.fileno()).st_ino, flush=True)
  ready.set()
  os.read(0, 1)
ready = threading.Event()
threading.Thread(target=inside).start()
ready.wait()
"""
    started = program(aside)  # the thread prints the first line
    holder = only(scan(started.inode))
    assert (holder.pid, holder.doubt) == (started.pid, None)


def test_without_kcmp_the_tables_of_all_threads_are_read(
    program: Callable[..., Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_holders, "_KCMP", None)
    started = program(
        "import threading\nfor _ in range(3): threading.Thread(target=os.read, args=(0, 1)).start()"
    )
    holder = only(scan(started.inode))
    assert (holder.pid, holder.doubt) == (started.pid, None)
    os.kill(started.pid, signal.SIGKILL)


def test_search_without_time_gives_the_reason(program: Callable[..., Program]) -> None:
    found = scan(program().inode, seconds=0)
    assert found.holders == ()
    assert found.missed == "there was no time to check all processes"


def test_process_with_many_descriptors_does_not_delay_the_search(
    program: Callable[..., Program],
) -> None:
    program(
        "import resource\n"
        "most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))\n"
        "opened = [os.open('/dev/null', os.O_RDONLY) for _ in range(min(most, 50_000) - 10)]"
    )
    before = time.monotonic()
    assert scan(1).missed is None
    whole = time.monotonic() - before
    before = time.monotonic()
    assert scan(1, seconds=whole / 10).missed is not None
    assert time.monotonic() - before < whole / 2


def test_unreadable_process_may_have_received_the_socket(
    program: Callable[..., Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    started, unreadable = program(), program()
    _make_unreadable(monkeypatch, unreadable.pid)
    found = scan(started.inode)
    assert only(found).doubt is None
    assert found.missed is None
    assert found.unseen == "not every process of this host is readable"


def test_unreadable_child_may_have_the_socket(
    program: Callable[..., Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    started = program("child = os.posix_spawn('/bin/sleep', ['sleep', '100'], {})")
    (child,) = map(
        int, Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    )
    _make_unreadable(monkeypatch, child)
    try:
        assert only(scan(started.inode)).doubt == "a child of it is not readable"
    finally:
        os.kill(child, signal.SIGKILL)


def _make_unreadable(monkeypatch: pytest.MonkeyPatch, pid: int) -> None:
    """Make the descriptors of a process unreadable."""
    real = proc.opened
    unreadable: set[int] = set()

    @contextlib.contextmanager
    def guarded(path: str, parent: int | None = None) -> Iterator[int]:
        if path == "fdinfo" and parent in unreadable:
            raise PermissionError
        with real(path, parent) as directory:
            if path == str(pid):
                unreadable.add(directory)
            try:
                yield directory
            finally:
                unreadable.discard(directory)

    monkeypatch.setattr(proc, "opened", guarded)


def _make_all_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make all processes readable, whatever else runs on this machine."""
    real = socket_holders._Search.search_all

    def search_all(search: socket_holders._Search, namespace: str) -> None:
        real(search, namespace)
        search._unreadable.clear()

    monkeypatch.setattr(socket_holders._Search, "search_all", search_all)


def test_proc_with_hidden_processes_is_reported(
    program: Callable[..., Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    started = program()
    monkeypatch.setattr(os, "getpid", lambda: -1)  # /proc is another pid namespace's
    assert scan(started.inode).missed == "not every process is visible"


def test_process_of_another_pid_namespace_may_have_received_the_socket(
    program: Callable[..., Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    started = program()
    _make_all_readable(monkeypatch)
    assert scan(started.inode).unseen is None
    monkeypatch.setattr(proc, "_INITIAL", "pid:[1]")
    found = scan(started.inode)
    assert found.missed is None
    assert found.unseen == "not every process of this host is visible"


def test_process_that_ends_during_the_search_is_reported(
    program: Callable[..., Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    started = program()
    real = socket_holders._Search.search_all

    def then_end(search: socket_holders._Search, namespace: str) -> None:
        real(search, namespace)
        started.end()

    monkeypatch.setattr(socket_holders._Search, "search_all", then_end)
    found = scan(started.inode)
    assert found.holders == ()
    assert found.missed == "a process that had it ended during the search"


def test_holder_is_not_described_after_the_deadline(
    program: Callable[..., Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    started = program()
    real = socket_holders._Search.search_all

    def until_the_deadline(search: socket_holders._Search, namespace: str) -> None:
        real(search, namespace)
        search._deadline_ns = 0

    monkeypatch.setattr(socket_holders._Search, "search_all", until_the_deadline)
    found = scan(started.inode)
    assert found.holders == ()
    assert found.missed == "there was no time to check all processes"


def test_descriptor_with_an_unknown_format_may_be_a_unix_socket(tmp_path: Path) -> None:
    (tmp_path / "3").write_text("pos:\t0\n")
    with proc.opened(str(tmp_path)) as directory:
        found = socket_holders._Descriptor.of("3", directory)
    assert found == (0, -1, -1, True)


def test_search_for_unix_sockets_includes_the_tables_of_all_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the threads has ended."""
    monkeypatch.setattr(socket_holders, "_share_files", lambda *_: False)
    for table in ("fdinfo", "task/1/fdinfo", "task/2", "task/3/fdinfo"):
        (tmp_path / table).mkdir(parents=True)
    # The number of links of a directory of threads, which not every file system has.
    monkeypatch.setattr(os, "stat", lambda *_, **__: SimpleNamespace(st_nlink=5))
    lines = "pos:\t0\nflags:\t02000002\nmnt_id:\t9\nino:\t77\n"
    last = tmp_path / "task/3/fdinfo/4"
    with proc.opened("/proc") as root, proc.opened(str(tmp_path)) as directory:
        search = socket_holders._Search(root, frozenset(), time.monotonic_ns() + 10**10)
        tables = [path for path, _ in search._tables(directory, 1)]
        assert sorted(tables) == ["fdinfo", "task/3/fdinfo"]
        last.write_text(lines)
        assert not search._has_unix_socket(directory, 1)
        last.write_text(lines + "scm_fds: 0\n")
        assert search._has_unix_socket(directory, 1)
        last.unlink()
        last.symlink_to("closed")
        assert not search._has_unix_socket(directory, 1)


def test_descriptor_table_is_complete_unless_it_is_empty_or_changed_during_the_search(
    tmp_path: Path,
) -> None:
    found = socket_holders._Found(is_inside=True, paths=[], inodes=set())
    with proc.opened("/proc") as root, proc.opened(str(tmp_path)) as table:
        search = socket_holders._Search(root, frozenset(), time.monotonic_ns() + 10**10)
        assert not search._search_table("fdinfo", table, found)
        (tmp_path / "3").write_text("pos:\t0\n")
        assert search._search_table("fdinfo", table, found)
        (tmp_path / "4").symlink_to("closed")
        assert not search._search_table("fdinfo", table, found)


def test_process_descends_from_its_ancestors_or_has_ended() -> None:
    with proc.opened("/proc") as root, subprocess.Popen(["/bin/sleep", "100"]) as child:
        search = socket_holders._Search(root, frozenset(), 0)
        assert search._descends(child.pid, os.getpid())
        assert search._descends(child.pid, os.getppid())
        assert not search._descends(os.getpid(), child.pid)
        child.kill()
        child.wait()
        assert search._descends(child.pid, 1 << 30)  # its parent is unknown now


def test_process_with_the_id_2_descends_from_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container."""
    search = socket_holders._Search(os.open("/proc", os.O_PATH), frozenset(), 0)
    monkeypatch.setattr(proc, "stat", lambda *_: SimpleNamespace(parent=1))
    assert search._descends(2, 1)
    assert not search._descends(2, 3)
    os.close(search._root)


def test_descriptor_that_was_closed_counts_as_inherited(tmp_path: Path) -> None:
    (tmp_path / "fdinfo").mkdir()
    (tmp_path / "fdinfo" / "3").write_text("pos:\t0\nflags:\t02000002\nmnt_id:\t9\nino:\t77\n")
    with proc.opened(str(tmp_path)) as directory:
        assert socket_holders._is_closed_on_exec(directory, "fdinfo/3")
        assert not socket_holders._is_closed_on_exec(directory, "fdinfo/4")


@pytest.mark.parametrize("has_a_table", [True, False])
def test_child_that_ends_during_the_search_may_have_had_the_socket(
    program: Callable[..., Program], monkeypatch: pytest.MonkeyPatch, has_a_table: bool
) -> None:
    started = program("", "child = os.fork()\nif not child:\n  os.read(0, 1)\n  os._exit(0)")
    (child,) = map(
        int, Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    )
    assert len(scan(started.inode).holders) == 2
    real = socket_holders._Search._search_process

    def after_its_end(search: socket_holders._Search, pid: int, *, is_inside: bool) -> None:
        if pid == child:
            os.kill(child, signal.SIGKILL)
            time.sleep(0.05)
            if not has_a_table:
                monkeypatch.setattr(proc, "opened", without)
        real(search, pid, is_inside=is_inside)
        monkeypatch.setattr(proc, "opened", opened)

    opened = proc.opened

    def without(path: str, parent: int | None = None) -> contextlib.AbstractContextManager[int]:
        if path == "fdinfo":
            raise FileNotFoundError
        return opened(path, parent)

    monkeypatch.setattr(socket_holders._Search, "_search_process", after_its_end)
    holder = only(scan(started.inode))
    assert holder.pid == started.pid
    assert holder.doubt == "a child of it may have had the socket too, and may have ended"


def test_threads_of_this_process_are_searched_once() -> None:
    stop = threading.Event()
    threads = [threading.Thread(target=stop.wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    with socket.socket() as sock:
        found = scan(os.fstat(sock.fileno()).st_ino)
    stop.set()
    for thread in threads:
        thread.join()
    assert only(found).pid == os.getpid()
