"""Validator of OCSF events.

A fault is an error in these cases, otherwise a warning:

- The validator of the OCSF schema server, or its JSON Schema, refuses the event.
- JSON readers may refuse a value, for example NaN.
- Two attributes contradict each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeGuard

from ocsf_nft.validation import schema
from ocsf_nft.validation.fault import (
    EVENT,
    LIMIT,
    Fault,
    FaultList,
    TooManyError,
    child_path,
    describe,
)
from ocsf_nft.validation.observables import Observables
from ocsf_nft.validation.schema import IS_NULL, NOT_UTF8, is_utf8, json_fault

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ocsf_nft.validation.schema import Attribute, Schema, Table

#: The id that means "see the caption", and the schema's caption for it if it has this meaning.
_OTHER: Final = 99
_OTHER_CAPTION: Final = "Other"
#: Maximum depth of objects and arrays: JSON readers have a limit, and no event needs more.
DEPTH: Final = 100
_TOO_DEEP: Final = f"is nested more than {DEPTH} levels deep"


class EventValidator:
    """Validator of events, for one OCSF version or for each event's ``metadata.version``."""

    def __init__(self, version: str | None = None, *, recommended: bool = False) -> None:
        """Create a validator for an OCSF version (``1.8``); None means each event's own version.

        If ``recommended`` is true, each missing recommended attribute gives a warning. Raises
        UsageError for an unknown version. Raises UnsupportedError if the extra ``validate`` is not
        installed.
        """
        self._versions = schema.versions()
        self._version = None if version is None else schema.full_version(version)
        self._recommended = recommended

    def faults(self, event: Any) -> list[Fault]:
        """Validate an event, a value decoded from JSON; return its errors and warnings.

        The event conforms to the schema if no fault is an error. Never raises. If there are more
        than ``LIMIT`` faults, the last fault in the result states this.
        """
        faults = FaultList()
        try:
            self._validate(event, faults)
        except TooManyError:
            last = Fault("error", EVENT, f"has more than {LIMIT} faults: the rest is not reported")
            return [*faults.faults, last]
        return faults.faults

    def _validate(self, event: Any, faults: FaultList) -> None:
        if not isinstance(event, dict):
            faults.error(EVENT, f"{describe(event)} is no event: an event is an object")
            return
        published = self._schema(event, faults)
        if published is None:
            return
        table = _class_of(event, published, faults)
        if table is None:
            return
        if table.deprecated is not None:
            faults.warning("class_uid", f"class {table.name} is deprecated: {table.deprecated}")
        profiles = _profiles(event)
        listed = frozenset(name for name in profiles if isinstance(name, str))
        walk = _Walk(published, listed, faults, recommended=self._recommended)
        walk.visit(table, event, "")
        _check_profiles(profiles, walk.used, table, published, faults)
        _check_relations(event, faults)
        Observables(published, table, event, faults).check()

    def _schema(self, event: Mapping[str, Any], faults: FaultList) -> Schema | None:
        metadata = event.get("metadata")
        own = metadata.get("version") if isinstance(metadata, dict) else None
        if self._version is None:
            if isinstance(own, str) and own in self._versions:
                return schema.load(own)
            what = "is missing" if own is None else f"{describe(own)} is not known"
            faults.error(
                "metadata.version", f"{what}: one of {', '.join(self._versions)} is needed"
            )
            return None
        if isinstance(own, str) and own != self._version:
            faults.error("metadata.version", f"{describe(own)} is not {self._version}")
        return schema.load(self._version)


def _class_of(event: Mapping[str, Any], published: Schema, faults: FaultList) -> Table | None:
    uid = event.get("class_uid")
    if uid is None:
        faults.error("class_uid", "is required and missing")
    elif isinstance(uid, bool) or not isinstance(uid, int):
        faults.error("class_uid", f"{describe(uid)} is no integer")
    elif (table := published.class_of(uid)) is not None:
        return table
    else:
        faults.error("class_uid", f"{describe(uid)} is no class in {published.version}")
    return None


def _profiles(event: Mapping[str, Any]) -> list[Any]:
    metadata = event.get("metadata")
    profiles = metadata.get("profiles") if isinstance(metadata, dict) else None
    return profiles if isinstance(profiles, list) else []


def _check_profiles(
    profiles: list[Any], used: set[str], table: Table, published: Schema, faults: FaultList
) -> None:
    seen = set()
    for number, name in enumerate(profiles):
        where = f"metadata.profiles[{number}]"
        if not isinstance(name, str):
            continue  # reported by the walk
        if name not in published.profiles:
            faults.error(where, f"there is no profile {describe(name)} in {published.version}")
        elif name in seen:
            faults.warning(where, f"{name} is listed twice")
        elif name not in used:
            problem = "is used" if name in table.profiles else f"can be in {table.name}"
            faults.warning(where, f"no attribute of this profile ({name}) {problem}")
        seen.add(name)


def _check_relations(event: Mapping[str, Any], faults: FaultList) -> None:
    """Check that ``type_uid`` fits class and activity, and ``duration`` fits start and end time."""
    # The walk has reported attributes that are missing or have a wrong type.
    class_uid, activity, type_uid = map(event.get, ("class_uid", "activity_id", "type_uid"))
    if _is_integer(class_uid) and _is_integer(activity) and _is_integer(type_uid):
        expected = class_uid * 100 + activity
        if type_uid != expected:
            faults.error(
                "type_uid",
                f"{describe(type_uid)} is not class_uid * 100 + activity_id, {describe(expected)}",
            )
    start, end, duration = map(event.get, ("start_time", "end_time", "duration"))
    if not (_is_integer(start) and _is_integer(end)):
        if duration is not None:
            faults.warning("duration", "is there without start_time and end_time")
        return
    if start > end:
        faults.error("start_time", f"{describe(start)} is after end_time, {describe(end)}")
    elif _is_integer(duration) and duration != end - start:
        faults.error(
            "duration",
            f"{describe(duration)} is not end_time - start_time, {describe(end - start)}",
        )


def _is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


class _Walk:
    """Check of one event, attribute by attribute; the faults are added to ``faults``.

    ``listed`` are the profiles in the event's ``metadata.profiles``. After the check, ``used`` has
    those of them that define an attribute of the event.
    """

    __slots__ = ("_faults", "_listed", "_recommended", "_schema", "used")

    def __init__(
        self, schema: Schema, listed: frozenset[str], faults: FaultList, *, recommended: bool
    ) -> None:
        self._schema = schema
        self._listed = listed
        self._faults = faults
        self._recommended = recommended
        self.used: set[str] = set()

    def visit(self, table: Table, value: Mapping[str, Any], path: str, depth: int = 1) -> None:
        """Check ``value`` (the event or an object in the event) and all objects inside ``value``.

        ``table`` is the object's definition in the schema, ``path`` its path in the event.
        ``depth`` is the nesting level, 1 for the event. Raises TooManyError after too many faults.
        """
        if depth > DEPTH:
            self._faults.error(path, _TOO_DEEP)
            return
        if not table.attributes:
            self._check_undefined(value, path, depth)
            return
        for key, inner in value.items():
            attribute = table.attributes.get(key)
            where = child_path(path, key)
            if attribute is None:
                self._faults.error(
                    where, f"is no attribute of {table.name} in {self._schema.version}"
                )
            elif self._check_presence(attribute, where, inner):
                self._check_attribute(attribute, inner, where, depth)
        self._check_requirements(table, value, path)
        self._check_captions(table, value, path)

    def _check_presence(self, attribute: Attribute, where: str, value: Any) -> bool:
        """Report an attribute that is null or deprecated, or whose profile the event doesn't list.

        Return False if ``value`` is null, because null can't be checked further.
        """
        # Only these profiles define the attribute, so the event must list one of them.
        if attribute.profiles:
            self.used.update(self._listed & attribute.profiles)
            if self._listed.isdisjoint(attribute.profiles):
                profiles = " or ".join(sorted(attribute.profiles))
                self._faults.error(where, f"its profile ({profiles}) isn't in metadata.profiles")
        if attribute.deprecated is not None:
            self._faults.warning(where, f"is deprecated: {attribute.deprecated}")
        if value is None:
            self._faults.error(where, IS_NULL)
            return False
        return True

    def _check_attribute(self, attribute: Attribute, value: Any, where: str, depth: int) -> None:
        if not attribute.is_array:
            self._check_value(attribute, value, where, depth)
        elif not isinstance(value, list):
            self._faults.error(where, f"{describe(value)} is no array")
        else:
            for number, item in enumerate(value):
                at = f"{where}[{number}]"
                if item is None:
                    self._faults.error(at, IS_NULL)
                else:
                    self._check_value(attribute, item, at, depth)

    def _check_value(self, attribute: Attribute, value: Any, where: str, depth: int) -> None:
        if attribute.type is None:
            self._check_object(attribute.object_name or "", value, where, depth)
        elif attribute.type.primitive == "json_t" and isinstance(value, dict | list):
            self._check_undefined(value, where, depth)
        elif (fault := attribute.type.fault(value)) is not None:
            self._faults.error(where, fault)
        elif attribute.captions:
            self._check_enumerated(attribute, value, where)

    def _check_object(self, name: str, value: Any, where: str, depth: int) -> None:
        if not isinstance(value, dict):
            self._faults.error(where, f"{describe(value)} is no object ({name})")
            return
        table = self._schema.object_of(name)
        if table.deprecated is not None:
            self._faults.warning(where, f"object {name} is deprecated: {table.deprecated}")
        self.visit(table, value, where, depth + 1)

    def _check_enumerated(self, attribute: Attribute, value: Any, where: str) -> None:
        if value not in attribute.captions:
            only = [describe(one) for one in attribute.captions]
            what = f"not {only[0]}" if len(only) == 1 else f"no value of {attribute.name}"
            self._faults.error(where, f"{describe(value)} is {what}")
        elif (sentence := attribute.deprecated_values.get(value)) is not None:
            self._faults.warning(where, f"the value {describe(value)} is deprecated: {sentence}")

    def _check_requirements(self, table: Table, value: Mapping[str, Any], path: str) -> None:
        for attribute in self._missing(table.required, value):
            self._faults.error(child_path(path, attribute.name), "is required and missing")
        if self._recommended:
            for attribute in self._missing(table.recommended, value):
                self._faults.warning(child_path(path, attribute.name), "is recommended and missing")
        one_of, just_one = table.at_least_one, table.just_one
        if one_of and not any(_has_value(value, name) for name in one_of):
            self._faults.error(path or EVENT, f"has none of {', '.join(one_of)}")
        if just_one:
            found = [name for name in just_one if _has_value(value, name)]
            if len(found) != 1:
                what = f"{' and '.join(found)}, of which" if found else "none of"
                of = "only one may be there" if found else ", ".join(just_one)
                self._faults.error(path or EVENT, f"has {what} {of}")

    def _missing(
        self, attributes: tuple[Attribute, ...], value: Mapping[str, Any]
    ) -> Iterator[Attribute]:
        for attribute in attributes:
            if attribute.name not in value and not (
                attribute.profiles and self._listed.isdisjoint(attribute.profiles)
            ):
                yield attribute

    def _check_captions(self, table: Table, value: Mapping[str, Any], path: str) -> None:
        for sibling, attributes in table.siblings.items():
            present = [each for each in attributes if each.name in value]
            where = child_path(path, sibling)
            for each in present:
                ids, captions = value[each.name], value.get(sibling)
                if not each.is_array:
                    self._check_caption(each, ids, captions, where)
                elif isinstance(ids, list) and isinstance(captions, list):
                    for number, one in enumerate(ids):
                        of_it = captions[number] if number < len(captions) else None
                        self._check_caption(each, one, of_it, f"{where}[{number}]")
            if not present and sibling in value:
                names = " or ".join(each.name for each in attributes)
                self._faults.warning(where, f"is there without {names}")

    def _check_caption(self, attribute: Attribute, number: Any, caption: Any, where: str) -> None:
        captions = attribute.captions
        is_id = isinstance(number, int | str) and not isinstance(number, bool)
        if not is_id or number not in captions:
            return  # reported already, or not an enumeration
        published, of = captions[number], f"{attribute.name} {number}"
        is_other = number == _OTHER and published == _OTHER_CAPTION
        if caption is None or caption == "":
            if is_other:
                self._faults.error(where, f"is missing: {of} requires a text")
            else:
                self._faults.warning(where, f"is missing: {of} is {describe(published)}")
        elif not isinstance(caption, str):
            return  # reported already
        elif is_other:
            if caption != published and caption in captions.values():
                self._faults.warning(where, f"{of} has the caption of another id")
        elif caption != published:
            self._faults.error(where, f"is {describe(caption)}, but {of} is {describe(published)}")

    def _check_undefined(self, value: Any, path: str, depth: int) -> None:
        """Check the depth of an object or array that the schema doesn't define, and its JSON."""
        if depth > DEPTH:
            self._faults.error(path, _TOO_DEEP)
            return
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(inner, dict | list):
                self._check_undefined(inner, _inner_path(value, path, key), depth + 1)
            elif inner is None:
                self._faults.warning(_inner_path(value, path, key), IS_NULL)
            elif (fault := json_fault(inner)) is not None:
                self._faults.error(_inner_path(value, path, key), fault)
            if isinstance(key, str) and not is_utf8(key):
                self._faults.error(_inner_path(value, path, key), f"its name {NOT_UTF8}")


def _has_value(value: Any, name: str) -> bool:
    for step in name.split("."):  # an inner attribute is a path such as actor.user
        value = value.get(step) if isinstance(value, dict) else None
    return value is not None


def _inner_path(value: Any, path: str, key: Any) -> str:
    return child_path(path, key) if isinstance(value, dict) else f"{path}[{key}]"
