"""Valid sample events, and single changes that make them invalid."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any, Final, NamedTuple

_SAMPLES: Final = Path(__file__).parent / "samples"
CLASSES: Final = (4001, 2004, 5019, 6002)
VERSIONS: Final = ("1.1.0", "1.8.0")
#: Valid events of each class that we emit, in the oldest version and the newest.
GOOD: Final[dict[tuple[int, str], Any]] = {
    (uid, version): json.loads((_SAMPLES / f"good_{uid}_{version}.json").read_text("utf-8"))
    for uid in CLASSES
    for version in VERSIONS
}
DELETE: Final = object()


class Spoil(NamedTuple):
    """Change of the value at a path (written as in faults), and where the fault is reported."""

    path: str
    value: Any
    at: str | None = None
    severity: str = "error"


def spoilt(event: Any, spoil: Spoil) -> Any:
    """Return the event with one change; a name in quotes may contain dots."""
    event = deepcopy(event)
    steps: list[str | int] = [
        int(index) if index else json.loads(quoted) if quoted else name
        for index, quoted, name in re.findall(r'\[(\d+)\]|("[^"]*")|([\w/]+)', spoil.path)
    ]
    where = event
    for step in steps[:-1]:
        where = where[step]
    if spoil.value is DELETE:
        del where[steps[-1]]
    else:
        where[steps[-1]] = spoil.value
    return event


#: Changes that make an event of any class invalid, in any version.
ANY: Final = {
    "class missing": Spoil("class_uid", DELETE),
    "class that doesn't exist": Spoil("class_uid", 4999),
    "class as text": Spoil("class_uid", "4001"),
    "class as a fraction": Spoil("class_uid", 1.5),
    "class as a boolean": Spoil("class_uid", True),
    "class name misspelt": Spoil("class_name", "Network activity"),
    "category of another class": Spoil("category_uid", 3),
    "category missing": Spoil("category_uid", DELETE),
    "category name of another": Spoil("category_name", "Remediation"),
    "activity that doesn't exist": Spoil("activity_id", 42),
    "activity missing": Spoil("activity_id", DELETE),
    "activity as a boolean": Spoil("activity_id", True),
    "activity of another name": Spoil("activity_name", "Rejected"),
    "type of another class": Spoil("type_uid", 300201),
    "type missing": Spoil("type_uid", DELETE),
    "type of another activity": Spoil("activity_id", 0, at="type_uid"),
    "type name misspelt": Spoil("type_name", "Refused"),
    "severity missing": Spoil("severity_id", DELETE),
    "severity that doesn't exist": Spoil("severity_id", 7),
    "severity in lower case": Spoil("severity", "medium"),
    "severity 99 with a caption of another id": Spoil(
        "severity_id", 99, severity="warning", at="severity"
    ),
    "caption missing": Spoil("severity", DELETE, severity="warning"),
    "caption without its id": Spoil("status_id", DELETE, severity="warning", at="status"),
    "time missing": Spoil("time", DELETE),
    "time as text": Spoil("time", "2026-01-01T00:00:00Z"),
    "time as a fraction": Spoil("time", 1767225600000.0),
    "time past 64 bits": Spoil("time", 1 << 63),
    "time that is no number": Spoil("time", float("nan")),
    "another version": Spoil("metadata.version", "1.3.0"),
    "version missing": Spoil("metadata.version", DELETE),
    "metadata missing": Spoil("metadata", DELETE),
    "metadata as an array": Spoil("metadata", [{}]),
    "product missing": Spoil("metadata.product", DELETE),
    "profile that doesn't exist": Spoil(
        "metadata.profiles", ["firewall"], at="metadata.profiles[0]"
    ),
    "profile as an object": Spoil("metadata.profiles", [{}], at="metadata.profiles[0]"),
    "profiles as text": Spoil("metadata.profiles", "host"),
    "profile listed in vain": Spoil(
        "metadata.profiles", ["load_balancer"], severity="warning", at="metadata.profiles[0]"
    ),
    "attribute that doesn't exist": Spoil("engine", "nftables"),
    "attribute that doesn't exist below": Spoil("metadata.engine", "nftables"),
    "attribute of a profile that isn't listed": Spoil("cloud", {"provider": "AWS"}),
    "container at the top": Spoil("container", {"uid": "3f4e0c2c9d1a"}),
    "null": Spoil("message", None),
    "half a character": Spoil("message", "\ud800"),
    "half a character in a name": Spoil('"\ud800"', 1, at=r'"\ud800"'),
    "text as an array": Spoil("message", ["text"]),
    "device without a type": Spoil("device.type_id", DELETE),
    "device without a system's name": Spoil("device.os.name", DELETE),
    "device as text": Spoil("device", "host"),
    "device of another type's name": Spoil("device.type", "Server"),
    "observable of nothing": Spoil("observables[0].name", "dst_endpoint.hostname"),
    "observable below a scalar": Spoil("observables[0].name", "message.text"),
    "observable with an index that is none": Spoil("observables[0].name", "observables[x].name"),
    "observable of another value": Spoil("observables[0].value", "203.0.113.8"),
    "observable without a value": Spoil("observables[0].value", DELETE),
    "observable of another type": Spoil("observables[0].type_id", 6),
    "observable of a type that doesn't exist": Spoil("observables[0].type_id", 98),
    "observable of another type's name": Spoil("observables[0].type", "User"),
    "observable as text": Spoil("observables[0]", "10.0.0.1"),
    "observables as an object": Spoil("observables", {}),
    "timezone as text": Spoil("timezone_offset", "+01:00"),
}

#: Changes that make an event of one class invalid, in any version.
OF_CLASS: Final[dict[int, dict[str, Spoil]]] = {
    4001: {
        "profile listed twice": Spoil(
            "metadata.profiles[3]", "host", severity="warning", at="metadata.profiles[3]"
        ),
        "missing profiles": Spoil("metadata.profiles", DELETE, at="action_id"),
        "missing proxy": Spoil(
            "proxy_endpoint", DELETE, severity="warning", at="metadata.profiles[1]"
        ),
        "disposition of another id": Spoil("disposition", "Dropped"),
        "disposition 99 with a caption of another id": Spoil(
            "disposition_id", 99, severity="warning", at="disposition"
        ),
        "address that is none": Spoil("dst_endpoint.ip", "example"),
        "address that is too long": Spoil("dst_endpoint.ip", "::%" + " " * 99),
        "address as a number": Spoil("dst_endpoint.ip", 167772161),
        "hardware address that is none": Spoil("src_endpoint.mac", "02:00"),
        "port too high": Spoil("dst_endpoint.port", 70000),
        "port too low": Spoil("dst_endpoint.port", -1),
        "port as text": Spoil("dst_endpoint.port", "443"),
        "endpoint without identity": Spoil("dst_endpoint", {"port": 443}),
        "direction missing": Spoil("connection_info.direction_id", DELETE),
        "direction of another id": Spoil("connection_info.direction", "Inbound"),
        "container's profile isn't listed": Spoil(
            "metadata.profiles[3]", "network_proxy", at="src_endpoint.container"
        ),
        "user's address that is none": Spoil("actor.user.email_addr", "none"),
        "actor without identity": Spoil("actor", {}),
        "process without pid or uid": Spoil("actor.process.pid", DELETE, at="actor.process"),
        "file without a name": Spoil("actor.process.file.name", DELETE),
        "image without a uid": Spoil("device.container.image.uid", DELETE),
        "attack of nothing": Spoil("attacks[0]", {"version": "18.0"}),
        "deprecated attribute": Spoil("proxy", {"ip": "10.200.0.1"}, severity="warning"),
        "null below": Spoil("unmapped.ttl", None, severity="warning"),
        "half a character below": Spoil("unmapped.raw", "\udc80"),
        "half a character in a name below": Spoil('unmapped."\ud800"', 1, at=r'unmapped."\ud800"'),
        "number past 64 bits below": Spoil(
            "unmapped.mark", {"a": [1 << 64]}, at="unmapped.mark.a[0]"
        ),
        "no number below": Spoil("unmapped.mark", float("-inf")),
        "end before start": Spoil("end_time", 1, at="start_time"),
        "duration of another time": Spoil("duration", 3999),
        "duration without a start": Spoil("start_time", DELETE, severity="warning", at="duration"),
        "value of an object": Spoil(
            "observables[0].name", "dst_endpoint", at="observables[0].value"
        ),
        "protocol version that doesn't exist": Spoil("connection_info.protocol_ver_id", 5),
        "enrichment without a value": Spoil("enrichments[0].value", DELETE),
    },
    2004: {
        "nothing found": Spoil("finding_info", DELETE),
        "finding without a uid": Spoil("finding_info.uid", DELETE),
        "status of another class": Spoil("status", "Success"),
        "status of a network activity": Spoil("status_id", 2, at="status"),
        "analytic without a type": Spoil("finding_info.analytic.type_id", DELETE),
        "analytic without a caption": Spoil(
            "finding_info.analytic.type", DELETE, severity="warning"
        ),
        "analytic of another type": Spoil("finding_info.analytic.type", "Behavioral"),
        "seen as text": Spoil("finding_info.first_seen_time", "2026-01-01"),
        "one type": Spoil("finding_info.types", "Fan-out"),
        "a type that is no text": Spoil("finding_info.types[0]", 1),
        "evidence of nothing": Spoil("evidences[0]", {}),
        "evidence as text": Spoil("evidences[0]", "203.0.113.7"),
        "evidences as an object": Spoil("evidences", {}),
        "evidence of an unknown kind": Spoil("evidences[0].destination", "203.0.113.7"),
        "evidence without a direction": Spoil("evidences[0].connection_info.direction_id", DELETE),
        "evidence that points nowhere": Spoil("evidences[0].dst_endpoint", {"port": 443}),
        "evidence of another port": Spoil("evidences[0].dst_endpoint.port", 65536),
        "observable of no evidence": Spoil("observables[1].name", "evidences[99].dst_endpoint.ip"),
        "observable of another evidence": Spoil(
            "observables[1].name", "evidences[0].dst_endpoint.ip", at="observables[1].value"
        ),
        "remediation without a word": Spoil("remediation", {}, at="remediation.desc"),
        "resource as an object": Spoil("resources", {"uid": "a"}),
        "source at the top": Spoil("src_endpoint", {"name": "sb1"}),
        "risk of another level": Spoil("risk_level", "High"),
        "risk that doesn't exist": Spoil("risk_level_id", 5),
        "security control isn't listed": Spoil(
            "metadata.profiles", ["host", "container"], at="disposition_id"
        ),
        "duration of another time": Spoil("duration", 1),
        "related event without a uid": Spoil("finding_info.related_events[0].uid", DELETE),
    },
    5019: {
        "device missing": Spoil("device", DELETE),
        "device without a system's type": Spoil("device.os.type_id", DELETE),
        "level that doesn't exist": Spoil("security_level_id", 4),
        "level of another id": Spoil("security_level", "Secure"),
        "level before of another id": Spoil("prev_security_level", "At Risk"),
        "level before as text": Spoil("prev_security_level_id", "1"),
        "level without its id": Spoil(
            "security_level_id", DELETE, severity="warning", at="security_level"
        ),
        "level 99 without a text": Spoil(
            "prev_security_level_id", 99, severity="warning", at="prev_security_level"
        ),
        "states as an object": Spoil("security_states", {}),
        "state that doesn't exist": Spoil(
            "security_states", [{"state_id": 98}], at="security_states[0].state_id"
        ),
        "actor without identity": Spoil("actor", {}),
        "actor's process without a pid": Spoil("actor.process", {"name": "nft"}),
        "actor as a list": Spoil("actor", []),
        "app of another class": Spoil("app", {"vendor_name": "Acme"}),
        "status that doesn't exist": Spoil("status_id", 3),
        "tables past 64 bits": Spoil("unmapped.tables[0]", -(1 << 64)),
        "tables as null": Spoil("unmapped.tables[0]", None, severity="warning"),
        "count as a fraction": Spoil("count", 2.0),
        "count as text": Spoil("count", "2"),
        "observable of another class": Spoil("observables[0].name", "app.name"),
        "process's time as text": Spoil("actor.process.created_time", "now"),
    },
    6002: {
        "app missing": Spoil("app", DELETE),
        "app as text": Spoil("app", "nft-ocsf"),
        "app with an attribute of another object": Spoil("app.pid", 1),
        "app's name as a number": Spoil("app.name", 1),
        "app as a list": Spoil("app", [{"vendor_name": "Acme"}]),
        "host isn't listed": Spoil("metadata.profiles", [], at="device"),
        "host listed in vain": Spoil(
            "device", DELETE, severity="warning", at="metadata.profiles[0]"
        ),
        "device's system as text": Spoil("device.os", "Linux"),
        "status of a finding": Spoil("status", "New"),
        "activity of a network activity": Spoil("activity_name", "Refuse"),
        "end before start": Spoil("start_time", 1767225604001),
        "end as text": Spoil("end_time", "1767225604000"),
        "duration of another time": Spoil("duration", 4001),
        "duration without an end": Spoil("end_time", DELETE, severity="warning", at="duration"),
        "count past 64 bits": Spoil("count", -(1 << 63) - 1),
        "count as null": Spoil("count", None),
        "count as a boolean": Spoil("count", True),
        "dropped as no number": Spoil("unmapped.lost.records", float("inf")),
        "dropped as half a character": Spoil("unmapped.lost.reason", "\udfff"),
        "source at the top": Spoil("src_endpoint", {"name": "sb1"}),
        "firewall rule without its profile": Spoil("firewall_rule", {"name": "egress"}),
        "actor of nothing": Spoil("actor", {}),
    },
}

#: Changes that are valid in a later version and make an event of 1.1.0 invalid.
LATER: Final[dict[int, dict[str, Spoil]]] = {
    4001: {
        "action missing": Spoil("action_id", DELETE),
        "source missing": Spoil("src_endpoint", DELETE),
        "destination missing": Spoil("dst_endpoint", DELETE),
        "alert": Spoil("is_alert", True),
        "confidence": Spoil("confidence_id", 3),
        "size of the raw data": Spoil("raw_data_size", 214),
        "hash of the raw data": Spoil("raw_data_hash", {"algorithm_id": 3, "value": "ab"}),
        "assignment known": Spoil("is_src_dst_assignment_known", True),
        "observation point": Spoil("observation_point_id", 1),
        "scope": Spoil("dst_endpoint.network_scope_id", 2),
        "community": Spoil("connection_info.community_uid", "1:S4+vk12PH6/gapfO0cj+13tfhok="),
        "path of a process": Spoil("actor.process.path", "/usr/bin/curl"),
        "ancestry": Spoil("actor.process.ancestry", []),
        "kernel's release": Spoil("device.os.kernel_release", "6.12.48"),
        "source of the log": Spoil("metadata.log_source", "/dev/kmsg"),
        "format of the log": Spoil("metadata.log_format", "nf_log_syslog"),
        "uid of the original event": Spoil("metadata.original_event_uid", "kmsg:5678"),
        "activity Listen": Spoil("activity_id", 7),
        "action Observed": Spoil("action_id", 3),
        "port as an observable": Spoil("observables[0].type_id", 11),
        "text too long": Spoil("message", "x" * 65536),
        "product without a vendor": Spoil("metadata.product.vendor_name", DELETE),
        "endpoint of a domain": Spoil("dst_endpoint", {"domain": "example.com"}),
    },
    2004: {
        "alert": Spoil("is_alert", True),
        "finding without a title": Spoil("finding_info.title", DELETE),
        "number of related events": Spoil("finding_info.related_events_count", 1),
        "evidence of a container": Spoil("evidences[0].container", {"uid": "3f4e0c2c9d1a"}),
        "evidence of a device": Spoil("evidences[0].device", {"type_id": 6}),
        "evidence of a user": Spoil("evidences[0].user", {"uid": "1000"}),
        "type of a related event by name": Spoil(
            "finding_info.related_events[0].type_name", "Network Activity: Refuse"
        ),
        "file path as an observable": Spoil("observables[1].type_id", 45),
        "ancestry": Spoil("evidences[0].process.ancestry", []),
        "observable without a name": Spoil("observables[0].name", DELETE),
        "size of the raw data": Spoil("raw_data_size", 214),
    },
    5019: {
        "state": Spoil("state_id", 1),
        "kernel's release": Spoil("device.os.kernel_release", "6.12.48"),
        "profile for artificial intelligence": Spoil(
            "metadata.profiles", ["ai_operation"], at="metadata.profiles[0]"
        ),
        "source of the log": Spoil("metadata.log_source", "/dev/kmsg"),
        "hash of the raw data": Spoil("raw_data_hash", {"algorithm_id": 3, "value": "ab"}),
    },
    6002: {
        "activity Restart": Spoil("activity_id", 5),
        "activity Update": Spoil("activity_id", 8),
        "product without a vendor": Spoil("app.vendor_name", DELETE),
        "alert": Spoil("is_alert", True),
        "app's uid as an object": Spoil("app.uid", {}),
    },
}

#: Changes that are only invalid in the newest version.
NEWEST: Final[dict[int, dict[str, Spoil]]] = {
    4001: {
        "both endpoints missing": Spoil("dst_endpoint", DELETE, at="observables[0].name"),
        "deprecated attribute below": Spoil("actor.invoked_by", "cron", severity="warning"),
        "lineage": Spoil("actor.process.lineage", [], severity="warning"),
        "point of observation of another id": Spoil("observation_point", "Destination"),
        "scope of another id": Spoil("dst_endpoint.network_scope", "Internal"),
        "ancestor without identity": Spoil("actor.process.ancestry[0]", {}),
        "alert as a number": Spoil("is_alert", 1),
        "hash without an algorithm": Spoil(
            "raw_data_hash", {"value": "ab"}, at="raw_data_hash.algorithm_id"
        ),
        "confidence of another level": Spoil("confidence", "Low"),
    },
    2004: {
        "device at the top is fine, as text it isn't": Spoil("device", 1),
        "observable without a name": Spoil(
            "observables[0].name", DELETE, severity="warning", at="observables[0]"
        ),
    },
    5019: {"state of another id": Spoil("state", "Enabled")},
    6002: {"uid that is none": Spoil("raw_data_hash", [])},
}


def spoils(uid: int, version: str) -> dict[str, Spoil]:
    """Return all changes that make the sample of a class and version invalid, by name."""
    of_version = LATER if version == VERSIONS[0] else NEWEST
    return ANY | OF_CLASS[uid] | of_version[uid]
