"""Replace a fence and keep what it has counted. A pure function of texts; runs on any OS.

A ruleset of ours (:mod:`ocsf_nft.fence.ruleset`) deletes a table before it defines it, and with it
the counts. Where one of ours stands, it is emptied instead, in the same one transaction: all rules
go, and everything that has no place in the new definition; the counters, the sets with counters and
the log budgets stay. A base chain stays registered as well, so that no count depends on when the
kernel takes an old hook away; links that are gone are taken off it by name.

What stands is whatever somebody with CAP_NET_ADMIN over the namespace put there, and its listing
may be made to read like anything. So a name is taken for a name only when it is an identifier; what
is not plainly a table of ours is not kept; and the new definition holds whatever the listing hides:
``flush table`` leaves no rule anywhere, and the sets that say who may send are always made anew.
The flows of a sidecar's proxy are kept, with which it closes its connections: in a set that fills
itself nobody can tell what somebody with that capability put there, now or at any other time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.fence.ruleset import OWNED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: What nft's scanner takes for a name (scanner.l), without the slash.
_IDENTIFIER: Final = re.compile(r"[A-Za-z_.][A-Za-z0-9_.-]*")
_DEVICE: Final = re.compile(r"(?:(?![\"/:*\\$,])[!-~]){1,15}")
_HANDLE: Final = re.compile(r" # handle \d+$")
#: A part of a table, and in a definition a counter, which is on one line.
_PART: Final = re.compile(r"\t([a-z]+) (\S+) \{( \})?")
#: What makes a table persist: in a definition, and as it is listed.
_PERSISTS: Final = (f"\t{OWNED}", "\tflags persist")
_LINKS: Final = re.compile(r"^define links = \{ (.*) \}$", re.MULTILINE)
_HOOK: Final = re.compile(
    r"type (?P<type>filter|nat) hook (?P<hook>\w+)"
    r"(?: devices? (?:= )?(?P<devices>\{ .* \}|\"[^\"]*\"|\$links))?"
    r" (?P<rest>priority [a-z0-9-]+); policy \w+;"
)
#: What can be deleted by its name alone, in an order in which nothing is referred to any more.
_DELETABLE: Final = ("map", "set", "counter", "quota", "limit", "chain")


class Place(NamedTuple):
    """A table."""

    family: str
    table: str


@dataclass(slots=True)
class _Table:
    """The comment on a table, and its parts by kind and name: the lines inside, without tabs.

    ``persists``: it may be a socket's own.
    """

    comment: list[str] = field(default_factory=list)
    persists: bool = False
    parts: dict[tuple[str, str], list[str]] = field(default_factory=dict)


def text(definition: str, standing: Mapping[Place, str]) -> str | None:
    """The ruleset that puts ``definition`` in the place of the tables that stand.

    ``standing`` are their listings as :func:`ocsf_nft.fence.nft.listing` gives them; tables of the
    definition that are not among them are made. None where what stands can't be kept, or is not
    understood.
    """
    for place, listing in standing.items():
        deletion = f"\ndelete table {place.family} {place.table}\n"
        if definition.count(deletion) != 1:
            raise AssertionError(f"the definition must delete {place} once")
        links = _LINKS.search(definition)
        emptied = _emptied(
            place, _defined(definition, place), _listed(listing, place), links[1] if links else ""
        )
        if emptied is None:
            return None
        definition = definition.replace(deletion, f"\n{emptied}")
    return definition


def _emptied(place: Place, wanted: _Table, found: _Table | None, links: str) -> str | None:
    """Statements that leave nothing of what stands but what counts."""
    if found is None or (found.comment, found.persists) != (wanted.comment, wanted.persists):
        return None
    where = f"{place.family} {place.table}"
    kept = {part for part in wanted.parts if _counts(part, wanted.parts[part])}
    if any(
        _form(found.parts[part]) != _form(wanted.parts[part]) for part in kept & set(found.parts)
    ):
        return None
    lines = [f"flush table {where}"]
    opened = f"table {where} {{" + (f"\n\t{OWNED}" if wanted.persists else "")
    static = [part for part in wanted.parts if part[0] == "set" and part not in kept]
    for kind, name in static:
        # Made first, so that it is there to be deleted, whatever the listing says.
        form = "".join(f"\t\t{line}\n" for line in wanted.parts[kind, name])
        lines.append(f"{opened}\n\t{kind} {name} {{\n{form}\t}}\n}}")
        lines.append(f"delete {kind} {where} {name}")
    for part in sorted(found.parts.keys() - kept - set(static), key=_order):
        kind, name = part
        if kind == "chain" and part in wanted.parts:
            unhooked = _unhooked(wanted.parts[part], found.parts[part], links)
            if unhooked is not None:
                lines += [f"delete chain {where} {name} {{ {hook} }}" for hook in unhooked]
                continue
        lines.append(f"delete {kind} {where} {name}")
    return "".join(f"{line}\n" for line in lines)


def _counts(part: tuple[str, str], lines: list[str]) -> bool:
    return part[0] == "counter" or (part[0] == "set" and _forgets(lines))


def _forgets(lines: list[str]) -> bool:
    """Whether what the packets put into a set times out, as flows and log budgets do."""
    return any(line.startswith("flags dynamic") and "timeout" in line for line in lines)


def _form(lines: list[str]) -> list[str]:
    """What makes a set or a counter the one that it is; nft has an order of its own."""
    return sorted(line.replace(", ", ",") for line in lines)


def _order(part: tuple[str, str]) -> tuple[int, str]:
    return _DELETABLE.index(part[0]), part[1]


def _unhooked(wanted: list[str], found: list[str], links: str) -> list[str] | None:
    """What to take off a chain so that it can stay; None when it can't.

    A chain of ours that no packets come to by themselves can. What its rules and its policy are
    doesn't matter: those are gone, and this the definition sets.
    """
    heads = [
        [line for line in lines if line.startswith(("type ", "comment "))]
        for lines in (wanted, found)
    ]
    if heads == [[], []]:
        return []
    want, have = (_HOOK.fullmatch("\n".join(head)) for head in heads)
    if want is None or have is None:
        return None
    if any(want[part] != have[part] for part in ("type", "hook", "rest")):
        return None
    if want["devices"] is None or have["devices"] is None:
        return [] if want["devices"] is have["devices"] else None
    fenced = set(_devices(have["devices"]))
    if not all(map(_DEVICE.fullmatch, fenced)):
        return None
    return [
        f'type filter hook {have["hook"]} devices = {{ "{device}" }} {have["rest"]};'
        for device in sorted(fenced - set(_devices(links)))
    ]


def _devices(listed: str) -> Iterator[str]:
    return (name.strip('" ') for name in listed.strip("{}").split(", "))


def _defined(definition: str, place: Place) -> _Table:
    """What a definition of ours puts into a table; its parts may be in several blocks."""
    lines = []
    is_here = False
    for line in definition.split("\n"):
        if line.startswith("table ") or line == "}":
            is_here = line == f"table {place.family} {place.table} {{"
        elif is_here and line.strip() and not line.lstrip().startswith("#"):
            lines.append(line)
    table = _parsed(lines)
    if table is None:
        raise AssertionError("a definition of ours must be readable")
    return table


def _listed(listing: str, place: Place) -> _Table | None:
    """What a listing shows; None where anything in it is odd."""
    first, *lines = listing.split("\n")
    opening = f"table {place.family} {place.table} {{"
    if _HANDLE.sub("", first) != opening or lines[-2:] != ["}", ""]:
        return None
    table = _parsed([_HANDLE.sub("", line) for line in lines[:-2] if line])
    if table is None:
        return None
    is_plain = all(kind in _DELETABLE and _IDENTIFIER.fullmatch(name) for kind, name in table.parts)
    return table if is_plain else None


def _parsed(lines: list[str]) -> _Table | None:
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
        else:
            return None
    return table if inside is None else None
