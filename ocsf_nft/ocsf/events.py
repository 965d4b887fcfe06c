"""OCSF 1.8.0 event classes that we emit.

Some fields are computed from other fields: class and type names, ``type_uid``, every caption, and
``metadata.profiles``.
"""

from typing import Any, ClassVar, Final, Literal

from ocsf_nft.ocsf.enums import (
    Action,
    Confidence,
    ConfigActivityId,
    ConfigState,
    Disposition,
    DnsActivityId,
    FindingActivityId,
    FindingStatus,
    LifecycleActivityId,
    NetworkActivityId,
    ObservationPoint,
    SecurityLevel,
    Severity,
    Status,
)
from ocsf_nft.ocsf.event_base import (
    SECURITY_CONTROL,
    TYPE_NAME,
    TYPE_UID,
    Event,
    TypeName,
    TypeUid,
    duration_of,
    type_name_of,
    type_uid_of,
)
from ocsf_nft.ocsf.finding_objects import (
    Attack,
    Evidences,
    FindingInfo,
    Remediation,
    ResourceDetails,
)
from ocsf_nft.ocsf.model import (
    Caption,
    Long,
    caption_of,
    constant,
    derived_field,
    optional,
    required,
)
from ocsf_nft.ocsf.objects import (
    Actor,
    Cloud,
    Device,
    DnsQuery,
    Enrichment,
    FirewallRule,
    Metadata,
    NetworkConnectionInfo,
    NetworkEndpoint,
    NetworkProxy,
    NetworkTraffic,
    Observable,
    Product,
)


class NetworkActivity(Event):
    """OCSF class 4001: the packets of one attempt (packets of one flow in one time window).

    Each packet is counted in exactly one event of this class.
    """

    profile_attributes: ClassVar = {
        "cloud": ("cloud",),
        "host": ("device", "actor"),
        "network_proxy": ("proxy_endpoint",),
        "security_control": SECURITY_CONTROL,
    }

    class_uid: Literal[4001] = 4001
    class_name: Literal["Network Activity"] = "Network Activity"
    category_uid: Literal[4] = 4
    category_name: Literal["Network Activity"] = "Network Activity"
    activity_id: NetworkActivityId = required(
        "5 if blocked; 1 if a permissive fence or another firewall allowed it; 6 if "
        "the log of another firewall has no verdict"
    )
    activity_name: Caption = caption_of("activity_id")
    type_uid: TypeUid = derived_field(type_uid_of, TYPE_UID)
    type_name: TypeName = derived_field(type_name_of, TYPE_NAME)
    time: Long = required("time of the packet; of several packets, the end of the time window")
    start_time: Long = required("no earlier packet is counted")
    end_time: Long = required("no later packet is counted")
    duration: Long | None = derived_field(duration_of, "end_time minus start_time")
    timezone_offset: Literal[0] = 0
    count: Long = required("exact number of packets; no other Network Activity event counts them")
    severity_id: Severity = required(
        "by rule and destination: 4 for cloud metadata, 2 for name resolution, 1 for "
        "packets that kernels send by themselves, else 3; the same in a permissive fence; the "
        "configuration can change it"
    )
    severity: Caption = caption_of("severity_id")
    status_id: Status = required("2 if blocked, 1 if allowed, else 0")
    status: Caption = caption_of("status_id")
    status_code: str | None = optional(
        "tcp-reset, icmpx-admin-prohibited or dropped; permissive if a permissive fence allowed it"
    )
    status_detail: str | None = optional("explanation and remedy, for the program and its author")
    message: str = required("one sentence for people")
    action_id: Action = required(
        "2 if blocked, 3 if a permissive fence allowed it, 1 if another firewall "
        "allowed it, 3 if the verdict is unknown"
    )
    action: Caption = caption_of("action_id")
    disposition_id: Disposition = required(
        "2 if blocked with an answer, 6 if dropped without one; 17 if a permissive "
        "fence allowed it, 1 if another firewall allowed it, 17 if the verdict is unknown"
    )
    disposition: Caption = caption_of("disposition_id")
    is_alert: Literal[False] = constant(False, "false: only findings are alerts")
    confidence_id: Confidence | None = optional(
        "3 if the rule belongs to a fence; 1 if its log record may be forged"
    )
    confidence: Caption | None = caption_of("confidence_id")
    firewall_rule: FirewallRule | None = optional("the rule that logged the packet")
    attacks: tuple[Attack, ...] | None = optional(
        "ATT&CK techniques: of cloud metadata, of frames that are not IP, of a scan"
    )
    is_src_dst_assignment_known: bool = required(
        "true if the packet proves that its sender started the conversation"
    )
    observation_point_id: ObservationPoint | None = optional("1 if outbound, 2 if inbound")
    observation_point: Caption | None = caption_of("observation_point_id")
    src_endpoint: NetworkEndpoint | None = optional("source of the packets")
    dst_endpoint: NetworkEndpoint | None = optional("destination of the packets")
    proxy_endpoint: NetworkProxy | None = optional("the proxy that the sender should use")
    connection_info: NetworkConnectionInfo = required("direction, protocol and flags")
    traffic: NetworkTraffic = required("numbers of packets and bytes")
    actor: Actor | None = optional("process and user of the sender")
    device: Device | None = optional("the machine that enforces the fence")
    cloud: Cloud | None = optional("the cloud in which the machine runs")
    observables: tuple[Observable, ...] | None = optional("values to search for in other sources")
    enrichments: tuple[Enrichment, ...] | None = optional(
        "method and confidence of the attribution, if the packet was attributed; the first ten "
        "names in DNS queries"
    )
    raw_data: str = required("the kernel's record: a log line, or the parts of a netlink message")
    raw_data_size: Long = required("size of the whole record in bytes")
    unmapped: dict[str, Any] | None = optional(
        "sandbox and prefix of the record; packet: header fields without an OCSF attribute, such "
        "as ttl, ip_id, tcp_window, mark; aggregation of several flows: reason, flows, sample; "
        "dns: the questions of DNS packets (queries: hostname and type of at most 20) and the "
        "number of distinct names, a lower bound, because the kernel logs only some packets; of "
        "the process: unit (of systemd), pod_uid, sha256"
    )
    metadata: Metadata = required("facts about the event itself")

    def _check(self) -> None:
        if self.src_endpoint is self.dst_endpoint is None:
            raise ValueError("an event needs a src_endpoint or a dst_endpoint")


class DnsActivity(Event):
    """OCSF class 4003: one name that a program asked a name server for, of one attempt.

    It has no ``count``: the Network Activity event with the same ``metadata.correlation_uid``
    counts the packets. It is emitted only with ``dns_activity`` in the configuration.
    """

    profile_attributes: ClassVar = {
        "cloud": ("cloud",),
        "host": ("device", "actor"),
        "security_control": SECURITY_CONTROL,
    }

    class_uid: Literal[4003] = 4003
    class_name: Literal["DNS Activity"] = "DNS Activity"
    category_uid: Literal[4] = 4
    category_name: Literal["Network Activity"] = "Network Activity"
    activity_id: DnsActivityId = required("1")
    activity_name: Caption = caption_of("activity_id")
    type_uid: TypeUid = derived_field(type_uid_of, TYPE_UID)
    type_name: TypeName = derived_field(type_name_of, TYPE_NAME)
    time: Long = required("as in the Network Activity event")
    start_time: Long = required("the query is not older")
    end_time: Long = required("the first query for the name is not newer")
    timezone_offset: Literal[0] = 0
    severity_id: Severity = required("as in the Network Activity event")
    severity: Caption = caption_of("severity_id")
    status_id: Status = required("2 if blocked, 1 if allowed, else 0")
    status: Caption = caption_of("status_id")
    status_code: str | None = optional("as in the Network Activity event")
    status_detail: str | None = optional("explanation and remedy, for the program and its author")
    message: str = required("one sentence for people")
    action_id: Action = required("as in the Network Activity event")
    action: Caption = caption_of("action_id")
    disposition_id: Disposition = required("as in the Network Activity event")
    disposition: Caption = caption_of("disposition_id")
    firewall_rule: FirewallRule | None = optional("the rule that logged the packet")
    query: DnsQuery = required("the name, and the type of the answer")
    src_endpoint: NetworkEndpoint | None = optional("source of the packets")
    dst_endpoint: NetworkEndpoint | None = optional("the name server")
    connection_info: NetworkConnectionInfo = required("direction, protocol and flags")
    actor: Actor | None = optional("process and user of the sender")
    device: Device | None = optional("the machine that enforces the fence")
    cloud: Cloud | None = optional("the cloud in which the machine runs")
    observables: tuple[Observable, ...] | None = optional("values to search for in other sources")
    enrichments: tuple[Enrichment, ...] | None = optional(
        "method and confidence of the attribution, if the packet was attributed"
    )
    unmapped: dict[str, Any] | None = optional("sandbox")
    metadata: Metadata = required("facts about the event itself")


class DetectionFinding(Event):
    """OCSF class 2004: an incident, a scan, or a fault of the sandbox's protection.

    An incident is successive attempts of one flow. In a scan, one user tries many destinations or
    ports. The protection has a fault if another process changes the fence, or if packets can't be
    read or counted.
    """

    # The class itself has device, is_alert and confidence: they need no profile.
    profile_attributes: ClassVar = {
        "cloud": ("cloud",),
        "host": ("actor",),
        "security_control": ("action_id", "disposition_id", "firewall_rule", "attacks"),
    }

    class_uid: Literal[2004] = 2004
    class_name: Literal["Detection Finding"] = "Detection Finding"
    category_uid: Literal[2] = 2
    category_name: Literal["Findings"] = "Findings"
    activity_id: FindingActivityId = required(
        "1 for a new finding, 2 if it goes on or has become inactive; 3 if it was "
        "closed as configured"
    )
    activity_name: Caption = caption_of("activity_id")
    type_uid: TypeUid = derived_field(type_uid_of, TYPE_UID)
    type_name: TypeName = derived_field(type_name_of, TYPE_NAME)
    time: Long = required("time of the last packet so far")
    start_time: Long = required("time of the first packet")
    end_time: Long = required("time of the last packet so far")
    duration: Long | None = derived_field(duration_of, "end_time minus start_time")
    timezone_offset: Literal[0] = 0
    count: Long = required(
        "packets so far: a running total. Network Activity events count them too. Of "
        "the protection: number of its events so far"
    )
    severity_id: Severity = required(
        "severity of the attempt; 4 for a scan; 4 or 5 for the protection"
    )
    severity: Caption = caption_of("severity_id")
    status_id: FindingStatus = required(
        "1: only people review a finding; 4 if it was closed as configured"
    )
    status: Caption = caption_of("status_id")
    status_detail: str = required("New, Active or Inactive since TIME, with the number of packets")
    message: str = required("one sentence for people")
    action_id: Action = required("2; 3 if a permissive fence allowed it, and of the protection")
    action: Caption = caption_of("action_id")
    disposition_id: Disposition | None = optional(
        "2 if blocked with an answer, 6 if dropped without one; 17 if a permissive fence allowed it"
    )
    disposition: Caption | None = caption_of("disposition_id")
    is_alert: bool = required("true if severity_id is 4 or more, or as configured")
    confidence_id: Confidence = required("3")
    confidence: Caption = caption_of("confidence_id")
    finding_info: FindingInfo = required("description of the finding")
    remediation: Remediation = required("advice for the sandbox's operator")
    firewall_rule: FirewallRule | None = optional("the rule that blocked it, or would block it")
    attacks: tuple[Attack, ...] | None = optional("ATT&CK techniques")
    evidences: tuple[Evidences, ...] | None = optional(
        "processes and packets of the finding; of a scan, each process and a sample of the flows"
    )
    resources: tuple[ResourceDetails, ...] | None = optional(
        "the sandbox; its container and its pod, if it has them"
    )
    actor: Actor | None = optional("process and user of the sender")
    device: Device | None = optional("the machine that enforces the fence")
    cloud: Cloud | None = optional("the cloud in which the machine runs")
    observables: tuple[Observable, ...] | None = optional("values to search for in other sources")
    enrichments: tuple[Enrichment, ...] | None = optional(
        "of an attempt: method and confidence of the attribution, if it was attributed"
    )
    raw_data: str | None = optional("of an attempt: the kernel's latest record")
    unmapped: dict[str, Any] | None = optional(
        "sandbox; of a scan: flows, destinations, ports and processes, as lower bounds; of the "
        "process: unit (of systemd), pod_uid, sha256; dns: as in Network Activity, and of a "
        "tunnel: domain, long_names, mean_length and entropy"
    )
    metadata: Metadata = required("facts about the event itself")


class DeviceConfigStateChange(Event):
    """OCSF class 5019: a change of a fence's state."""

    # The class itself has actor and device: they need no profile.
    profile_attributes: ClassVar = {"cloud": ("cloud",), "security_control": SECURITY_CONTROL}

    class_uid: Literal[5019] = 5019
    class_name: Literal["Device Config State Change"] = "Device Config State Change"
    category_uid: Literal[5] = 5
    category_name: Literal["Discovery"] = "Discovery"
    activity_id: ConfigActivityId = required("1")
    activity_name: Caption = caption_of("activity_id")
    type_uid: TypeUid = derived_field(type_uid_of, TYPE_UID)
    type_name: TypeName = derived_field(type_name_of, TYPE_NAME)
    time: Long = required("time of the detection")
    start_time: Long | None = optional("time when a change by another process was detected")
    end_time: Long | None = optional("time of the restore")
    duration: Long | None = derived_field(duration_of, "end_time minus start_time")
    timezone_offset: Literal[0] = 0
    severity_id: Severity = required(
        "1 if active, or removed as requested, 2 if permissive, 4 if degraded, altered "
        "or restored, 5 if removed by another process, or if restores have stopped"
    )
    severity: Caption = caption_of("severity_id")
    status_id: Status = required(
        "2 if degraded, altered, removed by another process, or if restores have stopped; else 1"
    )
    status: Caption = caption_of("status_id")
    status_detail: str | None = optional("cause of a fault, or description of the change")
    message: str = required("one sentence for people")
    state_id: ConfigState = required(
        "1 if removed, 2 if active, else 99: Permissive, Degraded or Altered"
    )
    state: Caption = caption_of("state_id")
    security_level_id: SecurityLevel = required("1 if active, else 2")
    security_level: Caption = caption_of("security_level_id")
    prev_security_level_id: SecurityLevel = required("security level before")
    prev_security_level: Caption = caption_of("prev_security_level_id")
    actor: Actor | None = optional("the process that altered the fence")
    device: Device = required("the machine that enforces the fence")
    cloud: Cloud | None = optional("the cloud in which the machine runs")
    observables: tuple[Observable, ...] | None = optional("values to search for in other sources")
    unmapped: dict[str, Any] = required(
        "sandbox, previous_state, tables and transport of the fence; changes by "
        "another process; of a request: changes, policy_before, policy; addresses of the host "
        "names in the policy; of the process: unit (of systemd), pod_uid, sha256"
    )
    metadata: Metadata = required("facts about the event itself")


class ApplicationLifecycle(Event):
    """OCSF class 6002: ocsf-nft started or stopped, or has a fault that affects events.

    Such a fault is: records or events were dropped, counters could not be read for some time, the
    processes that sent packets are found by a less exact method, or a sink is down.
    """

    profile_attributes: ClassVar = {
        "cloud": ("cloud",),
        "host": ("device",),
        "security_control": SECURITY_CONTROL,
    }

    class_uid: Literal[6002] = 6002
    class_name: Literal["Application Lifecycle"] = "Application Lifecycle"
    category_uid: Literal[6] = 6
    category_name: Literal["Application Activity"] = "Application Activity"
    activity_id: LifecycleActivityId = required(
        "3 start, 4 stop, 99 if the caption is Records Dropped, Collection Gap, Events "
        "Dropped, Attribution Degraded, Fault or Fault Cleared"
    )
    activity_name: Caption = caption_of("activity_id")
    type_uid: TypeUid = derived_field(type_uid_of, TYPE_UID)
    type_name: TypeName = derived_field(type_name_of, TYPE_NAME)
    time: Long = required("time of the start or stop, end of the gap, or time of the report")
    start_time: Long | None = optional("start of the gap or of the fault")
    end_time: Long | None = optional("end of the gap; of a fault: the time")
    duration: Long | None = derived_field(duration_of, "end_time minus start_time")
    timezone_offset: Literal[0] = 0
    count: Long | None = optional(
        "of Records Dropped and Events Dropped: their number, if known; of Collection Gap: packets "
        "blocked or allowed meanwhile, which other events count too"
    )
    severity_id: Severity = required(
        "1 for start, stop and Fault Cleared, 2 for a gap without packets, 3 for "
        "Attribution Degraded and the fault of a sink or of the storage, else 4"
    )
    severity: Caption = caption_of("severity_id")
    status_id: Status = required("1 for start, stop and Fault Cleared, else 2")
    status: Caption = caption_of("status_id")
    status_detail: str | None = optional("the reason")
    message: str = required("one sentence for people")
    app: Product = required("ocsf-nft")
    device: Device | None = optional("the machine that ocsf-nft runs on")
    cloud: Cloud | None = optional("the cloud in which the machine runs")
    observables: tuple[Observable, ...] | None = optional("values to search for in other sources")
    unmapped: dict[str, Any] | None = optional(
        "of Records Dropped and Events Dropped: transport; of Collection Gap, and of the Fault of "
        "a sandbox: sandbox; of Attribution Degraded: method"
    )
    metadata: Metadata = required("facts about the event itself")


#: Event classes by ``class_uid``.
CLASSES: Final[dict[int, type[Event]]] = {
    4001: NetworkActivity,
    4003: DnsActivity,
    2004: DetectionFinding,
    5019: DeviceConfigStateChange,
    6002: ApplicationLifecycle,
}
#: ``class_uid`` by the name in a configuration: ``network_activity``.
CLASS_UIDS: Final[dict[str, int]] = {
    model.model_fields["class_name"].default.lower().replace(" ", "_"): uid
    for uid, model in CLASSES.items()
}
