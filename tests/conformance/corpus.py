"""Hand-made records and attempts of every kind, and the contexts of their mapper."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from ipaddress import ip_address
from typing import Any, Final

from ocsf_nft.attempt import Aggregation, Attempt
from ocsf_nft.flow import Flow
from ocsf_nft.ocsf.context import CloudAccount, Context, Host, Proxy
from ocsf_nft.process import Container
from ocsf_nft.record import DnsQuestion, Origin, Record, own_prefix, split_prefix

NOW_NS: Final = 1_767_225_600_150_000_000
TIME_NS: Final = 1_767_225_600_000_000_000

HOST: Final = Host(
    hostname="host-1",
    kernel_release="6.18.44",
    boot_uid="7d0d2a3f-34f5-4f3e-9c5b-0a8f7b0f5e11",
    boot_time_ns=1_767_000_000_000_000_000,
)
CONTEXT: Final = Context(
    host=HOST,
    proxies=(
        Proxy(address=ip_address("10.200.0.1"), port=3128),
        Proxy(address=ip_address("10.200.0.9"), port=3129),
        Proxy(address=ip_address("fd00:200::1"), port=3128),
    ),
    uplinks=frozenset({"sb0"}),
    rules={"egress": "inet/ocsf_nft/refuse_egress/14"},
)

CONTAINER: Final = Container(
    uid="3f4e0c2c9d1a",
    name="sandbox-sb1",
    runtime="containerd",
    image_uid="sha256:77af4d6b9913",
    image_name="registry.example/sandbox:1.2",
)
#: The same sandbox, as a container.
CONTAINED: Final = replace(CONTEXT, container=CONTAINER)
LABELLED: Final = replace(
    CONTEXT,
    labels=("team=search", 'task="%d" {x}'),
    container=replace(CONTAINER, orchestrator="kubernetes", labels=("app=agent", "tier=\u202e")),
)
#: A host with an identity, and a sandbox with labels, a tenant and a pod.
IDENTIFIED: Final = replace(
    CONTEXT,
    host=replace(
        HOST,
        instance_uid="i-0abc",
        cloud=CloudAccount(
            provider="aws",
            account_uid="123456789012",
            account_name="agents",
            region="eu-central-1",
            zone="eu-central-1a",
        ),
        tenant_uid="tenant of the host",
        environment="production",
    ),
    labels=("gen_ai.agent.name=helper",),
    tenant_uid="tenant-1",
    container=replace(
        CONTAINER,
        orchestrator="kubernetes",
        pod_uid="0b6f1b8e-7d1a-4f0e-9d53-5b5f3c2a9c11",
        labels=(
            "io.kubernetes.pod.name=agent-0", "io.kubernetes.pod.namespace=agents", "x=\u202e",
        ),
    ),
)  # fmt: skip

V4: Final[dict[str, Any]] = {"ip_version": 4, "source": "10.200.0.2", "destination": "203.0.113.7"}
V6: Final[dict[str, Any]] = {"ip_version": 6, "source": "fd00:200::2", "destination": "2001:db8::7"}
TCP: Final[dict[str, Any]] = {
    "protocol": 6,
    "source_port": 41254,
    "destination_port": 443,
    "tcp_flags": 2,
}
UDP: Final[dict[str, Any]] = {"protocol": 17, "source_port": 50000, "destination_port": 53}


def record(prefix: str = "ocsf-nft:sb1:egress:", **facts: Any) -> Record:
    """Return a record with a prefix and the origin that a source would give it."""
    defaults: dict[str, Any] = split_prefix(prefix)._asdict() | {
        "time_ns": TIME_NS,
        "received_ns": TIME_NS + 100_000_000,
        "origin": Origin(
            transport="kmsg",
            identity="kmsg:boot:5678",
            log_source="/dev/kmsg",
            log_format="nf_log_syslog",
            raw=f"{prefix}IN= OUT=sb0",
            sequence=5678,
            original_time="[12345.678901]",
        ),
    }
    return Record(prefix=prefix, **(defaults | facts))


def _of_rule(rule: str, **facts: Any) -> Record:
    return record(f"ocsf-nft:sb1:{rule}:", **facts)


OUT: Final[dict[str, Any]] = {"out_interface": "sb0"}
USER: Final[dict[str, Any]] = {"uid": 1000, "gid": 1000}

_VM: Final[dict[str, Any]] = {
    "mac_source": "02:00:00:00:00:01",
    "mac_destination": "02:00:00:00:00:02",
    "ethertype": 0x0800,
}

RECORDS: Final = {
    "tcp4": record(**V4, **TCP, **OUT, **USER, length=60, details={"ttl": 64, "ip_id": 1429}),
    "tcp6": record(**V6, **TCP, **OUT, **USER, length=80, details={"hop_limit": 64}),
    "tcp without a user": record(**V4, **TCP, **OUT),
    "tcp reset": record(**V4, **OUT, **(TCP | {"tcp_flags": 4})),
    "tcp all flags": record(**V4, **OUT, **(TCP | {"tcp_flags": 511})),
    "udp dns": record(**V4, **UDP, **OUT, **USER),
    "dns query": record(**V4, **UDP, **OUT, **USER, question=DnsQuestion("www.example.com", 28)),
    "dns query of an unusual name": record(
        **V6, **UDP, **OUT, question=DnsQuestion("_tcp.a\\.b.\\000\\255.example", 65280)
    ),
    "udp6 quic": record(**V6, **OUT, **(UDP | {"destination_port": 443})),
    "udp port 0": record(**V4, **OUT, **(UDP | {"destination_port": 0})),
    "mdns": record(
        **(V4 | {"destination": "224.0.0.251"}), **OUT, **(UDP | {"destination_port": 5353})
    ),
    "icmp echo": record(**V4, **OUT, protocol=1, details={"icmp_type": 8, "icmp_code": 0}),
    "icmp cut": record(**V4, **OUT, protocol=1),
    "icmp error": record(
        **V4,
        **OUT,
        protocol=1,
        details={"icmp_type": 3, "icmp_code": 3, "quoted": {"source": "1.2.3.4", "protocol": 17}},
    ),
    "icmpv6 error": record(**V6, **OUT, protocol=58, details={"icmp_type": 2, "icmp_code": 0}),
    "tcp without a whole header": record(**V4, **OUT, protocol=6, details={"incomplete_bytes": 8}),
    "dns server": record("IN: ", verdict="reject", **V4, **UDP, in_interface="eth0"),
    "icmpv6 echo": record(**V6, **OUT, protocol=58, details={"icmp_type": 128, "icmp_code": 0}),
    "router solicitation": record(
        **(V6 | {"destination": "ff02::2"}),
        **OUT,
        protocol=58,
        details={"icmp_type": 133, "icmp_code": 0},
    ),
    "multicast listener report": record(
        **(V6 | {"destination": "ff02::16"}),
        **OUT,
        protocol=58,
        details={"icmp_type": 143, "icmp_code": 0},
    ),
    "igmp": record(**(V4 | {"destination": "224.0.0.22"}), **OUT, protocol=2),
    "sctp": record(**V4, **OUT, protocol=132, source_port=7, destination_port=80),
    "udplite": record(**V4, **OUT, protocol=136, source_port=7, destination_port=80),
    "gre": record(**V4, **OUT, protocol=47),
    "esp": record(**V4, **OUT, protocol=50, details={"spi": 0xDEADBEEF}),
    "6in4": record(**V4, **OUT, protocol=41),
    "protocol 253": record(**V4, **OUT, protocol=253),
    "no next header": record(**V6, **OUT, protocol=59),
    "late fragment": record(**V4, **OUT, protocol=6, details={"fragment_offset": 185}),
    "metadata4": record(
        **(V4 | {"destination": "169.254.169.254"}), **OUT, **(TCP | {"destination_port": 80})
    ),
    "metadata6": record(
        **(V6 | {"destination": "fd00:ec2::254"}), **OUT, **(TCP | {"destination_port": 80})
    ),
    "loopback": record(**(V4 | {"source": "127.0.0.1", "destination": "127.0.0.1"}), **TCP, **OUT),
    "broadcast": record(
        **(V4 | {"source": "0.0.0.0", "destination": "255.255.255.255"}),
        **OUT,
        **(UDP | {"destination_port": 67}),
    ),
    "forward": _of_rule("forward", **V4, **TCP, in_interface="nested0", out_interface="sb0"),
    "forward from outside": _of_rule(
        "forward", **V4, **TCP, in_interface="sb0", out_interface="nested0"
    ),
    "ingress": _of_rule(
        "ingress",
        **TCP,
        in_interface="sb0",
        ip_version=4,
        source="198.51.100.1",
        destination="10.200.0.2",
    ),
    "ingress dns reply": _of_rule(
        "ingress",
        protocol=17,
        source_port=53,
        destination_port=50000,
        in_interface="sb0",
        ip_version=4,
        source="198.51.100.1",
        destination="10.200.0.2",
    ),
    "link ip": _of_rule(
        "link",
        **V4,
        **TCP,
        **OUT,
        mac_source="02:00:00:00:00:01",
        mac_destination="02:00:00:00:00:02",
        ethertype=0x0800,
    ),
    "link arp": _of_rule(
        "link",
        **OUT,
        mac_source="02:00:00:00:00:01",
        mac_destination="ff:ff:ff:ff:ff:ff",
        ethertype=0x0806,
        details={"arp": {"operation": 1, "target_ip": "10.200.0.77"}},
    ),
    "link 88b5": _of_rule(
        "link",
        **OUT,
        mac_source="02:00:00:00:00:01",
        mac_destination="02:00:00:00:00:02",
        ethertype=0x88B5,
    ),
    "guard": _of_rule(
        "guard",
        **V4,
        **TCP,
        in_interface="gw0",
        mac_source="02:00:00:00:00:01",
        mac_destination="02:00:00:00:00:02",
        ethertype=0x0800,
    ),
    "guard frame": _of_rule("guard", in_interface="gw0", ethertype=0x88B5),
    "vm forward": _of_rule(
        "vm-forward",
        **(V4 | {"destination": "169.254.1.1"}),
        **TCP,
        **_VM,
        in_interface="vmtap-0",
        out_interface="eth0",
    ),
    "vm metadata": _of_rule(
        "vm-forward",
        **(V4 | {"destination": "169.254.169.254"}),
        **(TCP | {"destination_port": 80}),
        **_VM,
        in_interface="vmtap-0",
    ),
    "vm input": _of_rule(
        "vm-input",
        **(V4 | {"destination": "10.200.0.1"}),
        **(TCP | {"destination_port": 22}),
        **_VM,
        in_interface="vmtap-0",
    ),
    "vm ingress": _of_rule(
        "vm-ingress",
        **TCP,
        in_interface="eth0",
        out_interface="vmtap-0",
        ip_version=4,
        source="198.51.100.1",
        destination="10.200.0.2",
    ),
    "vm link": _of_rule(
        "vm-link", **(V4 | {"source": "198.51.100.9"}), **UDP, **_VM, in_interface="vmtap-0"
    ),
    "vm link arp": _of_rule(
        "vm-link",
        **(_VM | {"ethertype": 0x0806}),
        in_interface="vmtap-0",
        details={"arp": {"operation": 2, "source_ip": "10.200.0.1"}},
    ),
    "vm link fragment": _of_rule(
        "vm-link", **V4, **_VM, in_interface="vmtap-0", protocol=17, details={"fragment_offset": 9}
    ),
    "vm link solicitation": _of_rule(
        "vm-link",
        **(V6 | {"source": "::", "destination": "ff02::1:ff00:2"}),
        **(_VM | {"ethertype": 0x86DD}),
        in_interface="vmtap-0",
        protocol=58,
        details={"icmp_type": 135, "icmp_code": 0},
    ),
    "a later rule": _of_rule("pod-forward", **V4, **TCP, in_interface="tap0", out_interface="eth0"),
    "foreign": record("[UFW BLOCK] ", verdict="reject", **V4, **TCP, in_interface="eth0"),
    "foreign, passing": record(
        "DROP: ", verdict="drop", **V4, **TCP, in_interface="eth0", out_interface="eth1"
    ),
    "foreign, allowed": record("[UFW ALLOW] ", verdict="accept", **V4, **TCP, in_interface="eth0"),
    "foreign, logged": record("[UFW AUDIT] ", verdict="log", **V6, **TCP, out_interface="eth0"),
    "foreign, no prefix": record("", verdict="reject", **V4, **TCP, out_interface="eth0"),
    "foreign, of a sandbox": replace(
        record("openshell:bypass:sb9:", verdict="reject", **V4, **TCP, **OUT, **USER),
        sandbox="sb9",
        rule="bypass",
    ),
    "foreign, of a sandbox, allowed": replace(
        record("openshell:bypass:sb9:", verdict="accept", **V4, **TCP, **OUT, **USER),
        sandbox="sb9",
        rule="egress",
    ),
    "nothing but a prefix": record("x"),
    "nothing but macs": record(
        "x", mac_source="02:00:00:00:00:01", mac_destination="02:00:00:00:00:02"
    ),
    "nothing but ports": record("x", source_port=1, destination_port=2),
    "infiniband": record(**V4, **TCP, **OUT, mac_source=":".join(["80"] * 20)),
    "group without a user": record(**V4, **TCP, **OUT, gid=100),
    "hostile interface": record(**V4, **TCP, out_interface="DST=9.9.9.9"),
    "unprintable interface": record(**V4, **TCP, out_interface="\x1b[2J\udcff\u202e"),
    "unprintable prefix": record("\x00\udc80\ud800", **V4, **TCP),
    "no address": record(ip_version=4, source="not an address", destination="fe80::1%eth0", **TCP),
    "numbers past 64 bits": record(
        **V4, **TCP, details={"big": 1 << 70, "bigger": {"x": -(1 << 90)}}
    ),
}


def as_allowed(record: Record) -> Record:
    """Return a record of our rules as a permissive fence logs it."""
    prefix = own_prefix(record.sandbox or "", record.rule, is_permissive=True)
    return replace(record, prefix=prefix, verdict="permit")


#: Records of our rules, as if a permissive fence had allowed them.
ALLOWED_RECORDS: Final = {
    f"{name}, allowed": as_allowed(record)
    for name, record in RECORDS.items()
    if record.sandbox is not None and record.verdict is None
}


def counter(rule: str = "egress", **facts: Any) -> Record:
    """Return a record as accounting makes it from a counter, without a packet."""
    origin = Origin(
        transport="counters",
        identity=f"1f0c/{rule}/17",
        log_source=f"nftables flows4_{rule}",
        log_format="nf_tables",
        raw=f"flows4_{rule} {{ 1000 . 6 . 203.0.113.7 . 443 counter packets 999 bytes 59940 }}",
    )
    return _of_rule(rule, **({"time_ns": TIME_NS + 5_000_000_000, "origin": origin} | facts))


def window(record: Record, packets: int = 999, **facts: Any) -> Attempt:
    """Return an attempt of five seconds."""
    defaults: dict[str, Any] = {
        "bytes": packets * 60,
        "start_ns": TIME_NS,
        "end_ns": TIME_NS + 5_000_000_000,
    }
    return Attempt(record=record, packets=packets, **(defaults | facts))


TO4: Final[dict[str, Any]] = {"ip_version": 4, "destination": "203.0.113.7"}
TO6: Final[dict[str, Any]] = {"ip_version": 6, "destination": "2001:db8::7"}
HTTPS: Final[dict[str, Any]] = {"protocol": 6, "destination_port": 443}

SAMPLE: Final = (
    *(
        Flow(uid=1000, protocol=6, destination=f"198.51.100.{number}", port=443)
        for number in range(12)
    ),
    Flow(uid=1000, protocol=17, destination="2001:db8::7", port=0),
    Flow(uid=None, protocol=1, destination="203.0.113.7"),
    Flow(uid=0xFFFF_FFFE, protocol=None, ethertype=0x88B5),
)

#: Questions of a DNS tunnel, and ordinary ones.
TUNNEL: Final = tuple(
    DnsQuestion(f"{sha256(bytes((number,))).hexdigest()[:50]}.t.example.com", 16)
    for number in range(60)
)
QUESTIONS: Final = (
    DnsQuestion("www.example.com", 1),
    DnsQuestion("www.example.com", 28),
    DnsQuestion("_tcp.a\\.b.example", 33),
    *TUNNEL[:20],
)
DNS: Final[dict[str, Any]] = {"protocol": 17, "destination_port": 53}

ATTEMPTS: Final = {
    "counted dns": window(counter(**TO4, **DNS, uid=1000), questions=QUESTIONS),
    "counted dns of one name": window(counter(**TO6, **DNS), questions=QUESTIONS[:1]),
    "logged, many": window(RECORDS["tcp4"]),
    "logged, forwarded": window(RECORDS["forward"], 2),
    "logged, foreign": window(RECORDS["foreign"], 3),
    "no bytes": window(RECORDS["tcp4"], bytes=None),
    "within a millisecond": window(RECORDS["tcp4"], end_ns=TIME_NS + 999_999),
    "as many as a counter holds": window(RECORDS["tcp4"], (1 << 63) - 1, bytes=(1 << 63) - 1),
    "counted tcp4": window(counter(**TO4, **HTTPS, uid=1000)),
    "counted tcp6": window(counter(**TO6, **HTTPS, uid=1000)),
    "counted once": window(counter(**TO4, **HTTPS, uid=1000), 1),
    "counted without a port": window(counter(**TO4, protocol=1)),
    "counted port 0": window(counter(**TO4, protocol=17, destination_port=0)),
    "counted metadata": window(
        counter(**(TO4 | {"destination": "169.254.169.254"}), protocol=6, destination_port=80)
    ),
    "counted arp": window(counter("link", ethertype=0x0806), 12),
    "counted 88b5": window(counter("link", ethertype=0x88B5, uid=0), 12),
    "counted ingress": window(counter("ingress", **TO4, **HTTPS)),
    "counted forward": window(counter("forward", **TO4, **HTTPS)),
    "counted forward of nothing": window(counter("forward", ip_version=4)),
    "counted guard": window(counter("guard", **TO6, protocol=58)),
    **{
        f"{why} of {rule}, {name}": window(
            counter(rule, **facts),
            934_465,
            aggregation=Aggregation(reason=why, flows=flows, sample=sample),
        )
        for why in ("many", "unplaced", "evicted")
        for rule in ("egress", "forward", "ingress", "link", "guard")
        for name, facts, flows, sample in (
            ("in full", {"uid": 1000, "protocol": 6, "ip_version": 4}, 65_000, SAMPLE),
            ("a frame", {"ethertype": 0x88B5}, 1, SAMPLE[-1:]),
            ("nothing", {}, None, ()),
        )
    },
}

ALLOWED_ATTEMPTS: Final = {
    f"{name}, allowed": replace(attempt, record=as_allowed(attempt.record))
    for name, attempt in ATTEMPTS.items()
    if attempt.record.sandbox is not None and attempt.record.verdict is None
}
