"""Which process a transaction was made by, as far as that can be known afterwards; never a guess.

The kernel names the thread by its number in the initial pid namespace and by what it calls itself
(``nf_tables_fill_gen_info``). By the time that anybody reads it the process may have ended, and in
another pid namespace the number is another process's.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Final

from ocsf_nft.process import Process

_PROC: Final = Path("/proc")
#: include/uapi/linux/nsfs.h, PID_NS_INIT_INO: the initial pid namespace has this inode.
_INITIAL: Final = "pid:[4026531836]"
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_BYTES: Final = 4096


def culprit(pid: int | None, comm: str | None, arrived_ns: int) -> Process | None:
    """The process of a thread, None when it can't be known which one that is.

    ``arrived_ns`` (CLOCK_BOOTTIME) is when the notice was read: who started later is another one
    that was given the number. Of a process that is gone only ``pid`` and ``comm`` are known.
    """
    if pid is None or pid <= 0 or not is_initial():
        return None
    found = Process(pid=pid, name=comm)
    with contextlib.suppress(OSError, ValueError, IndexError):
        # All through one descriptor: it never comes to mean another process.
        directory = os.open(_PROC / str(pid), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return _looked_at(directory, found, arrived_ns)
        finally:
            os.close(directory)
    return found


def is_initial() -> bool:
    """Whether this process's pid namespace is the initial one, and /proc shows it."""
    try:
        namespace = str((_PROC / "self/ns/pid").readlink())
        return namespace == _INITIAL and str((_PROC / "self").readlink()) == str(os.getpid())
    except OSError:
        return False


def _looked_at(directory: int, found: Process, arrived_ns: int) -> Process:
    before = _read("stat", directory)
    name, _, after = before.partition(b"(")[2].rpartition(b")")
    started_ns = int(after.split()[19]) * 1_000_000_000 // _TICKS
    if started_ns > arrived_ns or name.decode("utf-8", "replace") != found.name:
        return found
    (group,) = (
        int(line.split()[1])
        for line in _read("status", directory).split(b"\n")  # a name may have other ends of lines
        if line.startswith(b"Tgid:")
    )
    arguments = _read("cmdline", directory).rstrip(b"\0").replace(b"\0", b" ")
    path = None
    with contextlib.suppress(OSError):  # another user's, and we may not look
        path = os.readlink("exe", dir_fd=directory)
    deleted = " (deleted)"
    # Where it ran another program meanwhile, this is not what the transaction was made by.
    if _read("stat", directory).rpartition(b")")[0] != before.rpartition(b")")[0]:
        return found
    now_ns, booted_ns = time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return Process(
        pid=group,
        name=found.name,
        path=None if path is None else path.removesuffix(deleted),
        is_deleted=None if path is None else path.endswith(deleted),
        cmd_line=arguments.decode("utf-8", "replace") or None,
        created_ns=now_ns - booted_ns + started_ns,
    )


def _read(name: str, directory: int) -> bytes:
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.read(descriptor, _BYTES)
    finally:
        os.close(descriptor)
