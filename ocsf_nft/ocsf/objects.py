"""OCSF objects in our events, with exactly the attributes that we fill.

Names, meanings and requirements are those of OCSF 1.8.0. ``None`` means unknown and is not
serialized. Each field's description states the source of its value; the field guide is generated
from the descriptions. :mod:`ocsf_nft.ocsf.versions` lists attributes that older versions lack.
"""

from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from ocsf_nft.ocsf.enums import (
    AnalyticType,
    Boundary,
    DeviceType,
    Direction,
    FileType,
    FingerprintAlgorithm,
    NetworkScope,
    ObservableType,
    OsType,
    ProtocolVersion,
)
from ocsf_nft.ocsf.model import Caption, Long, Model, Port, caption_of, optional_field


class Product(Model):
    """``product``: what made the event."""

    name: str = Field(description="ocsf-nft")
    vendor_name: str = Field(description="ocsf-nft")
    version: str = Field(description="the version that is installed")


class Metadata(Model):
    """``metadata``. An event fills in ``profiles`` itself, from what it holds."""

    version: str = Field(description="the OCSF version that the event is told in")
    uid: str = Field(
        description="derived from the kernel's record, or from what is told: the same whenever "
        "that is told again, in every version"
    )
    product: Product = Field(description="what made the event")
    profiles: tuple[str, ...] | None = optional_field("derived from the attributes that are there")
    log_name: str | None = optional_field("netfilter")
    log_provider: str | None = optional_field("netfilter")
    log_source: str | None = optional_field(
        "what was read: the NFLOG group, /dev/kmsg, the journal, a file"
    )
    log_format: str | None = optional_field("the kernel module whose form the record has")
    original_time: str | None = optional_field("the record's stamp, as the source wrote it")
    original_event_uid: str | None = optional_field(
        "what tells the record from all others at its source"
    )
    sequence: Long | None = optional_field("the source's own number of the record")
    correlation_uid: str | None = optional_field(
        "the same in all events of an attempt and in its finding, where it is finding_info.uid; "
        "of flows that are told together, and of the fan-out that they are, by sandbox, rule and "
        "user; of a converted record by its flow"
    )
    logged_time: Long | None = optional_field("when the record was read")
    processed_time: Long | None = optional_field("when the event was made")


class FirewallRule(Model):
    """``firewall_rule``: the rule that logged."""

    name: str = Field(
        description="the rule in the log prefix: egress, forward, ingress, link, guard; round a VM "
        "vm-forward, vm-input, vm-ingress, vm-link"
    )
    uid: str | None = optional_field("family/table/chain/handle in the kernel")
    type: str | None = optional_field("nftables, where the rule is ours")
    desc: str | None = optional_field("what the rule is for")
    condition: str | None = optional_field("the rule's text, as the kernel lists it")


class Tactic(Model):
    """``tactic`` of ATT&CK."""

    uid: str = Field(description="the tactic's id")
    name: str = Field(description="the tactic's name")


class Technique(Model):
    """``technique`` or ``sub_technique`` of ATT&CK."""

    uid: str = Field(description="the technique's id")
    name: str = Field(description="the technique's name")


class Attack(Model):
    """``attack``: one technique under one tactic."""

    version: str = Field(description="the version of ATT&CK")
    tactic: Tactic = Field(description="what it would be for")
    technique: Technique = Field(description="what it would be, by protocol and port")
    sub_technique: Technique | None = optional_field("the same, finer")


class Analytic(Model):
    """``analytic``: what found a finding."""

    uid: str = Field(description="ocsf-nft/attempt, or ocsf-nft/fan-out")
    name: str = Field(description="the same for people")
    type_id: AnalyticType = Field(description="1")
    type: Caption = caption_of("type_id")


class RelatedEvent(Model):
    """``related_event``: an event that a finding is about."""

    uid: str = Field(description="its metadata.uid")
    type_uid: Long = Field(description="its type_uid")
    type_name: str = Field(description="its type_name")


class FindingInfo(Model):
    """``finding_info``: what was found; ``uid`` is the same for all that is told of it."""

    uid: str = Field(description="the same from Create to Close")
    title: str = Field(description="what was found, in a few words")
    desc: str = Field(description="the same in sentences")
    types: tuple[str, ...] = Field(description="Policy Violation, or Fan-out")
    analytic: Analytic = Field(description="what found it")
    data_sources: tuple[str, ...] | None = optional_field("what the records were read from")
    attacks: tuple[Attack, ...] | None = optional_field("ATT&CK, as at the top level")
    first_seen_time: Long = Field(description="of the first packet")
    last_seen_time: Long = Field(description="of the last packet so far")
    related_events: tuple[RelatedEvent, ...] | None = optional_field(
        "the latest Network Activity events of the attempt, ten at most"
    )
    related_events_count: Long | None = optional_field("how many there are in all, so far")


class Remediation(Model):
    """``remediation``: what to do about a finding."""

    desc: str = Field(description="what to do, for whoever runs the sandbox")


class ResourceDetails(Model):
    """``resource_details``: what a finding is about."""

    name: str = Field(description="the sandbox's name")
    type: str = Field(description="sandbox")


class Image(Model):
    """``image`` of a container."""

    uid: str = Field(description="the image's id, from the configuration")
    name: str | None = optional_field("the image's name, from the configuration")


class Container(Model):
    """``container`` that the sandbox is, or that a process runs in."""

    uid: str | None = optional_field("the container's id")
    name: str | None = optional_field("the container's name")
    runtime: str | None = optional_field("what runs it")
    image: Image | None = optional_field("what it was made from")
    pod_uuid: str | None = optional_field("of the Kubernetes pod that it is in")

    @model_validator(mode="after")
    def _is_something(self) -> Self:
        if self.uid is self.name is None:
            raise ValueError("a container needs a uid or a name")
        return self


class NetworkEndpoint(Model):
    """``network_endpoint``. A MAC address alone does not make one: the schema wants a name too."""

    profile_attributes: ClassVar = {"container": ("container",)}

    name: str | None = optional_field("the sandbox, at the end that it is")
    uid: str | None = optional_field("the MAC address, where nothing else is known of an end")
    ip: str | None = optional_field("the address in the packet")
    port: Port | None = optional_field("the port in the packet")
    svc_name: str | None = optional_field(
        "the service that the destination's port is known for (IANA)"
    )
    mac: str | None = optional_field("the MAC address in the frame")
    interface_name: str | None = optional_field("the interface at that end, as the kernel calls it")
    network_scope_id: NetworkScope | None = optional_field("derived from the address")
    network_scope: Caption | None = caption_of("network_scope_id")
    container: Container | None = optional_field("the container that the sandbox is")

    @model_validator(mode="after")
    def _is_someone(self) -> Self:
        if self.ip is self.name is self.uid is self.interface_name is None:
            raise ValueError("an endpoint needs an ip, a name, a uid or an interface_name")
        return self


class NetworkProxy(Model):
    """``network_proxy``: where the traffic should have gone."""

    ip: str = Field(description="the proxy's address, of the packet's family where there is one")
    port: Port = Field(description="the proxy's port")


class NetworkConnectionInfo(Model):
    """``network_connection_info``."""

    direction_id: Direction = Field(description="seen from the sandbox, by the rule that refused")
    direction: Caption = caption_of("direction_id")
    protocol_num: Annotated[int, Field(ge=0, le=255)] | None = optional_field(
        "the protocol in the packet"
    )
    protocol_name: str | None = optional_field("its name at IANA, in lower case")
    protocol_ver_id: ProtocolVersion | None = optional_field("the packet's IP version")
    protocol_ver: Caption | None = caption_of("protocol_ver_id")
    tcp_flags: int | None = optional_field("the nine flags of the TCP header")
    boundary_id: Boundary | None = optional_field("derived from both addresses")
    boundary: Caption | None = caption_of("boundary_id")
    community_uid: str | None = optional_field("Community ID, version 1")


class NetworkTraffic(Model):
    """``network_traffic``: what this event counts, and no other event does."""

    packets: Long = Field(description="the same as count")
    bytes: Long | None = optional_field("of the kernel's counter, or of the packet")


class Group(Model):
    """``group``."""

    uid: str | None = optional_field("the group's id")
    name: str | None = optional_field("the group's name")


class User(Model):
    """``user``."""

    name: str | None = optional_field("the user's name")
    uid: str = Field(description="the user's id, as this host numbers users")
    groups: tuple[Group, ...] | None = optional_field(
        "the group that the packet's socket has, or that the process runs as"
    )


class Fingerprint(Model):
    """``fingerprint``: what tells a file's content from any other."""

    algorithm_id: FingerprintAlgorithm = Field(description="3")
    algorithm: Caption = caption_of("algorithm_id")
    value: str = Field(description="of the whole content, in hexadecimal")


class File(Model):
    """``file``: a process's program."""

    name: str = Field(description="the last part of the path")
    path: str = Field(
        description="the program that the process runs; memfd:NAME where it is in memory alone"
    )
    type_id: FileType = Field(description="1")
    type: Caption = caption_of("type_id")
    is_deleted: bool | None = optional_field("whether the program was deleted while it runs")
    hashes: tuple[Fingerprint, ...] | None = optional_field("of the program")


class ProcessEntity(Model):
    """``process_entity``: an ancestor of a process."""

    name: str | None = optional_field("the ancestor's name")
    pid: int = Field(description="the ancestor's id, as this host numbers processes")
    path: str | None = optional_field("the ancestor's program")


class ParentProcess(Model):
    """``process``: the parent of one."""

    name: str | None = optional_field("the parent's name")
    pid: int = Field(description="the parent's id, as this host numbers processes")
    path: str | None = optional_field("the parent's program")
    file: File | None = optional_field("the parent's program")


class Process(Model):
    """``process``: who did it."""

    profile_attributes: ClassVar = {"container": ("container", "namespace_pid")}

    name: str | None = optional_field(
        "the program's name or, where that is not known, the process's own"
    )
    pid: int = Field(description="the process's id, as this host numbers processes")
    ptid: Long | None = optional_field("the id of the thread that did it")
    path: str | None = optional_field("the program that it runs")
    cmd_line: str | None = optional_field("its arguments")
    working_directory: str | None = optional_field("its working directory")
    created_time: Long | None = optional_field("when it was started")
    file: File | None = optional_field("the program that it runs")
    user: User | None = optional_field("who it runs as")
    parent_process: ParentProcess | None = optional_field("what started it")
    ancestry: tuple[ProcessEntity, ...] | None = optional_field("its ancestors, the parent first")
    namespace_pid: int | None = optional_field("its id inside the sandbox")
    container: Container | None = optional_field("the container that it runs in")


class Actor(Model):
    """``actor``: who did it, as far as the kernel's record, and who looked, can say."""

    process: Process | None = optional_field(
        "the process, where it is known and never where it is guessed"
    )
    user: User | None = optional_field("the user of the packet's socket")

    @model_validator(mode="after")
    def _is_someone(self) -> Self:
        if self.process is None and self.user is None:
            raise ValueError("an actor needs a process or a user")
        return self


class Enrichment(Model):
    """``enrichment``: how it is known which process did it, or why it is not."""

    name: str = Field(description="actor.process")
    value: str = Field(description="the process's id; unknown, where it is not known or not which")
    type: str = Field(description="attribution")
    provider: str = Field(description="ocsf-nft")
    data: dict[str, Any] = Field(
        description="method: capture, where the kernel told who sent it, socket, where the "
        "process had the socket when the record arrived, user, where only the kernel's record "
        "tells, or none; confidence: High, Medium or Low; reason, in a sentence; where there are "
        "several, processes, with how often each was seen to try (calls), and how many more there "
        "are, at least (unnamed)"
    )


class Evidences(Model):
    """``evidences``: one thing that was seen."""

    actor: Actor | None = optional_field("who did it")
    process: Process | None = optional_field("the process, as in actor")
    src_endpoint: NetworkEndpoint | None = optional_field("where it was from")
    dst_endpoint: NetworkEndpoint | None = optional_field("where it was to")
    connection_info: NetworkConnectionInfo = Field(description="how: direction, protocol, flags")


class Os(Model):
    """``os``."""

    name: str = Field(description="Linux")
    type_id: OsType = Field(description="200")
    type: Caption = caption_of("type_id")
    kernel_release: str | None = optional_field("the kernel's release")


class Device(Model):
    """``device``: the machine whose kernel refused."""

    name: str | None = optional_field("unknown, where the host is not and the class wants one")
    hostname: str | None = optional_field("the host's name")
    type_id: DeviceType = Field(description="6 on a virtual machine, else 0")
    type: Caption = caption_of("type_id")
    os: Os | None = optional_field("the host's system")
    boot_uid: str | None = optional_field("the kernel's id of this boot")
    boot_time: Long | None = optional_field("when the host was booted")

    @model_validator(mode="after")
    def _is_something(self) -> Self:
        if self.hostname is self.name is None:
            raise ValueError("a device needs a hostname or a name")
        return self


class Observable(Model):
    """``observable``: ``name`` is the path of an attribute, ``value`` what it holds, as text."""

    name: str = Field(description="the path of an attribute of the event")
    type_id: ObservableType = Field(description="what the attribute is, by the schema")
    type: Caption = caption_of("type_id")
    value: str = Field(description="what the attribute holds, as text")
