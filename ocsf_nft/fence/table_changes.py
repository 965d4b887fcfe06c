"""Deletion of whole nftables tables, and turning them off, without nft."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final

from ocsf_nft import netlink
from ocsf_nft.errors import FenceError
from ocsf_nft.fence import nft
from ocsf_nft.nfnetlink import (
    FAMILIES,
    NFT_TABLE_F_DORMANT,
    NFT_TABLE_F_OWNER,
    NFT_TABLE_F_PERSIST,
    Nftables,
    Statement,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ocsf_nft.fence.spec import TableId
    from ocsf_nft.netns import Namespace
    from ocsf_nft.nfnetlink import Table

# include/uapi/linux/netfilter/nf_tables.h
_NFT_MSG_NEWTABLE: Final = 0
_NFT_MSG_DELTABLE: Final = 2
_NFTA_TABLE_NAME: Final = 1
_NFTA_TABLE_FLAGS: Final = 2
_OWNED: Final = NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST
#: Attempts to change tables while other processes change the ruleset.
_TRIES: Final = 10


def turn_off(namespace: Namespace, table_ids: Sequence[TableId]) -> None:
    """Make tables dormant in one transaction: they get no packets, and keep their counters.

    A packet goes through the tables in the order of ``table_ids``. Missing tables are ignored.
    Blocks. Raises AbsentError, UnsupportedError, FenceError.
    """
    # Not the first one first: the others would count what it does not refuse any more.
    _change(namespace, tuple(reversed(table_ids)), _dormant)


def delete(namespace: Namespace, table_ids: Sequence[TableId]) -> bool:
    """Delete tables in one transaction; return False if none of them existed.

    Blocks. Raises AbsentError, UnsupportedError, FenceError.
    """
    return _change(namespace, table_ids, lambda table_id, _: deletion_statement(table_id))


def ownership_statement(table_id: TableId) -> Statement:
    """Return the netlink statement that makes the sending socket the exclusive owner of a table.

    While the socket is open, only this socket can change the table. A missing table is created. An
    existing one must already have the flag ``persist``.
    """
    return _table_statement(table_id, _OWNED)


def ensuring_statement(table_id: TableId, *, is_owned: bool) -> Statement:
    """Return the netlink statement for the line of :func:`ruleset.ensure_table`."""
    return _table_statement(table_id, _OWNED if is_owned else 0)


def deletion_statement(table_id: TableId) -> Statement:
    """Return the netlink statement that deletes an existing table, with its content."""
    return Statement(_NFT_MSG_DELTABLE, 0, _payload(table_id))


def _dormant(table_id: TableId, table: Table) -> Statement:
    # The kernel changes a persistent table only for its owner.
    owned = _OWNED if table.is_persistent else 0
    return _table_statement(table_id, NFT_TABLE_F_DORMANT | owned)


def _table_statement(table_id: TableId, flags: int) -> Statement:
    payload = _payload(table_id)
    payload += netlink.attribute(_NFTA_TABLE_FLAGS, struct.pack("!I", flags))
    return Statement(_NFT_MSG_NEWTABLE, 0, payload)


def _payload(table_id: TableId) -> bytes:
    header = struct.pack("!BBH", FAMILIES[table_id.family], 0, 0)
    return header + netlink.attribute(_NFTA_TABLE_NAME, table_id.name.encode() + b"\0")


def _change(
    namespace: Namespace,
    table_ids: Sequence[TableId],
    statement: Callable[[TableId, Table], Statement],
) -> bool:
    """Execute a statement for each table that exists, in one transaction; False if none exists."""

    def inside() -> bool:
        with Nftables() as nftables:
            for _ in range(_TRIES):
                # Another process may delete or create a table meanwhile.
                generation = nftables.generation()
                tables = [(each, nftables.table(*each)) for each in table_ids]
                statements = [statement(each, table) for each, table in tables if table is not None]
                if not statements or _commit(nftables, statements, generation):
                    return bool(statements)
        raise FenceError(f"the ruleset in {namespace} is changed all the time")

    try:
        return namespace.call(inside)
    except PermissionError as error:
        raise nft.permission_error() from error
    except OSError as error:
        reason = error.strerror or error
        raise FenceError(f"the tables in {namespace} can't be changed: {reason}") from error


def _commit(nftables: Nftables, statements: Sequence[Statement], generation: int) -> bool:
    """Execute the statements; return False if the ruleset has another generation."""
    try:
        nftables.commit(statements, generation)
    except OSError as error:
        if error.errno != errno.ERESTART:
            raise
        return False
    return True
