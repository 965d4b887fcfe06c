"""Lookup of the possible senders of a packet: the processes that have the packet's socket open.

The result also has reasons why another process may have sent the packet. For example, a child that
shared the socket may have sent the packet and then ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import socket
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft import proc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet

_PF_EXITING: Final = 0x4  # include/linux/sched.h
_PF_FORKNOEXEC: Final = 0x40
_SIGCHLD_MASK: Final = 1 << 16  # signal 17, in the masks of /proc/PID/status
_CAP_NET_RAW_MASK: Final = 1 << 13  # include/uapi/linux/capability.h
_KCMPS: Final = {"x86_64": 312, "aarch64": 272, "riscv64": 272}
_KCMP: Final = _KCMPS.get(platform.machine())
_KCMP_FILES: Final = 2  # include/uapi/linux/kcmp.h
_LIBC: Final = ctypes.CDLL(None, use_errno=True)

# fs/proc/fd.c: seq_show
_FDINFO: Final = re.compile(rb"pos:\t\d+\nflags:\t([0-7]+)\nmnt_id:\t(\d+)\nino:\t(\d+)\n")
_IGNORED: Final = re.compile(rb"^SigIgn:\t([0-9a-f]+)$", re.MULTILINE)
_PERMITTED: Final = re.compile(rb"^CapPrm:\t([0-9a-f]+)$", re.MULTILINE)


class Holder(NamedTuple):
    """Process that has one or more of the wanted sockets open."""

    pid: int
    #: Start of the process (CLOCK_BOOTTIME), rounded down to a clock tick.
    started_ns: int
    #: The searched sockets that it has.
    inodes: frozenset[int]
    #: Reason why another process may have used these sockets; None if there is no such reason.
    doubt: str | None


class Scan(NamedTuple):
    """Result of a search for the processes (``holders``) that have certain sockets open."""

    holders: tuple[Holder, ...]
    #: Reason why the search is incomplete, for example too little time.
    missed: str | None
    #: Reason why some processes of the host can't be checked: ocsf-nft lacks the permission, or it
    #: is not in the host's pid namespace.
    unseen: str | None


def find_holders(inodes: AbstractSet[int], namespace: str, deadline_ns: int) -> Scan:
    """Find all processes that have one of the sockets with these inode numbers open.

    ``namespace`` is the network namespace of the sockets as /proc shows it, such as
    ``net:[4026531840]``. The search ends at ``deadline_ns`` (time.monotonic_ns), even if it is
    incomplete.
    """
    with proc.opened("/proc") as root:
        search = _Search(root, inodes, deadline_ns)
        search.search_all(namespace)
        return search.result()


class _Found(NamedTuple):
    is_inside: bool
    #: Paths of the sockets' fdinfo files below /proc/PID.
    paths: list[str]
    inodes: set[int]


class _Search:
    def __init__(self, root: int, inodes: AbstractSet[int], deadline_ns: int) -> None:
        self._root = root
        self._socket_mount = _mount_of_sockets(root)
        self._inodes = inodes
        self._deadline_ns = deadline_ns
        self._found: dict[int, _Found] = {}
        #: A dead child of these processes may have had their socket.
        self._parents_of_dead: set[int] = set()
        self._unreadable: list[int] = []
        self._missed = None if proc.shows_all(root) else "not every process is visible"

    def search_all(self, namespace: str) -> None:
        with os.scandir(self._root) as entries:
            pids = [int(entry.name) for entry in entries if entry.name.isdecimal()]
        others: list[int] = []
        try:
            for pid in pids:
                if self._is_inside(pid, namespace):
                    self._search_process(pid, is_inside=True)
                else:
                    others.append(pid)
            for pid in others:  # a socket may have been passed to them (``SCM_RIGHTS``)
                self._search_process(pid, is_inside=False)
        except TimeoutError:
            self._miss("there was no time to check all processes")

    def _miss(self, reason: str) -> None:
        self._missed = self._missed or reason

    def _is_inside(self, pid: int, namespace: str) -> bool:
        self._check_time()
        try:
            return os.readlink(f"{pid}/ns/net", dir_fd=self._root) == namespace
        except (FileNotFoundError, ProcessLookupError):
            # It is dead, or only its first thread is. Another thread may be in the namespace.
            return self._is_alive(pid)
        except PermissionError:  # its descriptors are not readable either
            return False

    def _is_alive(self, pid: int) -> bool:
        """Return True if at least one thread of a process is alive.

        If the main thread has ended, also add the parent's pid to ``_parents_of_dead``. The
        process may have used a socket that it shared with its parent.
        """
        try:
            stat = proc.stat(self._root, f"{pid}/stat")
        except (OSError, ValueError):
            return False
        # Also set for a zombie (kernel/exit.c: do_exit). Other threads may be alive.
        is_ending = bool(stat.flags & _PF_EXITING)
        if is_ending:  # its parent's stat shows a child only after /proc no longer shows this one
            self._parents_of_dead.add(stat.parent)
        return stat.threads > 1 or not is_ending

    def _search_process(self, pid: int, *, is_inside: bool) -> None:
        self._check_time()
        found = _Found(is_inside, [], set())
        try:
            with proc.opened(str(pid), self._root) as directory:
                are_complete = [
                    self._search_table(path, table, found)
                    for path, table in self._tables(directory, pid)
                ]
            if not all(are_complete) and not found.inodes:
                self._is_alive(pid)
        except (FileNotFoundError, ProcessLookupError):
            self._is_alive(pid)
        except PermissionError:
            self._unreadable.append(pid)
        if found.inodes:
            self._found[pid] = found

    def result(self) -> Scan:
        holders = []
        for pid, found in self._found.items():
            try:
                with proc.opened(str(pid), self._root) as directory:
                    stat = proc.stat(directory)
                    doubt = self._doubt(pid, stat, directory, found)
                holders.append(Holder(pid, stat.started_ns, frozenset(found.inodes), doubt))
            except TimeoutError:
                self._miss("there was no time to check all processes")
            except (OSError, ValueError):
                self._miss("a process that had it ended during the search")
        unseen = None
        if self._unreadable:
            unseen = "not every process of this host is readable"
        elif not proc.is_initial():
            unseen = "not every process of this host is visible"
        return Scan(tuple(holders), self._missed, unseen)

    def _check_time(self) -> None:
        if time.monotonic_ns() > self._deadline_ns:
            raise TimeoutError

    def _tables(self, directory: int, pid: int) -> Iterator[tuple[str, int]]:
        """Yield the path and a descriptor of each fdinfo directory of a process.

        The first thread has one, and each other thread with a descriptor table of its own.
        ``directory`` is a descriptor of /proc/PID; the paths are below it.
        """
        with proc.opened("fdinfo", directory) as table:
            yield "fdinfo", table
        if os.stat("task", dir_fd=directory).st_nlink <= 3:  # itself, its parent, one thread
            return
        with proc.opened("task", directory) as tasks, os.scandir(tasks) as entries:
            for tid in (int(entry.name) for entry in entries):
                self._check_time()
                if tid == pid or _share_files(pid, tid):
                    continue
                with contextlib.ExitStack() as opened:
                    try:
                        table = opened.enter_context(proc.opened(f"{tid}/fdinfo", tasks))
                    except (FileNotFoundError, ProcessLookupError):  # the thread has ended
                        continue
                    yield f"task/{tid}/fdinfo", table

    def _search_table(self, path: str, table: int, found: _Found) -> bool:
        """Search a thread's table of open descriptors for the sockets; add them to ``found``.

        ``table`` is a descriptor of the thread's fdinfo directory, and ``path`` is its path below
        /proc/PID. Return False if a socket may have been missed.
        """
        # Not found: sockets that are registered with io_uring, or in transit through a Unix socket.
        seen = closed = 0
        with os.scandir(table) as entries:
            for entry in entries:
                if seen % 64 == 0:
                    self._check_time()
                seen += 1
                try:
                    descriptor = _Descriptor.of(entry.name, table)
                except (FileNotFoundError, ProcessLookupError):  # closed meanwhile
                    closed += 1
                    continue
                if descriptor.mount == self._socket_mount and descriptor.inode in self._inodes:
                    found.paths.append(f"{path}/{entry.name}")
                    found.inodes.add(descriptor.inode)
        # A process that ends has an empty table.
        return seen > 0 and closed == 0

    def _doubt(self, pid: int, stat: proc.Stat, directory: int, found: _Found) -> str | None:
        if not found.is_inside:
            return "it is outside the sandbox, so it may have received the socket"
        if stat.flags & _PF_FORKNOEXEC:
            return "it was forked, so it may have the socket from its parent"
        # It has run a program since its fork, and an exec would have closed an inherited socket.
        if not all(_is_closed_on_exec(directory, path) for path in found.paths):
            return "the socket stays open on exec, so another program may have opened it"
        status = proc.read("status", directory, most=proc.PAGE)
        # A process that ignores SIGCHLD keeps no trace of its children.
        had_children = stat.had_children or pid in self._parents_of_dead
        if had_children or _mask(_IGNORED, status) & _SIGCHLD_MASK:
            return "a child of it may have had the socket too, and may have ended"
        if any(self._descends(each, pid) for each in self._unreadable):
            return "a child of it is not readable"
        if _mask(_PERMITTED, status) & _CAP_NET_RAW_MASK:
            return "its user can make packets that seem to come from it"
        if self._has_unix_socket(directory, pid):
            return "it has a Unix socket, so it may have received this socket"
        # Not detected: a child sent the packet, closed the socket, and is still alive. Or a process
        # that may trace this one copied the socket (``pidfd_getfd``) and sent the packet.
        return None

    def _has_unix_socket(self, directory: int, pid: int) -> bool:
        """Return True if a process may have a Unix socket; ``directory`` is its open /proc/PID."""
        for _, table in self._tables(directory, pid):
            with os.scandir(table) as entries:
                for entry in entries:
                    self._check_time()
                    with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                        if _Descriptor.of(entry.name, table).is_unix_socket:
                            return True
        return False

    def _descends(self, pid: int, ancestor: int) -> bool:
        """Return True if ``pid`` descends from ``ancestor``, or if that can't be checked."""
        try:
            while pid > 1:
                pid = proc.stat(self._root, f"{pid}/stat").parent
                if pid == ancestor:
                    return True
        except (OSError, ValueError):
            return True
        return False


class _Descriptor(NamedTuple):
    """Details of an open descriptor, from its file in /proc/PID/fdinfo.

    Linux 5.14 or later shows the inode. To read the file of another user's process,
    CAP_SYS_PTRACE is necessary.
    """

    flags: int
    mount: int
    inode: int
    is_unix_socket: bool

    @classmethod
    def of(cls, path: str, directory: int) -> _Descriptor:
        """Read an fdinfo file; ``path`` is relative to the open directory ``directory``."""
        text = proc.read(path, directory, most=proc.PAGE)
        found = _FDINFO.match(text)
        if found is None:  # the lines are missing, or in another order
            return cls(0, -1, -1, is_unix_socket=True)
        flags, mount, inode = found.groups()
        # Only Unix sockets have the line ``scm_fds`` (net/unix/af_unix.c).
        return cls(int(flags, 8), int(mount), int(inode), b"\nscm_fds:" in text)


def _mount_of_sockets(root: int) -> int:
    """Return the id of the kernel's internal mount (sockfs) in which all sockets are files.

    ``root`` is a descriptor of /proc.
    """
    with socket.socket(socket.AF_UNIX) as one:
        return _Descriptor.of(f"self/fdinfo/{one.fileno()}", root).mount


def _is_closed_on_exec(directory: int, path: str) -> bool:
    try:
        details = _Descriptor.of(path, directory)
    except FileNotFoundError:  # closed meanwhile
        return False
    return bool(details.flags & os.O_CLOEXEC)


def _mask(pattern: re.Pattern[bytes], status: bytes) -> int:
    """Return the bit mask that ``pattern`` finds in ``status``, the text of /proc/PID/status.

    Return -1 (all bits) if the pattern finds no mask.
    """
    found = pattern.search(status)
    return -1 if found is None else int(found[1], 16)


def _share_files(pid: int, tid: int) -> bool:
    """Return True if a thread shares the descriptor table of its process; False also if unknown."""
    if _KCMP is None:
        return False
    return bool(_LIBC.syscall(_KCMP, pid, tid, _KCMP_FILES, 0, 0) == 0)
