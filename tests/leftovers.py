"""Plugin that fails a kernel test for each namespace, process, mount or descriptor that it leaves.

A worker of pytest-xdist checks only the leftovers of its own tests. It has its own mount namespace
with an empty ``/run/netns``, so it sees only its own names of namespaces and mounts. A process is
the worker's own in three cases. It is in that mount namespace, it has the worker's token in its
environment, or it is a child of the worker. Descriptors hold the BPF programs in the kernel, so
these end with the descriptors.

The machine has tables, links and sysctls of the initial namespace, and cgroups. With one worker
they are compared after each test. With more workers they are compared once, after all tests.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import os
import secrets
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests import scheduling

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

_TOKEN: Final = "OCSF_NFT_TESTS"  # noqa: S105 - a variable's name
_NAMESPACES: Final = Path("/run/netns")
_CLONE_NEWNS: Final = 0x20000  # include/uapi/linux/sched.h
_MS_REC_PRIVATE: Final = 0x4000 | 1 << 18  # include/uapi/linux/mount.h
#: An ended process or namespace takes some time to disappear. After this it is a leftover.
_EXIT_SECONDS: Final = 10.0
_ALL_NETNS: Final = "net/netfilter/nf_log_all_netns"
_SYSCTLS: Final = (
    _ALL_NETNS,
    "kernel/pid_max",
    "net/core/rmem_max",
    "net/core/wmem_max",
    "net/ipv4/icmp_ratelimit",
    "net/ipv4/ip_forward",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/ip_unprivileged_port_start",
    "net/ipv4/ping_group_range",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/conf/default/rp_filter",
    "net/ipv4/conf/default/forwarding",
    "net/ipv6/conf/all/disable_ipv6",
    "net/ipv6/conf/all/forwarding",
    "net/ipv6/conf/default/accept_dad",
    "net/ipv6/conf/default/accept_ra",
    "net/ipv6/conf/default/disable_ipv6",
    "net/ipv6/conf/default/forwarding",
    "user/max_net_namespaces",
)


class Leftovers:
    """Plugin that compares the state after each test with the state before it."""

    def __init__(self, config: pytest.Config) -> None:
        is_worker = hasattr(config, "workerinput")
        self._is_controller = not is_worker and bool(config.getoption("numprocesses", None))
        self._compares_machine = not is_worker and not self._is_controller
        self._processes = Processes()
        self._machine_changed: set[str] = set()
        #: Objects that fixtures of more than one test made.
        self._of_fixtures: set[str] = set()
        self._before: set[str] = set()
        #: The state after the last test, if that one was checked.
        self._after: set[str] | None = None
        self._machine: set[str] = set()
        #: Changes of the machine that fixtures of more than one test made.
        self._machine_of_fixtures: set[str] = set()

    def pytest_sessionstart(self) -> None:
        """Move into a new mount namespace, and record the state of the machine."""
        self._machine = machine()
        if not self._is_controller:
            _own_mounts()
            os.environ[_TOKEN] = self._processes.token

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        """Allow a fixture of more than one test to keep its objects until the end."""
        if fixturedef.scope == "function" or not _is_checked(request._pyfuncitem):
            return (yield)
        before = self._found()
        machine_before = machine() if self._compares_machine else set()
        try:
            return (yield)
        finally:
            self._of_fixtures |= self._found() - before
            if self._compares_machine:
                self._machine_of_fixtures |= machine() - machine_before

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, None, None]:
        """Record the state before the fixtures of a test."""
        if _is_checked(item):
            self._before = self._found() if self._after is None else self._after
            if self._compares_machine:
                self._machine = machine()
        self._after = None
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, None, None]:
        """Fail a test that leaves something behind after the end of its fixtures."""
        yield
        left: set[str] = set()
        if _is_checked(item):
            left |= _settled(self._left)
            if self._compares_machine:
                # A test of another run may change this sysctl now.
                own = item.get_closest_marker(scheduling.KERNEL_LOG) is not None
                left |= _settled(
                    lambda: {
                        each
                        for each in changes(self._machine)
                        if (own or _ALL_NETNS not in each)
                        and each.removeprefix("no more ") not in self._machine_of_fixtures
                    }
                )
        if nextitem is None:
            # By now the fixtures of more than one test have ended too.
            left |= _settled(lambda: self._found() & self._of_fixtures)
            if self._compares_machine:
                left |= _settled(lambda: machine() & self._machine_of_fixtures)
        if left:
            pytest.fail("left behind: " + "; ".join(sorted(map(_described, left))), pytrace=False)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Compare the machine after all tests with the machine before them."""
        if not self._is_controller:
            return
        with scheduling.locked(scheduling.KERNEL_LOG, fcntl.LOCK_EX):
            self._machine_changed = _settled(lambda: changes(self._machine))
        if self._machine_changed:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the changes of the machine."""
        if self._machine_changed:
            terminalreporter.section("left behind (run without -n to see by which test)")
            for each in sorted(self._machine_changed):
                terminalreporter.line(each)

    def _left(self) -> set[str]:
        self._after = self._found()
        return self._after - self._before - self._of_fixtures

    def _found(self) -> set[str]:
        return namespaces() | mounts() | descriptors() | threads() | self._processes.found()


def _is_checked(item: pytest.Item) -> bool:
    return item.get_closest_marker("kernel") is not None


class Processes:
    """Processes that this one has started, and their descendants."""

    def __init__(self) -> None:
        self.token: Final = secrets.token_hex(8)
        #: Processes of others, by number and inode in /proc: each is checked once.
        self._others: set[tuple[int, int]] = set()

    def found(self) -> set[str]:
        """Return the running processes, and the ended ones that were not waited for."""
        own = os.readlink("/proc/thread-self/ns/mnt")  # noqa: PTH115 - quicker
        with os.scandir("/proc") as entries:
            there = {(int(each.name), each.inode()) for each in entries if each.name.isdecimal()}
        self._others &= there
        found = set()
        for pid, inode in there - self._others:
            if pid != os.getpid():
                try:
                    is_ours = self._is_ours(pid, own)
                except PermissionError:  # a test cannot start such a process
                    is_ours = False
                except (FileNotFoundError, ProcessLookupError):  # it has ended
                    continue
                if is_ours:
                    found.add(f"process {pid}")
                else:
                    self._others.add((pid, inode))
        return found

    def _is_ours(self, pid: int, own_mounts: str) -> bool:
        state, parent = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[:2]
        if int(parent) == os.getpid():
            return True
        if state == b"Z":  # a zombie: only its parent can remove it
            return False
        if os.readlink(f"/proc/{pid}/ns/mnt") == own_mounts:  # noqa: PTH115 - quicker
            return True
        return self.token.encode() in _read(f"/proc/{pid}/environ")


def _read(path: str) -> bytes:
    """Return the content of a file; quicker than a Path, since each test reads many."""
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - quicker
        return file.readall()


def namespaces() -> set[str]:
    """Return the named network namespaces."""
    if not _NAMESPACES.exists():
        return set()
    return {f"namespace {name}" for name in os.listdir(_NAMESPACES)}  # noqa: PTH208 - quicker


def mounts() -> set[str]:
    """Return the mounts, by the kernel's numbers and the mount points."""
    lines = Path("/proc/thread-self/mountinfo").read_text("utf-8", "replace").splitlines()
    return {f"mount {number} on {point}" for number, _, _, _, point, *_ in map(str.split, lines)}


def descriptors() -> set[str]:
    """Return the open descriptors of this process."""
    found = set()
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - quicker
        with contextlib.suppress(FileNotFoundError):  # the descriptor of the listing itself
            target = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115 - quicker
            found.add(f"descriptor {name} of {target}")
    return found


def threads() -> set[str]:
    """Return the threads of this process that Python knows."""
    return {f"thread {each.ident} ({each.name})" for each in threading.enumerate()}


def changes(before: set[str]) -> set[str]:
    """Return the objects that the machine has gained or no longer has since ``before``."""
    now = machine()
    return (now - before) | {f"no more {each}" for each in before - now}


def machine() -> set[str]:
    """Return the tables, links and sysctls of the initial namespace, and the cgroups at the top."""
    folders = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"  # a user's may lack these
    nft = shutil.which("nft", path=folders)
    listed = subprocess.run(
        [nft or "true", "list", "tables"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    links = {f"link {name}" for _, name in socket.if_nameindex()}
    sysctls = {
        f"sysctl {name} = {' '.join(path.read_text('ascii').split())}"
        for name in _SYSCTLS
        if (path := Path("/proc/sys", name)).exists()
    }
    return {
        *listed.stdout.splitlines(),
        *links,
        *sysctls,
        *(f"cgroup {each}" for each in _cgroups()),
    }


def _cgroups() -> Iterator[Path]:
    for line in Path("/proc/mounts").read_text("utf-8", "replace").splitlines():
        _, point, kind, *_ = line.split()
        if kind == "cgroup2":
            yield from (each for each in Path(point).iterdir() if each.is_dir())


def _settled(left: Callable[[], set[str]]) -> set[str]:
    """Return the leftovers that remain after ended processes have had time to disappear."""
    end = time.monotonic() + _EXIT_SECONDS
    while found := left():
        gc.collect()
        if time.monotonic() > end:
            return found
        time.sleep(0.01)
    return set()


def _described(thing: str) -> str:
    kind, _, number = thing.partition(" ")
    if kind != "process":
        return thing
    try:
        command = Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:
        return thing
    return f"{thing} ({command.decode(errors='replace').strip()[:200] or 'ended'})"


def _own_mounts() -> None:
    """Move into a new mount namespace without named network namespaces."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    _NAMESPACES.mkdir(exist_ok=True)
    for done in (
        libc.unshare(_CLONE_NEWNS),
        libc.mount(None, b"/", None, _MS_REC_PRIVATE, None),
        libc.mount(b"tmpfs", bytes(_NAMESPACES), b"tmpfs", 0, b"mode=755"),
    ):
        if done != 0:
            raise OSError(ctypes.get_errno(), "no mount namespace can be had")
