"""Judges events against the published OCSF schema: what is wrong with one, as sentences.

JSON Schema says most of it. The rest, which it can't express, is checked by walking the event
along the schema's own attribute tables: captions, profiles, deprecated attributes, observables,
the arithmetic of ``type_uid``, 64-bit integers, text that is UTF-8.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import jsonschema
from ocsf_json_schema import OcsfJsonSchema, OcsfJsonSchemaEmbedded, get_ocsf_schema

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

VERSION: Final = "1.8.0"
OTHER: Final = 99
STEP: Final = re.compile(r"(?P<key>\w+)(?:\[(?P<index>\d*)\])?")
INTEGER_TYPES: Final = frozenset({"integer_t", "long_t", "timestamp_t", "port_t"})


@cache
def schema(version: str) -> dict[str, Any]:
    return dict(get_ocsf_schema(version))


@cache
def class_names(version: str) -> dict[int, str]:
    return {one["uid"]: name for name, one in schema(version)["classes"].items()}


@cache
def validator(
    version: str, class_name: str, profiles: tuple[str, ...]
) -> jsonschema.Draft202012Validator:
    embedded = OcsfJsonSchemaEmbedded(OcsfJsonSchema(schema(version)))
    return jsonschema.Draft202012Validator(embedded.get_class_schema(class_name, list(profiles)))


def faults(event: Any, version: str = VERSION) -> list[str]:
    """What is wrong with the event, as JSON reads it; nothing when it conforms."""
    if not isinstance(event, dict):
        return ["an event is an object"]
    class_name = class_names(version).get(_hashable(event.get("class_uid")))
    if class_name is None:
        return [f"class_uid: there is no class {event.get('class_uid')!r}"]
    metadata = event.get("metadata")
    listed = metadata.get("profiles", []) if isinstance(metadata, dict) else []
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        return ["metadata.profiles: is no list of names"]
    known = [name for name in listed if name in schema(version)["profiles"]]
    found = [
        f"{'.'.join(map(str, error.absolute_path)) or 'event'}: {error.message}"
        for error in validator(version, class_name, tuple(known)).iter_errors(event)
    ]
    walk = _Walk(version, frozenset(listed))
    walk.visit(schema(version)["classes"][class_name]["attributes"], event, "")
    found += walk.found
    found += _event_faults(event, class_name, version)
    found += _profile_faults(listed, walk.used, class_name, version)
    found += _observable_faults(event, schema(version)["classes"][class_name], version)
    return found


def left_out(event: Mapping[str, Any], version: str = VERSION) -> list[str]:
    """Paths of the attributes that the schema recommends and the event hasn't."""
    name = class_names(version)[event["class_uid"]]
    profiles = frozenset(event["metadata"].get("profiles", ()))
    return sorted(set(_recommended(schema(version)["classes"][name], event, "", profiles, version)))


@dataclass
class _Walk:
    """One walk through an event, beside the schema's attribute tables."""

    version: str
    listed: frozenset[str]
    found: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)

    def visit(self, attributes: Mapping[str, Any], value: Mapping[str, Any], path: str) -> None:
        for key, inner in value.items():
            where = f"{path}{key}"
            if not _is_text(key):
                self.found.append(f"{where!a}: the name is no UTF-8")
            attribute = attributes.get(key)
            if attribute is None:
                continue  # JSON Schema names it
            self._profiles(attribute, where)
            if "@deprecated" in attribute:
                self.found.append(f"{where}: is deprecated")
            self._caption(attributes, value, key, where)
            for number, item in enumerate(inner if isinstance(inner, list) else [inner]):
                at = f"{where}[{number}]" if isinstance(inner, list) else where
                self._value(attribute, item, at)

    def _value(self, attribute: Mapping[str, Any], value: Any, where: str) -> None:
        if attribute["type"] == "object_t" and isinstance(value, dict):
            if attribute["object_type"] == "object":
                self._free(value, where)
            else:
                inner = schema(self.version)["objects"][attribute["object_type"]]["attributes"]
                self.visit(inner, value, f"{where}.")
        elif attribute["type"] in INTEGER_TYPES and isinstance(value, float):
            self.found.append(f"{where}: {value} is written as a fraction")
        else:
            self._free(value, where)

    def _free(self, value: Any, where: str) -> None:
        if value is None:
            self.found.append(f"{where}: is null; what isn't known is left out")
        elif isinstance(value, str) and not _is_text(value):
            self.found.append(f"{where}: is no UTF-8")
        elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            self.found.append(f"{where}: doesn't fit 64 bits")
        elif isinstance(value, float) and not math.isfinite(value):
            self.found.append(f"{where}: JSON has no such number")
        elif isinstance(value, dict):
            for key, inner in value.items():
                if not _is_text(key):
                    self.found.append(f"{where}: the name {key!a} is no UTF-8")
                self._free(inner, f"{where}.{key}")
        elif isinstance(value, list):
            for number, inner in enumerate(value):
                self._free(inner, f"{where}[{number}]")

    def _profiles(self, attribute: Mapping[str, Any], where: str) -> None:
        brings = attribute.get("profiles") or []
        if not brings:
            return
        self.used.update(self.listed.intersection(brings))
        if self.listed.isdisjoint(brings):
            self.found.append(f"{where}: its profile ({' or '.join(brings)}) is not listed")

    def _caption(
        self, attributes: Mapping[str, Any], parent: Mapping[str, Any], key: str, where: str
    ) -> None:
        sibling, enum = attributes[key].get("sibling"), attributes[key].get("enum")
        if sibling is None or enum is None:
            ids = [name for name, one in attributes.items() if one.get("sibling") == key]
            if ids and parent.keys().isdisjoint(ids):
                self.found.append(f"{where}: is there without {' or '.join(ids)}")
            return
        number, caption = parent[key], parent.get(sibling)
        spelled = enum.get(str(number), {}).get("caption", caption)
        if not caption:
            self.found.append(f"{where}: its caption, {sibling}, is missing")
        elif number != OTHER and caption != spelled:
            self.found.append(f"{where}: {sibling} {caption!r} is spelled {spelled!r}")
        elif number == OTHER and caption in _captions_but_other(enum):
            self.found.append(f"{where}: is 99, and {sibling} {caption!r} has an id of its own")


def _captions_but_other(enum: Mapping[str, Any]) -> set[str]:
    return {one["caption"] for number, one in enum.items() if number != str(OTHER)}


def _event_faults(event: Mapping[str, Any], class_name: str, version: str) -> Iterator[str]:
    one = schema(version)["classes"][class_name]
    activity, type_uid = event.get("activity_id"), event.get("type_uid")
    if isinstance(activity, int) and type_uid != one["uid"] * 100 + activity:
        yield f"type_uid: is {type_uid}, not {one['uid']} * 100 + {activity}"
    if event.get("category_uid") != one["category_uid"]:
        yield f"category_uid: is not the class's, {one['category_uid']}"
    metadata = event.get("metadata")
    if isinstance(metadata, dict) and metadata.get("version") != version:
        yield f"metadata.version: is not {version}"
    start, end = event.get("start_time"), event.get("end_time")
    if isinstance(start, int) and isinstance(end, int) and start > end:
        yield "start_time: is after end_time"
    duration = event.get("duration")
    if duration is not None and not (
        isinstance(start, int) and isinstance(end, int) and duration == end - start
    ):
        yield "duration: is not the time from start_time to end_time"


def _profile_faults(
    listed: list[str], used: set[str], class_name: str, version: str
) -> Iterator[str]:
    allowed = schema(version)["classes"][class_name].get("profiles") or []
    for name in listed:
        if name not in schema(version)["profiles"]:
            yield f"metadata.profiles: there is no profile {name!r}"
        elif name not in allowed:
            yield f"metadata.profiles: class {class_name} knows no profile {name!r}"
        elif name not in used:
            yield f"metadata.profiles: nothing that {name!r} brings is there"
    if len(set(listed)) != len(listed):
        yield "metadata.profiles: a name is there twice"


def _observable_faults(
    event: Mapping[str, Any], one: Mapping[str, Any], version: str
) -> Iterator[str]:
    observables = event.get("observables")
    for number, observable in enumerate(observables if isinstance(observables, list) else []):
        where = f"observables[{number}]"
        name = observable.get("name") if isinstance(observable, dict) else None
        if not isinstance(name, str):
            yield f"{where}: has no name"
            continue
        resolved = _resolve(event, one["attributes"], name.split("."), version)
        if resolved is None:
            yield f"{where}.name: {name!r} is not an attribute of the event"
            continue
        value, kind = resolved
        if isinstance(value, dict | list):
            if "value" in observable:
                yield f"{where}.value: {name!r} is an object, which has no value"
        elif observable.get("value") != str(value):
            yield f"{where}.value: is not the value of {name!r}"
        if kind is not None and observable.get("type_id") != kind:
            yield f"{where}.type_id: {name!r} is of type {kind}"


def _resolve(
    value: Any, attributes: Mapping[str, Any], path: list[str], version: str
) -> tuple[Any, int | None] | None:
    """The first value at a path, and the observable type that the schema gives it.

    An array on the way is written ``a.b``, ``a[].b`` or, one of its items, ``a[0].b``.
    """
    step = STEP.fullmatch(path[0])
    attribute = attributes.get(step["key"]) if step else None
    if step is None or attribute is None or not isinstance(value, dict):
        return None
    inner = value.get(step["key"])
    if isinstance(inner, list):
        index = int(step["index"] or 0)
        inner = inner[index] if index < len(inner) else None
    if inner is None:
        return None
    table = schema(version)["objects"].get(attribute.get("object_type"), {})
    if len(path) > 1:
        return _resolve(inner, table.get("attributes", {}), path[1:], version)
    types = schema(version)["dictionary"]["types"]["attributes"]
    of_type = types.get(attribute["type"], {}).get("observable")
    return inner, attribute.get("observable") or of_type or table.get("observable")


def _recommended(
    one: Mapping[str, Any],
    value: Mapping[str, Any],
    path: str,
    profiles: frozenset[str],
    version: str,
) -> Iterator[str]:
    for key, attribute in one["attributes"].items():
        brings = attribute.get("profiles") or []
        if brings and profiles.isdisjoint(brings):
            continue
        inner = value.get(key)
        if inner is None:
            if attribute.get("requirement") == "recommended" and "@deprecated" not in attribute:
                yield f"{path}{key}"
        elif attribute["type"] == "object_t" and attribute["object_type"] != "object":
            below = schema(version)["objects"][attribute["object_type"]]
            for item in inner if isinstance(inner, list) else [inner]:
                yield from _recommended(below, item, f"{path}{key}.", profiles, version)


def _is_text(text: Any) -> bool:
    try:
        str(text).encode()
    except UnicodeEncodeError:
        return False
    return True


def _hashable(value: Any) -> Any:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
