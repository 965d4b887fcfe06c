"""Observables: whether their names point at something in the event, of that value and type."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.validation.fault import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ocsf_nft.validation.fault import Findings
    from ocsf_nft.validation.schema import Attribute, Schema, Table

#: One step of a name. An array on the way is ``a`` or ``a[]``, any of its items, or ``a[0]``.
_STEP: Final = re.compile(r"([\w/-]+)(?:\[(\d{0,9})\])?", re.ASCII)
#: Values of one event that are looked at: names can point through arrays in more ways than there
#: are values.
_BUDGET: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class _Place:
    """What a name points at: the attribute, and the values of it that the event has, as text."""

    attribute: Attribute
    texts: frozenset[str]
    is_object: bool


class Observables:
    """Judges the observables of one event."""

    __slots__ = ("_budget", "_event", "_findings", "_places", "_schema", "_table")

    def __init__(
        self, schema: Schema, table: Table, event: Mapping[str, Any], findings: Findings
    ) -> None:
        """``table`` is the event's class."""
        self._schema = schema
        self._table = table
        self._event = event
        self._findings = findings
        self._places: dict[str, _Place | str] = {}
        self._budget = _BUDGET

    def judge(self) -> None:
        """Judge them all; raises TooManyError. Their own attributes have been judged before."""
        observables = self._event.get("observables")
        for number, one in enumerate(observables if isinstance(observables, list) else ()):
            if isinstance(one, dict) and not self._is_of_another(one):
                self._judge(one, f"observables[{number}]")

    def _is_of_another(self, observable: Mapping[str, Any]) -> bool:
        metadata = self._event.get("metadata")
        own = metadata.get("uid") if isinstance(metadata, dict) else None
        return bool(observable.get("event_uid", own) != own)

    def _judge(self, observable: Mapping[str, Any], where: str) -> None:
        name = observable.get("name")
        if not isinstance(name, str):
            if name is None:
                self._findings.warning(where, "has no name, so it points at nothing")
            return
        place = self._places.get(name)
        if place is None:
            place = self._places[name] = self._found(name)
        if isinstance(place, str):
            self._findings.error(f"{where}.name", f"{shown(name)} {place}")
            return
        value, kind = observable.get("value"), observable.get("type_id")
        if place.is_object:
            if value is not None:
                self._findings.error(
                    f"{where}.value", f"is there, but {shown(name)} is an object, which has none"
                )
        elif value is None:
            self._findings.error(f"{where}.value", f"is missing, and {shown(name)} has one")
        elif isinstance(value, str) and value not in place.texts:
            self._findings.error(
                f"{where}.value", f"{shown(value)} is not the value of {shown(name)}"
            )
        kinds = place.attribute.observables
        if kinds and isinstance(kind, int) and kind not in kinds:
            expected = " or ".join(map(str, sorted(kinds)))
            self._findings.error(
                f"{where}.type_id", f"{shown(kind)} is not the type of {shown(name)}, {expected}"
            )

    def _found(self, name: str) -> _Place | str:
        """Where a name points, or why nowhere."""
        values: list[Any] = [self._event]
        table: Table | None = self._table
        attribute = None
        for step in name.split("."):
            match = _STEP.fullmatch(step)
            attribute = None if match is None or table is None else table.attributes.get(match[1])
            if match is None or attribute is None:
                return f"is no attribute of {self._table.name} in {self._schema.version}"
            if self._budget < 0:
                return "was not looked for: the observables point at too much"
            self._budget -= len(values)
            values = list(_inside(values, match[1], match[2]))
            self._budget -= len(values)
            below = attribute.object_name
            table = None if below is None else self._schema.object_of(below)
        there = [value for value in values if value is not None]
        if attribute is None or not there:
            return "is not in the event"
        return _Place(
            attribute,
            frozenset(
                value if isinstance(value, str) else shown(value)
                for value in there
                if not isinstance(value, dict | list)
            ),
            is_object=any(isinstance(value, dict | list) for value in there),
        )


def _inside(values: list[Any], key: str, index: str | None) -> Iterator[Any]:
    for value in values:
        inner = value.get(key) if isinstance(value, dict) else None
        if not isinstance(inner, list):
            if not index:
                yield inner
        elif not index:
            yield from inner
        elif int(index) < len(inner):
            yield inner[int(index)]
