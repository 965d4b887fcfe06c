"""Codes of the situations that events report: one stable text each, in ``metadata.event_code``."""

from __future__ import annotations

from enum import StrEnum, unique
from typing import Self


@unique
class EventCode(StrEnum):
    """Situation that an event reports, with the event's class and a description."""

    class_uid: int
    description: str

    def __new__(cls, value: str, class_uid: int, description: str) -> Self:
        """Create a member from its code, the uid of its OCSF class and its description."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.class_uid = class_uid
        member.description = description
        return member

    EGRESS_BLOCKED = (
        "egress-blocked",
        4001,
        "A sandbox or a VM tried to reach a destination without its proxy.",
    )
    EGRESS_ALLOWED = "egress-allowed", 4001, "The same, and a permissive fence allowed it."
    CLOUD_METADATA_BLOCKED = (
        "cloud-metadata-blocked",
        4001,
        "A sandbox or a VM tried to reach the service that issues the machine's credentials.",
    )
    CLOUD_METADATA_ALLOWED = (
        "cloud-metadata-allowed",
        4001,
        "The same, and a permissive fence allowed it.",
    )
    DNS_BLOCKED = (
        "dns-blocked",
        4001,
        "A sandbox or a VM sent a packet of name resolution: DNS, mDNS, LLMNR or NetBIOS.",
    )
    DNS_ALLOWED = "dns-allowed", 4001, "The same, and a permissive fence allowed it."
    INGRESS_BLOCKED = (
        "ingress-blocked",
        4001,
        "A packet to a sandbox or a VM is no reply on its connections.",
    )
    INGRESS_ALLOWED = "ingress-allowed", 4001, "The same, and a permissive fence allowed it."
    FORWARD_BLOCKED = "forward-blocked", 4001, "A packet was to be forwarded through a sandbox."
    FORWARD_ALLOWED = "forward-allowed", 4001, "The same, and a permissive fence allowed it."
    LINK_BLOCKED = (
        "link-blocked",
        4001,
        "A sandbox sent a frame past its IP stack, or a VM a spoofed or unusual frame.",
    )
    LINK_ALLOWED = "link-allowed", 4001, "The same, and a permissive fence allowed it."
    KERNEL_TRAFFIC = (
        "kernel-traffic",
        4001,
        "A packet that a kernel sends without a program.",
    )
    AGGREGATED = (
        "aggregated",
        4001,
        "Packets of several flows, because their user has too many flows.",
    )
    FIREWALL_REJECTED = (
        "firewall-rejected",
        4001,
        "Another firewall blocked a packet, with or without an answer.",
    )
    FIREWALL_DROPPED = "firewall-dropped", 4001, "Another firewall dropped a packet."
    FIREWALL_ALLOWED = "firewall-allowed", 4001, "Another firewall allowed a packet."
    FIREWALL_LOGGED = (
        "firewall-logged",
        4001,
        "Another firewall logged a packet; its verdict is unknown.",
    )

    DNS_QUERY = "dns-query", 4003, "A name in a logged DNS query."

    BYPASS_FINDING = (
        "bypass-finding",
        2004,
        "Attempts of one flow out of a sandbox or a VM, or through it.",
    )
    CLOUD_METADATA_FINDING = (
        "cloud-metadata-finding",
        2004,
        "Attempts to reach the service that issues the machine's credentials.",
    )
    INBOUND_FINDING = "inbound-finding", 2004, "Attempts to connect to a sandbox or a VM."
    SCAN_FINDING = "scan-finding", 2004, "One user tried many destinations or ports."
    DNS_TUNNEL_FINDING = (
        "dns-tunnel-finding",
        2004,
        "Names in DNS queries are likely to carry data.",
    )
    PERMISSIVE_FINDING = (
        "permissive-finding",
        2004,
        "A permissive fence allowed attempts that it would block otherwise.",
    )
    TAMPERING_FINDING = "tampering-finding", 2004, "Another process changed a fence."
    FENCE_REMOVED_FINDING = "fence-removed-finding", 2004, "Another process removed a fence."
    RESTORE_STOPPED_FINDING = (
        "restore-stopped-finding",
        2004,
        "Another process changed a fence after each restore.",
    )
    COLLECTION_FINDING = (
        "collection-finding",
        2004,
        "The reader of log records was stopped or got no records.",
    )
    COUNTER_MISMATCH_FINDING = (
        "counter-mismatch-finding",
        2004,
        "Counted and reported packets of a fence differ.",
    )
    FENCE_BYPASSED_FINDING = (
        "fence-bypassed-finding",
        2004,
        "Frames left a sandbox by a way that its fence did not see.",
    )
    LOG_GROUP_TAKEN_FINDING = (
        "log-group-taken-finding",
        2004,
        "Another program held the NFLOG group of a fence.",
    )
    RECORDS_NOT_COUNTED_FINDING = (
        "records-not-counted-finding",
        2004,
        "A sandbox has log records that its fence did not log.",
    )
    SURROUNDINGS_CHANGED_FINDING = (
        "surroundings-changed-finding",
        2004,
        "Another process changed settings of a network namespace so that its fence is weaker.",
    )

    FENCE_ACTIVE = "fence-active", 5019, "A fence blocks packets and logs what it blocks."
    FENCE_PERMISSIVE = "fence-permissive", 5019, "A fence blocks nothing, as requested."
    FENCE_DEGRADED = "fence-degraded", 5019, "A fence does not log all packets that it should."
    FENCE_ALTERED = (
        "fence-altered",
        5019,
        "A fence differs from the installed one, or can't be read.",
    )
    FENCE_RESTORED = (
        "fence-restored",
        5019,
        "A fence was restored after a change by another process.",
    )
    FENCE_REMOVED = "fence-removed", 5019, "A fence was removed as requested."
    FENCE_REMOVED_BY_OTHER = "fence-removed-by-other", 5019, "Another process removed a fence."
    RESTORE_STOPPED = (
        "restore-stopped",
        5019,
        "A fence is not restored for a while: it was changed each time.",
    )
    FENCE_BYPASSED = (
        "fence-bypassed",
        5019,
        "Frames left a sandbox by a way that its fence did not see.",
    )
    SURROUNDINGS_CHANGED = (
        "surroundings-changed",
        5019,
        "Settings of a network namespace changed so that its fence is weaker.",
    )
    GATE_BLOCKED = (
        "gate-blocked",
        5019,
        "Frames that a fence did not see were stopped at the interface.",
    )
    POLICY_CHANGED = "policy-changed", 5019, "A call or the configuration changed a policy."
    NAMES_RESOLVED = (
        "names-resolved",
        5019,
        "Host names in a policy have new addresses, which the fence has now.",
    )
    SANDBOX_ADDED = "sandbox-added", 5019, "A call added a sandbox, which has a fence now."
    SANDBOX_ENDED = "sandbox-ended", 5019, "A sandbox ended with its network namespace."
    SANDBOX_RELEASED = "sandbox-released", 5019, "A sandbox is no longer watched, as requested."

    SERVICE_STARTED = "service-started", 6002, "ocsf-nft started."
    SERVICE_STOPPED = "service-stopped", 6002, "ocsf-nft stopped."
    RECORDS_DROPPED = ("records-dropped", 6002, "Log records, or counts of packets, are missing.")
    EVENTS_DROPPED = "events-dropped", 6002, "Stored events were removed before their delivery."
    COLLECTION_GAP = (
        "collection-gap",
        6002,
        "The counters of a fence were not read for some time.",
    )
    LOG_GROUP_TAKEN = (
        "log-group-taken",
        6002,
        "Another program held the NFLOG group of a fence, which logs to another one now.",
    )
    RECORDS_NOT_COUNTED = (
        "records-not-counted",
        6002,
        "There are log records of a fence that it did not log.",
    )
    ATTRIBUTION_DEGRADED = (
        "attribution-degraded",
        6002,
        "Processes are found by a less exact method.",
    )
    FAULT = "fault", 6002, "A sink, the storage or the watch over a sandbox has a fault."
    FAULT_CLEARED = "fault-cleared", 6002, "Such a fault has ended."
