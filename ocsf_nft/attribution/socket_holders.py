"""Which processes have a socket, and what speaks against one of them as the one that used it.

A process that has a socket now need not be the one that sent a packet with it before. It can have

- inherited it, from a parent that has sent and ended. Not where the socket is closed on exec, and
  the process has run a program since it was forked: then that program has opened it;
- left it to a child, which has sent and ended. Not where no child of it has ended;
- been handed it (``SCM_RIGHTS``). Not where it has no Unix socket;
- never sent from it at all, and another one has made the packet by hand, as if from that socket.
  Not where its user can't: the process has no CAP_NET_RAW.

:attr:`Holder.doubt` says which of these can have been. What is left: a child that has sent, has
closed its copy, and lives; and somebody who may take descriptors out of another process
(``pidfd_getfd``), and so may do in its name whatever he likes.

A descriptor may be looked for in vain: a file that io_uring has registered, and one that is on its
way through a Unix socket, are in no process's table.
"""

from __future__ import annotations

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
_O_CLOEXEC: Final = os.O_CLOEXEC
_SIGCHLD_MASK: Final = 1 << 16  # signal 17, in the masks of /proc/PID/status
_CAP_NET_RAW_MASK: Final = 1 << 13  # include/uapi/linux/capability.h
_KCMPS: Final = {"x86_64": 312, "aarch64": 272, "riscv64": 272}
_KCMP: Final = _KCMPS.get(platform.machine())
_KCMP_FILES: Final = 2  # include/uapi/linux/kcmp.h
_LIBC: Final = ctypes.CDLL(None, use_errno=True)

_FDINFO: Final = re.compile(rb"pos:\t\d+\nflags:\t([0-7]+)\nmnt_id:\t(\d+)\nino:\t(\d+)\n")
_IGNORED: Final = re.compile(rb"^SigIgn:\t([0-9a-f]+)$", re.MULTILINE)
_PERMITTED: Final = re.compile(rb"^CapPrm:\t([0-9a-f]+)$", re.MULTILINE)


class Holder(NamedTuple):
    """A process that has one or more of the sockets.

    ``started_ns`` is of CLOCK_BOOTTIME, rounded down to a clock tick. ``doubt`` says why another
    process may have used them, None where nothing speaks for that.
    """

    pid: int
    started_ns: int
    inodes: frozenset[int]
    doubt: str | None


class Scan(NamedTuple):
    """Who has the sockets.

    ``missed`` says why there may be others; None where there are none but by being handed the
    socket. ``unseen`` says why there may be such; None where there are none either.
    """

    holders: tuple[Holder, ...]
    missed: str | None
    unseen: str | None


def holders(inodes: AbstractSet[int], namespace: str, deadline_ns: int) -> Scan:
    """Find all processes that have one of the sockets.

    ``namespace`` is what /proc calls the network namespace of the sockets (``net:[…]``). Processes
    inside it are looked at first, then all others: a socket may have been handed out. Blocks until
    ``deadline_ns`` (time.monotonic_ns) at the latest, whatever a process does to hold it up.
    """
    root = proc.directory("/proc")
    try:
        search = _Search(root, inodes, deadline_ns)
        search.look_at_all(namespace)
        return search.result()
    finally:
        os.close(root)


class _Found(NamedTuple):
    is_inside: bool
    #: Below /proc/PID: whose tables of descriptors have the sockets, and which they are there.
    descriptors: list[tuple[str, str]]
    inodes: set[int]


class _Search:
    def __init__(self, root: int, wanted: AbstractSet[int], deadline_ns: int) -> None:
        self._root = root
        self._sockets = _mount_of_sockets(root)
        self._wanted = wanted
        self._deadline_ns = deadline_ns
        self._found: dict[int, _Found] = {}
        self._bereaved: set[int] = set()
        self._closed: list[int] = []
        self._missed = None if _hides_none(root) else "not every process can be seen"

    def look_at_all(self, namespace: str) -> None:
        """Look for the sockets, in the namespace first, as long as there is time."""
        with os.scandir(self._root) as entries:
            pids = [int(entry.name) for entry in entries if entry.name.isdecimal()]
        others: list[int] = []
        try:
            for pid in pids:
                if self._is_inside(pid, namespace):
                    self._look(pid, is_inside=True)
                else:
                    others.append(pid)
            for pid in others:
                self._look(pid, is_inside=False)
        except TimeoutError:
            self._miss("there was no time to look at all processes")

    def _miss(self, reason: str) -> None:
        self._missed = self._missed or reason

    def _is_inside(self, pid: int, namespace: str) -> bool:
        """Whether a process is in the namespace; notes whose child it is when it is dead."""
        self._check_time()
        try:
            return os.readlink(f"{pid}/ns/net", dir_fd=self._root) == namespace
        except (FileNotFoundError, ProcessLookupError):
            # It is dead, or its first thread is and others live on.
            return self._lives_on(pid)
        except PermissionError:  # nor may its descriptors be looked at
            return False

    def _lives_on(self, pid: int) -> bool:
        """Whether a process has threads that go on; notes whose child it is where one has ended.

        Of one that is gone altogether its parent knows: that is seen of the parent.
        """
        try:
            told = proc.stat(self._root, f"{pid}/stat")
        except (OSError, ValueError):
            return False
        # Also of a zombie (kernel/exit.c: do_exit). Other threads may live on.
        is_ending = bool(told.flags & _PF_EXITING)
        if is_ending:
            self._bereaved.add(told.parent)
        return told.threads > 1 or not is_ending

    def _look(self, pid: int, *, is_inside: bool) -> None:
        """Look through the descriptors of a process, whichever of its threads has them."""
        self._check_time()
        found = _Found(is_inside, [], set())
        try:
            directory = proc.directory(str(pid), self._root)
        except (FileNotFoundError, ProcessLookupError):
            return
        try:
            steady = [
                self._look_at(directory, owner, found) for owner in self._tables(directory, pid)
            ]
            if not all(steady) and not found.inodes:
                self._lives_on(pid)
        except (FileNotFoundError, ProcessLookupError):
            self._lives_on(pid)
        except PermissionError:
            self._closed.append(pid)
        finally:
            os.close(directory)
        if found.inodes:
            self._found[pid] = found

    def result(self) -> Scan:
        """What was found, by what each is now that all were looked at."""
        told = []
        for pid, found in self._found.items():
            try:
                told.append(self._holder(pid, found))
            except TimeoutError:
                self._miss("there was no time to look at all processes")
            except (OSError, ValueError):
                self._miss("a process that had it has ended while they were looked at")
        unseen = None
        if self._closed:
            unseen = "not every process of this host may be looked at"
        elif not _is_first(self._root):
            unseen = "not every process of this host can be seen"
        return Scan(tuple(told), self._missed, unseen)

    def _check_time(self) -> None:
        if time.monotonic_ns() > self._deadline_ns:
            raise TimeoutError

    def _tables(self, directory: int, pid: int) -> Iterator[str]:
        """Where the tables of descriptors of a process are: its threads may each have another.

        The leader may be dead and have none, and other threads live on.
        """
        yield "."
        if os.stat("task", dir_fd=directory).st_nlink <= 3:  # itself, its parent, one thread
            return
        tasks = proc.directory("task", directory)
        try:
            with os.scandir(tasks) as entries:
                for tid in (int(entry.name) for entry in entries):
                    self._check_time()
                    if tid != pid and not _share_files(pid, tid):
                        yield f"task/{tid}"
        finally:
            os.close(tasks)

    def _look_at(self, directory: int, owner: str, found: _Found) -> bool:
        """Look through one table; False where it is empty, or was being emptied meanwhile."""
        seen = gone = 0
        try:
            table = proc.directory(f"{owner}/fdinfo", directory)
        except (FileNotFoundError, ProcessLookupError):
            if owner == ".":
                raise
            return True  # a thread that has ended: the process goes on
        try:
            with os.scandir(table) as entries:
                for entry in entries:
                    if seen % 64 == 0:
                        self._check_time()
                    seen += 1
                    try:
                        told = _Descriptor.of(entry.name, table)
                    except (FileNotFoundError, ProcessLookupError):  # closed meanwhile
                        gone += 1
                        continue
                    if told.mount == self._sockets and told.inode in self._wanted:
                        found.descriptors.append((owner, entry.name))
                        found.inodes.add(told.inode)
        finally:
            os.close(table)
        return seen > 0 and gone == 0

    def _holder(self, pid: int, found: _Found) -> Holder:
        directory = proc.directory(str(pid), self._root)
        try:
            stat = proc.stat(directory)
            doubt = self._doubt(pid, stat, directory, found)
        finally:
            os.close(directory)
        return Holder(pid, stat.started_ns, frozenset(found.inodes), doubt)

    def _doubt(self, pid: int, stat: proc.Stat, directory: int, found: _Found) -> str | None:
        if not found.is_inside:
            return "it is outside the sandbox, so that it may have been handed the socket"
        if stat.flags & _PF_FORKNOEXEC:
            return "it was forked, so that it may have the socket from its parent"
        if not all(_is_closed_on_exec(directory, *descriptor) for descriptor in found.descriptors):
            return "the socket is kept on exec, so that another program may have opened it"
        status = proc.read("status", directory, most=proc.PAGE)
        # Who ignores SIGCHLD is left by its children without a trace.
        if stat.had_children or pid in self._bereaved or _mask(_IGNORED, status) & _SIGCHLD_MASK:
            return "a child of it may have had the socket too, and have ended"
        if any(self._descends(closed, pid) for closed in self._closed):
            return "a child of it may not be looked at"
        if _mask(_PERMITTED, status) & _CAP_NET_RAW_MASK:
            return "its user can make packets as if they came from it"
        if self._has_unix_socket(directory, pid):
            return "it has a Unix socket, so that it may have been handed this one"
        return None

    def _has_unix_socket(self, directory: int, pid: int) -> bool:
        """Whether a process has one; True as well where that isn't to be learnt."""
        for owner in self._tables(directory, pid):
            try:
                table = proc.directory(f"{owner}/fdinfo", directory)
            except FileNotFoundError:  # a thread that has ended
                continue
            try:
                with os.scandir(table) as entries:
                    if any(self._is_unix_socket(table, entry.name) for entry in entries):
                        return True
            finally:
                os.close(table)
        return False

    def _is_unix_socket(self, table: int, name: str) -> bool:
        self._check_time()
        try:
            return _Descriptor.of(name, table).is_unix_socket
        except FileNotFoundError:  # closed meanwhile
            return False

    def _descends(self, pid: int, ancestor: int) -> bool:
        """Whether a process is a descendant of another; also where it has ended meanwhile."""
        try:
            while pid > 1:
                pid = proc.stat(self._root, f"{pid}/stat").parent
                if pid == ancestor:
                    return True
        except (OSError, ValueError):
            return True
        return False


class _Descriptor(NamedTuple):
    """What /proc/PID/fdinfo says of one (``seq_show`` in ``fs/proc/fd.c``, Linux 5.14).

    Reading it takes CAP_SYS_PTRACE, of another user's process, and no right to its files, as
    reading ``fd`` does. ``scm_fds`` is said of Unix sockets alone (``net/unix/af_unix.c``).
    """

    flags: int
    mount: int
    inode: int
    is_unix_socket: bool

    @classmethod
    def of(cls, path: str, directory: int) -> _Descriptor:
        """Raises OSError."""
        told = proc.read(path, directory, most=proc.PAGE)
        found = _FDINFO.match(told)
        if found is None:  # it has none of the lines, or not in this order
            return cls(0, -1, -1, is_unix_socket=True)
        flags, mount, inode = found.groups()
        return cls(int(flags, 8), int(mount), int(inode), b"\nscm_fds:" in told)


def _mount_of_sockets(root: int) -> int:
    """Which mount all sockets are files of: the kernel's own, the same for every process."""
    with socket.socket(socket.AF_UNIX) as one:
        return _Descriptor.of(f"self/fdinfo/{one.fileno()}", root).mount


def _is_closed_on_exec(directory: int, owner: str, descriptor: str) -> bool:
    """Whether it is; False as well where it isn't open any more."""
    try:
        told = _Descriptor.of(f"{owner}/fdinfo/{descriptor}", directory)
    except FileNotFoundError:
        return False
    return bool(told.flags & _O_CLOEXEC)


def _mask(pattern: re.Pattern[bytes], status: bytes) -> int:
    """A mask that a status has; all of it where it was cut short before."""
    found = pattern.search(status)
    return -1 if found is None else int(found[1], 16)


def _share_files(pid: int, tid: int) -> bool:
    """Whether a thread has the same table as its leader; False where that isn't to be learnt."""
    if _KCMP is None:
        return False
    return bool(_LIBC.syscall(_KCMP, pid, tid, _KCMP_FILES, 0, 0) == 0)


def _hides_none(root: int) -> bool:
    """Whether it shows all processes that its pid namespace has, and is that of ours.

    Of those that may not be looked at it can hide each (hidepid): then also the first one.
    """
    try:
        os.stat("1", dir_fd=root)
        return os.readlink("self", dir_fd=root) == str(os.getpid())
    except OSError:
        return False


def _is_first(root: int) -> bool:
    """Whether the pid namespace is the first one, which all processes of the host are in.

    In any other a process's children are seen as well as it is, but not who else there is.
    """
    return os.readlink("self/ns/pid", dir_fd=root) == proc.INITIAL
