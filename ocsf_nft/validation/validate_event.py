"""Validator of OCSF events.

A fault is an error in these cases, otherwise a warning:

- The validator of the OCSF schema server, or its JSON Schema, refuses the event.
- JSON readers may refuse a value, for example NaN.
- Two attributes contradict each other.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from ocsf_nft.validation import schema
from ocsf_nft.validation.fault import (
    EVENT,
    LIMIT,
    Fault,
    child_path,
    describe,
    error,
    warning,
)
from ocsf_nft.validation.observables import Observables
from ocsf_nft.validation.schema import IS_NULL, NOT_UTF8, is_utf8, json_fault

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping

    from ocsf_nft.validation.schema import Attribute, Schema, Table

#: The id that means "see the caption", and the schema's caption for it if it has this meaning.
_OTHER: Final = 99
_OTHER_CAPTION: Final = "Other"
#: Maximum depth of objects and arrays: JSON readers have a limit, and no event needs more.
DEPTH: Final = 100
_TOO_DEEP: Final = f"is nested more than {DEPTH} levels deep"


class EventValidator:
    """Validator of events, for one OCSF version or for each event's ``metadata.version``."""

    def __init__(
        self,
        version: str | None = None,
        *,
        compiled: Schema | None = None,
        recommended: bool = False,
    ) -> None:
        """Create a validator for an OCSF version (``1.8``); None means each event's own version.

        ``compiled`` is a schema to use in place of the published ones; without ``version``. If
        ``recommended`` is true, each missing recommended attribute gives a warning. Raises
        UsageError for an unknown version. Raises UnsupportedError if the extra ``validate`` is not
        installed, which ``compiled`` does not need.
        """
        self._compiled = compiled
        self._versions = schema.versions() if compiled is None else ()
        self._version = None if version is None else schema.full_version(version)
        self._recommended = recommended

    def faults(self, event: Any) -> list[Fault]:
        """Validate an event, a value decoded from JSON; return its errors and warnings.

        The event conforms to the schema if no fault is an error. Never raises. If there are more
        than ``LIMIT`` faults, the last fault in the result states this.
        """
        found = list(islice(self._faults(event), LIMIT + 1))
        if len(found) > LIMIT:
            found[LIMIT] = error(EVENT, f"has more than {LIMIT} faults: the rest is not reported")
        return found

    def _faults(self, event: Any) -> Iterator[Fault]:
        if not isinstance(event, dict):
            yield error(EVENT, f"{describe(event)} is no event: an event is an object")
            return
        published = yield from self._schema(event)
        if published is None:
            return
        table = yield from _class_of(event, published)
        if table is None:
            return
        if table.deprecated is not None:
            yield warning("class_uid", f"class {table.name} is deprecated: {table.deprecated}")
        profiles = _profiles(event)
        listed = frozenset(name for name in profiles if isinstance(name, str))
        walk = _Walk(published, listed, recommended=self._recommended)
        yield from walk.faults(table, event, "")
        yield from _faults_of_profiles(profiles, walk.used, table, published)
        yield from _faults_of_relations(event)
        yield from Observables(published, table, event).faults()

    def _schema(self, event: Mapping[str, Any]) -> Generator[Fault, None, Schema | None]:
        metadata = event.get("metadata")
        own = metadata.get("version") if isinstance(metadata, dict) else None
        if self._compiled is not None:
            if isinstance(own, str) and own not in self._compiled.event_versions:
                yield error("metadata.version", f"{describe(own)} is not {self._compiled.version}")
            return self._compiled
        if self._version is None:
            if isinstance(own, str) and own in self._versions:
                return schema.load(own)
            what = "is missing" if own is None else f"{describe(own)} is not known"
            known = ", ".join(self._versions)
            yield error("metadata.version", f"{what}: one of {known} is needed")
            return None
        if isinstance(own, str) and own != self._version:
            yield error("metadata.version", f"{describe(own)} is not {self._version}")
        return schema.load(self._version)


def _class_of(event: Mapping[str, Any], published: Schema) -> Generator[Fault, None, Table | None]:
    uid = event.get("class_uid")
    if uid is None:
        yield error("class_uid", "is required and missing")
    elif not _is_integer(uid):
        yield error("class_uid", f"{describe(uid)} is no integer")
    elif (table := published.class_of(uid)) is not None:
        return table
    else:
        yield error("class_uid", f"{describe(uid)} is no class in {published.version}")
    return None


def _profiles(event: Mapping[str, Any]) -> list[Any]:
    metadata = event.get("metadata")
    profiles = metadata.get("profiles") if isinstance(metadata, dict) else None
    return profiles if isinstance(profiles, list) else []


def _faults_of_profiles(
    profiles: list[Any], used: set[str], table: Table, published: Schema
) -> Iterator[Fault]:
    seen = set()
    for number, name in enumerate(profiles):
        where = f"metadata.profiles[{number}]"
        if not isinstance(name, str):
            continue  # reported by the walk
        if name not in published.profiles:
            yield error(where, f"there is no profile {describe(name)} in {published.version}")
        elif name in seen:
            yield warning(where, f"{name} is listed twice")
        elif name not in used:
            problem = "is used" if name in table.profiles else f"can be in {table.name}"
            yield warning(where, f"no attribute of this profile ({name}) {problem}")
        seen.add(name)


def _faults_of_relations(event: Mapping[str, Any]) -> Iterator[Fault]:
    """Check that ``type_uid`` fits class and activity, and ``duration`` fits start and end time."""
    # The walk has reported attributes that are missing or have a wrong type.
    class_uid, activity, type_uid = map(event.get, ("class_uid", "activity_id", "type_uid"))
    if _is_integer(class_uid) and _is_integer(activity) and _is_integer(type_uid):
        expected = class_uid * 100 + activity
        if type_uid != expected:
            yield error(
                "type_uid",
                f"{describe(type_uid)} is not class_uid * 100 + activity_id, {describe(expected)}",
            )
    start, end, duration = map(event.get, ("start_time", "end_time", "duration"))
    if not (_is_integer(start) and _is_integer(end)):
        if duration is not None:
            yield warning("duration", "is there without start_time and end_time")
        return
    if start > end:
        yield error("start_time", f"{describe(start)} is after end_time, {describe(end)}")
    elif _is_integer(duration) and duration != end - start:
        yield error(
            "duration",
            f"{describe(duration)} is not end_time - start_time, {describe(end - start)}",
        )


def _is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


class _Walk:
    """Check of one event, attribute by attribute.

    ``listed`` are the profiles in the event's ``metadata.profiles``. After the check, ``used`` has
    those of them that define an attribute of the event.
    """

    __slots__ = ("_listed", "_recommended", "_schema", "used")

    def __init__(self, schema: Schema, listed: frozenset[str], *, recommended: bool) -> None:
        self._schema = schema
        self._listed = listed
        self._recommended = recommended
        self.used: set[str] = set()

    def faults(
        self, table: Table, value: Mapping[str, Any], path: str, depth: int = 1
    ) -> Iterator[Fault]:
        """Yield the faults of ``value``, the event or an object in it, and of all objects inside.

        ``table`` is the object's definition in the schema, ``path`` its path in the event.
        ``depth`` is the nesting level, 1 for the event.
        """
        if depth > DEPTH:
            yield error(path, _TOO_DEEP)
            return
        if not table.attributes:
            yield from self._undefined(value, path, depth)
            return
        for key, inner in value.items():
            attribute = table.attributes.get(key)
            where = child_path(path, key)
            if attribute is None:
                yield error(where, f"is no attribute of {table.name} in {self._schema.version}")
                continue
            if attribute.profiles:
                # Only these profiles define the attribute, so the event must list one of them.
                self.used.update(self._listed & attribute.profiles)
                if self._listed.isdisjoint(attribute.profiles):
                    profiles = " or ".join(sorted(attribute.profiles))
                    yield error(where, f"its profile ({profiles}) isn't in metadata.profiles")
            if attribute.deprecated is not None:
                yield warning(where, f"is deprecated: {attribute.deprecated}")
            if inner is None:
                yield error(where, IS_NULL)
            elif attribute.is_array:
                yield from self._items(attribute, inner, where, depth)
            else:
                yield from self._value(attribute, inner, where, depth)
        yield from self._requirements(table, value, path)
        yield from self._captions(table, value, path)

    def _items(self, attribute: Attribute, value: Any, where: str, depth: int) -> Iterator[Fault]:
        if not isinstance(value, list):
            yield error(where, f"{describe(value)} is no array")
            return
        for number, item in enumerate(value):
            at = f"{where}[{number}]"
            if item is None:
                yield error(at, IS_NULL)
            else:
                yield from self._value(attribute, item, at, depth)

    def _value(self, attribute: Attribute, value: Any, where: str, depth: int) -> Iterable[Fault]:
        if attribute.type is None:
            return self._object(attribute.object_name or "", value, where, depth)
        if attribute.type.primitive == "json_t" and isinstance(value, dict | list):
            return self._undefined(value, where, depth)
        if (fault := attribute.type.fault(value)) is not None:
            return (error(where, fault),)
        if attribute.captions and value not in attribute.captions:
            only = [describe(one) for one in attribute.captions]
            what = f"not {only[0]}" if len(only) == 1 else f"no value of {attribute.name}"
            return (error(where, f"{describe(value)} is {what}"),)
        if (sentence := attribute.deprecated_values.get(value)) is not None:
            return (warning(where, f"the value {describe(value)} is deprecated: {sentence}"),)
        return ()

    def _object(self, name: str, value: Any, where: str, depth: int) -> Iterator[Fault]:
        if not isinstance(value, dict):
            yield error(where, f"{describe(value)} is no object ({name})")
            return
        table = self._schema.object_of(name)
        if table.deprecated is not None:
            yield warning(where, f"object {name} is deprecated: {table.deprecated}")
        yield from self.faults(table, value, where, depth + 1)

    def _requirements(self, table: Table, value: Mapping[str, Any], path: str) -> Iterator[Fault]:
        for attribute in self._missing(table.required, value):
            yield error(child_path(path, attribute.name), "is required and missing")
        if self._recommended:
            for attribute in self._missing(table.recommended, value):
                yield warning(child_path(path, attribute.name), "is recommended and missing")
        one_of, just_one = table.at_least_one, table.just_one
        if one_of and not any(_has_value(value, name) for name in one_of):
            yield error(path or EVENT, f"has none of {', '.join(one_of)}")
        if just_one:
            found = [name for name in just_one if _has_value(value, name)]
            if len(found) != 1:
                what = f"{' and '.join(found)}, of which" if found else "none of"
                of = "only one may be there" if found else ", ".join(just_one)
                yield error(path or EVENT, f"has {what} {of}")

    def _missing(
        self, attributes: tuple[Attribute, ...], value: Mapping[str, Any]
    ) -> Iterator[Attribute]:
        for attribute in attributes:
            if attribute.name not in value and not (
                attribute.profiles and self._listed.isdisjoint(attribute.profiles)
            ):
                yield attribute

    def _captions(self, table: Table, value: Mapping[str, Any], path: str) -> Iterator[Fault]:
        for sibling, attributes in table.siblings.items():
            present = [each for each in attributes if each.name in value]
            where = child_path(path, sibling)
            for each in present:
                ids, captions = value[each.name], value.get(sibling)
                if not each.is_array:
                    yield from _faults_of_caption(each, ids, captions, where)
                elif isinstance(ids, list) and isinstance(captions, list):
                    for number, one in enumerate(ids):
                        of_it = captions[number] if number < len(captions) else None
                        yield from _faults_of_caption(each, one, of_it, f"{where}[{number}]")
            if not present and sibling in value:
                names = " or ".join(each.name for each in attributes)
                yield warning(where, f"is there without {names}")

    def _undefined(self, value: Any, path: str, depth: int) -> Iterator[Fault]:
        """Check the depth of an object or array that the schema doesn't define, and its JSON."""
        if depth > DEPTH:
            yield error(path, _TOO_DEEP)
            return
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(inner, dict | list):
                yield from self._undefined(inner, _inner_path(value, path, key), depth + 1)
            elif inner is None:
                yield warning(_inner_path(value, path, key), IS_NULL)
            elif (fault := json_fault(inner)) is not None:
                yield error(_inner_path(value, path, key), fault)
            if isinstance(key, str) and not is_utf8(key):
                yield error(_inner_path(value, path, key), f"its name {NOT_UTF8}")


def _faults_of_caption(
    attribute: Attribute, number: Any, caption: Any, where: str
) -> Iterable[Fault]:
    captions = attribute.captions
    is_id = isinstance(number, int | str) and not isinstance(number, bool)
    if not is_id or number not in captions or not isinstance(caption, str | None):
        return ()  # reported already, or not an enumeration
    published, of = captions[number], f"{attribute.name} {number}"
    if number == _OTHER and published == _OTHER_CAPTION:
        if not caption:
            return (error(where, f"is missing: {of} requires a text"),)
        if caption != published and caption in captions.values():
            return (warning(where, f"{of} has the caption of another id"),)
    elif not caption:
        return (warning(where, f"is missing: {of} is {describe(published)}"),)
    elif caption != published:
        return (error(where, f"is {describe(caption)}, but {of} is {describe(published)}"),)
    return ()


def _has_value(value: Any, name: str) -> bool:
    for step in name.split("."):  # an inner attribute is a path such as actor.user
        value = value.get(step) if isinstance(value, dict) else None
    return value is not None


def _inner_path(value: Any, path: str, key: Any) -> str:
    return child_path(path, key) if isinstance(value, dict) else f"{path}[{key}]"
