"""Foreign nftables tables with hostile names and rules, as the watch over a fence reads them."""

from __future__ import annotations

import struct
import subprocess
from collections import Counter
from typing import TYPE_CHECKING

import pydantic
import pytest

from ocsf_nft import netlink, netns
from ocsf_nft.fence.surroundings import changes, foreign_tables, undo
from ocsf_nft.fence.surroundings.facts import HookFact, Snapshot
from ocsf_nft.nfnetlink import Nftables, Statement

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.fence.surroundings.foreign_tables import ForeignTables

pytestmark = pytest.mark.kernel

_MOST = 1_000
_IPV4, _NETDEV = 2, 5
_GETCHAIN, _GETRULE = 4, 7
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


def _chain_on_many_devices() -> list[Statement]:
    """Return a chain that the kernel can't list: its devices take more than 32 KiB."""
    table = netlink.attribute(1, b"large\0")
    hook = netlink.attribute(1, struct.pack("!I", 1)) + netlink.attribute(2, struct.pack("!i", 5))
    made = [_statement(_NEWTABLE, table)]
    for group in range(15):
        names = (b"device%02d%07d\0" % (group, number) for number in range(128))
        devices = b"".join(netlink.attribute(1, name) for name in names)
        attached = netlink.attribute(4, hook + netlink.attribute(4, devices))
        chain = table + netlink.attribute(3, b"many\0") + attached
        made.append(_statement(_NEWCHAIN, chain + netlink.attribute(7, b"filter\0")))
    return made


def test_rule_that_a_chain_on_many_devices_hides_is_not_overlooked() -> None:
    def check() -> tuple[ForeignTables, ForeignTables]:
        with Nftables() as nftables:
            nftables.commit(_chain_on_many_devices())
            before = _read()
            nftables.commit(_table_with_notrack(b"evil"))
        return before, _read()

    before, after = netns.in_scratch(check)
    assert (before.hooks, before.is_cut) == ((), False)
    assert (after.hooks, after.is_cut) == ((), True)


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


_CHAINS = ("base", "jumped", "mapped")
_BASE = "type filter hook output priority 0;"


def _after(ruleset: str, *statements: Statement) -> ForeignTables:
    """Load a ruleset in a separate namespace, and return what is read there."""

    def check() -> ForeignTables:
        subprocess.run(["nft", ruleset], check=True)
        if statements:
            with Nftables() as nftables:
                nftables.commit(statements)
        return _read()

    return netns.in_scratch(check)


def test_rule_after_a_long_one_is_read() -> None:
    logs = " ".join(f'log prefix "{number:0>100}"' for number in range(60))
    found = _after(f"table inet t {{ chain c {{ {_BASE} {logs}; notrack; }}; }}")
    assert [each.statement for each in found.rewrites] == ["notrack"]
    assert not found.is_cut


def _endless_rule(chain: bytes) -> Statement:
    """Return a rule of table ``ip t`` that has no room in a message of 32 KiB: 127 comments."""
    comment = b"".join(
        (
            netlink.attribute(1, b"comment\0"),
            netlink.attribute(2, struct.pack("!I", 0)),
            netlink.attribute(3, bytes(256)),
        )
    )
    match = netlink.attribute(1, b"match\0") + netlink.attribute(2, comment)
    rule = netlink.attribute(1, b"t\0") + netlink.attribute(2, chain + b"\0")
    rule += netlink.attribute(4, netlink.attribute(1, match) * 127)
    return Statement(_NEWRULE, _CREATE, struct.pack("!BBH", _IPV4, 0, 0) + rule)


@pytest.mark.parametrize("chain", ["base", "jumped", "mapped"])
def test_rules_that_the_kernel_does_not_list_are_reported(chain: str) -> None:
    """The kernel ends the list at the rule without room, which comes before ``notrack``."""
    rules = {name: "notrack;" if name == chain else "counter;" for name in _CHAINS}
    ruleset = _with_all_jumps(rules)
    listed = _after(ruleset)
    assert [each.statement for each in listed.rewrites] == ["notrack"]
    assert not listed.is_cut
    cut = _after(ruleset, _endless_rule(chain.encode()))
    assert not cut.rewrites
    assert cut.is_cut


def _with_all_jumps(rules: dict[str, str]) -> str:
    """Return a ruleset with each kind of reference to a chain."""
    return f"""
        table ip t {{
            map intervals {{
                type ipv4_addr : verdict; flags interval;
                elements = {{ 192.0.2.0/25 : jump mapped, 198.51.100.1-198.51.100.7 : goto jumped }}
            }}
            chain mapped {{ {rules["mapped"]}; }}
            chain jumped {{ {rules["jumped"]}; jump mapped; }}
            chain unused {{ counter; }}
            chain base {{
                {_BASE}
                {rules["base"]}
                jump jumped; ip daddr vmap @intervals
                tcp dport vmap {{ 1 : jump mapped, 2-5 : goto jumped, 6 : drop }}
                tcp dport 7 jump {{ counter; tcp sport 8 goto jumped; }};
            }}
        }}
    """


def test_all_lists_of_a_kind_have_one_limit() -> None:
    """A process may create any number of tables and chains, each with as many rules."""

    def check() -> tuple[int, int, ForeignTables]:
        subprocess.run(["nft", "-f", "-"], input=_many(tables=20, rules=100), text=True, check=True)
        asked = []
        with pytest.MonkeyPatch.context() as patched:
            replies = netlink.replies

            def counted(*arguments: object, **options: object) -> Iterator[bytes]:
                for reply in replies(*arguments, **options):  # type: ignore[arg-type]
                    asked.append(arguments[1])
                    yield reply

            patched.setattr(netlink, "replies", counted)
            found = foreign_tables.read((), 500)
        kinds = Counter(asked)
        return kinds[10 << 8 | _GETRULE], kinds[10 << 8 | _GETCHAIN], found

    rules, chains, found = netns.in_scratch(check)
    assert found.is_cut
    assert rules <= 501
    assert chains <= 501
    assert len(found.hooks) == 20


def _many(*, tables: int, rules: int) -> str:
    body = "counter\n" * rules
    return "\n".join(
        f"table ip t{number} {{\n chain c {{\n {_BASE}\n {body} }}\n }}" for number in range(tables)
    )


@pytest.mark.parametrize(("flags", "found"), [(1, ["target"]), (0, [])])
def test_iptables_target_ct_is_reported_with_notrack(flags: int, found: list[str]) -> None:
    info = struct.pack("=HHII16s32s4xQ", flags, 0, 0, 0, b"", b"", 0)
    target = netlink.attribute(1, b"CT\0") + netlink.attribute(2, struct.pack("!I", 1))
    target = netlink.attribute(2, target + netlink.attribute(3, info))
    rule = netlink.attribute(1, b"raw\0") + netlink.attribute(2, b"OUTPUT\0")
    rule += netlink.attribute(4, netlink.attribute(1, netlink.attribute(1, b"target\0") + target))
    chain = "type filter hook output priority -300;"
    after = _after(
        f"table ip raw {{ chain OUTPUT {{ {chain} }}; }}",
        Statement(_NEWRULE, _CREATE, struct.pack("!BBH", _IPV4, 0, 0) + rule),
    )
    assert [each.statement for each in after.rewrites] == found
