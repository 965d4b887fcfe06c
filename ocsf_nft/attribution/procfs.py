"""The facts of a process while it lives: right, or unknown.

A process may die and its number be given to another one, it may run another program while we read,
and whatever it says of itself it chose. So all is read through one descriptor of its directory,
which never comes to mean another process, and what belongs together is told only when no other
program was started in between.

What can't be wrong is which process it is, what its ancestors, its users and its cgroups are. The
name and the arguments are its own words. The path is the kernel's, as seen from the root of the
mount namespace that the program's file is in; with CAP_CHECKPOINT_RESTORE, in a user namespace of
its own too, a process may have the kernel name another program than it runs.
"""

from __future__ import annotations

import contextlib
import functools
import os
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft import proc
from ocsf_nft.attribution import containers
from ocsf_nft.attribution.user_names import Names
from ocsf_nft.process import Process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.attribution.program_hashes import Hashes

_MOST_ANCESTORS: Final = 16
#: Of threads, to find one that lives.
_MOST_THREADS: Final = 16
_DELETED: Final = b" (deleted)"
_MFD_CLOEXEC_NOEXEC: Final = 0x0001 | 0x0008  # include/uapi/linux/memfd.h
_NAMES: Final = Names()


class _Program(NamedTuple):
    path: str
    is_deleted: bool | None


class _Look(NamedTuple):
    """What one look at a process or a thread shows."""

    stat: proc.Stat
    status: proc.Status
    name: str | None
    program: _Program | None
    sha256: str | None
    arguments: str | None
    working_directory: str | None
    cgroups: str


def read(
    pid: int,
    *,
    started_by_ns: int | None = None,
    started_ns: int | None = None,
    hashes: Hashes | None = None,
) -> Process | None:
    """The facts of a process, or of the process that a thread is of; None when it can't be found.

    ``pid`` is as /proc here numbers processes and threads. ``started_by_ns`` (CLOCK_BOOTTIME) is
    when it was there: whoever started later is another one that was given the number.
    ``started_ns`` is when exactly it started. Both are of the thread, where it is one, and good to
    a clock tick (10 ms). ``hashes`` is asked for the program's.

    Of a thread ``uid``, ``gid`` and ``working_directory`` are its own. A working directory that is
    gone ends in " (deleted)", as the kernel has it. A path that does and has ``is_deleted`` None is
    called so, or one of several names of it was taken away. A file that never had a name is
    deleted. ``ancestors`` end with the init of the outermost pid namespace that the process is in
    and we are not.

    To read the arguments may take as long as the process likes (it may hold the lock of its memory,
    or serve its pages itself, by userfaultfd), to look at its program as long as its file system
    takes, and to ask for names as long as the name service takes: this belongs in a thread that may
    be kept waiting, and the caller waits as long as it will.
    """
    try:
        with proc.opened(f"/proc/{pid}") as directory:
            stat = proc.stat(directory)
            if started_by_ns is not None and stat.started_ns > started_by_ns:
                return None
            if started_ns is not None and stat.start != started_ns // proc.TICK_NS:
                return None
            return _told(directory, pid, stat, hashes)
    except (OSError, ValueError):  # it is gone, or not for us to look at
        return None


def _told(directory: int, pid: int, stat: proc.Stat, hashes: Hashes | None) -> Process:
    look = _look(directory, stat, hashes=hashes)
    group = look.status.group
    if group == pid:
        return _process(pid, look, ancestors=_ancestors(directory, look))
    with proc.opened(f"/proc/{group}") as leader:
        look = _of_its_process(look, directory, leader)
        return _process(group, look, tid=pid, ancestors=_ancestors(leader, look))


def _process(
    pid: int, look: _Look, *, tid: int | None = None, ancestors: tuple[Process, ...] = ()
) -> Process:
    status, program = look.status, look.program
    placed = containers.whose(look.cgroups)
    uid, gid = _NAMES.known(status.uid), _NAMES.known(status.gid)
    return Process(
        pid=pid,
        tid=tid,
        name=look.name,
        path=None if program is None else program.path,
        is_deleted=None if program is None else program.is_deleted,
        sha256=look.sha256,
        cmd_line=look.arguments,
        working_directory=look.working_directory,
        created_ns=look.stat.created_ns,
        namespace_pid=status.numbers[-1] if len(status.numbers) > 1 else None,
        uid=uid,
        user_name=_NAMES.user(uid),
        gid=gid,
        group_name=_NAMES.group(gid),
        container=placed.container,
        unit=placed.unit,
        ancestors=ancestors,
    )


def _ancestors(directory: int, look: _Look) -> tuple[Process, ...]:
    found: list[Process] = []
    with contextlib.ExitStack() as opened:
        while len(found) < _MOST_ANCESTORS and not _is_top(look):
            above = _parent(directory, look.stat, opened)
            if above is None:  # or there is none: the first process's number of one is 0
                break
            pid = look.stat.parent
            directory, look = above
            found.append(_process(pid, look))
    return tuple(found)


def _is_top(look: _Look) -> bool:
    """Whether the sandbox's processes begin here, or nobody can tell.

    A pid namespace inside it has an init of its own, which has a third number: a sandboxed program
    can't hide behind that what started it.
    """
    numbers = look.status.numbers
    return not numbers or (len(numbers) == 2 and numbers[-1] == 1)


def _parent(child: int, born: proc.Stat, opened: contextlib.ExitStack) -> tuple[int, _Look] | None:
    """The directory of a parent, and what is seen of it; None when it can't be proved to be it."""
    with contextlib.suppress(OSError, ValueError):  # it is gone, or not for us to look at
        directory = opened.enter_context(proc.opened(f"/proc/{born.parent}"))
        look = _look(directory, proc.stat(directory), is_ancestor=True)
        # Who loses a parent has another one before that number is free again.
        if look.stat.start <= born.start and proc.stat(child).parent == born.parent:
            return directory, look
    return None


def _look(
    directory: int, stat: proc.Stat, *, is_ancestor: bool = False, hashes: Hashes | None = None
) -> _Look:
    if not stat.is_dead or stat.threads == 1:
        return _settled(directory, stat, is_ancestor, hashes)
    # Its first thread has ended, and shows neither a program nor arguments any more.
    with _living_thread(directory) as thread:
        look = _settled(thread, proc.stat(thread), is_ancestor, hashes)
        return _of_its_process(look, thread, directory)


def _of_its_process(look: _Look, thread: int, leader: int) -> _Look:
    """What a thread shows, but for what is of the process.

    Raises OSError when the thread is gone. As long as it is there, the process's number is the
    process's, so a directory that was opened by it is; and no other program was started, which
    would have ended the thread.
    """
    stat = proc.stat(leader)
    proc.stat(thread)
    return look._replace(stat=stat, name=None if look.name is None else proc.text(stat.name))


def _settled(directory: int, stat: proc.Stat, is_ancestor: bool, hashes: Hashes | None) -> _Look:
    look, is_of_one = _once(directory, stat, is_ancestor, hashes)
    if not is_of_one:  # it ran another program meanwhile
        look, _ = _once(directory, look.stat, is_ancestor, hashes)
    return look


def _once(
    directory: int, before: proc.Stat, is_ancestor: bool, hashes: Hashes | None
) -> tuple[_Look, bool]:
    """What is seen, without what may be of two programs, and whether there is nothing of that."""
    status = proc.status(directory)
    with _executed(directory) as executed:
        # Of an ancestor no arguments: it could keep us waiting, and they may hold secrets.
        arguments = None if is_ancestor else proc.arguments(directory)
        working_directory = None if is_ancestor else proc.link("cwd", directory)
        cgroups = "" if is_ancestor else _cgroups(directory)
        is_same = _is_executed(executed, directory)
        after = proc.stat(directory)
        is_of_one = is_same and proc.is_same_program(
            before, after, has_program=executed is not None
        )
        program = digest = None
        if executed is not None and is_same:
            program = _program(executed)
            # Who is about to run another program has not told of it yet.
            digest = hashes.sha256(executed) if hashes is not None and is_of_one else None
    look = _Look(
        stat=after,
        status=status,
        name=proc.text(after.name) if is_of_one else None,
        program=program,
        sha256=digest,
        arguments=arguments if is_of_one else None,
        working_directory=working_directory,
        cgroups=cgroups,
    )
    return look, is_of_one


@contextlib.contextmanager
def _executed(directory: int) -> Iterator[int | None]:
    """The very file that is executed; None where there is none, or it is not for us to look at."""
    try:
        descriptor = os.open("exe", os.O_PATH, dir_fd=directory)
    except OSError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_executed(executed: int | None, directory: int) -> bool:
    try:
        now = os.stat("exe", dir_fd=directory)
    except OSError:
        return executed is None
    return executed is not None and os.path.samestat(now, os.fstat(executed))


def _program(executed: int) -> _Program:
    # In this order: of a file that is found gone, the path says so too.
    status = os.fstat(executed)
    link = f"/proc/self/fd/{executed}".encode()
    path = os.readlink(link)  # noqa: PTH115 - a Path would tidy up what the process made of it
    if status.st_dev == _memory():
        path = path.removeprefix(b"/")
    if status.st_nlink == 0:
        return _Program(proc.text(path.removesuffix(_DELETED)), is_deleted=True)
    return _Program(proc.text(path), is_deleted=None if path.endswith(_DELETED) else False)


@functools.cache
def _memory() -> int | None:
    """The device of files that never were at a path: a file on a disk may look like one."""
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
