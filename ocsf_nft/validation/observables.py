"""Check of an event's observables: each must name an attribute with the same value and type."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.validation.fault import describe, error, warning

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ocsf_nft.validation.fault import Fault
    from ocsf_nft.validation.schema import Attribute, Schema, Table

#: One step of a name. ``a`` and ``a[]`` mean any item of an array, ``a[0]`` its first item.
_STEP: Final = re.compile(r"([\w/-]+)(?:\[(\d{0,9})\])?", re.ASCII)
#: Maximum number of values that are checked for one event: the names of observables can refer
#: through arrays in more ways than there are values.
_BUDGET: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class _Target:
    """Attribute to which an observable refers, and the attribute's values in the event."""

    attribute: Attribute
    #: Values as text, without objects and arrays; several if the reference goes through an array.
    texts: frozenset[str]
    #: True if one of the values is an object or an array.
    is_object: bool


class Observables:
    """Checker of one event's observables; ``table`` defines the event's class."""

    __slots__ = ("_budget", "_event", "_schema", "_table", "_targets")

    def __init__(self, schema: Schema, table: Table, event: Mapping[str, Any]) -> None:
        self._schema = schema
        self._table = table
        self._event = event
        self._targets: dict[str, _Target | str] = {}
        self._budget = _BUDGET

    def faults(self) -> Iterator[Fault]:
        """Yield the faults in the name, value and type of each observable of the event itself."""
        observables = self._event.get("observables")
        for number, one in enumerate(observables if isinstance(observables, list) else ()):
            if isinstance(one, dict) and not self._is_of_another_event(one):
                yield from self._faults(one, f"observables[{number}]")

    def _is_of_another_event(self, observable: Mapping[str, Any]) -> bool:
        metadata = self._event.get("metadata")
        own = metadata.get("uid") if isinstance(metadata, dict) else None
        return bool(observable.get("event_uid", own) != own)

    def _faults(self, observable: Mapping[str, Any], where: str) -> Iterator[Fault]:
        name = observable.get("name")
        if not isinstance(name, str):
            if name is None:
                yield warning(where, "has no name, so it refers to nothing")
            return
        target = self._targets.get(name)
        if target is None:
            target = self._targets[name] = self._resolve(name)
        if isinstance(target, str):
            yield error(f"{where}.name", f"{describe(name)} {target}")
            return
        value, kind = observable.get("value"), observable.get("type_id")
        if target.is_object:
            if value is not None:
                yield error(
                    f"{where}.value", f"is there, but {describe(name)} is an object, which has none"
                )
        elif value is None:
            yield error(f"{where}.value", f"is missing, and {describe(name)} has one")
        elif isinstance(value, str) and value not in target.texts:
            yield error(f"{where}.value", f"{describe(value)} is not the value of {describe(name)}")
        kinds = target.attribute.observables
        if kinds and isinstance(kind, int) and kind not in kinds:
            expected = " or ".join(map(str, sorted(kinds)))
            yield error(
                f"{where}.type_id",
                f"{describe(kind)} is not the type of {describe(name)}, {expected}",
            )

    def _resolve(self, name: str) -> _Target | str:
        """Return the attribute that an observable names, or the reason why there is none."""
        values: list[Any] = [self._event]
        table: Table | None = self._table
        attribute = None
        for step in name.split("."):
            match = _STEP.fullmatch(step)
            attribute = None if match is None or table is None else table.attributes.get(match[1])
            if match is None or attribute is None:
                return f"is no attribute of {self._table.name} in {self._schema.version}"
            if self._budget < 0:
                return "was not checked: the observables refer to too many values"
            self._budget -= len(values)
            values = list(_inside(values, match[1], match[2]))
            self._budget -= len(values)
            object_name = attribute.object_name
            table = None if object_name is None else self._schema.object_of(object_name)
        present = [value for value in values if value is not None]
        if attribute is None or not present:
            return "is not in the event"
        return _Target(
            attribute,
            frozenset(
                value if isinstance(value, str) else describe(value)
                for value in present
                if not isinstance(value, dict | list)
            ),
            is_object=any(isinstance(value, dict | list) for value in present),
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
