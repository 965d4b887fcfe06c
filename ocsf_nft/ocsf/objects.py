"""OCSF objects in our events, with only the attributes that we fill.

Names, meanings and requirements are those of OCSF 1.8.0. ``None`` means unknown and is not
serialized. Each field's description states where the field's value comes from.
"""

from typing import Annotated, Any, ClassVar

from ocsf_nft.ocsf.enums import (
    Boundary,
    DeviceType,
    Direction,
    DnsOpcode,
    FileType,
    FingerprintAlgorithm,
    NetworkScope,
    ObservableType,
    OsType,
    ProtocolVersion,
)
from ocsf_nft.ocsf.event_codes import EventCode
from ocsf_nft.ocsf.model import Caption, Limits, Long, Model, Port, caption_of, optional, required


class Product(Model):
    """OCSF object ``product``: the program that detected or logged what the event reports."""

    name: str = required(
        "ocsf-nft; or the other firewall that logged the packet, such as ufw: netfilter"
        " if the log prefix does not show which one"
    )
    vendor_name: str = required("ocsf-nft, or the vendor of the other firewall")
    version: str | None = optional("the installed version of ocsf-nft")


class Logger(Model):
    """OCSF object ``logger``: a program that passed the event on, here the converter of a log."""

    name: str = required("ocsf-nft")
    product: Product = required("ocsf-nft")
    logged_time: Long = required("as metadata.logged_time")


class KeyValue(Model):
    """OCSF object ``key_value_object``: a tag of an event."""

    name: str = required("sandbox")
    value: str = required("name of the sandbox")


class Metadata(Model):
    """OCSF object ``metadata``: facts about the event itself, such as its uid and OCSF version."""

    version: str = required("the OCSF version of the event")
    uid: str = required(
        "derived from the kernel's record or from the content: the same if the event "
        "is made again, and in every OCSF version"
    )
    event_code: EventCode = required(
        "code of the situation that the event reports, such as egress-blocked"
    )
    product: Product = required(
        "ocsf-nft, if one of its fences logged the packet, and in all other classes; "
        "else the firewall that logged it"
    )
    loggers: tuple[Logger, ...] | None = optional("ocsf-nft, if another firewall logged the packet")
    tenant_uid: str | None = optional(
        "the tenant of the sandbox, else that of the service, from the configuration"
    )
    profiles: tuple[str, ...] | None = optional("derived from the attributes of the event")
    log_name: str | None = optional("netfilter")
    log_provider: str | None = optional("netfilter")
    log_source: str | None = optional(
        "the source of the record: NFLOG group, /dev/kmsg, journal or file"
    )
    log_format: str | None = optional("the kernel module that defines the record's format")
    original_time: str | None = optional("the timestamp as the source wrote it")
    original_event_uid: str | None = optional("identifier of the record at its source")
    sequence: Long | None = optional("the number that the source gave the record")
    correlation_uid: str | None = optional(
        "the same in all events of an incident, and equal to finding_info.uid of its finding; "
        "aggregated flows and their scan share one for each sandbox, rule and user; events of "
        "convert share one for each flow"
    )
    logged_time: Long | None = optional("time when ocsf-nft read the record")
    processed_time: Long | None = optional("time when ocsf-nft made the event")
    labels: tuple[str, ...] | None = optional(
        "the sandbox's labels, each as key=value, and environment=NAME from the configuration"
    )
    tags: tuple[KeyValue, ...] | None = optional("the sandbox that the event is about")


class FirewallRule(Model):
    """OCSF object ``firewall_rule``: the firewall's rule that logged the packet."""

    name: str = required(
        "the rule in the log prefix: egress, forward, ingress, link, guard, "
        "guard-ingress; for a VM vm-forward, vm-input, vm-ingress, vm-link"
    )
    uid: str | None = optional("family/table/chain/handle of the rule in the kernel")
    type: str | None = optional(
        "nftables, if the rule belongs to a fence; else the firewall, such as ufw, if the log "
        "prefix shows it"
    )
    desc: str | None = optional("purpose of a fence's rule")
    condition: str | None = optional("what a fence's rule matches")


class Image(Model):
    """OCSF object ``image``: the image of a container."""

    uid: str = required("the image's id, from the configuration")
    name: str | None = optional("the image's name, from the configuration")


class Container(Model):
    """OCSF object ``container``: a container that is the sandbox, or in which a process runs."""

    uid: str | None = optional("the container's id")
    name: str | None = optional("the container's name")
    runtime: str | None = optional("the container runtime")
    image: Image | None = optional("the container's image")
    pod_uuid: str | None = optional("UID of the container's Kubernetes pod")
    orchestrator: str | None = optional("the program that has started the container")
    labels: tuple[str, ...] | None = optional("the container's labels, each as key=value")

    def _check(self) -> None:
        if self.uid is self.name is None:
            raise ValueError("a container needs a uid or a name")


class NetworkEndpoint(Model):
    """OCSF object ``network_endpoint``: the source or the destination of packets."""

    profile_attributes: ClassVar = {"container": ("container",)}

    name: str | None = optional("name of the sandbox, if the endpoint is the sandbox")
    uid: str | None = optional("the MAC address, if nothing else is known")
    ip: str | None = optional("the address in the packet")
    port: Port | None = optional("the port in the packet")
    svc_name: str | None = optional("the service of the destination port (IANA)")
    mac: str | None = optional("the MAC address in the frame")
    interface_name: str | None = optional("the network interface on that side")
    network_scope_id: NetworkScope | None = optional("derived from the address")
    network_scope: Caption | None = caption_of("network_scope_id")
    container: Container | None = optional("the container that is the sandbox")

    def _check(self) -> None:
        if self.ip is self.name is self.uid is self.interface_name is None:
            raise ValueError("an endpoint needs an ip, a name, a uid or an interface_name")


class NetworkProxy(Model):
    """OCSF object ``network_proxy``: the proxy through which the sandbox is allowed to send."""

    ip: str = required(
        "address of the proxy, of the packet's family if the sandbox has such a proxy"
    )
    port: Port = required("port of the proxy")


class NetworkConnectionInfo(Model):
    """OCSF object ``network_connection_info``: direction, protocol and flags of packets."""

    direction_id: Direction = required("direction from the sandbox's view, by the rule")
    direction: Caption = caption_of("direction_id")
    protocol_num: Annotated[int, Limits(0, 255)] | None = optional("the protocol in the packet")
    protocol_name: str | None = optional("IANA's name of the protocol, in lower case")
    protocol_ver_id: ProtocolVersion | None = optional("the packet's IP version")
    protocol_ver: Caption | None = caption_of("protocol_ver_id")
    tcp_flags: int | None = optional("the nine TCP flags, as a number")
    boundary_id: Boundary | None = optional("derived from both addresses")
    boundary: Caption | None = caption_of("boundary_id")
    community_uid: str | None = optional("Community ID, version 1")


class NetworkTraffic(Model):
    """OCSF object ``network_traffic``: the numbers of packets and bytes that the event reports."""

    packets: Long = required("the same as count")
    bytes: Long | None = optional("bytes by the kernel's counter, or length of the packet")


class Group(Model):
    """OCSF object ``group``: a group of users on the host."""

    uid: str | None = optional("the group's id")
    name: str | None = optional("the group's name")


class User(Model):
    """OCSF object ``user``: the user that a socket belongs to, or that a process runs as."""

    name: str | None = optional("the user's name")
    uid: str = required("the user's id in the host's user namespace")
    groups: tuple[Group, ...] | None = optional(
        "the group of the packet's socket or of the process"
    )


class Fingerprint(Model):
    """OCSF object ``fingerprint``: a hash of a file's content."""

    algorithm_id: FingerprintAlgorithm = required("3")
    algorithm: Caption = caption_of("algorithm_id")
    value: str = required("hash of the whole content, in hexadecimal")


class File(Model):
    """OCSF object ``file``: the program file of a process."""

    name: str = required("last part of the path")
    path: str = required("path of the program; memfd:NAME if it exists only in memory")
    type_id: FileType = required("1")
    type: Caption = caption_of("type_id")
    is_deleted: bool | None = optional("true if the program was deleted while it runs")
    hashes: tuple[Fingerprint, ...] | None = optional("hashes of the program")


class ProcessEntity(Model):
    """OCSF object ``process_entity``: an ancestor of a process."""

    name: str | None = optional("the ancestor's name")
    pid: int = required("the ancestor's id in the host's PID namespace")
    path: str | None = optional("the ancestor's program")


class ParentProcess(Model):
    """OCSF object ``process``: the parent of a process."""

    name: str | None = optional("the parent's name")
    pid: int = required("the parent's id in the host's PID namespace")
    path: str | None = optional("the parent's program")
    file: File | None = optional("the parent's program")


class Process(Model):
    """OCSF object ``process``: the process that sent the packets, or that altered the fence."""

    profile_attributes: ClassVar = {"container": ("container", "namespace_pid")}

    name: str | None = optional(
        "name of the program; the process's own name if the program is unknown"
    )
    pid: int = required("the process's id in the host's PID namespace")
    ptid: Long | None = optional("id of the thread that sent the packet")
    path: str | None = optional("path of the program")
    cmd_line: str | None = optional("arguments of the process")
    working_directory: str | None = optional("working directory of the process")
    created_time: Long | None = optional("start time of the process")
    file: File | None = optional("the program")
    user: User | None = optional("the user that the process runs as")
    parent_process: ParentProcess | None = optional("the parent of the process")
    ancestry: tuple[ProcessEntity, ...] | None = optional(
        "ancestors of the process, the parent first"
    )
    namespace_pid: int | None = optional("the process's id in its own PID namespace")
    container: Container | None = optional("the container that the process runs in")


class Actor(Model):
    """OCSF object ``actor``: the process and the user that caused an event, each only if known."""

    process: Process | None = optional(
        "the process, if it is known for certain enough; never a guess"
    )
    user: User | None = optional("the user of the packet's socket")

    def _check(self) -> None:
        if self.process is None and self.user is None:
            raise ValueError("an actor needs a process or a user")


class Enrichment(Model):
    """OCSF object ``enrichment``: how the sending process was found, or a name in a DNS query."""

    name: str = required("actor.process; of a DNS query: dst_endpoint")
    value: str = required(
        "the process's id; unknown if no process, or no single one, is known; of a DNS "
        "query: the name"
    )
    type: str = required("attribution, or dns_query")
    provider: str = required("ocsf-nft")
    data: dict[str, Any] = required(
        "method: capture (the kernel reported the sender), socket (the process "
        "had the socket when the record was read), user (only the user in the kernel's record) or "
        "none; confidence: High, Medium or Low; reason: one sentence; processes: if there were "
        "several, each with the number of its calls; unnamed: number of further processes, as a "
        "lower bound; of a DNS query: its record type"
    )


class DnsQuery(Model):
    """OCSF object ``dns_query``: a question to a name server; its class is always IN."""

    hostname: str = required(
        "the name in presentation format (RFC 1035), in lower case and without the "
        "last dot; bytes that are not printable ASCII are escaped"
    )
    type: str = required("the record type, such as AAAA; TYPE65280 if it has no name")
    opcode_id: DnsOpcode = required("0")


class Os(Model):
    """OCSF object ``os``: the operating system of the host."""

    name: str = required("Linux")
    type_id: OsType = required("200")
    type: Caption = caption_of("type_id")
    kernel_release: str | None = optional("release of the kernel")


class Account(Model):
    """OCSF object ``account``: an account at a cloud provider."""

    uid: str = required("id of the account, from the configuration")
    name: str | None = optional("name of the account, from the configuration")


class Cloud(Model):
    """OCSF object ``cloud``: the cloud in which the machine runs, from the configuration."""

    provider: str = required("name of the cloud provider")
    account: Account | None = optional("account at the cloud provider")
    region: str | None = optional("region of the cloud")
    zone: str | None = optional("availability zone in the region")


class Device(Model):
    """OCSF object ``device``: the machine that enforces the fence, or logged the packet."""

    profile_attributes: ClassVar = {"container": ("container",)}

    name: str | None = optional(
        "unknown, if the class requires a device and the host is not known; the host in a log, if "
        "it is no host name and no address"
    )
    hostname: str | None = optional(
        "name of the host; of another machine, as the syslog line or the journal entry names it"
    )
    ip: str | None = optional("the host in a log, if it is an address")
    uid: str | None = optional("the host's machine id, in a journal of another machine")
    instance_uid: str | None = optional("id of the machine at its cloud, from the configuration")
    type_id: DeviceType = required("6 if this machine is virtual, else 0")
    type: Caption = caption_of("type_id")
    os: Os | None = optional("operating system of the host")
    boot_uid: str | None = optional("the kernel's id of the current boot")
    boot_time: Long | None = optional("time of the boot")
    container: Container | None = optional(
        "the container that is the sandbox, if the event has no endpoint"
    )

    def _check(self) -> None:
        if self.hostname is self.name is self.ip is None:
            raise ValueError("a device needs a hostname, a name or an ip")


class Observable(Model):
    """OCSF object ``observable``: an event's attribute that analysts search for: path and value."""

    name: str = required("path of the attribute in the event")
    type_id: ObservableType = required("type of the attribute")
    type: Caption = caption_of("type_id")
    value: str = required("value of the attribute, as text")
