"""A whole ruleset, of every family: what nft lists as JSON, and what iptables adds, in one form.

Statements keep the form that nft gives them (libnftables-json(5)); ``xtables`` translates
iptables' rules into the same. Nothing in it is trusted: names are their makers' choice.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Stands for what a set holds by the time that a packet comes.
UNKNOWN: Final = {"unknown": None}
#: ``legacy``: iptables of the kernel's old kind (ip_tables), which nft doesn't list.
Backend: TypeAlias = Literal["nft", "legacy"]


class Key(NamedTuple):
    """What a chain is found by."""

    backend: Backend
    family: str
    table: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rule:
    """A rule: its statements in order, as (kind, body). ``text`` is iptables' own line."""

    chain: Key
    statements: tuple[tuple[str, Any], ...]
    handle: int | None = None
    text: str | None = None
    comment: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What makes a chain a base chain. ``devices`` is empty where a hook has none."""

    kind: str
    hook: str
    priority: int
    policy: str
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chain:
    """A chain with its rules in order."""

    key: Key
    base: Base | None
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Set:
    """A set or map. ``elements`` is None when what it holds wasn't read; ``size`` is its limit.

    Where rules put something in or take it out, ``UNKNOWN`` is one of the elements.
    """

    elements: Sequence[Any] | None
    size: int | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Flowtable:
    """A flowtable: flows in it skip the forward hook."""

    family: str
    table: str
    name: str
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ruleset:
    """All that was read, and in sentences what was not."""

    chains: Mapping[Key, Chain] = field(default_factory=dict)
    sets: Mapping[tuple[str, str, str], Set] = field(default_factory=dict)
    flowtables: tuple[Flowtable, ...] = ()
    #: The flags of nft's tables, by family and name.
    tables: Mapping[tuple[str, str], frozenset[str]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()


#: Tables that iptables-nft makes and reads (nft_xtables_config in iptables' nft.c).
XTABLES_FAMILIES: Final = ("ip", "ip6")
XTABLES: Final = ("filter", "nat", "mangle", "raw", "security")


def is_compatible(key: Key) -> bool:
    """Whether iptables may be the maker of a chain: its table is one of those that it makes."""
    return key.family in XTABLES_FAMILIES and key.table in XTABLES


def from_json(listed: Any) -> Ruleset:
    """A ruleset of what ``nft -j list ruleset`` says; what has no known form is left out."""
    found = _Found()
    objects = listed.get("nftables") if isinstance(listed, dict) else None
    for entry in objects if isinstance(objects, list) else ():
        if isinstance(entry, dict):
            for kind, body in entry.items():
                if isinstance(body, dict):
                    found.take(kind, body)
    return found.whole()


class _Found:
    """The objects as they come: rules may be told before all chains are."""

    def __init__(self) -> None:
        self._bases: dict[Key, Base | None] = {}
        self._rules: dict[Key, list[Rule]] = {}
        self._sets: dict[tuple[str, str, str], Set] = {}
        self._flowtables: list[Flowtable] = []
        self._tables: dict[tuple[str, str], frozenset[str]] = {}
        #: The sets that rules change.
        self._changed: set[tuple[str, str, str]] = set()

    def take(self, kind: str, body: dict[str, Any]) -> None:
        family, table = str(body.get("family", "")), str(body.get("table", ""))
        name = str(body.get("name", ""))
        if kind == "table":
            self._tables[family, name] = frozenset(_strings(body.get("flags")))
        elif kind == "chain":
            self._bases[Key("nft", family, table, name)] = _base(body)
        elif kind == "rule":
            key = Key("nft", family, table, str(body.get("chain", "")))
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

    def whole(self) -> Ruleset:
        chains = {
            key: Chain(key=key, base=base, rules=tuple(self._rules.get(key, ())))
            for key, base in self._bases.items()
        }
        return Ruleset(
            chains=chains,
            sets={
                key: _changing(each) if key in self._changed else each
                for key, each in self._sets.items()
            },
            flowtables=tuple(self._flowtables),
            tables=self._tables,
        )


def _base(body: dict[str, Any]) -> Base | None:
    hook, priority = body.get("hook"), body.get("prio")
    if not isinstance(hook, str) or not isinstance(priority, int):
        return None
    return Base(
        kind=str(body.get("type", "")),
        hook=hook,
        priority=priority,
        policy=str(body.get("policy", "accept")),
        devices=tuple(_strings(body.get("dev"))),
    )


def _rule(key: Key, body: dict[str, Any]) -> Rule:
    expressions, handle, comment = body.get("expr"), body.get("handle"), body.get("comment")
    return Rule(
        chain=key,
        statements=statements(expressions),
        handle=handle if isinstance(handle, int) else None,
        comment=comment if isinstance(comment, str) else None,
    )


def statements(expressions: Any) -> tuple[tuple[str, Any], ...]:
    """The statements of a list of objects with one member each; others become unknown ones."""
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


def _changing(found: Set) -> Set:
    if found.elements is None:
        return found
    return replace(found, elements=[*found.elements, UNKNOWN])


def _strings(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str)]
