"""Events for validation: one without a fault, and random events of any class."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any, Final

from tests.conformance.spoiling import GOOD

if TYPE_CHECKING:
    from random import Random

    from ocsf_nft.validation.schema import Attribute, Schema, Table

_TEXTS: Final = {
    "ip_t": "10.0.0.1",
    "mac_t": "02:00:5e:10:00:00",
    "uuid_t": "5b0f9df2-6a1f-4a6e-9c55-8c8c0f2a7d01",
    "datetime_t": "2026-01-01T00:00:00Z",
    "email_t": "a@example.com",
    "hostname_t": "host-1",
    "file_hash_t": "abcdef",
    "bytestring_t": "AAA=",
}
_VALUES: Final[dict[str, Any]] = {
    "boolean_t": True,
    "float_t": 0.5,
    "integer_t": 7,
    "json_t": {"any": ["thing"]},
    "long_t": 7,
    "string_t": "text",
}


def good(**changes: Any) -> dict[str, Any]:
    """Return a network activity at 1.8.0, with changed top-level values."""
    event: dict[str, Any] = deepcopy(GOOD[4001, "1.8.0"])
    return event | changes


def drawn(schema: Schema, table: Table, profiles: frozenset[str], random: Random) -> Any:
    """Return a random event without an error: required and some optional attributes."""
    event = _drawn(schema, table, profiles, random)
    event["metadata"] |= {"version": schema.version, "profiles": sorted(profiles)}
    if table.attributes["activity_id"] not in table.required:
        event.setdefault("activity_id", 0)
    event["type_uid"] = event["class_uid"] * 100 + event["activity_id"]
    # The schema has no rules for the relation of these attributes to others.
    for name in ("observables", "start_time", "end_time", "duration"):
        event.pop(name, None)
    return event


def _drawn(
    schema: Schema, table: Table, profiles: frozenset[str], random: Random, depth: int = 0
) -> dict[str, Any]:
    def is_allowed(attribute: Attribute) -> bool:
        return not attribute.profiles or not attribute.profiles.isdisjoint(profiles)

    usable = {each.name: each for each in table.attributes.values() if is_allowed(each)}
    names = {each.name for each in table.required if is_allowed(each)}
    if depth < 4:
        names.update(name for name in usable if random.random() < 0.15)
    names -= set(table.just_one)
    for group in (table.at_least_one, table.just_one):
        if group and names.isdisjoint(group):
            names.add(next(name for name in group if name in usable))
    return {
        name: _array_or_not(usable[name], _value(schema, usable[name], profiles, random, depth))
        for name in sorted(names)
    }


def _value(
    schema: Schema, attribute: Attribute, profiles: frozenset[str], random: Random, depth: int
) -> Any:
    if attribute.type is None:
        inner = schema.object_of(attribute.object_name or "")
        return _drawn(schema, inner, profiles, random, depth + 1)
    if attribute.captions:
        return random.choice(sorted(attribute.captions))
    return _TEXTS.get(attribute.type.name, deepcopy(_VALUES[attribute.type.primitive]))


def _array_or_not(attribute: Attribute, value: Any) -> Any:
    return [value] if attribute.is_array else value
