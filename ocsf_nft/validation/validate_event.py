"""What is wrong with an event.

Errors are what the OCSF schema server's own validator calls so, and what its JSON Schema refuses;
beyond these, what a reader of JSON stumbles over and what contradicts itself. Of a caption that
is missing both approve, so that is a warning, unless the id is 99, which says to look there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

from ocsf_nft.validation import schema
from ocsf_nft.validation.fault import EVENT, LIMIT, Fault, Findings, TooManyError, shown
from ocsf_nft.validation.observables import Observables
from ocsf_nft.validation.schema_walk import Walk

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ocsf_nft.validation.schema import Schema, Table


class Judge:
    """Judges events, at one version or each at the version that it says it has."""

    def __init__(self, version: str | None = None, *, recommended: bool = False) -> None:
        """``version`` is ``1.8`` or ``1.8.0``; None takes each event's ``metadata.version``.

        With ``recommended``, what the schema recommends and an event lacks is a warning. Raises
        UsageError for a version that isn't known, UnsupportedError without the extra ``validate``.
        """
        self._versions = schema.versions()
        self._version = None if version is None else schema.named(version)
        self._recommended = recommended

    def faults(self, event: Any) -> list[Fault]:
        """What is wrong with an event, as JSON reads it; nothing when it conforms.

        Never raises, whatever the event. Of more than ``LIMIT`` faults the last one says so.
        """
        findings = Findings()
        try:
            self._judge(event, findings)
        except TooManyError:
            rest = Fault("error", EVENT, f"has more than {LIMIT} faults: the rest is not told")
            return [*findings.faults, rest]
        return findings.faults

    def _judge(self, event: Any, findings: Findings) -> None:
        if not isinstance(event, dict):
            findings.error(EVENT, f"{shown(event)} is no event: an event is an object")
            return
        published = self._schema(event, findings)
        if published is None:
            return
        table = _class_of(event, published, findings)
        if table is None:
            return
        if table.deprecated is not None:
            findings.warning("class_uid", f"class {table.name} is deprecated: {table.deprecated}")
        profiles = _profiles(event)
        listed = frozenset(name for name in profiles if isinstance(name, str))
        walk = Walk(published, listed, findings, recommended=self._recommended)
        walk.visit(table, event, "")
        _judge_profiles(profiles, walk.used, table, published, findings)
        _judge_whole(event, findings)
        Observables(published, table, event, findings).judge()

    def _schema(self, event: Mapping[str, Any], findings: Findings) -> Schema | None:
        metadata = event.get("metadata")
        own = metadata.get("version") if isinstance(metadata, dict) else None
        if self._version is None:
            if isinstance(own, str) and own in self._versions:
                return schema.load(own)
            what = "is missing" if own is None else f"{shown(own)} is not known"
            findings.error(
                "metadata.version", f"{what}: one of {', '.join(self._versions)} is needed to judge"
            )
            return None
        if isinstance(own, str) and own != self._version:
            findings.error("metadata.version", f"{shown(own)} is not {self._version}")
        return schema.load(self._version)


def _class_of(event: Mapping[str, Any], published: Schema, findings: Findings) -> Table | None:
    uid = event.get("class_uid")
    if uid is None:
        findings.error("class_uid", "is required and missing")
    elif isinstance(uid, bool) or not isinstance(uid, int):
        findings.error("class_uid", f"{shown(uid)} is no integer")
    elif (table := published.class_of(uid)) is not None:
        return table
    else:
        findings.error("class_uid", f"{shown(uid)} is no class in {published.version}")
    return None


def _profiles(event: Mapping[str, Any]) -> list[Any]:
    metadata = event.get("metadata")
    profiles = metadata.get("profiles") if isinstance(metadata, dict) else None
    return profiles if isinstance(profiles, list) else []


def _judge_profiles(
    profiles: list[Any], used: set[str], table: Table, published: Schema, findings: Findings
) -> None:
    seen = set()
    for number, name in enumerate(profiles):
        where = f"metadata.profiles[{number}]"
        if not isinstance(name, str):
            continue  # the walk told of it
        if name not in published.profiles:
            findings.error(where, f"there is no profile {shown(name)} in {published.version}")
        elif name in seen:
            findings.warning(where, f"{name} is there twice")
        elif name not in used:
            has = "is there" if name in table.profiles else f"could be there: not in {table.name}"
            findings.warning(where, f"nothing that {name} brings {has}")
        seen.add(name)


def _judge_whole(event: Mapping[str, Any], findings: Findings) -> None:
    """What attributes say together; one that is missing or no integer has been told of."""
    class_uid, activity, type_uid = map(event.get, ("class_uid", "activity_id", "type_uid"))
    if _is_integer(class_uid) and _is_integer(activity) and _is_integer(type_uid):
        expected = class_uid * 100 + activity
        if type_uid != expected:
            findings.error(
                "type_uid",
                f"{shown(type_uid)} is not class_uid * 100 + activity_id, {shown(expected)}",
            )
    start, end, duration = map(event.get, ("start_time", "end_time", "duration"))
    if not (_is_integer(start) and _is_integer(end)):
        if duration is not None:
            findings.warning("duration", "is there without start_time and end_time")
        return
    if start > end:
        findings.error("start_time", f"{shown(start)} is after end_time, {shown(end)}")
    elif _is_integer(duration) and duration != end - start:
        findings.error(
            "duration", f"{shown(duration)} is not end_time - start_time, {shown(end - start)}"
        )


def _is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
