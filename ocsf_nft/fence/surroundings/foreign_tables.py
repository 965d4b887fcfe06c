"""Base chains and rewriting rules of nftables tables that do not belong to the fence."""

from __future__ import annotations

import struct
import sys
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from ocsf_nft import netlink, nfnetlink
from ocsf_nft.fence.surroundings import chain_uses, names
from ocsf_nft.fence.surroundings.facts import HookFact, RewriteFact
from ocsf_nft.fence.surroundings.limits import Limit
from ocsf_nft.nfnetlink import Statement

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from ocsf_nft.fence.spec import TableId

Attributes: TypeAlias = "dict[int, memoryview]"
#: Family and name of a table.
Table: TypeAlias = tuple[int, bytes]
_NOTHING: Final = memoryview(b"")
#: Readings until rules count as hidden: they may change between two lists.
_ATTEMPTS: Final = 3

# include/uapi/linux/netfilter.h and netfilter/nf_tables.h
_FAMILIES: Final = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_NUMBERS: Final = {name: number for number, name in _FAMILIES.items()}
_HOOKS: Final = {0: "prerouting", 1: "input", 2: "forward", 3: "output", 4: "postrouting"}
_OTHER_HOOKS: Final = {
    (1, 5): "ingress", (5, 0): "ingress", (5, 1): "egress", (3, 0): "input", (3, 1): "output",
    (3, 2): "forward",
}  # fmt: skip
_GETTABLE: Final = 1
_GETCHAIN: Final = 4
_DELCHAIN: Final = 5
_GETRULE: Final = 7
_GETSET: Final = 10
_GETSETELEM: Final = 13
_TABLE_NAME: Final = 1
_TABLE_HANDLE: Final = 4
_CHAIN_TABLE: Final = 1
_CHAIN_HANDLE: Final = 2
_CHAIN_NAME: Final = 3
_CHAIN_HOOK: Final = 4
_HOOK_NUMBER: Final = 1
_HOOK_PRIORITY: Final = 2
_HOOK_DEVICE: Final = 3
_HOOK_DEVICES: Final = 4
_RULE_TABLE: Final = 1
_RULE_CHAIN: Final = 2
_RULE_HANDLE: Final = 3
_RULE_EXPRESSIONS: Final = 4
_SET_TABLE: Final = 1
_SET_NAME: Final = 2
_SET_DATA_TYPE: Final = 6
_LIST_ELEMENTS: Final = 3
_DATA_TYPE_VERDICT: Final = 0xFFFFFF00
_EXPRESSION_NAME: Final = 1
_EXPRESSION_DATA: Final = 2
_PAYLOAD_SOURCE: Final = 5
_EXTHDR_DESTINATION: Final = 1
_TARGET_NAME: Final = 1
_TARGET_INFO: Final = 3
_CT_NOTRACK: Final = 1
#: Expressions that rewrite, copy or redirect a packet, or let a program do so.
_REWRITING: Final = frozenset(
    {"nat", "masq", "redir", "tproxy", "fwd", "dup", "notrack", "queue", "flow_offload", "synproxy",
     "tunnel"}
)  # fmt: skip
#: Targets of iptables that do not.
_HARMLESS_TARGETS: Final = frozenset(
    {"LOG", "NFLOG", "ULOG", "REJECT", "MARK", "CONNMARK", "AUDIT", "TRACE", "RATEEST", "SET",
     "SECMARK", "CONNSECMARK", "CLASSIFY", "HL", "IDLETIMER", "LED", "CT", "TCPMSS", "CHECKSUM"}
)  # fmt: skip
_HEADER: Final = struct.Struct("!BBH")  # family, version, resource id


class ForeignTables(NamedTuple):
    """Base chains, and rewriting rules, of the tables that do not belong to a fence."""

    hooks: tuple[HookFact, ...]
    rewrites: tuple[RewriteFact, ...]
    #: Whether there are more objects than the limit, or rules that the kernel does not list.
    is_cut: bool


def read(own: Collection[TableId], most: int) -> ForeignTables:
    """Return what the tables outside ``own`` do in the calling thread's namespace.

    At most ``most`` objects of each kind are read: chains, tables, rules, elements of verdict maps.
    Raises OSError.
    """
    for _ in range(_ATTEMPTS):
        found, has_hidden = _read(own, most)
        if not has_hidden:
            return found
    return found._replace(is_cut=True)


def _read(own: Collection[TableId], most: int) -> tuple[ForeignTables, bool]:
    """Return what the tables do; and True if all lists are read, and rules are missing there."""
    limits = Limit(most), Limit(most), Limit(most), Limit(most)
    of_chains, of_tables, of_rules, of_elements = limits
    skipped = {
        (_NUMBERS[each.family], each.name.encode("utf-8", "surrogateescape")) for each in own
    }
    hooks: list[HookFact] = []
    uses: dict[Table, dict[bytes, int]] = {}
    chains = (
        each
        for each in _dump(_GETCHAIN, 0)
        if (each[0], names.raw(each[1][_CHAIN_TABLE])) not in skipped
    )
    for family, found in of_chains.take(chains):
        if family in _FAMILIES:
            hooks += _hooks(family, found)
            of_table = uses.setdefault((family, names.raw(found[_CHAIN_TABLE])), {})
            of_table[names.raw(found[_CHAIN_NAME])] = chain_uses.of_chain(found)
    handles = dict(of_tables.take(_tables()))
    hooks = [each._replace(table_handle=handles.get(_table(each), 0)) for each in hooks]
    hooked = {_table(each) for each in hooks}
    rewrites: list[RewriteFact] = []
    has_hidden = False
    for table in sorted(handles.keys() - skipped):
        rules = [found for _, found in of_rules.take(_rules(table))]
        # The kernel ends the list of chains before one with too many devices for a message.
        known = uses.get(table, {})
        has_hidden |= any(names.raw(each[_RULE_CHAIN]) not in known for each in rules)
        if table not in hooked:  # it gets no packets
            continue
        for rule in rules:
            rewrites += _rewrites(table[0], rule, handles[table])
        elements = partial(_verdict_elements, table, of_elements)
        has_hidden |= chain_uses.has_hidden(known, rules, elements)
    is_cut = any(each.is_exceeded for each in limits)
    hooks, rewrites = sorted(set(hooks), key=_key), sorted(set(rewrites))
    return ForeignTables(tuple(hooks), tuple(rewrites), is_cut), has_hidden and not is_cut


def deletion(fact: HookFact) -> Statement:
    """Return the netlink statement that deletes a base chain with its rules."""
    payload = _HEADER.pack(_NUMBERS[fact.family], 0, 0)
    payload += netlink.attribute(_CHAIN_TABLE, bytes.fromhex(fact.table_hex) + b"\0")
    payload += netlink.attribute(_CHAIN_HANDLE, struct.pack("!Q", fact.chain_handle))
    return Statement(_DELCHAIN, 0, payload)


def _table(fact: HookFact) -> Table:
    """Return the family and the name of a chain's table, as netlink has them."""
    return _NUMBERS[fact.family], bytes.fromhex(fact.table_hex)


def _key(fact: HookFact) -> tuple[str, ...]:
    return tuple(map(str, fact))


def _dump(kind: int, family: int, attributes: bytes = b"") -> Iterator[tuple[int, Attributes]]:
    payload = _HEADER.pack(family, 0, 0) + attributes
    request = nfnetlink.SUBSYSTEM | kind
    for reply in netlink.replies(netlink.NETLINK_NETFILTER, request, payload, dump=True):
        yield reply[0], dict(netlink.attributes(memoryview(reply)[_HEADER.size :]))


def _tables() -> Iterator[tuple[Table, int]]:
    for family, found in _dump(_GETTABLE, 0):
        yield (family, names.raw(found[_TABLE_NAME])), _big(found.get(_TABLE_HANDLE))


def _hooks(family: int, found: Attributes) -> Iterator[HookFact]:
    """Yield a fact for each device of a base chain, or one; nothing for another chain."""
    if _CHAIN_HOOK not in found:
        return
    hook = dict(netlink.attributes(found[_CHAIN_HOOK]))
    number = _big(hook.get(_HOOK_NUMBER))
    priority = int.from_bytes(hook.get(_HOOK_PRIORITY, b""), "big", signed=True)
    name = _OTHER_HOOKS.get((family, number)) or _HOOKS.get(number, str(number))
    for device in _devices(hook) or (None,):
        yield HookFact(
            family=_FAMILIES[family],
            table=names.text(found[_CHAIN_TABLE]),
            table_handle=0,
            chain=names.text(found[_CHAIN_NAME]),
            chain_handle=_big(found.get(_CHAIN_HANDLE)),
            hook=name,
            priority=priority,
            device=device,
            table_hex=names.raw(found[_CHAIN_TABLE]).hex(),
        )


def _devices(hook: Attributes) -> list[str]:
    if _HOOK_DEVICES in hook:
        return [names.text(value) for _, value in netlink.attributes(hook[_HOOK_DEVICES])]
    return [names.text(hook[_HOOK_DEVICE])] if _HOOK_DEVICE in hook else []


def _rules(table: Table) -> Iterator[tuple[int, Attributes]]:
    return _dump(_GETRULE, table[0], netlink.attribute(_RULE_TABLE, table[1] + b"\0"))


def _verdict_elements(table: Table, limit: Limit) -> Iterator[Attributes]:
    """Yield the elements of a table's verdict maps."""
    named = netlink.attribute(_SET_TABLE, table[1] + b"\0")
    for _, found in limit.take(_dump(_GETSET, table[0], named)):
        if _big(found.get(_SET_DATA_TYPE)) == _DATA_TYPE_VERDICT:
            request = named + netlink.attribute(_SET_NAME, bytes(found[_SET_NAME]))
            yield from limit.take(_elements(table[0], request))


def _elements(family: int, request: bytes) -> Iterator[Attributes]:
    for _, found in _dump(_GETSETELEM, family, request):
        for _, element in netlink.attributes(found.get(_LIST_ELEMENTS, _NOTHING)):
            yield dict(netlink.attributes(element))


def _rewrites(family: int, found: Attributes, table_handle: int) -> Iterator[RewriteFact]:
    for _, element in netlink.attributes(found.get(_RULE_EXPRESSIONS, _NOTHING)):
        expression = dict(netlink.attributes(element))
        name = names.text(expression.get(_EXPRESSION_NAME, b""))
        data = dict(netlink.attributes(expression.get(_EXPRESSION_DATA, _NOTHING)))
        if _is_rewriting(name, data):
            yield RewriteFact(
                family=_FAMILIES[family],
                table=names.text(found[_RULE_TABLE]),
                table_handle=table_handle,
                chain=names.text(found[_RULE_CHAIN]),
                handle=_big(found.get(_RULE_HANDLE)),
                statement=name,
            )
            return  # one fact for each rule


def _is_rewriting(name: str, data: Attributes) -> bool:
    if name == "payload":
        return _PAYLOAD_SOURCE in data
    if name == "exthdr":
        return _EXTHDR_DESTINATION not in data
    if name == "target":
        target = names.text(data.get(_TARGET_NAME, b""))
        return target not in _HARMLESS_TARGETS or (target == "CT" and _has_notrack(data))
    return name in _REWRITING


def _has_notrack(data: Attributes) -> bool:
    """Return True if the target CT is as the statement ``notrack`` (``xt_ct_target_info``)."""
    flags = int.from_bytes(data.get(_TARGET_INFO, b"")[:2], sys.byteorder)
    return bool(flags & _CT_NOTRACK)


def _big(value: memoryview | None) -> int:
    return 0 if value is None else int.from_bytes(value, "big")
