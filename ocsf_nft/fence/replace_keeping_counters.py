"""Text of a ruleset that replaces a fence's tables, and preserves their packet counters.

The text does not delete a table: it empties the table and fills it again, in one transaction.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ocsf_nft.fence.ruleset import EXCLUSIVE_FLAGS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ocsf_nft.fence.spec import TableId

#: Names in nft's scanner (scanner.l), without the slash.
_IDENTIFIER: Final = re.compile(r"[A-Za-z_.][A-Za-z0-9_.-]*")
_DEVICE: Final = re.compile(r"(?:(?![\"/:*\\$,])[!-~]){1,15}")
_HANDLE: Final = re.compile(r" # handle \d+$")
#: Start of a part of a table; in a definition, a counter is on one line.
_PART: Final = re.compile(r"\t([a-z]+) (\S+) \{( \})?")
#: Line that makes a table persistent: in a definition, and in a listing.
_PERSISTS: Final = (f"\t{EXCLUSIVE_FLAGS}", "\tflags persist", "\tflags dormant,persist")
#: Line of a table that gets no packets; the definition turns it on.
_DORMANT: Final = "\tflags dormant"
#: Links of a fence, in groups.
_LINKS: Final = re.compile(r"^(?:define links|add chain .* devices) = \{ (.*?) \}", re.MULTILINE)
_HOOK: Final = re.compile(
    r"type (?P<type>filter|nat) hook (?P<hook>\w+)"
    r"(?: devices? (?:= )?(?P<devices>\{ .* \}|\"[^\"]*\"|\$links))?"
    r" (?P<rest>priority [a-z0-9-]+); policy \w+;"
)
#: Objects that can be deleted by name, in an order in which nothing refers to them any more.
_DELETABLE: Final = ("map", "set", "counter", "quota", "limit", "chain")


@dataclass(slots=True)
class _Table:
    """Content of an nftables table, parsed from a ruleset or from nft's listing."""

    comment: list[str] = field(default_factory=list)
    #: True if the table remains after its owner socket is closed.
    persists: bool = False
    #: Lines of each set, counter or chain, by kind and name, such as ``("set", "allowed4")``.
    parts: dict[tuple[str, str], list[str]] = field(default_factory=dict)


def replacement_text(definition: str, existing: Mapping[TableId, str]) -> str | None:
    """Return the ruleset ``definition``, changed so that counters of existing tables are preserved.

    ``existing`` has nft's listing of each existing table (:func:`nft.list_table`). Return None if
    the counters can't be preserved, for example because a listing has an unexpected form.
    """
    for table_id, listing in existing.items():
        deletion = f"\ndelete table {table_id.family} {table_id.name}\n"
        if definition.count(deletion) != 1:
            raise AssertionError(f"the definition must delete {table_id} once")
        statements = _empty_table(
            table_id,
            _parse_definition(definition, table_id),
            _parse_listing(listing, table_id),
            ", ".join(_LINKS.findall(definition)),
        )
        if statements is None:
            return None
        definition = definition.replace(deletion, f"\n{statements}")
    return definition


def _empty_table(
    table_id: TableId, defined: _Table, listed: _Table | None, links: str
) -> str | None:
    """Return nft statements that empty a table, except its counters and the sets filled by packets.

    ``defined`` is the new table, ``listed`` the existing one (None if unreadable). Only the
    interfaces ``links`` (``"eth0", "eth1"``) keep netdev hooks. Return None if the counters can't
    be preserved.
    """
    # A table that is not clearly ours is deleted with its counters: another process may have
    # created it.
    if listed is None or (listed.comment, listed.persists) != (defined.comment, defined.persists):
        return None
    where = f"{table_id.family} {table_id.name}"
    preserved = {part for part in defined.parts if _is_preserved(part, defined.parts[part])}
    if any(
        _properties(listed.parts[part]) != _properties(defined.parts[part])
        for part in preserved & set(listed.parts)
    ):
        return None
    # A forged listing can't weaken the new fence: all rules, and all sets that the installer fills,
    # are created again.
    lines = [f"flush table {where}"]
    opened = f"table {where} {{" + (f"\n\t{EXCLUSIVE_FLAGS}" if defined.persists else "")
    static = [part for part in defined.parts if part[0] == "set" and part not in preserved]
    for kind, name in static:
        # Created first, so that it exists and can be deleted, whatever the listing shows.
        body = "".join(f"\t\t{line}\n" for line in defined.parts[kind, name])
        lines.append(f"{opened}\n\t{kind} {name} {{\n{body}\t}}\n}}")
        lines.append(f"delete {kind} {where} {name}")
    for part in sorted(listed.parts.keys() - preserved - set(static), key=_order):
        kind, name = part
        # A base chain stays, so that no count depends on when the kernel removes an old hook.
        if kind == "chain" and part in defined.parts:
            removed_hooks = _removed_hooks(defined.parts[part], listed.parts[part], links)
            if removed_hooks is not None:
                lines += [f"delete chain {where} {name} {{ {hook} }}" for hook in removed_hooks]
                continue
        lines.append(f"delete {kind} {where} {name}")
    return "".join(f"{line}\n" for line in lines)


def _is_preserved(part: tuple[str, str], lines: list[str]) -> bool:
    # These are the counters, and the sets that packets fill (flows and log limits).
    # One of these sets lets a sidecar's fence accept the last packets of connections that the proxy
    # has closed. Another process may have added elements to it, which can't be detected.
    return part[0] == "counter" or (
        part[0] == "set"
        and any(line.startswith("flags dynamic") and "timeout" in line for line in lines)
    )


def _properties(lines: list[str]) -> list[str]:
    # nft lists the properties in another order than the definition has them.
    return sorted(line.replace(", ", ",") for line in lines)


def _order(part: tuple[str, str]) -> tuple[int, str]:
    return _DELETABLE.index(part[0]), part[1]


def _removed_hooks(defined: list[str], listed: list[str], links: str) -> list[str] | None:
    """Return the hooks to delete from a chain: those on interfaces not in ``links``.

    ``links`` is a text such as ``"eth0", "eth1"``. Return None if the old chain ``listed`` can't
    become the new chain ``defined``, for example because priorities differ.
    """
    heads = [
        [line for line in lines if line.startswith(("type ", "comment "))]
        for lines in (defined, listed)
    ]
    if heads == [[], []]:
        return []
    new, old = (_HOOK.fullmatch("\n".join(head)) for head in heads)
    if new is None or old is None:
        return None
    if any(new[part] != old[part] for part in ("type", "hook", "rest")):
        return None
    if new["devices"] is None or old["devices"] is None:
        return [] if new["devices"] is old["devices"] else None
    # A netdev chain has one hook for each interface.
    fenced = set(_devices(old["devices"]))
    if not all(map(_DEVICE.fullmatch, fenced)):
        return None
    return [
        f'type filter hook {old["hook"]} devices = {{ "{device}" }} {old["rest"]};'
        for device in sorted(fenced - set(_devices(links)))
    ]


def _devices(text: str) -> Iterator[str]:
    return (name.strip('" ') for name in text.strip("{}").split(", "))


def _parse_definition(definition: str, table_id: TableId) -> _Table:
    """Return the content of one table, which the ruleset may define in several blocks."""
    lines = []
    is_here = False
    for line in definition.split("\n"):
        if line.startswith("table ") or line == "}":
            is_here = line == f"table {table_id.family} {table_id.name} {{"
        elif is_here and line.strip() and not line.lstrip().startswith("#"):
            lines.append(line)
    table = _parse(lines)
    if table is None:
        raise AssertionError("a definition of ours must be readable")
    return table


def _parse_listing(listing: str, table_id: TableId) -> _Table | None:
    """Return the content of a table from nft's listing; None if the listing is unexpected."""
    first, *lines = listing.split("\n")
    opening = f"table {table_id.family} {table_id.name} {{"
    if _HANDLE.sub("", first) != opening or lines[-2:] != ["}", ""]:
        return None
    table = _parse([_HANDLE.sub("", line) for line in lines[:-2] if line])
    if table is None:
        return None
    is_plain = all(kind in _DELETABLE and _IDENTIFIER.fullmatch(name) for kind, name in table.parts)
    return table if is_plain else None


def _parse(lines: list[str]) -> _Table | None:
    table = _Table()
    inside: list[str] | None = None
    for line in lines:
        if inside is not None:
            if line == "\t}":
                inside = None
            elif line.startswith("\t\t"):
                inside.append(line[2:])
            else:
                return None
        elif opened := _PART.fullmatch(line):
            kind, name, is_closed = opened.groups()
            if (kind, name) in table.parts:
                return None
            content: list[str] = []
            table.parts[kind, name] = content
            inside = None if is_closed else content
        elif line in _PERSISTS:
            table.persists = True
        elif line.startswith("\tcomment "):
            table.comment.append(line[1:])
        elif line != _DORMANT:
            return None
    return table if inside is None else None
