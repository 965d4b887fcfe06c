"""Model of a host's whole ruleset: the rules of nftables and of iptables, in one form.

Statements have the form of nft's JSON (libnftables-json(5)). Names in a ruleset may have any
characters; they are not safe in messages or commands.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Placeholder for elements that rules may have added to a set when a packet arrives.
UNKNOWN: Final = {"unknown": None}
#: ``legacy``: the kernel's old iptables (ip_tables), which nft doesn't list.
Backend: TypeAlias = Literal["nft", "legacy"]
#: Family and name of a table.
TableKey: TypeAlias = tuple[str, str]


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

    ``unread`` has sentences about rules that could not be read. The keys of ``sets`` are tuples
    (family, table, name).
    """

    chains: Mapping[ChainKey, Chain] = field(default_factory=dict)
    sets: Mapping[tuple[str, str, str], Set] = field(default_factory=dict)
    flowtables: tuple[Flowtable, ...] = ()
    #: The flags of nft's tables, by family and name.
    tables: Mapping[TableKey, frozenset[str]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()


#: Tables that iptables-nft creates and reads (nft_xtables_config in iptables' nft.c).
XTABLES_FAMILIES: Final = ("ip", "ip6")
XTABLES: Final = ("filter", "nat", "mangle", "raw", "security")


def is_iptables_table(key: ChainKey) -> bool:
    """Return true if a chain is in a table that iptables may have made, such as ``ip filter``."""
    return key.family in XTABLES_FAMILIES and key.table in XTABLES


def from_json(listed: Any) -> Ruleset:
    """Return the ruleset from the parsed JSON of ``nft -j list ruleset``.

    Objects of an unknown form are omitted.
    """
    builder = _RulesetBuilder()
    objects = listed.get("nftables") if isinstance(listed, dict) else None
    for entry in objects if isinstance(objects, list) else ():
        if isinstance(entry, dict):
            for kind, body in entry.items():
                if isinstance(body, dict):
                    builder.add(kind, body)
    return builder.build()


class _RulesetBuilder:
    """Builder of a Ruleset from nft's listing, in which a rule may come before its chain."""

    def __init__(self) -> None:
        self._bases: dict[ChainKey, BaseSpec | None] = {}
        self._rules: dict[ChainKey, list[Rule]] = {}
        self._sets: dict[tuple[str, str, str], Set] = {}
        self._flowtables: list[Flowtable] = []
        self._tables: dict[TableKey, frozenset[str]] = {}
        #: The sets that rules change.
        self._changed: set[tuple[str, str, str]] = set()

    def add(self, kind: str, body: dict[str, Any]) -> None:
        family, table = str(body.get("family", "")), str(body.get("table", ""))
        name = str(body.get("name", ""))
        if kind == "table":
            self._tables[family, name] = frozenset(_strings(body.get("flags")))
        elif kind == "chain":
            self._bases[ChainKey("nft", family, table, name)] = _base(body)
        elif kind == "rule":
            key = ChainKey("nft", family, table, str(body.get("chain", "")))
            rule = _rule(key, body)
            self._rules.setdefault(key, []).append(rule)
            self._changed |= {
                (family, table, changed.removeprefix("@"))
                for kind, inner in rule.statements
                if kind in {"set", "map"}
                and isinstance(inner, dict)
                and isinstance(changed := inner.get(kind), str)
            }
        elif kind in {"set", "map"}:
            self._sets[family, table, name] = _set(body)
        elif kind == "flowtable":
            devices = tuple(_strings(body.get("dev")))
            self._flowtables.append(
                Flowtable(family=family, table=table, name=name, devices=devices)
            )

    def build(self) -> Ruleset:
        chains = {
            key: Chain(key=key, base=base, rules=tuple(self._rules.get(key, ())))
            for key, base in self._bases.items()
        }
        return Ruleset(
            chains=chains,
            sets={
                key: _with_unknown_element(each) if key in self._changed else each
                for key, each in self._sets.items()
            },
            flowtables=tuple(self._flowtables),
            tables=self._tables,
        )


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
        statements=statements(expressions),
        handle=handle if isinstance(handle, int) else None,
        comment=comment if isinstance(comment, str) else None,
    )


def statements(expressions: Any) -> tuple[tuple[str, Any], ...]:
    """Return a rule's statements as pairs (kind, body), from a list of nft's JSON.

    For example, ``{"drop": null}`` becomes ``("drop", None)``. An entry of any other form
    becomes a statement of the kind ``unknown``.
    """
    found: list[tuple[str, Any]] = []
    for entry in expressions if isinstance(expressions, list) else ():
        if isinstance(entry, dict) and len(entry) == 1:
            found.extend(entry.items())
        else:
            found.append(("unknown", entry))
    return tuple(found)


def _set(body: dict[str, Any]) -> Set:
    elements, size = body.get("elem", []), body.get("size")
    return Set(
        elements=elements if isinstance(elements, list) else None,
        size=size if isinstance(size, int) else None,
    )


def _with_unknown_element(found: Set) -> Set:
    if found.elements is None:
        return found
    return replace(found, elements=[*found.elements, UNKNOWN])


def _strings(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str)]
