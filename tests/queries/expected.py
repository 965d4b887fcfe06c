"""Expected answers of the queries, computed in Python."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TypeAlias

    Event: TypeAlias = dict[str, Any]

_ENDS: Final = {"sandbox-ended", "sandbox-released"}
_OURS: Final = re.compile(r"ocsf-nft:([^:]+):")


def at(event: Event, path: str) -> Any:
    """Return the attribute at a path of names; None if it is missing."""
    found: Any = event
    for name in path.split("."):
        found = None if found is None else found.get(name)
    return found


def of_class(events: Iterable[Event], class_uid: int) -> list[Event]:
    return [event for event in events if event["class_uid"] == class_uid]


def refused(events: Iterable[Event]) -> list[Event]:
    return [
        event
        for event in of_class(events, 4001)
        if event["activity_name"] == "Refuse" and at(event, "firewall_rule.type") == "nftables"
    ]


def grouped(events: Iterable[Event], key: Callable[[Event], Any]) -> dict[Any, list[Event]]:
    groups: dict[Any, list[Event]] = defaultdict(list)
    for event in events:
        groups[key(event)].append(event)
    return groups


def packets(events: Iterable[Event]) -> int:
    return sum(event["count"] for event in events)


def sandbox(event: Event) -> str | None:
    if event["class_uid"] != 4001:
        return None if (found := at(event, "unmapped.sandbox")) is None else str(found)
    if ours := _OURS.match(event["unmapped"]["prefix"]):
        return ours[1]
    ends = {"Inbound": "dst_endpoint", "Outbound": "src_endpoint"}
    end = ends.get(event["connection_info"]["direction"], "nowhere")
    return None if (found := at(event, f"{end}.name")) is None else str(found)


def host(event: Event) -> Any:
    return at(event, "device.hostname")


def reached_for_metadata(event: Event) -> bool:
    return any(
        at(attack, "sub_technique.name") == "Cloud Instance Metadata API"
        for attack in event.get("attacks", ())
    )


def findings(events: Iterable[Event]) -> Iterator[Event]:
    """Yield the latest event of each finding."""
    for stages in grouped(of_class(events, 2004), lambda one: one["finding_info"]["uid"]).values():
        yield max(
            stages,
            key=lambda one: (
                one["activity_id"], one["count"], one["metadata"]["processed_time"],
            ),
        )  # fmt: skip


def open_findings(events: Iterable[Event]) -> list[Event]:
    return [finding for finding in findings(events) if finding["status"] != "Resolved"]


def gaps(events: Iterable[Event]) -> list[Event]:
    return [event for event in of_class(events, 6002) if event["status"] == "Failure"]


def inactive_fences(events: Iterable[Event]) -> Iterator[Event]:
    changed = of_class(events, 5019)
    for changes in grouped(changed, lambda one: (host(one), one["unmapped"]["sandbox"])).values():
        latest = max(change["time"] for change in changes)
        at_last = [change for change in changes if change["time"] == latest]
        yield from [
            change
            for change in at_last
            if change["state"] != "Enabled" and at(change, "metadata.event_code") not in _ENDS
        ][:1]
