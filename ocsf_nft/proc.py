"""Reader of the files of a process or a thread in /proc.

``where`` is always the descriptor of the directory in which a relative path begins. Reads raise
OSError if the process has exited or may not be inspected. They raise ValueError if the content does
not have the kernel's format.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft import clocks, redaction

if TYPE_CHECKING:
    from collections.abc import Iterator

TICK_NS: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
#: include/uapi/linux/nsfs.h, PID_NS_INIT_INO: the initial pid namespace has this inode.
_INITIAL: Final = "pid:[4026531836]"
#: Size of a read; nearly all files of a process are smaller.
PAGE: Final = 4096

#: ``status`` is long for a user in thousands of groups.
_MOST_BYTES: Final = 1 << 20
_MOST_ARGUMENTS: Final = PAGE
_PROC: Final = Path("/proc")

# A name may have any line separator in it, and ``status`` escapes only the newline. In patterns for
# bytes, only a newline ends a line.
_GROUP: Final = re.compile(rb"^Tgid:\t(\d+)$", re.MULTILINE)
_USER: Final = re.compile(rb"^Uid:\t\d+\t(\d+)\t", re.MULTILINE)
_USERS_GROUP: Final = re.compile(rb"^Gid:\t\d+\t(\d+)\t", re.MULTILINE)
_NUMBERS: Final = re.compile(rb"^NStgid:((?:\t\d+)+)$", re.MULTILINE)


class Stat(NamedTuple):
    """Content of /proc/PID/stat of a process or thread (``do_task_stat`` in fs/proc/array.c)."""

    #: Untrusted: the process itself can set its name.
    name: bytes
    #: True for a zombie or a dead thread, even if other threads still run.
    is_dead: bool
    parent: int
    #: The kernel's PF_ flags.
    flags: int
    #: Whether the process has waited for the end of a child process.
    had_children: bool
    threads: int
    #: Start of the process, in clock ticks since boot.
    start: int
    #: Memory addresses of program, stack and arguments, which change at each program start. None if
    #: the kernel shows us none, for example of another user's process or of a kernel thread.
    layout: tuple[bytes, ...] | None

    @property
    def started_ns(self) -> int:
        """Return the start time in ns of CLOCK_BOOTTIME, rounded down to a clock tick."""
        return self.start * TICK_NS

    @property
    def created_ns(self) -> int:
        """Return the start time in ns since the epoch (UTC), rounded down to a clock tick.

        If the wall clock is set between two reads of this property, their results differ.
        """
        # The boot time is computed from the present wall clock, and has a small error that varies.
        # Rounding normally hides it.
        booted_ns = clocks.epoch_of(time.CLOCK_BOOTTIME)
        return booted_ns // TICK_NS * TICK_NS + self.started_ns


class Status(NamedTuple):
    """Content of /proc/PID/status of a process or a thread."""

    #: Thread group id: for a thread, the pid of the thread's process.
    group: int
    #: Effective user id in our user namespace.
    uid: int
    #: Effective group id in our user namespace.
    gid: int
    #: Pids of the process in nested pid namespaces, from our namespace to the innermost one.
    numbers: tuple[int, ...]


def is_initial() -> bool:
    """Return true if this process is in the initial pid namespace, and /proc shows that namespace.

    If /proc can't be read, return False.
    """
    try:
        namespace = str((_PROC / "self/ns/pid").readlink())
        return namespace == _INITIAL and str((_PROC / "self").readlink()) == str(os.getpid())
    except OSError:
        return False


def shows_all(root: int) -> bool:
    """Return True if /proc belongs to our pid namespace and shows all processes in it.

    ``root`` is a descriptor of /proc.
    """
    try:
        os.stat("1", dir_fd=root)  # not visible with the mount option hidepid
        return os.readlink("self", dir_fd=root) == str(os.getpid())
    except OSError:
        return False


@contextlib.contextmanager
def opened(path: str, where: int | None = None) -> Iterator[int]:
    """Open a directory such as /proc/PID, yield its descriptor, and close it at the end."""
    # The process is not trusted: it may exit or start another program during a read. So all reads
    # of a process use one descriptor, which never refers to a new process with the same pid.
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=where)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read(path: str, where: int, *, most: int = _MOST_BYTES) -> bytes:
    """Return at most ``most`` bytes of a file in /proc; ``most`` must be 4096 (a page) or more."""
    descriptor = os.open(path, os.O_RDONLY, dir_fd=where)
    try:
        content = part = os.read(descriptor, PAGE)
        while len(part) >= PAGE and len(content) < most:
            part = os.read(descriptor, most - len(content))
            content += part
        return content
    finally:
        os.close(descriptor)


def link(path: str, where: int) -> str | None:
    """Return the target of a symbolic link in a directory; None if it can't be read."""
    with contextlib.suppress(OSError):  # of a zombie, a kernel thread, or another user's process
        return text(os.readlink(path.encode(), dir_fd=where))
    return None


def text(content: bytes) -> str:
    """Decode bytes that a process chose; bytes that are not UTF-8 become lone surrogates."""
    return content.decode("utf-8", "surrogateescape")


def stat(where: int, path: str = "stat") -> Stat:
    """Read and parse the ``stat`` file of a process or a thread."""
    return parsed_stat(read(path, where))


def parsed_stat(content: bytes) -> Stat:
    """Parse the content of a /proc/PID/stat; raises ValueError if it is invalid."""
    # The name may contain any text, also one like the fields after it; those have no parenthesis.
    name, _, rest = content.partition(b"(")[2].rpartition(b")")
    fields = rest.split()
    if len(fields) < 49:
        raise ValueError(f"no stat of a process: {content!r}")
    # Page faults (every child has some) and time of the children that the process has waited for.
    of_children = (fields[8], fields[10], fields[13], fields[14])
    return Stat(
        name=name,
        is_dead=fields[0] in {b"Z", b"X"},
        parent=int(fields[1]),
        flags=int(fields[6]),
        had_children=any(map(int, of_children)),
        threads=int(fields[17]),
        start=int(fields[19]),
        # Start and end of the arguments are 0 if there are none, or if we may not see them. The end
        # is also 0 until the program that a process is about to start is loaded.
        layout=None if b"0" in fields[45:47] else (*fields[23:26], *fields[42:49]),
    )


def is_same_program(before: Stat, after: Stat, *, has_program: bool) -> bool:
    """Return true if a process ran the same program at two reads of its ``stat`` file.

    The program's memory addresses must be equal in ``before`` and ``after``. If ``has_program`` is
    false (/proc/PID/exe could not be read), the process name must be equal too.
    """
    if before.layout != after.layout:
        return False
    # Without a program file, both layouts may be None, so the names are compared too.
    # A program file without a layout: the process is just starting the program, and still has the
    # name of the previous one (begin_new_exec).
    return after.layout is not None if has_program else before.name == after.name


def status(where: int) -> Status:
    """Read and parse the ``status`` file of a process or a thread."""
    return parsed_status(read("status", where))


def parsed_status(content: bytes) -> Status:
    """Parse the content of a /proc/PID/status; raises ValueError if it is invalid."""
    numbers = _NUMBERS.search(content)
    return Status(
        group=_number(_GROUP, content),
        uid=_number(_USER, content),
        gid=_number(_USERS_GROUP, content),
        numbers=() if numbers is None else tuple(map(int, numbers[1].split())),
    )


def _number(pattern: re.Pattern[bytes], content: bytes) -> int:
    match = pattern.search(content)
    if match is None:
        raise ValueError(f"no status of a process: {content!r}")
    return int(match[1])


def arguments(where: int) -> str | None:
    """Return a process's command line, with spaces between the arguments; None if it is empty.

    Secrets are replaced (:mod:`ocsf_nft.redaction`). Only the first 4096 bytes are read. The read
    may block.
    """
    # A process can hold the lock of its memory, and so block this read.
    content = read("cmdline", where, most=_MOST_ARGUMENTS)
    words = text(content.rstrip(b"\0")).split("\0")
    is_cut = len(content) >= _MOST_ARGUMENTS
    return redaction.current().command_line(words, is_cut=is_cut) or None
