"""Deletion of whole nftables tables, and turning them off, without nft."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from ocsf_nft import netlink
from ocsf_nft.errors import FenceError
from ocsf_nft.fence import table_query
from ocsf_nft.nfnetlink import (
    FAMILIES,
    NFT_TABLE_F_DORMANT,
    NFT_TABLE_F_OWNER,
    NFT_TABLE_F_PERSIST,
    Generation,
    Nftables,
    Statement,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ocsf_nft.fence.spec import TableId
    from ocsf_nft.netns import Namespace
    from ocsf_nft.nfnetlink import Table

# include/uapi/linux/netfilter/nf_tables.h
_NFT_MSG_NEWTABLE: Final = 0
_NFT_MSG_DELTABLE: Final = 2
_NFTA_TABLE_NAME: Final = 1
_NFTA_TABLE_FLAGS: Final = 2
_OWNED: Final = NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST


def turn_off(namespace: Namespace, table_ids: Sequence[TableId]) -> Generation | None:
    """Make tables dormant in one transaction: they get no packets, and keep their counters.

    A packet goes through the tables in the order of ``table_ids``. Missing tables are ignored.
    Return the generation of the ruleset after that; None if another process has turned a table on
    again. Blocks. Raises AbsentError, UnsupportedError, FenceError.
    """

    def inside() -> Generation | None:
        with Nftables() as nftables:
            # Not the first one first: the others would count what it does not refuse any more.
            tables = _existing(nftables, reversed(table_ids))
            _commit(nftables, [_flags_statement(*each, is_dormant=True) for each in tables])
            generation = Generation(nftables.cookie, nftables.generation())
            now = _existing(nftables, table_ids)
        return generation if all(table.is_dormant for _, table in now) else None

    return table_query.call(namespace, inside)


def turn_on(namespace: Namespace, table_ids: Sequence[TableId]) -> None:
    """Undo :func:`turn_off`; raises the same errors."""

    def inside() -> None:
        with Nftables() as nftables:
            tables = _existing(nftables, table_ids)
            _commit(nftables, [_flags_statement(*each, is_dormant=False) for each in tables])

    table_query.call(namespace, inside)


def delete(namespace: Namespace, table_ids: Sequence[TableId]) -> bool:
    """Delete tables in one transaction; return False if none of them existed.

    A dormant table is not turned on. Raises the errors of :func:`turn_off`.
    """

    def inside() -> bool:
        with Nftables() as nftables:
            tables = _existing(nftables, table_ids)
            statements = [
                statement
                for table_id, table in tables
                for statement in (
                    # Created first, since another process may delete the table meanwhile.
                    _flags_statement(table_id, table, is_dormant=table.is_dormant),
                    deletion_statement(table_id),
                )
            ]
            _commit(nftables, statements)
        return bool(tables)

    return table_query.call(namespace, inside)


def commit(namespace: Namespace, statements: Sequence[Statement]) -> None:
    """Execute statements in one transaction; raises the errors of :func:`turn_off`."""

    def inside() -> None:
        with Nftables() as nftables:
            _commit(nftables, statements)

    table_query.call(namespace, inside)


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


def ownership_failure(error: OSError) -> str:
    """Return, as text, why the kernel refused to change a fence's tables or the tables' owner."""
    if isinstance(error, PermissionError):
        return "another process owns them exclusively"
    return error.strerror or str(error)


def _flags_statement(table_id: TableId, table: Table, *, is_dormant: bool) -> Statement:
    # The kernel changes a persistent table only for its owner.
    owned = _OWNED if table.is_persistent else 0
    return _table_statement(table_id, owned | (NFT_TABLE_F_DORMANT if is_dormant else 0))


def _table_statement(table_id: TableId, flags: int) -> Statement:
    payload = _payload(table_id)
    payload += netlink.attribute(_NFTA_TABLE_FLAGS, struct.pack("!I", flags))
    return Statement(_NFT_MSG_NEWTABLE, 0, payload)


def _payload(table_id: TableId) -> bytes:
    header = struct.pack("!BBH", FAMILIES[table_id.family], 0, 0)
    return header + netlink.attribute(_NFTA_TABLE_NAME, table_id.name.encode() + b"\0")


def _existing(nftables: Nftables, table_ids: Iterable[TableId]) -> list[tuple[TableId, Table]]:
    found = ((table_id, nftables.table(*table_id)) for table_id in table_ids)
    return [(table_id, table) for table_id, table in found if table is not None]


def _commit(nftables: Nftables, statements: Sequence[Statement]) -> None:
    """Execute the statements in one transaction; raises FenceError."""
    if statements:
        try:
            nftables.commit(statements)
        except OSError as error:
            reason = ownership_failure(error)
            raise FenceError(f"the fence's tables can't be changed: {reason}") from error
