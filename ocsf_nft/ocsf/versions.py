"""Conversion of events from the stored OCSF version to an older or a newer one.

Attributes that the other version lacks are removed or renamed. Values that it lacks are replaced by
similar ones. A newer version also gets its new attributes.
"""

from __future__ import annotations

import re
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ocsf_nft.errors import UsageError
from ocsf_nft.ocsf.ai_agents import agent_of
from ocsf_nft.ocsf.enums import Action, Direction, NetworkActivityId, ObservableType
from ocsf_nft.ocsf.event_base import SCHEMA_VERSION
from ocsf_nft.ocsf.events import CLASSES, DetectionFinding, DeviceConfigStateChange, NetworkActivity
from ocsf_nft.ocsf.finding_objects import FindingInfo, RelatedEvent
from ocsf_nft.ocsf.identifiers import NETWORK_ACTIVITY
from ocsf_nft.ocsf.line_templates import LineConverter
from ocsf_nft.ocsf.model import children
from ocsf_nft.ocsf.objects import (
    Container,
    Device,
    File,
    Metadata,
    NetworkConnectionInfo,
    NetworkEndpoint,
    Os,
    ParentProcess,
    Process,
)
from ocsf_nft.quoted import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from ocsf_nft.ocsf.event_base import Event
    from ocsf_nft.ocsf.model import Model

#: Supported versions, oldest first. For a version after ``STORED``, also add its new forms to
#: ``ADDITIONS`` and the attributes that it deprecates to ``UNTIL``.
VERSIONS: Final = ("1.1.0", "1.3.0", "1.4.0", "1.5.0", "1.6.0", "1.7.0", "1.8.0", "1.9.0")
#: Version of the models and of stored events, and the default of sinks. It is not the newest one.
#: When a newer one is to be stored, its attributes move to the models, ``SINCE``,
#: ``OBSERVABLES_SINCE`` and ``CONVERSIONS``.
STORED: Final = SCHEMA_VERSION

_NETWORK_CLASSES: Final = frozenset({4001, 4003})

#: First version with an attribute. All other attributes that we fill are in the oldest version.
SINCE: Final[Mapping[type[Model], Mapping[str, str]]] = {
    NetworkActivity: {
        "is_alert": "1.4.0",
        "confidence_id": "1.4.0",
        "confidence": "1.4.0",
        "raw_data_size": "1.5.0",
        "is_src_dst_assignment_known": "1.6.0",
        "observation_point_id": "1.7.0",
        "observation_point": "1.7.0",
    },
    DetectionFinding: {"is_alert": "1.4.0"},
    DeviceConfigStateChange: {"state_id": "1.3.0", "state": "1.3.0"},
    Metadata: {
        "log_source": "1.7.0",
        "log_format": "1.7.0",
        "original_event_uid": "1.7.0",
        "tags": "1.4.0",
    },
    NetworkEndpoint: {"network_scope_id": "1.7.0", "network_scope": "1.7.0"},
    NetworkConnectionInfo: {"community_uid": "1.4.0"},
    Process: {
        "ptid": "1.6.0",
        "path": "1.4.0",
        "working_directory": "1.4.0",
        "ancestry": "1.4.0",
    },
    ParentProcess: {"path": "1.4.0"},
    File: {"is_deleted": "1.4.0"},
    FindingInfo: {"related_events_count": "1.4.0"},
    RelatedEvent: {"type_name": "1.3.0"},
    Device: {"boot_time": "1.3.0", "boot_uid": "1.5.0"},
    Os: {"kernel_release": "1.4.0"},
    Container: {"labels": "1.4.0"},
}

#: First version without an attribute of the stored form, which the version deprecates.
UNTIL: Final[Mapping[type[Model], Mapping[str, str]]] = {
    NetworkActivity: {"is_src_dst_assignment_known": "1.9.0"},
}
#: Names that the type of host names accepts before 1.4.0: labels of letters, digits and hyphens.
_HOSTNAME: Final = re.compile(
    r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?\.)*[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
)

#: First version with a type of observable.
OBSERVABLES_SINCE: Final[Mapping[ObservableType, str]] = {
    ObservableType.PORT: "1.3.0",
    ObservableType.COMMAND_LINE: "1.3.0",
    ObservableType.PROCESS_ID: "1.3.0",
    ObservableType.USER_UID: "1.4.0",
    ObservableType.FILE_PATH: "1.5.0",
    ObservableType.ENDPOINT_UID: "1.7.0",
}


def full_version(text: str) -> str:
    """Return an OCSF version in its full form: ``1.1.0`` for ``1.1``, and also for ``1.1.0``.

    Raises UsageError if the version is unknown.
    """
    for version in (text, f"{text}.0"):
        if version in VERSIONS:
            return version
    raise UsageError(f"{quoted(text)} is no version of OCSF: give one of {', '.join(VERSIONS)}")


def is_before(version: str, other: str) -> bool:
    """Return True if ``version`` is older than ``other``; both must be in ``VERSIONS``."""
    return VERSIONS.index(version) < VERSIONS.index(other)


def line_at(line: bytes, version: str) -> bytes:
    """Convert an event, as a line of JSON, from the stored OCSF version to ``version``."""
    if version == STORED:
        return line
    return _converter(version)(line)


@cache
def _converter(version: str) -> LineConverter:
    return LineConverter(partial(at_version, version=version))


def at_version(event: dict[str, Any], version: str) -> dict[str, Any]:
    """Convert an event from the stored OCSF version to ``version``, one of ``VERSIONS``.

    ``event`` is decoded JSON of an ocsf-nft event. The function changes and returns this object.
    """
    if version == STORED:
        return event
    model = CLASSES[event["class_uid"]]
    for since, _, convert in CONVERSIONS:
        if is_before(version, since):
            convert(event)
    for since, _, add in ADDITIONS:
        if not is_before(version, since):
            add(event)
    _cut(event, _cuts(model, version))
    _filter_observables(event, version)
    metadata = event["metadata"]
    metadata["version"] = version
    metadata.pop("profiles", None)
    if profiles := _profiles(event, model, version):
        metadata["profiles"] = profiles
    return event


class _Cuts(NamedTuple):
    """Attributes to remove from an object, because an OCSF version lacks or deprecates them."""

    names: tuple[str, ...]
    #: The same for inner objects, by the attribute that contains them.
    below: Mapping[str, _Cuts]


@cache
def _cuts(model: type[Model], version: str) -> _Cuts:
    below = {name: _cuts(kind, version) for name, kind in children(model).items()}
    later = (name for name, since in SINCE.get(model, {}).items() if is_before(version, since))
    deprecated = (
        name for name, until in UNTIL.get(model, {}).items() if not is_before(version, until)
    )
    return _Cuts(
        (*later, *deprecated),
        {name: cuts for name, cuts in below.items() if cuts.names or cuts.below},
    )


def _cut(values: dict[str, Any], cuts: _Cuts) -> None:
    for name in cuts.names:
        values.pop(name, None)
    for name, below in cuts.below.items():
        for each in _each(values.get(name)):
            _cut(each, below)


def _each(value: Any) -> Iterable[Any]:
    if value is None:
        return ()
    return value if isinstance(value, list) else (value,)


def _filter_observables(event: dict[str, Any], version: str) -> None:
    observables = [
        each
        for each in event.pop("observables", ())
        if not is_before(version, OBSERVABLES_SINCE.get(each["type_id"], VERSIONS[0]))
    ]
    if observables:
        event["observables"] = observables


def _profiles(event: dict[str, Any], model: type[Event], version: str) -> list[str]:
    found = set(model.profiles_of(event))
    if model is DetectionFinding and "device" in event and is_before(version, "1.4.0"):
        found.add("host")
    if "ai_agent" in event:
        found.add("ai_operation")
    return sorted(found)


def _name_endpoint(event: dict[str, Any], end: str) -> None:
    if event["class_uid"] in _NETWORK_CLASSES:
        event.setdefault(end, {"name": "unknown"})


def _replace_observed(event: dict[str, Any]) -> None:
    if event.get("action_id") == Action.OBSERVED:
        if event["class_uid"] == NETWORK_ACTIVITY:
            is_known = event["activity_id"] == NetworkActivityId.OPEN
        else:  # a finding about packets has a disposition
            is_known = "disposition_id" in event
        action = Action.ALLOWED if is_known else Action.UNKNOWN
        event["action_id"], event["action"] = int(action), action.caption


def _move_unusual_names(event: dict[str, Any]) -> None:
    holders = {"": event} | {
        f"evidences[{number}].": each for number, each in enumerate(event.get("evidences", ()))
    }
    removed = set()
    for path, holder in holders.items():
        if "query" in holder and not _HOSTNAME.fullmatch(holder["query"]["hostname"]):
            query = holder.pop("query")
            removed.add(f"{path}query.hostname")
            if holder is event:
                event.setdefault("unmapped", {})["query"] = query
    if removed:
        event["observables"] = [
            each for each in event["observables"] if each["name"] not in removed
        ]


def _list_the_lineage(event: dict[str, Any]) -> None:
    for process in _processes(event):
        paths = [each["path"] for each in process.get("ancestry", ()) if "path" in each]
        if paths:
            process["lineage"] = paths[::-1]


def _name_the_thread(event: dict[str, Any]) -> None:
    for process in _processes(event):
        if "ptid" in process:
            process["tid"] = process["ptid"]


def _processes(event: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for holder in (event, *event.get("evidences", ())):
        if process := holder.get("actor", {}).get("process"):
            yield process
        if process := holder.get("process"):
            yield process


def _type_related_events(event: dict[str, Any]) -> None:
    for each in event.get("finding_info", {}).get("related_events", ()):
        each["type"] = each["type_name"]


#: Conversions to an older version's form: since when it is not needed, a sentence for the field
#: guide, and the function that changes the event.
CONVERSIONS: Final[tuple[tuple[str, str, Callable[[dict[str, Any]], None]], ...]] = (
    (
        "1.3.0",
        'Network Activity requires a `src_endpoint`: the name of an unknown one is `"unknown"`.',
        partial(_name_endpoint, end="src_endpoint"),
    ),
    ("1.3.0", "A related event has `type` in place of `type_name`.", _type_related_events),
    (
        "1.4.0",
        'Network Activity requires a `dst_endpoint`: the name of an unknown one is `"unknown"`.',
        partial(_name_endpoint, end="dst_endpoint"),
    ),
    (
        "1.4.0",
        "`action_id` 3 Observed becomes 1 Allowed for a permissive fence, else 0 Unknown.",
        _replace_observed,
    ),
    (
        "1.4.0",
        "A process has `lineage`, paths with the oldest first, in place of `ancestry`.",
        _list_the_lineage,
    ),
    (
        "1.4.0",
        "A `query` of an unusual name, such as one with an underscore, is only in `unmapped`.",
        _move_unusual_names,
    ),
    ("1.6.0", "A process has `tid` in place of `ptid`.", _name_the_thread),
)


def _name_the_initiator(event: dict[str, Any]) -> None:
    if event["class_uid"] == NETWORK_ACTIVITY:
        is_known = event["is_src_dst_assignment_known"]
        event["initiator_id"], event["initiator"] = _INITIATORS[is_known]


#: Id and caption of the initiator, by the value of ``is_src_dst_assignment_known``.
_INITIATORS: Final = {True: (1, "Source Endpoint"), False: (0, "Unknown")}


def _name_the_agent(event: dict[str, Any]) -> None:
    agent = agent_of(event["metadata"].get("labels", ()))
    if agent is None:
        return
    # Network Activity has an agent of its own; of a finding, the evidences have it.
    for each in (event, *event.get("evidences", ())):
        if each.get("connection_info", {}).get("direction_id") == Direction.OUTBOUND:
            each["ai_agent"] = agent


#: Conversions to a newer version's form: the version that has it, a sentence for the field guide,
#: and the function that changes the event.
ADDITIONS: Final[tuple[tuple[str, str, Callable[[dict[str, Any]], None]], ...]] = (
    (
        "1.9.0",
        (
            "Network Activity has `initiator_id` (`1` Source Endpoint, else `0` Unknown) and no "
            "`is_src_dst_assignment_known`."
        ),
        _name_the_initiator,
    ),
    (
        "1.9.0",
        (
            "Outbound Network Activity (profile `ai_operation`) and the evidences of a finding "
            "have `ai_agent`. Its `name`, `uid`, `version` and `instance_uid` are the sandbox's "
            "labels `gen_ai.agent.name`, `gen_ai.agent.id`, `gen_ai.agent.version` and "
            "`gen_ai.conversation.id`. Its `ai_model` is from `gen_ai.request.model` and "
            "`gen_ai.provider.name`."
        ),
        _name_the_agent,
    ),
)
