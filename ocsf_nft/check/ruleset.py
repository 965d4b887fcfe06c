"""Model of a host's whole ruleset: the rules of nftables and of iptables, in one form.

Statements have the form of nft's JSON (libnftables-json(5)). Names in a ruleset may have any
characters; they are not safe in messages or commands.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

#: Placeholder for elements that rules may have added to a set when a packet arrives.
UNKNOWN: Final = {"unknown": None}
#: ``legacy``: the kernel's old iptables (ip_tables), which nft doesn't list.
Backend: TypeAlias = Literal["nft", "legacy"]
#: Family and name of a table.
TableKey: TypeAlias = tuple[str, str]
#: Family, table and name of a set or map.
SetKey: TypeAlias = tuple[str, str, str]


class ChainKey(NamedTuple):
    """Identity of a chain in the ruleset of a namespace."""

    backend: Backend
    family: str
    table: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rule:
    """Rule of nftables or iptables.

    ``statements`` are pairs (kind, body), as in nft's JSON. Rules from iptables-save are converted
    to this form. ``text`` is the rule's line in the output of iptables-save; None if the rule was
    read only from nft's JSON.
    """

    chain: ChainKey
    statements: tuple[tuple[str, Any], ...]
    handle: int | None = None
    text: str | None = None
    comment: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseSpec:
    """Properties of a base chain: its type (``kind``), hook, priority, policy and interfaces.

    ``devices`` is empty for a hook that belongs to no interface.
    """

    kind: str
    hook: str
    priority: int
    policy: str
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chain:
    """Chain with its rules in order.

    ``base`` is None for a regular chain, which packets reach only by a jump from another chain.
    """

    key: ChainKey
    base: BaseSpec | None
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Set:
    """nftables set or map; ``size`` is the largest number of elements, None if there is no limit.

    ``elements`` is None if the elements were not read. If rules add or delete elements,
    ``elements`` also has the placeholder ``UNKNOWN``.
    """

    elements: Sequence[Any] | None
    size: int | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Flowtable:
    """nftables flowtable.

    The packets of its flows skip the forward hook. So they bypass a fence in this hook.
    """

    family: str
    table: str
    name: str
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ruleset:
    """Whole ruleset of a network namespace.

    ``unread`` has sentences about rules that could not be read.
    """

    chains: Mapping[ChainKey, Chain] = field(default_factory=dict)
    sets: Mapping[SetKey, Set] = field(default_factory=dict)
    flowtables: tuple[Flowtable, ...] = ()
    #: The flags of nft's tables, by family and name.
    tables: Mapping[TableKey, frozenset[str]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()


#: Tables that iptables-nft creates and reads (nft_xtables_config in iptables' nft.c).
XTABLES_FAMILIES: Final = ("ip", "ip6")
XTABLES: Final = ("filter", "nat", "mangle", "raw", "security")


def is_iptables_table(key: ChainKey) -> bool:
    """Return true if a chain is in a table that iptables may have made, such as ``ip filter``."""
    is_listed = key.family in XTABLES_FAMILIES and key.table in XTABLES
    return key.backend == "legacy" or is_listed


def from_json(listed: Any) -> Ruleset:
    """Return the ruleset from the parsed JSON of ``nft -j list ruleset``.

    Objects of an unknown form are omitted.
    """
    # A rule may come before its chain, and a set after the rules that change it.
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    objects = listed.get("nftables") if isinstance(listed, dict) else None
    for entry in objects if isinstance(objects, list) else ():
        for kind, body in entry.items() if isinstance(entry, dict) else ():
            if isinstance(body, dict):
                found[kind].append(body)
    rules: dict[ChainKey, list[Rule]] = defaultdict(list)
    changed: set[SetKey] = set()
    for body in found["rule"]:
        key = ChainKey("nft", *_scope(body), _text(body, "chain"))
        rule = _rule(key, body)
        rules[key].append(rule)
        changed |= {(*key[1:3], name) for name in _changed_sets(rule)}
    chains: dict[ChainKey, Chain] = {}
    for body in found["chain"]:
        key = ChainKey("nft", *_scope(body), _text(body, "name"))
        chains[key] = Chain(key=key, base=_base(body), rules=tuple(rules[key]))
    sets: dict[SetKey, Set] = {}
    for body in found["set"] + found["map"]:
        name = (*_scope(body), _text(body, "name"))
        sets[name] = _set(body, is_changed=name in changed)
    return Ruleset(
        chains=chains,
        sets=sets,
        flowtables=tuple(map(_flowtable, found["flowtable"])),
        tables={
            (_text(body, "family"), _text(body, "name")): frozenset(_strings(body.get("flags")))
            for body in found["table"]
        },
    )


def _scope(body: dict[str, Any]) -> TableKey:
    return _text(body, "family"), _text(body, "table")


def _text(body: dict[str, Any], key: str) -> str:
    return str(body.get(key, ""))


def _flowtable(body: dict[str, Any]) -> Flowtable:
    family, table = _scope(body)
    devices = tuple(_strings(body.get("dev")))
    return Flowtable(family=family, table=table, name=_text(body, "name"), devices=devices)


def _changed_sets(rule: Rule) -> Iterator[str]:
    for kind, body in rule.statements:
        name = body.get(kind) if kind in {"set", "map"} and isinstance(body, dict) else None
        if isinstance(name, str):
            yield name.removeprefix("@")


def _base(body: dict[str, Any]) -> BaseSpec | None:
    hook, priority = body.get("hook"), body.get("prio")
    if not isinstance(hook, str) or not isinstance(priority, int):
        return None
    return BaseSpec(
        kind=str(body.get("type", "")),
        hook=hook,
        priority=priority,
        policy=str(body.get("policy", "accept")),
        devices=tuple(_strings(body.get("dev"))),
    )


def _rule(key: ChainKey, body: dict[str, Any]) -> Rule:
    expressions, handle, comment = body.get("expr"), body.get("handle"), body.get("comment")
    return Rule(
        chain=key,
        statements=tuple(_statements(expressions)),
        handle=handle if isinstance(handle, int) else None,
        comment=comment if isinstance(comment, str) else None,
    )


def _statements(expressions: Any) -> Iterator[tuple[str, Any]]:
    for entry in expressions if isinstance(expressions, list) else ():
        if isinstance(entry, dict) and len(entry) == 1:
            yield from entry.items()
        else:
            yield "unknown", entry


def _set(body: dict[str, Any], *, is_changed: bool) -> Set:
    elements, size = body.get("elem", []), body.get("size")
    if not isinstance(elements, list):
        elements = None
    elif is_changed:
        elements = [*elements, UNKNOWN]
    return Set(elements=elements, size=size if isinstance(size, int) else None)


def _strings(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str)]
