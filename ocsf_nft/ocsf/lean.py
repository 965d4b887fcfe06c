"""Lean form of an event: without captions, raw data and what is in the event twice.

The lean form is valid in the event's OCSF version, and has the same ``metadata.uid``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.ocsf.enums import OTHER, ObservableType
from ocsf_nft.ocsf.identifiers import NETWORK_ACTIVITY
from ocsf_nft.ocsf.line_templates import LineConverter

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Attributes that a lean event lacks, by the path of their object; ``*`` is each item of a list.
DROPPED: Final = {
    (): ("raw_data", "raw_data_size", "timezone_offset", "observation_point_id", "duration"),
    ("src_endpoint",): ("network_scope_id",),
    ("dst_endpoint",): ("network_scope_id",),
    ("connection_info",): ("protocol_ver_id",),
    ("evidences", "*", "src_endpoint"): ("network_scope_id",),
    ("evidences", "*", "dst_endpoint"): ("network_scope_id",),
    ("evidences", "*", "connection_info"): ("protocol_ver_id",),
    ("unmapped",): ("packet",),
    ("metadata",): (
        "log_name", "log_provider", "log_source", "log_format", "original_time",
        "original_event_uid", "logged_time",
    ),
    ("firewall_rule",): ("desc", "condition"),
    ("device",): ("boot_time", "boot_uid"),
    ("device", "os"): ("kernel_release",),
    # The attacks of the event itself are the same.
    ("finding_info",): ("attacks", "data_sources", "desc"),
    ("finding_info", "related_events", "*"): ("type_name",),
    ("attacks", "*", "tactic"): ("name",),
    ("attacks", "*", "technique"): ("name",),
    ("attacks", "*", "sub_technique"): ("name",),
    ("enrichments", "*", "data"): ("reason",),
}  # fmt: skip
#: Observables that a lean event has: values that other sources know.
OBSERVABLES: Final = frozenset((
    ObservableType.IP_ADDRESS, ObservableType.MAC_ADDRESS, ObservableType.HASH,
    ObservableType.FILE_PATH, ObservableType.ENDPOINT_UID,
))  # fmt: skip
#: Attributes with free content, in which no name has a meaning.
_FREE: Final = frozenset(("unmapped", "data"))
#: Names of captions: of ``activity_id`` and ``class_uid`` it ends with ``_name``.
_UIDS: Final = ("class_uid", "category_uid", "type_uid")
_FILE_PATH: Final = ".file.path"
#: Starts of paths to the names in DNS queries.
_QUERIED: Final = ("query.hostname", "enrichments[")


def lean_line(line: bytes) -> bytes:
    """Return the lean form of an event that is a line of JSON."""
    return _LEAN(line)


def lean(event: dict[str, Any]) -> dict[str, Any]:
    """Return the lean form of an event, which is decoded JSON of any supported OCSF version.

    The function changes and returns this object.
    """
    _drop_captions(event)
    for path, names in DROPPED.items():
        for found in _at(event, path):
            for name in names:
                found.pop(name, None)
    if event["class_uid"] == NETWORK_ACTIVITY:
        event.pop("status_detail", None)  # the advice is the same for all events of a sandbox
    _drop_repeated_actors(event)
    for process in _processes(event):
        _shorten(process)
        _shorten(process.get("parent_process", {}))
        if process.get("ancestry") == [process.get("parent_process")]:
            del process["ancestry"]
    _filter_observables(event)
    _drop_empty(event)
    return event


def _at(found: Any, path: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    if not path:
        if isinstance(found, dict):
            yield found
    elif path[0] == "*":
        for each in found if isinstance(found, list) else ():
            yield from _at(each, path[1:])
    elif isinstance(found, dict):
        yield from _at(found.get(path[0]), path[1:])


def _drop_captions(found: Any) -> None:
    """Remove the captions of enum ids, such as ``severity``, from an object and its inner ones.

    The caption of 99 (Other) stays, because it is a text of its own.
    """
    if isinstance(found, list):
        for each in found:
            _drop_captions(each)
    if not isinstance(found, dict):
        return
    for name in [name for name in found if name.endswith("_id") or name in _UIDS]:
        if found[name] != OTHER:
            stem = name.rpartition("_")[0]
            for caption in (stem, f"{stem}_name"):
                found.pop(caption, None)
    for name, value in found.items():
        if name not in _FREE:
            _drop_captions(value)


def _drop_repeated_actors(event: dict[str, Any]) -> None:
    """Remove an evidence's process that is the event's, and a process's user that its actor has."""
    actor = event.get("actor")
    for evidence in event.get("evidences", ()):
        inner = evidence.get("actor")
        known = [each["process"] for each in (inner, actor) if each and "process" in each]
        if evidence.get("process") in known:
            del evidence["process"]
        if inner is not None and inner == actor:
            del evidence["actor"]
    if "evidences" in event:
        event["evidences"] = list(filter(None, event["evidences"]))
    for holder in (event, *event.get("evidences", ())):
        inner = holder.get("actor", {})
        process = inner.get("process", {})
        if "user" in process and process["user"] == inner.get("user"):
            del process["user"]


def _processes(event: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for holder in (event, *event.get("evidences", ())):
        for process in (holder.get("actor", {}).get("process"), holder.get("process")):
            if process is not None:
                yield process


def _shorten(process: dict[str, Any]) -> None:
    """Remove the path of a process's file that is the process's too; the file, if that is all."""
    file = process.get("file")
    if file is None or file.get("path") != process.get("path"):  # before 1.4.0 there is no path
        return
    if file.get("is_deleted") is False:
        del file["is_deleted"]
    file.pop("path", None)
    if file.keys() <= {"name", "type_id"}:
        del process["file"]


def _filter_observables(event: dict[str, Any]) -> None:
    found = []
    for each in event.get("observables", ()):
        # Only findings have an attribute for the names in DNS queries, in their evidences.
        is_queried = each["name"].startswith(_QUERIED)
        if each["type_id"] not in OBSERVABLES and not is_queried:
            continue
        if each["name"].endswith(_FILE_PATH) and not _has_file_path(event, each["name"]):
            each["name"] = f"{each['name'].removesuffix(_FILE_PATH)}.path"
        found.append(each)
    event["observables"] = found


def _has_file_path(event: dict[str, Any], name: str) -> bool:
    return any("path" in file for file in _at(event, tuple(name.split(".")[:-1])))


def _drop_empty(found: dict[str, Any]) -> None:
    for name, value in list(found.items()):
        if isinstance(value, dict):
            _drop_empty(value)
        if value in ({}, [], ""):
            del found[name]


_LEAN: Final = LineConverter(lean)
