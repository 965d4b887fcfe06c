"""Details of a process, read from /proc.

A process can falsify its name and arguments, but not its pid, ancestors, users and cgroups.
"""

from __future__ import annotations

import contextlib
import functools
import os
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Final

from ocsf_nft import proc
from ocsf_nft.attribution import containers
from ocsf_nft.attribution.user_names import UserNames
from ocsf_nft.process import Process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.attribution.program_hashes import ProgramHashes

_MOST_ANCESTORS: Final = 16
#: Maximum number of threads to check for one that is alive.
_MOST_THREADS: Final = 16
_DELETED: Final = b" (deleted)"
_MFD_CLOEXEC_NOEXEC: Final = 0x0001 | 0x0008  # include/uapi/linux/memfd.h
_NAMES: Final = UserNames()


def read(pid: int, *, started_ns: int, hashes: ProgramHashes | None = None) -> Process | None:
    """Return the details of the process ``pid``; None if they can't be read.

    ``started_ns`` is the start of the process (CLOCK_BOOTTIME): a later process may have the same
    id. The precision of the comparison is a clock tick, 10 ms. May block without a time limit.
    """
    try:
        # The process may exit or run another program meanwhile. This descriptor never refers to
        # another process.
        with proc.opened(f"/proc/{pid}") as directory:
            stat = proc.stat(directory)
            if stat.start != started_ns // proc.TICK_NS:
                return None
            stat, process = _observe(pid, directory, stat, hashes=hashes)
            return replace(process, ancestors=_ancestors(directory, stat))
    except (OSError, ValueError):  # it has exited, or this process may not read it
        return None


def _ancestors(directory: int, stat: proc.Stat) -> tuple[Process, ...]:
    found: list[Process] = []
    with contextlib.ExitStack() as opened:
        while len(found) < _MOST_ANCESTORS:
            above = _parent(directory, stat, opened)
            if above is None:  # also for the first process, whose parent is 0
                break
            directory, stat, process = above
            found.append(process)
    return tuple(found)


def _parent(
    child: int, born: proc.Stat, opened: contextlib.ExitStack
) -> tuple[int, proc.Stat, Process] | None:
    """Return a descriptor of a parent's /proc directory, and the parent's details; None on failure.

    ``child`` is a descriptor of the child's /proc directory. ``born`` is the child's ``stat``,
    which has the parent's pid. ``opened`` closes the returned descriptor.
    """
    with contextlib.suppress(OSError, ValueError):  # exited, or this process may not read it
        directory = opened.enter_context(proc.opened(f"/proc/{born.parent}"))
        stat, process = _observe(born.parent, directory, proc.stat(directory), is_ancestor=True)
        # If this is false, the parent's number may be that of another process.
        # The kernel gives an orphan its new parent before it frees the old parent's number.
        if stat.start <= born.start and proc.stat(child).parent == born.parent:
            return directory, stat, process
    return None


def _observe(
    pid: int,
    directory: int,
    stat: proc.Stat,
    *,
    is_ancestor: bool = False,
    hashes: ProgramHashes | None = None,
) -> tuple[proc.Stat, Process]:
    if not stat.is_dead or stat.threads == 1:
        return _read_consistent(pid, directory, stat, is_ancestor, hashes)
    # Its first thread has ended, and no longer shows a program or arguments.
    with _living_thread(directory) as thread:
        _, process = _read_consistent(pid, thread, proc.stat(thread), is_ancestor, hashes)
        stat = proc.stat(directory)
        # While the thread exists, no other process gets the pid, and no exec has ended the thread.
        # So both directories are of one process and one program.
        proc.stat(thread)
    name = None if process.name is None else proc.text(stat.name)
    return stat, replace(process, name=name, created_ns=stat.created_ns)


def _read_consistent(
    pid: int, directory: int, stat: proc.Stat, is_ancestor: bool, hashes: ProgramHashes | None
) -> tuple[proc.Stat, Process]:
    is_of_one, stat, process = _read_once(pid, directory, stat, is_ancestor, hashes)
    if not is_of_one:  # an exec happened during the read
        _, stat, process = _read_once(pid, directory, stat, is_ancestor, hashes)
    return stat, process


def _read_once(
    pid: int, directory: int, before: proc.Stat, is_ancestor: bool, hashes: ProgramHashes | None
) -> tuple[bool, proc.Stat, Process]:
    """Return the details of a process, and whether it ran the same program during the whole read.

    If it did not, the details that may belong to another program are None. ``before`` is the
    process's ``stat`` before the read. The returned ``stat`` is that after the read.
    """
    status = proc.status(directory)
    with _open_program(directory) as executed:
        # No arguments of ancestors: they may hold secrets, and reading them may block, because a
        # process can delay it (userfaultfd).
        arguments = None if is_ancestor else proc.arguments(directory)
        working_directory = None if is_ancestor else proc.link("cwd", directory)
        cgroups = "" if is_ancestor else _cgroups(directory)
        is_same = _is_same_program(executed, directory)
        after = proc.stat(directory)
        is_of_one = is_same and proc.is_same_program(
            before, after, has_program=executed is not None
        )
        path = is_deleted = digest = None
        if executed is not None and is_same:
            path, is_deleted = _program(executed)
            # A hash of an old program must not appear with the details of a new one.
            digest = hashes.sha256(executed) if hashes is not None and is_of_one else None
    placement = containers.parse_cgroups(cgroups)
    uid, gid = _NAMES.mapped_id(status.uid), _NAMES.mapped_id(status.gid)
    return (
        is_of_one,
        after,
        Process(
            pid=pid,
            name=proc.text(after.name) if is_of_one else None,
            path=path,
            is_deleted=is_deleted,
            sha256=digest,
            cmd_line=arguments if is_of_one else None,
            working_directory=working_directory,
            created_ns=after.created_ns,
            namespace_pid=status.numbers[-1] if len(status.numbers) > 1 else None,
            uid=uid,
            user_name=_NAMES.look_up("user", uid),
            gid=gid,
            group_name=_NAMES.look_up("group", gid),
            container=placement.container,
            unit=placement.unit,
        ),
    )


@contextlib.contextmanager
def _open_program(directory: int) -> Iterator[int | None]:
    try:
        descriptor = os.open("exe", os.O_PATH, dir_fd=directory)
    except OSError:  # it has no program file, or access is not permitted
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_same_program(executed: int | None, directory: int) -> bool:
    try:
        now = os.stat("exe", dir_fd=directory)
    except OSError:
        return executed is None
    return executed is not None and os.path.samestat(now, os.fstat(executed))


def _program(executed: int) -> tuple[str, bool | None]:
    """Return the path of an executed file, and whether the file is deleted; None if unknown.

    The path is that in the process's mount namespace. With CAP_CHECKPOINT_RESTORE, even only in its
    own user namespace, a process can falsify the path.
    """
    # In this order: if the file is deleted at the stat, the path shows that too.
    status = os.fstat(executed)
    link = f"/proc/self/fd/{executed}".encode()
    path = os.readlink(link)  # noqa: PTH115 - a Path would normalize the path
    # A file may have the same path as a memfd, but not the same device.
    if status.st_dev == _memfd_device():
        path = path.removeprefix(b"/")
    if status.st_nlink == 0:  # also if the file never had a name
        return proc.text(path.removesuffix(_DELETED)), True
    # " (deleted)" may be part of the name, or one of several names was removed.
    return proc.text(path), None if path.endswith(_DELETED) else False


@functools.cache
def _memfd_device() -> int | None:
    """Return the device number (``st_dev``) of all memfds; None if no memfd can be created."""
    for flags in (_MFD_CLOEXEC_NOEXEC, os.MFD_CLOEXEC):  # the first since Linux 6.3
        with contextlib.suppress(OSError):
            descriptor = os.memfd_create("", flags)
            try:
                return os.fstat(descriptor).st_dev
            finally:
                os.close(descriptor)
    return None


def _cgroups(directory: int) -> str:
    with contextlib.suppress(FileNotFoundError):  # a kernel without cgroups
        return proc.text(proc.read("cgroup", directory))
    return ""


@contextlib.contextmanager
def _living_thread(directory: int) -> Iterator[int]:
    with proc.opened("task", directory) as listing, os.scandir(listing) as entries:
        for entry in islice(entries, _MOST_THREADS):
            with proc.opened(entry.name, listing) as thread:
                if not proc.stat(thread).is_dead:
                    yield thread
                    return
    raise ProcessLookupError
