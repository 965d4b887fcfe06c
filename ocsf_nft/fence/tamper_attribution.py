"""Attribution of a change of nftables to a process, if it is certain which process made it.

The kernel reports the thread's id in the initial pid namespace and the name that the thread gave
itself (``nf_tables_fill_gen_info``). When the notice is read, the process may have exited. In
another pid namespace, the id belongs to another process.
"""

from __future__ import annotations

import contextlib
from typing import Final

from ocsf_nft import proc
from ocsf_nft.process import Process

_DELETED: Final = " (deleted)"


def attribute_change(pid: int | None, comm: str | None, arrived_ns: int) -> Process | None:
    """Return the process of the thread that changed nftables; None if it can't be determined.

    ``pid`` and ``comm`` are the thread's id and name in the kernel's notice. ``arrived_ns``
    (CLOCK_BOOTTIME) is the time when the notice was read. A process that started later is another
    one that received the same id. If the process has exited, only ``pid`` and ``comm`` are known.
    """
    if pid is None or pid <= 0 or not proc.is_initial():
        return None
    found = Process(pid=pid, name=comm)
    with (
        contextlib.suppress(OSError, ValueError),  # it has exited, or we lack the permission
        proc.opened(f"/proc/{pid}") as directory,
    ):
        return _inspect(directory, found, arrived_ns)
    return found


def _inspect(directory: int, found: Process, arrived_ns: int) -> Process:
    before = proc.stat(directory)
    # Decoded in the same way as the name in the notice.
    if before.started_ns > arrived_ns or before.name.decode("utf-8", "replace") != found.name:
        return found
    group = proc.status(directory).group
    arguments = proc.arguments(directory)
    # The path comes only from the link: a blocked file system of the file must not block the guard.
    path = proc.link("exe", directory)
    after = proc.stat(directory)
    # If it ran another program meanwhile, that is not the program that made the transaction.
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
