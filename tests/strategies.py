"""Hypothesis strategies that tests in several folders share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

from hypothesis import strategies as st

from ocsf_nft.process import Attribution, ConfidenceLevel, Container, Method, Process, Seen
from ocsf_nft.record import VM_RULES, DnsQuestion, LogHost, Origin, Record, split_prefix

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ocsf_nft.record import Detail

UINT16 = st.integers(0, 0xFFFF)
UINT32 = st.integers(0, 0xFFFF_FFFF)
UINT8 = st.integers(0, 0xFF)
#: Any text: control characters, lone surrogates, marks for the text direction.
HOSTILE_TEXT = st.text(
    st.characters(codec=None, categories=None) | st.sampled_from('\x00\x1b\n\udc80\ud800\u202e"\\')
)
NAMES = st.from_regex(r"\A[A-Za-z0-9._-]{1,64}\Z")
RULES = st.sampled_from(["egress", "forward", "ingress", "link", "guard", *sorted(VM_RULES)])
#: Timestamps between the epoch and the year 2200.
TIMESTAMPS = st.integers(0, 7_258_118_400_000_000_000)
PROTOCOLS = st.sampled_from([0, 1, 2, 6, 17, 33, 41, 47, 50, 58, 59, 132, 136, 253]) | UINT8
PORTS = st.sampled_from([0, 22, 53, 80, 123, 443, 853, 3128, 5353, 8080, 65535]) | UINT16
ADDRESSES4 = st.ip_addresses(v=4).map(str) | st.sampled_from(
    ["169.254.169.254", "224.0.0.22", "255.255.255.255", "0.0.0.0", "127.0.0.1", "203.0.113.7"]
)
ADDRESSES6 = st.ip_addresses(v=6).map(str) | st.sampled_from(
    ["fd00:ec2::254", "ff02::16", "ff02::2", "::", "::1", "::ffff:169.254.169.254", "2001:db8::7"]
)
MACS = st.binary(min_size=6, max_size=6).map(lambda raw: raw.hex(":")) | st.binary(
    min_size=20, max_size=20
).map(lambda raw: raw.hex(":"))
INTERFACES = st.sampled_from(["eth0", "veth-sb1", "DST=9.9.9.9"]) | HOSTILE_TEXT.filter(bool)

_LEAVES: st.SearchStrategy[Detail] = (
    st.integers(-(1 << 70), 1 << 70) | HOSTILE_TEXT | st.booleans() | UINT32
)
DETAILS: st.SearchStrategy[Mapping[str, Detail]] = st.dictionaries(
    st.sampled_from(["ttl", "ip_id", "dont_fragment", "mark", "tcp_options", "quoted"])
    | HOSTILE_TEXT,
    st.recursive(
        _LEAVES, lambda inner: st.dictionaries(HOSTILE_TEXT, inner, max_size=3), max_leaves=6
    ),
    max_size=5,
)

_ID128 = st.uuids().map(lambda one: one.hex)
_HOST_NAMES = HOSTILE_TEXT | st.sampled_from(["host-1.example", "192.0.2.1", "2001:db8::1", "a_b"])
LOG_HOSTS = st.builds(
    LogHost, name=_HOST_NAMES, boot_id=st.none() | _ID128, machine_id=st.none() | _ID128
)
ORIGINS = st.builds(
    Origin,
    transport=st.sampled_from(["nflog", "kmsg", "journal", "replay"]),
    identity=HOSTILE_TEXT,
    log_source=HOSTILE_TEXT,
    log_format=st.sampled_from(["nf_log_syslog", "nfnetlink_log"]),
    raw=HOSTILE_TEXT,
    sequence=st.none() | st.integers(0, (1 << 63) - 1),
    original_time=st.none() | HOSTILE_TEXT,
    host=st.none() | LOG_HOSTS,
)

#: Names in the form that the decoder of DNS gives them, long ones too, and their types.
QUESTIONS = st.builds(
    DnsQuestion,
    st.sampled_from([".", "www.example.com", "_tcp.a\\.b.example", "a\\000\\255.example", "x" * 64])
    | st.from_regex(r"\A[a-z0-9_-]{1,63}(\.[a-z0-9-]{1,63}){0,3}\Z"),
    st.sampled_from([1, 16, 28, 65280]) | UINT16,
)


@st.composite
def records(draw: st.DrawFn) -> Record:
    """Draw any record that a source may yield, with our prefix or a foreign one."""
    ours = st.sampled_from(["ocsf-nft:{}:{}:", "ocsf-nft:{}:{}:permissive:"])
    foreign = HOSTILE_TEXT | st.sampled_from(["[UFW BLOCK] ", "iptables: "])
    prefix = draw(st.builds(str.format, ours, NAMES, RULES | NAMES) | foreign)
    parsed = split_prefix(prefix)
    versions: list[Literal[4, 6] | None] = [4, 6, None]
    version = draw(st.sampled_from(versions))
    addresses = {4: ADDRESSES4, 6: ADDRESSES6, None: st.none()}[version]
    protocol = draw(st.none() | PROTOCOLS) if version else None
    details = dict(draw(DETAILS))
    if protocol in {1, 58} and draw(st.booleans()):
        kinds = st.sampled_from([0, 3, 8, 128, 130, 133, 135, 143]) | UINT8
        details |= {"icmp_type": draw(kinds), "icmp_code": draw(UINT8)}
    has_ports = protocol in {6, 17, 33, 132, 136}
    return Record(
        prefix=prefix,
        sandbox=parsed.sandbox,
        rule=parsed.rule,
        verdict=parsed.verdict,
        in_interface=draw(st.none() | INTERFACES),
        out_interface=draw(st.none() | INTERFACES),
        mac_source=draw(st.none() | MACS),
        mac_destination=draw(st.none() | MACS),
        ethertype=draw(st.none() | UINT16),
        ip_version=version,
        source=draw(addresses),
        destination=draw(addresses),
        protocol=protocol,
        source_port=draw(st.none() | PORTS) if has_ports else None,
        destination_port=draw(st.none() | PORTS) if has_ports else None,
        tcp_flags=draw(st.none() | st.integers(0, 0x1FF)) if protocol == 6 else None,
        length=draw(st.none() | UINT16) if version else None,
        uid=draw(st.none() | UINT32),
        gid=draw(st.none() | UINT32),
        details=details,
        time_ns=draw(TIMESTAMPS),
        received_ns=draw(TIMESTAMPS),
        question=draw(st.none() | QUESTIONS) if has_ports else None,
        origin=draw(ORIGINS),
    )


TEXTS = st.none() | HOSTILE_TEXT
CONTAINERS = st.builds(
    Container,
    uid=TEXTS,
    name=TEXTS,
    runtime=TEXTS,
    image_uid=TEXTS,
    image_name=TEXTS,
    pod_uid=TEXTS | st.uuids().map(str),
)


def _processes(**others: st.SearchStrategy[Any]) -> st.SearchStrategy[Process]:
    return st.builds(
        Process,
        pid=st.integers(1, 1 << 22),
        tid=st.none() | st.integers(1, 1 << 22),
        name=TEXTS,
        path=TEXTS | HOSTILE_TEXT.map("memfd:{}".format) | HOSTILE_TEXT.map("/{}".format),
        is_deleted=st.none() | st.booleans(),
        sha256=TEXTS | st.from_regex(r"\A[0-9a-fA-F]{64}\Z"),
        cmd_line=TEXTS,
        working_directory=TEXTS,
        created_ns=st.none() | TIMESTAMPS,
        namespace_pid=st.none() | st.integers(1, 1 << 22),
        uid=st.none() | UINT32,
        user_name=TEXTS,
        gid=st.none() | UINT32,
        group_name=TEXTS,
        container=st.none() | CONTAINERS,
        unit=TEXTS,
        **others,
    )


#: Processes with an arbitrary text as the name.
PROCESSES = _processes(ancestors=st.lists(_processes(), max_size=2).map(tuple))
_COUNTS = st.integers(0, 1 << 62)
_SEEN = st.builds(Seen, process=PROCESSES, calls=st.none() | _COUNTS)
#: All results of an attribution.
ATTRIBUTIONS = st.builds(
    Attribution,
    method=st.sampled_from(get_args(Method)),
    confidence=st.none() | st.sampled_from(get_args(ConfidenceLevel)),
    reason=HOSTILE_TEXT,
    process=st.none() | PROCESSES,
    seen=st.just(()) | st.lists(_SEEN, max_size=2).map(tuple),
    unnamed=st.just(0) | _COUNTS,
    user_name=TEXTS,
    group_name=TEXTS,
)
