"""The OCSF 1.8.0 event classes that we emit, and how one becomes bytes.

Of an event's fields, those that say the same thing twice are derived: class and type names,
``type_uid``, every caption, and ``metadata.profiles``, which follows from the attributes that are
there.
"""

from typing import Annotated, Any, ClassVar, Final, Literal, Self, TypeAlias

import orjson
from pydantic import AfterValidator, ValidationInfo, model_validator

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
from ocsf_nft.ocsf.model import Caption, Long, Model, caption_of, derived
from ocsf_nft.ocsf.objects import (
    Actor,
    Attack,
    Device,
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

SCHEMA_VERSION: Final = "1.8.0"

#: The attributes that the profile security_control brings, in every class but findings, which
#: have the last two by themselves.
_SECURITY_CONTROL: Final = (
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


TypeUid: TypeAlias = Annotated[int, AfterValidator(_is_type_uid)]
TypeName: TypeAlias = Annotated[str, AfterValidator(_is_type_name)]


class Event(Model):
    """What the event classes share: how profiles are derived, and how it is serialised."""

    #: Profile to the attributes that it brings to this class; profiles in alphabetical order.
    brought_by: ClassVar[dict[str, tuple[str, ...]]]

    @model_validator(mode="before")
    @classmethod
    def _derive_profiles(cls, data: dict[str, Any]) -> dict[str, Any]:
        found = []
        for profile, names in cls.brought_by.items():
            for name in names:
                if data.get(name) is not None:
                    found.append(profile)
                    break
        profiles = tuple(found) or None
        metadata = data.get("metadata")
        if isinstance(metadata, Metadata):
            return {**data, "metadata": metadata.model_copy(update={"profiles": profiles})}
        return data

    def to_json(self) -> bytes:
        """One line of JSON without the line end: keys in the order of the fields, no nulls."""
        return orjson.dumps(
            {name: value for name, value in self.__dict__.items() if value is not None},
            default=Model.fragment,
        )


class NetworkActivity(Event):
    """Class 4001: refused packets of one attempt, which no other event counts."""

    brought_by: ClassVar = {
        "host": ("device", "actor"),
        "network_proxy": ("proxy_endpoint",),
        "security_control": _SECURITY_CONTROL,
    }

    class_uid: Literal[4001] = 4001
    class_name: Literal["Network Activity"] = "Network Activity"
    category_uid: Literal[4] = 4
    category_name: Literal["Network Activity"] = "Network Activity"
    activity_id: NetworkActivityId
    activity_name: Caption = caption_of("activity_id")
    type_uid: TypeUid = derived(_type_uid)
    type_name: TypeName = derived(_type_name)
    time: Long
    start_time: Long
    end_time: Long
    duration: Long | None = None
    timezone_offset: Literal[0] = 0
    count: Long
    severity_id: Severity
    severity: Caption = caption_of("severity_id")
    status_id: Status
    status: Caption = caption_of("status_id")
    status_code: str | None = None
    status_detail: str | None = None
    message: str
    action_id: Action
    action: Caption = caption_of("action_id")
    disposition_id: Disposition
    disposition: Caption = caption_of("disposition_id")
    is_alert: bool
    confidence_id: Confidence | None = None
    confidence: Caption | None = caption_of("confidence_id")
    firewall_rule: FirewallRule | None = None
    attacks: tuple[Attack, ...] | None = None
    is_src_dst_assignment_known: bool
    observation_point_id: ObservationPoint | None = None
    observation_point: Caption | None = caption_of("observation_point_id")
    src_endpoint: NetworkEndpoint | None = None
    dst_endpoint: NetworkEndpoint | None = None
    proxy_endpoint: NetworkProxy | None = None
    connection_info: NetworkConnectionInfo
    traffic: NetworkTraffic
    actor: Actor | None = None
    device: Device | None = None
    observables: tuple[Observable, ...] | None = None
    raw_data: str
    raw_data_size: Long
    unmapped: dict[str, Any] | None = None
    metadata: Metadata

    @model_validator(mode="after")
    def _has_an_endpoint(self) -> Self:
        if self.src_endpoint is self.dst_endpoint is None:
            raise ValueError("an event needs a src_endpoint or a dst_endpoint")
        return self


class DetectionFinding(Event):
    """Class 2004: what many attempts come to; ``count`` is of packets that their events count."""

    # This class has device, is_alert and confidence of its own: they bring no profile.
    brought_by: ClassVar = {
        "host": ("actor",),
        "security_control": ("action_id", "disposition_id", "firewall_rule", "attacks"),
    }

    class_uid: Literal[2004] = 2004
    class_name: Literal["Detection Finding"] = "Detection Finding"
    category_uid: Literal[2] = 2
    category_name: Literal["Findings"] = "Findings"
    activity_id: FindingActivityId
    activity_name: Caption = caption_of("activity_id")
    type_uid: TypeUid = derived(_type_uid)
    type_name: TypeName = derived(_type_name)
    time: Long
    start_time: Long
    end_time: Long
    duration: Long | None = None
    timezone_offset: Literal[0] = 0
    count: Long
    severity_id: Severity
    severity: Caption = caption_of("severity_id")
    status_id: FindingStatus
    status: Caption = caption_of("status_id")
    status_detail: str
    message: str
    action_id: Action
    action: Caption = caption_of("action_id")
    disposition_id: Disposition
    disposition: Caption = caption_of("disposition_id")
    is_alert: bool
    confidence_id: Confidence
    confidence: Caption = caption_of("confidence_id")
    finding_info: FindingInfo
    remediation: Remediation
    firewall_rule: FirewallRule | None = None
    attacks: tuple[Attack, ...]
    evidences: tuple[Evidences, ...]
    resources: tuple[ResourceDetails, ...]
    actor: Actor | None = None
    device: Device | None = None
    observables: tuple[Observable, ...] | None = None
    unmapped: dict[str, Any]
    metadata: Metadata


class DeviceConfigStateChange(Event):
    """Class 5019: what became of a fence."""

    # This class has actor and device of its own: they bring no profile.
    brought_by: ClassVar = {"security_control": _SECURITY_CONTROL}

    class_uid: Literal[5019] = 5019
    class_name: Literal["Device Config State Change"] = "Device Config State Change"
    category_uid: Literal[5] = 5
    category_name: Literal["Discovery"] = "Discovery"
    activity_id: ConfigActivityId
    activity_name: Caption = caption_of("activity_id")
    type_uid: TypeUid = derived(_type_uid)
    type_name: TypeName = derived(_type_name)
    time: Long
    timezone_offset: Literal[0] = 0
    severity_id: Severity
    severity: Caption = caption_of("severity_id")
    status_id: Status
    status: Caption = caption_of("status_id")
    status_detail: str | None = None
    message: str
    state_id: ConfigState
    state: Caption = caption_of("state_id")
    security_level_id: SecurityLevel
    security_level: Caption = caption_of("security_level_id")
    prev_security_level_id: SecurityLevel
    prev_security_level: Caption = caption_of("prev_security_level_id")
    device: Device
    observables: tuple[Observable, ...] | None = None
    unmapped: dict[str, Any]
    metadata: Metadata


class ApplicationLifecycle(Event):
    """Class 6002: ocsf-nft started, stopped, lost records, or did not read."""

    brought_by: ClassVar = {"host": ("device",), "security_control": _SECURITY_CONTROL}

    class_uid: Literal[6002] = 6002
    class_name: Literal["Application Lifecycle"] = "Application Lifecycle"
    category_uid: Literal[6] = 6
    category_name: Literal["Application Activity"] = "Application Activity"
    activity_id: LifecycleActivityId
    activity_name: Caption = caption_of("activity_id")
    type_uid: TypeUid = derived(_type_uid)
    type_name: TypeName = derived(_type_name)
    time: Long
    start_time: Long | None = None
    end_time: Long | None = None
    timezone_offset: Literal[0] = 0
    count: Long | None = None
    severity_id: Severity
    severity: Caption = caption_of("severity_id")
    status_id: Status
    status: Caption = caption_of("status_id")
    status_detail: str | None = None
    message: str
    app: Product
    device: Device | None = None
    observables: tuple[Observable, ...] | None = None
    unmapped: dict[str, Any] | None = None
    metadata: Metadata
