"""Reader of the files of a process or a thread in /proc.

The process is not trusted. It chooses its name and its arguments. It may start another program
during a read. It may exit, and the kernel may then give its pid to another process. So all reads of
a process use one descriptor of its /proc directory, which never refers to another process. A text
that the process chose can't be mistaken for another field. Only a limited part of a file is read.

Reads raise OSError if the process has exited or may not be inspected. They raise ValueError if the
content does not have the kernel's format.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft import clocks

if TYPE_CHECKING:
    from collections.abc import Iterator

TICK_NS: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
#: include/uapi/linux/nsfs.h, PID_NS_INIT_INO: the initial pid namespace has this inode.
INITIAL: Final = "pid:[4026531836]"
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
    """Content of /proc/PID/stat of a process or thread (``do_task_stat`` in ``fs/proc/array.c``).

    ``name`` has the bytes that the process chose. ``is_dead`` is true for a dead thread or a
    zombie; other threads of the process may still run. ``parent`` is the parent's pid. ``flags``
    are the kernel's PF_ flags. ``had_children`` is true if the process has waited for the end of a
    child process. ``start`` is the start time in clock ticks since boot. ``layout`` has the memory
    addresses of program, stack and arguments. These addresses change at each start of a program.
    ``layout`` is None if we may not see the addresses, or if the process has no arguments (yet).
    """

    name: bytes
    is_dead: bool
    parent: int
    flags: int
    had_children: bool
    threads: int
    start: int
    layout: tuple[bytes, ...] | None

    @property
    def started_ns(self) -> int:
        """Return the start time in ns of CLOCK_BOOTTIME, rounded down to a clock tick."""
        return self.start * TICK_NS

    @property
    def created_ns(self) -> int:
        """Return the start time in ns since the epoch (UTC), rounded down to a clock tick.

        Because of the rounding, each call returns the same time, unless the wall clock was set
        meanwhile.
        """
        booted_ns = clocks.epoch_of(time.CLOCK_BOOTTIME)
        return booted_ns // TICK_NS * TICK_NS + self.started_ns


class Status(NamedTuple):
    """Content of /proc/PID/status of a process or a thread.

    ``group`` is the pid of the process (thread group), also if the content is about one of its
    threads. A process has a pid in each of the nested pid namespaces that contain it. ``numbers``
    has these pids: first the pid in our namespace, last the pid in the process's own namespace.
    ``uid`` and ``gid`` are the effective ids, as numbers of our user namespace.
    """

    group: int
    uid: int
    gid: int
    numbers: tuple[int, ...]


def is_initial() -> bool:
    """Return true if this process is in the initial pid namespace, and /proc shows that namespace.

    Return False if this can't be read.
    """
    try:
        namespace = str((_PROC / "self/ns/pid").readlink())
        return namespace == INITIAL and str((_PROC / "self").readlink()) == str(os.getpid())
    except OSError:
        return False


def directory(path: str, where: int | None = None) -> int:
    """Open a directory such as /proc/PID; return its descriptor, which the caller must close.

    ``where`` is the descriptor of the directory in which a relative ``path`` begins.
    """
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=where)


@contextlib.contextmanager
def opened(path: str, where: int | None = None) -> Iterator[int]:
    """Open a directory such as /proc/PID; close it at the end of the context.

    Yields the directory's descriptor. ``where`` is the descriptor of the directory in which a
    relative ``path`` begins.
    """
    descriptor = directory(path, where)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read(path: str, where: int, *, most: int = _MOST_BYTES) -> bytes:
    """Return the first ``most`` bytes of a file in a /proc directory, or all of a shorter file.

    ``where`` is the descriptor of the directory. The first read is always of one page (4096 bytes).
    So the result may have up to one page, even if ``most`` is less.
    """
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
    """Return the target of a symbolic link in a directory; None if it can't be read.

    ``where`` is the directory's descriptor. The target itself is not opened, because its file
    system might block.
    """
    with contextlib.suppress(OSError):  # of a zombie, a kernel thread, or another user's process
        return text(os.readlink(path.encode(), dir_fd=where))
    return None


def text(content: bytes) -> str:
    """Decode bytes that a process chose; bytes that are not UTF-8 become lone surrogates."""
    return content.decode("utf-8", "surrogateescape")


def stat(where: int, path: str = "stat") -> Stat:
    """Read and parse a ``stat`` file below a directory of /proc.

    ``where`` is the directory's descriptor. ``path`` is the path in it: ``stat`` in the directory
    of a process, ``4242/stat`` in /proc itself.
    """
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
    """Return true if a process ran the same program at two reads of its ``stat``.

    ``before`` and ``after`` are the two results. ``has_program`` is true if the process's program
    file was visible between the reads. In this case, both layouts must be known and equal. The
    names may differ, because a process may change its name. If the program file was not visible,
    both the layouts and the names must be equal.

    A process with a program file but without a known layout is just starting this program. At that
    time it still has the name of the previous program (``begin_new_exec``).
    """
    if before.layout != after.layout:
        return False
    return after.layout is not None if has_program else before.name == after.name


def status(where: int) -> Status:
    """Read and parse the file ``status`` in a process's /proc directory (descriptor ``where``)."""
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

    ``where`` is the descriptor of the process's /proc directory. The process can change its command
    line. The read may block: the process can hold the lock of its own memory.
    """
    content = read("cmdline", where, most=_MOST_ARGUMENTS)
    return text(content.rstrip(b"\0").replace(b"\0", b" ")) or None
