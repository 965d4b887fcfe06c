"""Which process a transaction was made by, as far as that can be known afterwards; never a guess.

The kernel names the thread by its number in the initial pid namespace and by what it calls itself
(``nf_tables_fill_gen_info``). By the time that anybody reads it the process may have ended, and in
another pid namespace the number is another process's.
"""

from __future__ import annotations

import contextlib
from typing import Final

from ocsf_nft import proc
from ocsf_nft.process import Process

_DELETED: Final = " (deleted)"


def culprit(pid: int | None, comm: str | None, arrived_ns: int) -> Process | None:
    """The process of a thread, None when it can't be known which one that is.

    ``arrived_ns`` (CLOCK_BOOTTIME) is when the notice was read: who started later is another one
    that was given the number. Of a process that is gone only ``pid`` and ``comm`` are known.
    """
    if pid is None or pid <= 0 or not proc.is_initial():
        return None
    found = Process(pid=pid, name=comm)
    with (
        contextlib.suppress(OSError, ValueError),  # it is gone, or not for us to look at
        proc.opened(f"/proc/{pid}") as directory,
    ):
        return _looked_at(directory, found, arrived_ns)
    return found


def _looked_at(directory: int, found: Process, arrived_ns: int) -> Process:
    before = proc.stat(directory)
    # As the notice's is decoded.
    if before.started_ns > arrived_ns or before.name.decode("utf-8", "replace") != found.name:
        return found
    group = proc.status(directory).group
    arguments = proc.arguments(directory)
    # By what the link says alone: who waits for the file's file system guards no fence meanwhile.
    path = proc.link("exe", directory)
    after = proc.stat(directory)
    # Where it ran another program meanwhile, this is not what the transaction was made by.
    is_same = proc.is_same_program(before, after, has_program=path is not None)
    if after.name != before.name or not is_same:
        return found
    return Process(
        pid=group,
        name=found.name,
        path=None if path is None else path.removesuffix(_DELETED),
        is_deleted=None if path is None else path.endswith(_DELETED),
        cmd_line=arguments,
        created_ns=after.created_ns,
    )
