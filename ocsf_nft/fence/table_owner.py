"""Checks of an existing table: which sandbox it belongs to, and whether a process owns it."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Final

from ocsf_nft.errors import FenceError, UsageError
from ocsf_nft.fence import table_query
from ocsf_nft.netns import HOST

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocsf_nft.fence.spec import FenceSpec, Surroundings, TableId
    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.netns import Namespace

_OWNER: Final = re.compile(r"(?:fence|guard) of sandbox (.*)", re.DOTALL)


def owning_sandbox(namespace: Namespace, table_id: TableId) -> str | None:
    """Return the name of the sandbox to which a table belongs, according to the table's comment.

    Return None if the table is missing, or if the comment does not contain such a name. The comment
    is untrusted, because any process with CAP_NET_ADMIN can write it. Raises the errors of
    :func:`table_query.comment`.
    """
    found = _OWNER.fullmatch(table_query.comment(namespace, *table_id) or "")
    return None if found is None else found[1]


def refuse_other_sandbox(sandbox: str, namespace: Namespace, table_id: TableId) -> None:
    """Raise FenceError if the sandbox in a table's comment is not ``sandbox``.

    A missing table, or a comment that contains no sandbox's name, is not an error.
    """
    found = owning_sandbox(namespace, table_id)
    if found is not None and found != sandbox:
        raise _other_sandbox_error(found, namespace, table_id)


def refuse_exclusive(
    namespace: Namespace, table_ids: Iterable[TableId], state: StateDirectory
) -> None:
    """Raise FenceError if a process owns one of the tables exclusively.

    Only the owner can change such a table. If the owner is a process ``ocsf-nft run`` with the
    state directory ``state``, the error message contains the sandbox's name.
    """
    for table_id in table_ids:
        found = table_query.table(namespace, *table_id)
        if found is None or not found.is_exclusive:
            continue
        sandbox = owning_sandbox(namespace, table_id)
        is_run = False
        with contextlib.suppress(UsageError):  # not a valid sandbox name
            is_run = sandbox is not None and state.is_watched(sandbox)
        remedy = (
            f"stop the run of sandbox {sandbox} first (its fence stays)"
            if is_run
            else "that process is not a run that uses this state directory: end it first"
        )
        raise FenceError(
            f"the table {table_id.name} in {namespace} is exclusively owned by a process: {remedy}"
        )


def replaced_sandbox(
    spec: FenceSpec, around: Surroundings, namespace: Namespace, state: StateDirectory
) -> str | None:
    """Return the sandbox of a deleted VM if a new fence replaces this VM's tables; otherwise None.

    ``spec`` and ``around`` describe the new fence. Raises FenceError if the tables belong to
    another sandbox that may still be in use.
    """
    table_id, link_table = spec.tables
    if spec.tap is not None:
        _refuse_guard(spec.sandbox, namespace, link_table, state)
    found = owning_sandbox(namespace, table_id)
    if found is None or found == spec.sandbox:
        return None
    if spec.tap is None:
        raise _other_sandbox_error(found, namespace, table_id)
    installed = _record(found, state)
    if (
        installed is None
        or installed.identity != namespace.identity()
        or table_id not in installed.spec.tables
    ):
        return None
    # The tables of a VM's fence are named for its TAP device. A new VM may get the device name of a
    # deleted VM, but then the device has another index.
    if installed.around.ifindex == around.ifindex:
        raise _other_sandbox_error(found, namespace, table_id)
    return found


def _refuse_guard(
    sandbox: str, namespace: Namespace, table_id: TableId, state: StateDirectory
) -> None:
    """Raise FenceError if the table is the guard of a sandbox other than ``sandbox``."""
    found = owning_sandbox(namespace, table_id)
    if found is None or found == sandbox or namespace.identity() != HOST.identity():
        return
    installed = _record(found, state)
    # The untrusted comment is not enough: the record of that sandbox must name the table too.
    if installed is not None and table_id in installed.spec.guard_tables:
        raise _other_sandbox_error(found, namespace, table_id)


def _record(sandbox: str, state: StateDirectory) -> InstalledFence | None:
    try:
        return state.read(sandbox)
    except UsageError:  # not a valid sandbox name, so it has no record
        return None


def _other_sandbox_error(found: str, namespace: Namespace, table_id: TableId) -> FenceError:
    return FenceError(
        f"the table {table_id.name} in {namespace} is that of sandbox {found}: "
        "remove its fence first"
    )
