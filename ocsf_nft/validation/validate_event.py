"""Validator of OCSF events.

A fault is an error in these cases, otherwise a warning:

- The validator of the OCSF schema server, or its JSON Schema, refuses the event.
- JSON readers may refuse a value, for example NaN.
- Two attributes contradict each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

from ocsf_nft.validation import schema
from ocsf_nft.validation.fault import EVENT, LIMIT, Fault, FaultList, TooManyError, describe
from ocsf_nft.validation.observables import Observables
from ocsf_nft.validation.schema_walk import Walk

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ocsf_nft.validation.schema import Schema, Table


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
        fault_list = FaultList()
        try:
            self._validate(event, fault_list)
        except TooManyError:
            last = Fault("error", EVENT, f"has more than {LIMIT} faults: the rest is not reported")
            return [*fault_list.faults, last]
        return fault_list.faults

    def _validate(self, event: Any, fault_list: FaultList) -> None:
        if not isinstance(event, dict):
            fault_list.error(EVENT, f"{describe(event)} is no event: an event is an object")
            return
        published = self._schema(event, fault_list)
        if published is None:
            return
        table = _class_of(event, published, fault_list)
        if table is None:
            return
        if table.deprecated is not None:
            fault_list.warning("class_uid", f"class {table.name} is deprecated: {table.deprecated}")
        profiles = _profiles(event)
        listed = frozenset(name for name in profiles if isinstance(name, str))
        walk = Walk(published, listed, fault_list, recommended=self._recommended)
        walk.visit(table, event, "")
        _check_profiles(profiles, walk.used, table, published, fault_list)
        _check_relations(event, fault_list)
        Observables(published, table, event, fault_list).check()

    def _schema(self, event: Mapping[str, Any], fault_list: FaultList) -> Schema | None:
        metadata = event.get("metadata")
        own = metadata.get("version") if isinstance(metadata, dict) else None
        if self._version is None:
            if isinstance(own, str) and own in self._versions:
                return schema.load(own)
            what = "is missing" if own is None else f"{describe(own)} is not known"
            fault_list.error(
                "metadata.version", f"{what}: one of {', '.join(self._versions)} is needed"
            )
            return None
        if isinstance(own, str) and own != self._version:
            fault_list.error("metadata.version", f"{describe(own)} is not {self._version}")
        return schema.load(self._version)


def _class_of(event: Mapping[str, Any], published: Schema, fault_list: FaultList) -> Table | None:
    uid = event.get("class_uid")
    if uid is None:
        fault_list.error("class_uid", "is required and missing")
    elif isinstance(uid, bool) or not isinstance(uid, int):
        fault_list.error("class_uid", f"{describe(uid)} is no integer")
    elif (table := published.class_of(uid)) is not None:
        return table
    else:
        fault_list.error("class_uid", f"{describe(uid)} is no class in {published.version}")
    return None


def _profiles(event: Mapping[str, Any]) -> list[Any]:
    metadata = event.get("metadata")
    profiles = metadata.get("profiles") if isinstance(metadata, dict) else None
    return profiles if isinstance(profiles, list) else []


def _check_profiles(
    profiles: list[Any], used: set[str], table: Table, published: Schema, fault_list: FaultList
) -> None:
    seen = set()
    for number, name in enumerate(profiles):
        where = f"metadata.profiles[{number}]"
        if not isinstance(name, str):
            continue  # reported by the walk
        if name not in published.profiles:
            fault_list.error(where, f"there is no profile {describe(name)} in {published.version}")
        elif name in seen:
            fault_list.warning(where, f"{name} is listed twice")
        elif name not in used:
            problem = "is used" if name in table.profiles else f"can be in {table.name}"
            fault_list.warning(where, f"no attribute of this profile ({name}) {problem}")
        seen.add(name)


def _check_relations(event: Mapping[str, Any], fault_list: FaultList) -> None:
    """Check that ``type_uid`` fits class and activity, and ``duration`` fits start and end time."""
    # The walk has reported attributes that are missing or have a wrong type.
    class_uid, activity, type_uid = map(event.get, ("class_uid", "activity_id", "type_uid"))
    if _is_integer(class_uid) and _is_integer(activity) and _is_integer(type_uid):
        expected = class_uid * 100 + activity
        if type_uid != expected:
            fault_list.error(
                "type_uid",
                f"{describe(type_uid)} is not class_uid * 100 + activity_id, {describe(expected)}",
            )
    start, end, duration = map(event.get, ("start_time", "end_time", "duration"))
    if not (_is_integer(start) and _is_integer(end)):
        if duration is not None:
            fault_list.warning("duration", "is there without start_time and end_time")
        return
    if start > end:
        fault_list.error("start_time", f"{describe(start)} is after end_time, {describe(end)}")
    elif _is_integer(duration) and duration != end - start:
        fault_list.error(
            "duration",
            f"{describe(duration)} is not end_time - start_time, {describe(end - start)}",
        )


def _is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
