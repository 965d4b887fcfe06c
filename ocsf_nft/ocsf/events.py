"""OCSF 1.8.0 event classes that we emit, and their serialization.

Redundant fields are derived: class and type names, ``type_uid``, every caption, and
``metadata.profiles``, which depends on the attributes of the event.
:mod:`ocsf_nft.ocsf.versions` converts events to older versions.
"""

from typing import Annotated, Any, ClassVar, Final, Literal, Self, TypeAlias

import orjson
from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from ocsf_nft.ocsf.enums import (
    Action,
    Captioned,
    Confidence,
    ConfigActivityId,
    ConfigState,
    Disposition,
    FindingActivityId,
    FindingStatus,
    LifecycleActivityId,
    NetworkActivityId,
    ObservationPoint,
    SecurityLevel,
    Severity,
    Status,
)
from ocsf_nft.ocsf.model import Caption, Long, Model, caption_of, derived_field, optional_field
from ocsf_nft.ocsf.objects import (
    Actor,
    Attack,
    Device,
    Enrichment,
    Evidences,
    FindingInfo,
    FirewallRule,
    Metadata,
    NetworkConnectionInfo,
    NetworkEndpoint,
    NetworkProxy,
    NetworkTraffic,
    Observable,
    Product,
    Remediation,
    ResourceDetails,
)
from ocsf_nft.ocsf.safe_text import printable

SCHEMA_VERSION: Final = "1.8.0"

#: Attributes of the profile security_control in every class except findings, which have the last
#: two without a profile.
SECURITY_CONTROL: Final = (
    "action_id",
    "disposition_id",
    "firewall_rule",
    "attacks",
    "is_alert",
    "confidence_id",
)


def _type_uid(data: dict[str, Any]) -> int:
    return int(data["class_uid"] * 100 + data["activity_id"])


def _type_name(data: dict[str, Any]) -> str:
    activity: Captioned = data["activity_id"]
    return f"{data['class_name']}: {activity.caption}"


def _is_type_uid(value: int, info: ValidationInfo) -> int:
    if value != _type_uid(info.data):
        raise ValueError("type_uid is class_uid * 100 + activity_id")
    return value


def _is_type_name(value: str, info: ValidationInfo) -> str:
    if value != _type_name(info.data):
        raise ValueError("type_name is the class's name and the activity's caption")
    return value


_TYPE_UID: Final = "class_uid * 100 + activity_id"
_TYPE_NAME: Final = "the class's name and the activity's"
TypeUid: TypeAlias = Annotated[int, AfterValidator(_is_type_uid)]
TypeName: TypeAlias = Annotated[str, AfterValidator(_is_type_name)]


class Event(Model):
    """Base of the event classes: derivation of the profiles, and serialization."""

    @model_validator(mode="before")
    @classmethod
    def _derive_profiles(cls, data: dict[str, Any]) -> dict[str, Any]:
        profiles = tuple(sorted(set(cls.profiles_of(data)))) or None
        metadata = data.get("metadata")
        if isinstance(metadata, Metadata):
            return {**data, "metadata": metadata.model_copy(update={"profiles": profiles})}
        return data

    def to_json(self) -> bytes:
        """Return one line of printable JSON without line end; keys in order, no nulls."""
        return printable(
            orjson.dumps(
                {name: value for name, value in self.__dict__.items() if value is not None},
                default=Model.fragment,
            )
        )


class NetworkActivity(Event):
    """Class 4001: packets of one attempt, which no other event counts."""

    profile_attributes: ClassVar = {
        "host": ("device", "actor"),
        "network_proxy": ("proxy_endpoint",),
        "security_control": SECURITY_CONTROL,
    }

    class_uid: Literal[4001] = 4001
    class_name: Literal["Network Activity"] = "Network Activity"
    category_uid: Literal[4] = 4
    category_name: Literal["Network Activity"] = "Network Activity"
    activity_id: NetworkActivityId = Field(
        description="5 where it was refused, 1 where it was let pass, by a permissive fence or by "
        "another firewall; of another firewall's log, 6 where only that is known that it was logged"
    )
    activity_name: Caption = caption_of("activity_id")
    type_uid: TypeUid = derived_field(_type_uid, _TYPE_UID)
    type_name: TypeName = derived_field(_type_name, _TYPE_NAME)
    time: Long = Field(description="the packet's own time; of several packets, the window's end")
    start_time: Long = Field(description="no packet is from before")
    end_time: Long = Field(description="no packet is from after")
    duration: Long | None = optional_field("end_time less start_time")
    timezone_offset: Literal[0] = 0
    count: Long = Field(description="packets, exactly, and none that another event counts")
    severity_id: Severity = Field(
        description="by rule and destination: 4 for cloud metadata, 2 for name resolution, 1 for "
        "what kernels send by themselves, else 3; what a permissive fence let pass, as if it had "
        "been refused; your configuration may say otherwise"
    )
    severity: Caption = caption_of("severity_id")
    status_id: Status = Field(description="2 where it was refused, 1 where it was let pass, else 0")
    status: Caption = caption_of("status_id")
    status_code: str | None = optional_field(
        "tcp-reset, icmpx-admin-prohibited or dropped; permissive where our fence let it pass"
    )
    status_detail: str | None = optional_field(
        "what the program, or who wrote it, is to do instead"
    )
    message: str = Field(description="what happened, in a sentence")
    action_id: Action = Field(
        description="2 where it was refused, 3 where a permissive fence let it pass, 1 where "
        "another firewall did, 3 where that only logged it"
    )
    action: Caption = caption_of("action_id")
    disposition_id: Disposition = Field(
        description="2 where it was refused, 6 where that was without an answer; 17 where a "
        "permissive fence let it pass, 1 where another firewall did, 17 where that only logged it"
    )
    disposition: Caption = caption_of("disposition_id")
    is_alert: bool = Field(description="whether severity_id is 3 or more")
    confidence_id: Confidence | None = optional_field("3, where the rule is ours")
    confidence: Caption | None = caption_of("confidence_id")
    firewall_rule: FirewallRule | None = optional_field("the rule that logged it")
    attacks: tuple[Attack, ...] | None = optional_field("ATT&CK, by protocol and port")
    is_src_dst_assignment_known: bool = Field(
        description="whether the packet proves that its sender began"
    )
    observation_point_id: ObservationPoint | None = optional_field(
        "1 on the way out, 2 on the way in"
    )
    observation_point: Caption | None = caption_of("observation_point_id")
    src_endpoint: NetworkEndpoint | None = optional_field("where it was from")
    dst_endpoint: NetworkEndpoint | None = optional_field("where it was to")
    proxy_endpoint: NetworkProxy | None = optional_field("the proxy that should have been used")
    connection_info: NetworkConnectionInfo = Field(description="how: direction, protocol, flags")
    traffic: NetworkTraffic = Field(description="how much: packets and bytes")
    actor: Actor | None = optional_field("who did it")
    device: Device | None = optional_field("the machine whose kernel refused")
    observables: tuple[Observable, ...] | None = optional_field("what is worth looking up")
    enrichments: tuple[Enrichment, ...] | None = optional_field(
        "how it is known who did it; not there where nobody looked"
    )
    raw_data: str = Field(
        description="the record as the kernel gave it: a line, or netlink's parts"
    )
    raw_data_size: Long = Field(description="its bytes")
    unmapped: dict[str, Any] | None = optional_field(
        "sandbox, and what the kernel said and OCSF has no home for: prefix, ttl, ip_id, window, "
        "mark, …; merged, where several flows are told together; of the process what has no other "
        "place: unit (systemd's), pod_uid, sha256"
    )
    metadata: Metadata = Field(description="about the event itself")

    @model_validator(mode="after")
    def _has_an_endpoint(self) -> Self:
        if self.src_endpoint is self.dst_endpoint is None:
            raise ValueError("an event needs a src_endpoint or a dst_endpoint")
        return self


class DetectionFinding(Event):
    """Class 2004: what attempts come to; ``count`` is of packets that their events count."""

    # The class itself has device, is_alert and confidence: they need no profile.
    profile_attributes: ClassVar = {
        "host": ("actor",),
        "security_control": ("action_id", "disposition_id", "firewall_rule", "attacks"),
    }

    class_uid: Literal[2004] = 2004
    class_name: Literal["Detection Finding"] = "Detection Finding"
    category_uid: Literal[2] = 2
    category_name: Literal["Findings"] = "Findings"
    activity_id: FindingActivityId = Field(
        description="1 when it is found, 2 as its count grows, 3 when it is over"
    )
    activity_name: Caption = caption_of("activity_id")
    type_uid: TypeUid = derived_field(_type_uid, _TYPE_UID)
    type_name: TypeName = derived_field(_type_name, _TYPE_NAME)
    time: Long = Field(description="of the last packet so far")
    start_time: Long = Field(description="of the first packet")
    end_time: Long = Field(description="of the last packet so far")
    duration: Long | None = optional_field("end_time less start_time")
    timezone_offset: Literal[0] = 0
    count: Long = Field(
        description="packets so far: a running total of what Network Activity events count"
    )
    severity_id: Severity = Field(description="of the attempt; 4 for a fan-out")
    severity: Caption = caption_of("severity_id")
    status_id: FindingStatus = Field(description="1, then 2, then 4")
    status: Caption = caption_of("status_id")
    status_detail: str = Field(description="the same in words")
    message: str = Field(description="what was found, in a sentence")
    action_id: Action = Field(description="2; 3 where a permissive fence let it pass")
    action: Caption = caption_of("action_id")
    disposition_id: Disposition = Field(
        description="2 after an answer, 6 without one; 17 where a permissive fence let it pass"
    )
    disposition: Caption = caption_of("disposition_id")
    is_alert: bool = Field(description="true until it is over")
    confidence_id: Confidence = Field(description="3")
    confidence: Caption = caption_of("confidence_id")
    finding_info: FindingInfo = Field(description="what was found")
    remediation: Remediation = Field(description="what to do about it")
    firewall_rule: FirewallRule | None = optional_field("the rule that refused it, or would have")
    attacks: tuple[Attack, ...] | None = optional_field("ATT&CK")
    evidences: tuple[Evidences, ...] = Field(description="what was seen")
    resources: tuple[ResourceDetails, ...] = Field(description="the sandbox")
    actor: Actor | None = optional_field("who did it")
    device: Device | None = optional_field("the machine whose kernel refused")
    observables: tuple[Observable, ...] | None = optional_field("what is worth looking up")
    enrichments: tuple[Enrichment, ...] | None = optional_field(
        "of an attempt: how it is known who did it; not there where nobody looked"
    )
    raw_data: str | None = optional_field("of an attempt: the latest record")
    unmapped: dict[str, Any] = Field(
        description="sandbox; of a fan-out, its flows, destinations and ports, at least; of the "
        "process of an attempt, as in its events, unit, pod_uid, sha256"
    )
    metadata: Metadata = Field(description="about the event itself")


class DeviceConfigStateChange(Event):
    """Class 5019: what became of a fence."""

    # The class itself has actor and device: they need no profile.
    profile_attributes: ClassVar = {"security_control": SECURITY_CONTROL}

    class_uid: Literal[5019] = 5019
    class_name: Literal["Device Config State Change"] = "Device Config State Change"
    category_uid: Literal[5] = 5
    category_name: Literal["Discovery"] = "Discovery"
    activity_id: ConfigActivityId = Field(description="1")
    activity_name: Caption = caption_of("activity_id")
    type_uid: TypeUid = derived_field(_type_uid, _TYPE_UID)
    type_name: TypeName = derived_field(_type_name, _TYPE_NAME)
    time: Long = Field(description="when it was seen")
    start_time: Long | None = optional_field("when it was noticed that somebody altered it")
    end_time: Long | None = optional_field("when it was put back")
    duration: Long | None = optional_field("end_time less start_time")
    timezone_offset: Literal[0] = 0
    severity_id: Severity = Field(
        description="1 where it stands, 3 where it is gone or permissive, 4 where it is degraded, "
        "altered, or had to be put back, 5 where it is gone unasked, or given up"
    )
    severity: Caption = caption_of("severity_id")
    status_id: Status = Field(
        description="2 where it is degraded, altered, gone unasked or given up, else 1"
    )
    status: Caption = caption_of("status_id")
    status_detail: str | None = optional_field("why it is not, or what changed")
    message: str = Field(description="what became of the fence, in a sentence")
    state_id: ConfigState = Field(
        description="1 gone, 2 standing, 99 where the caption says Permissive, Degraded or Altered"
    )
    state: Caption = caption_of("state_id")
    security_level_id: SecurityLevel = Field(
        description="1 where it stands, refuses and logs, else 2"
    )
    security_level: Caption = caption_of("security_level_id")
    prev_security_level_id: SecurityLevel = Field(description="the same before")
    prev_security_level: Caption = caption_of("prev_security_level_id")
    actor: Actor | None = optional_field("who altered it")
    device: Device = Field(description="the machine whose kernel holds the fence")
    observables: tuple[Observable, ...] | None = optional_field("what is worth looking up")
    unmapped: dict[str, Any] = Field(
        description="sandbox, previous_state, tables and transport of the fence; the changes that "
        "somebody made to it; of the process what has no other place: unit, pod_uid, sha256"
    )
    metadata: Metadata = Field(description="about the event itself")


class ApplicationLifecycle(Event):
    """Class 6002: ocsf-nft started, stopped, lost records or events, or did not read."""

    profile_attributes: ClassVar = {"host": ("device",), "security_control": SECURITY_CONTROL}

    class_uid: Literal[6002] = 6002
    class_name: Literal["Application Lifecycle"] = "Application Lifecycle"
    category_uid: Literal[6] = 6
    category_name: Literal["Application Activity"] = "Application Activity"
    activity_id: LifecycleActivityId = Field(
        description="3 start, 4 stop, 99 where the caption says Records Dropped, Collection Gap or "
        "Events Dropped"
    )
    activity_name: Caption = caption_of("activity_id")
    type_uid: TypeUid = derived_field(_type_uid, _TYPE_UID)
    type_name: TypeName = derived_field(_type_name, _TYPE_NAME)
    time: Long = Field(description="when it happened, or ended")
    start_time: Long | None = optional_field("when a gap began")
    end_time: Long | None = optional_field("when a gap ended")
    duration: Long | None = optional_field("end_time less start_time")
    timezone_offset: Literal[0] = 0
    count: Long | None = optional_field(
        "of Records Dropped and Events Dropped, how many; of Collection Gap, the packets refused "
        "or allowed meanwhile, which other events count too"
    )
    severity_id: Severity = Field(
        description="4 for a gap, 2 for one in which nothing was refused; 1 for a start and a stop"
    )
    severity: Caption = caption_of("severity_id")
    status_id: Status = Field(description="2 for a gap, else 1")
    status: Caption = caption_of("status_id")
    status_detail: str | None = optional_field("why")
    message: str = Field(description="what happened, in a sentence")
    app: Product = Field(description="ocsf-nft")
    device: Device | None = optional_field("the machine that it runs on")
    observables: tuple[Observable, ...] | None = optional_field("what is worth looking up")
    unmapped: dict[str, Any] | None = optional_field(
        "of Records Dropped and Events Dropped, transport; of Collection Gap, sandbox"
    )
    metadata: Metadata = Field(description="about the event itself")


#: Event classes by ``class_uid``.
CLASSES: Final[dict[int, type[Event]]] = {
    4001: NetworkActivity,
    2004: DetectionFinding,
    5019: DeviceConfigStateChange,
    6002: ApplicationLifecycle,
}
#: ``class_uid`` by the name in a configuration: ``network_activity``.
CLASS_UIDS: Final[dict[str, int]] = {
    model.model_fields["class_name"].default.lower().replace(" ", "_"): uid
    for uid, model in CLASSES.items()
}
