"""OCSF objects in Detection Findings, with only the attributes that we fill.

Names, meanings and requirements are those of OCSF 1.8.0, as in ``objects.py``.
"""

from ocsf_nft.ocsf.enums import AnalyticType
from ocsf_nft.ocsf.model import Caption, Long, Model, caption_of, optional, required
from ocsf_nft.ocsf.objects import (
    Actor,
    DnsQuery,
    NetworkConnectionInfo,
    NetworkEndpoint,
    Process,
)


class Tactic(Model):
    """OCSF object ``tactic``: a tactic of MITRE ATT&CK."""

    uid: str = required("the tactic's id")
    name: str = required("the tactic's name")


class Technique(Model):
    """OCSF object ``technique`` or ``sub_technique``: a technique of MITRE ATT&CK."""

    uid: str = required("the technique's id")
    name: str = required("the technique's name")


class Attack(Model):
    """OCSF object ``attack``: a technique of MITRE ATT&CK, and the tactic that it belongs to."""

    version: str = required("the version of ATT&CK")
    tactic: Tactic = required("the tactic that the technique serves")
    technique: Technique = required(
        "the technique that the attempt resembles, by protocol and port"
    )
    sub_technique: Technique | None = optional("the sub-technique, if there is one")


class Analytic(Model):
    """OCSF object ``analytic``: the detection method that led to a Detection Finding event.

    There is one for each kind of finding.
    """

    uid: str = required(
        "ocsf-nft/ and the kind: bypass, cloud-metadata, inbound, permissive, scan, "
        "dns-tunnel, tampering, fence-removed, restore-stopped, collection, counter-mismatch, "
        "log-group-taken or records-not-counted"
    )
    name: str = required("the same as finding_info.types")
    type_id: AnalyticType = required("1")
    type: Caption = caption_of("type_id")


class RelatedEvent(Model):
    """OCSF object ``related_event``: another event that a finding refers to, by uid and type."""

    uid: str = required("metadata.uid of that event")
    type_uid: Long = required("type_uid of that event")
    type_name: str = required("type_name of that event")


class FindingInfo(Model):
    """OCSF object ``finding_info``: title, description and times of a finding."""

    uid: str = required("identifier of the finding, in all its events")
    title: str = required("who, what, where to, in which sandbox")
    desc: str = required("all known facts as sentences")
    types: tuple[str, ...] = required(
        "Proxy Bypass, Cloud Metadata Access, Inbound Attempt, Traffic Allowed by a "
        "Permissive Fence, Network Scan, DNS Tunnel, Fence Tampering, Fence Removed, "
        "Restores Stopped, Collection Gap or Counter Mismatch"
    )
    src_url: str | None = optional("the page of the runbook, if runbook_url is configured")
    analytic: Analytic = required("the detection that made the finding")
    data_sources: tuple[str, ...] | None = optional("sources of the records")
    attacks: tuple[Attack, ...] | None = optional("ATT&CK techniques, as at the top level")
    first_seen_time: Long = required("time of the first packet")
    last_seen_time: Long = required("time of the last packet so far")
    related_events: tuple[RelatedEvent, ...] | None = optional(
        "the latest events that it is about, at most ten"
    )
    related_events_count: Long | None = optional("number of all these events so far")


class Remediation(Model):
    """OCSF object ``remediation``: advice for the operator of the sandbox."""

    desc: str = required("what to check and to do")
    references: tuple[str, ...] | None = optional(
        "the page of the runbook: its web address if configured, else its path in the documentation"
    )


class ResourceDetails(Model):
    """OCSF object ``resource_details``: sandbox, container or pod that a finding is about."""

    uid: str | None = optional("id of the container, or UID of the pod")
    name: str | None = optional("name of the sandbox, of the container or of the pod")
    type: str = required("sandbox, container or pod")
    namespace: str | None = optional("Kubernetes namespace of the pod")
    labels: tuple[str, ...] | None = optional(
        "labels of the sandbox or of the container, each as key=value"
    )

    def _check(self) -> None:
        if self.uid is self.name is None:
            raise ValueError("a resource needs a uid or a name")


class Evidences(Model):
    """OCSF object ``evidences``: a process and what it did, as evidence of a finding."""

    actor: Actor | None = optional("process and user of the sender")
    process: Process | None = optional("the process, as in actor")
    src_endpoint: NetworkEndpoint | None = optional("source of the packets")
    dst_endpoint: NetworkEndpoint | None = optional("destination of the packets")
    connection_info: NetworkConnectionInfo | None = optional("direction, protocol and flags")
    query: DnsQuery | None = optional("of DNS packets: a question in them")
