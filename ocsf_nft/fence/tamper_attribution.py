"""Attribution of a change of nftables to the process that made the change.

With each change, the kernel reports the id and name of the thread (``nf_tables_fill_gen_info``). A
thread can choose its name, so the name proves nothing.
"""

from __future__ import annotations

import contextlib
from typing import Final

from ocsf_nft import proc
from ocsf_nft.process import Process

_DELETED: Final = " (deleted)"


def attribute_change(pid: int | None, comm: str | None, arrived_ns: int) -> Process | None:
    """Return the process that changed nftables, with its program's path and arguments if known.

    ``pid`` and ``comm`` are the thread's id and name, from the kernel's message. This message was
    read at ``arrived_ns`` (CLOCK_BOOTTIME). Return None if ``pid`` is None, or if ocsf-nft does not
    run in the initial pid namespace.
    """
    # The kernel's id is valid only in the initial pid namespace.
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
    # Another process may have the id now. Decoded in the same way as the name in the notice.
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
