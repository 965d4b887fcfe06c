"""What /proc says of a process or a thread, as the kernel writes it.

A process may die and its number be given to another one, it may run another program while we read,
and its name and its arguments are what it wants them to be. So all is read through one descriptor
of its directory, which never comes to mean another process; what a process chose itself is never
taken for anything else; and of nothing more is read than there is a use for.

Whoever reads gets OSError where the process is gone, or is not for us to look at, and ValueError
where what there is to read is nothing that the kernel writes of a process.
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
#: What nearly all there is to read of a process fits into.
PAGE: Final = 4096

#: Who is in thousands of groups makes ``status`` long.
_MOST_BYTES: Final = 1 << 20
_MOST_ARGUMENTS: Final = PAGE
_PROC: Final = Path("/proc")

# A name may have any end of a line in it, and only the newline is escaped in ``status``: in bytes
# nothing else ends a line for these.
_GROUP: Final = re.compile(rb"^Tgid:\t(\d+)$", re.MULTILINE)
_USER: Final = re.compile(rb"^Uid:\t\d+\t(\d+)\t", re.MULTILINE)
_USERS_GROUP: Final = re.compile(rb"^Gid:\t\d+\t(\d+)\t", re.MULTILINE)
_NUMBERS: Final = re.compile(rb"^NStgid:((?:\t\d+)+)$", re.MULTILINE)


class Stat(NamedTuple):
    """``stat`` of a process or a thread (``do_task_stat`` in ``fs/proc/array.c``).

    ``name`` is the bytes that it chose. ``is_dead`` is of the thread: others may live on. ``flags``
    are the kernel's. ``had_children`` says whether it has waited for one. ``start`` is in ticks
    since boot. ``layout`` is where its program, its stack and its arguments are in memory: each
    program that is started has them elsewhere. None where we may not see it.
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
        """When it started, of CLOCK_BOOTTIME, rounded down to a clock tick."""
        return self.start * TICK_NS

    @property
    def created_ns(self) -> int:
        """When it started, since the epoch, UTC; the same whenever it is asked."""
        booted_ns = clocks.epoch_of(time.CLOCK_BOOTTIME)
        return booted_ns // TICK_NS * TICK_NS + self.started_ns


class Status(NamedTuple):
    """``status``; ``numbers`` are the process's, in our pid namespace first, in its own last.

    ``group`` is the number of the process that a thread is of. The user and the group of users are
    the effective ones, as our user namespace numbers them.
    """

    group: int
    uid: int
    gid: int
    numbers: tuple[int, ...]


def is_initial() -> bool:
    """Whether this process's pid namespace is the initial one, and /proc shows it."""
    try:
        namespace = str((_PROC / "self/ns/pid").readlink())
        return namespace == INITIAL and str((_PROC / "self").readlink()) == str(os.getpid())
    except OSError:
        return False


def directory(path: str, where: int | None = None) -> int:
    """A descriptor of a directory, as of /proc/PID; it is the caller's to close."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=where)


@contextlib.contextmanager
def opened(path: str, where: int | None = None) -> Iterator[int]:
    """The same for a while."""
    descriptor = directory(path, where)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read(path: str, where: int, *, most: int = _MOST_BYTES) -> bytes:
    """The beginning of a file in a directory, the whole of it where it is no longer than that."""
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
    """Where a link in a directory points; None where it does nowhere, or it is not for us to see.

    What it points to is not looked at, whose file system might keep us waiting.
    """
    with contextlib.suppress(OSError):  # a zombie's, a kernel thread's, or another user's
        return text(os.readlink(path.encode(), dir_fd=where))
    return None


def text(content: bytes) -> str:
    """What somebody chose, byte by byte: it need not be UTF-8."""
    return content.decode("utf-8", "surrogateescape")


def stat(where: int, path: str = "stat") -> Stat:
    """The ``stat`` in a directory."""
    return parsed_stat(read(path, where))


def parsed_stat(content: bytes) -> Stat:
    """What a ``stat`` says; raises ValueError."""
    # Its name may have anything in it, also what looks like the rest; the rest has no parenthesis.
    name, _, rest = content.partition(b"(")[2].rpartition(b")")
    fields = rest.split()
    if len(fields) < 49:
        raise ValueError(f"no stat of a process: {content!r}")
    # What children it has waited for took: page faults, which none is without, and time.
    taken = (fields[8], fields[10], fields[13], fields[14])
    return Stat(
        name=name,
        is_dead=fields[0] in {b"Z", b"X"},
        parent=int(fields[1]),
        flags=int(fields[6]),
        had_children=any(map(int, taken)),
        threads=int(fields[17]),
        start=int(fields[19]),
        # Where the arguments begin and end is 0 where there are none, and where we may not see it;
        # where they end, until the program is loaded that a process is about to start.
        layout=None if b"0" in fields[45:47] else (*fields[23:26], *fields[42:49]),
    )


def is_same_program(before: Stat, after: Stat, *, has_program: bool) -> bool:
    """Whether no other program was started between two looks at a process.

    ``has_program`` says whether its program was to be seen in between. Who calls itself something
    else runs the same program still. Who has a program and no layout is about to start it, under
    the name of the one before (``begin_new_exec``); who has neither shows nothing else to go by.
    """
    if before.layout != after.layout:
        return False
    return after.layout is not None if has_program else before.name == after.name


def status(where: int) -> Status:
    """The ``status`` in a directory."""
    return parsed_status(read("status", where))


def parsed_status(content: bytes) -> Status:
    """What a ``status`` says; raises ValueError."""
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
    """What a process was started with, by its own words; None where it says nothing.

    It may take as long as the process likes, which may hold the lock of its memory.
    """
    content = read("cmdline", where, most=_MOST_ARGUMENTS)
    return text(content.rstrip(b"\0").replace(b"\0", b" ")) or None
