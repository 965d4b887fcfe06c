"""Foreign nftables tables with hostile names and rules, as the watch over a fence reads them."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pydantic
import pytest

from ocsf_nft import netlink, netns
from ocsf_nft.fence.surroundings import changes, foreign_tables, undo
from ocsf_nft.fence.surroundings.facts import HookFact, Snapshot
from ocsf_nft.nfnetlink import Nftables, Statement

if TYPE_CHECKING:
    from ocsf_nft.fence.surroundings.foreign_tables import ForeignTables

pytestmark = pytest.mark.kernel

_MOST = 1_000
_NETDEV = 5
_NEWTABLE, _NEWCHAIN, _NEWRULE = 0, 3, 6
_CREATE, _APPEND = 0x400, 0x800


def _read() -> ForeignTables:
    return foreign_tables.read((), _MOST)


def _snapshot(found: ForeignTables) -> Snapshot:
    return Snapshot(hooks=found.hooks, rewrites=found.rewrites)


def _statement(kind: int, attributes: bytes) -> Statement:
    return Statement(kind, _CREATE | _APPEND, struct.pack("!BBH", _NETDEV, 0, 0) + attributes)


def _table_with_notrack(name: bytes) -> list[Statement]:
    table = netlink.attribute(1, name + b"\0")
    hook = netlink.attribute(1, struct.pack("!I", 1)) + netlink.attribute(2, struct.pack("!i", 9))
    hook += netlink.attribute(3, b"lo\0")
    chain = table + netlink.attribute(3, b"late\0") + netlink.attribute(4, hook)
    expression = netlink.attribute(1, netlink.attribute(1, b"notrack\0"))
    rule = table + netlink.attribute(2, b"late\0") + netlink.attribute(4, expression)
    return [
        _statement(_NEWTABLE, table),
        _statement(_NEWCHAIN, chain + netlink.attribute(7, b"filter\0")),
        _statement(_NEWRULE, rule),
    ]


@pytest.mark.parametrize("name", [b"\xffevil", b"\\xffevil", "\u00fcbel".encode()])
def test_table_whose_name_is_not_utf8_is_read_and_undone(name: bytes) -> None:
    def check() -> tuple[ForeignTables, ForeignTables]:
        with Nftables() as nftables:
            nftables.commit(_table_with_notrack(name))
        before = _read()
        undo.undo(changes.weakening(Snapshot(), _snapshot(before)))
        return before, _read()

    before, after = netns.in_scratch(check)
    assert [(each.chain, each.hook) for each in before.hooks] == [("late", "egress")]
    assert [each.statement for each in before.rewrites] == ["notrack"]
    assert before.hooks[0].table == name.decode("utf-8", "backslashreplace")
    assert (after.hooks, after.rewrites) == ((), ())


def test_record_of_an_older_version_accepts_its_chains() -> None:
    def check() -> ForeignTables:
        with Nftables() as nftables:
            nftables.commit(_table_with_notrack(b"x"))
        return _read()

    found = netns.in_scratch(check)
    adapter = pydantic.TypeAdapter(tuple[HookFact, ...])
    older = adapter.validate_python([[*each][:-1] for each in found.hooks])
    assert adapter.validate_json(adapter.dump_json(found.hooks)) == found.hooks
    now = _snapshot(found)
    assert not changes.weakening(Snapshot(hooks=older, rewrites=found.rewrites), now)
