"""Tests of NFLOG messages: equal to the kernel's text for the packet, and convertible to text."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import struct
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocsf_nft import netlink
from ocsf_nft.netns import Namespace
from ocsf_nft.record import Record, Reject
from ocsf_nft.sources.base import MalformedError
from ocsf_nft.sources.nflog import Nflog, group_binding
from ocsf_nft.sources.nflog import datagram as nflog_datagram
from ocsf_nft.sources.nflog import line as nflog_line
from ocsf_nft.sources.nflog.datagram import Datagram, Interface
from tests.sources.corpus_cases import Case, cases, nflog, record
from tests.sources.test_text import facts
from tests.strategies import HOSTILE_TEXT, UINT8, UINT16, UINT32

ID = 'nflog:"1":2'
PAYLOADS = [payload for case in cases() for payload in case.payloads]
#: Reasons why the kernel's text has no owner where NFLOG has one.
OWNER_CUT = "the kernel's text returns at the damaged header, before the owner"
OTHER_NAMESPACE = "the socket belongs to another namespace: only NFLOG has the owner"
FRAME = "the text of a frame without an IP packet has no owner"
WITHOUT_OWNER = {
    "tcp4 truncated header (8B)": OWNER_CUT,
    "v6 truncated ext": OWNER_CUT,
    "l2 ethertype 88b5": FRAME,
    "level info": "the rule logs without the flag skuid",
    "level notice": "the rule logs without the flag skuid",
} | {
    case.name: OTHER_NAMESPACE
    for case in cases()
    if any(":ing:" in line for line in case.lines) and not case.name.startswith("level")
}


def names(case: Case) -> dict[int, str]:
    """Return the devices of a case by index; the messages of the corpus have no names."""
    first = record(case.messages[0])
    if case.name.startswith("bridge"):
        return {2: "h2g0", 3: "h2br"}
    if first.in_interface and first.out_interface:
        return {3: first.in_interface, 2: first.out_interface}
    name = first.in_interface or first.out_interface or ""
    return {2: name} if "nested" not in case.name else {3: name}


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_nflog_message_and_kernel_text_of_a_packet_make_equal_records(case: Case) -> None:
    devices = names(case)
    decoded = [record(message) for message in case.messages]
    read = [nflog(payload, devices.get) for payload in case.payloads]
    if case.name.startswith("prefix"):
        # The lines of two namespaces are mixed, and a report of the kernel has no line.
        read = [found for found in read if found.protocol != 58]
        decoded = [
            dataclasses.replace(found, in_interface=None, out_interface=None) for found in decoded
        ]
        read = [dataclasses.replace(found, in_interface=None, out_interface=None) for found in read]
    if case.name.startswith("level"):
        decoded = [
            dataclasses.replace(found, in_interface=None, out_interface=None) for found in decoded
        ]
        read = [dataclasses.replace(found, in_interface=None, out_interface=None) for found in read]
    for found in read:
        bare = dataclasses.replace(found, uid=None, gid=None)
        assert found in decoded or (case.name in WITHOUT_OWNER and bare in decoded)


def test_kernel_text_has_no_owner_only_in_the_listed_cases() -> None:
    for case in cases():
        if case.name not in WITHOUT_OWNER:
            owners = {record(message).uid for message in case.messages}
            assert owners == {nflog(payload).uid for payload in case.payloads}


def test_nflog_record_time_is_the_kernels_stamp_or_the_time_of_receipt() -> None:
    stamped = nflog(next(case for case in cases() if case.name == "gw ingress arp").payloads[0])
    assert stamped.time_ns == 1795531648605874000
    assert stamped.origin.original_time == "1795531648.605874"
    assert nflog(PAYLOADS[0]).time_ns == 9


def test_nflog_record_has_sequence_and_identity_of_the_message() -> None:
    assert nflog_datagram.sequence(memoryview(PAYLOADS[1])) == 8
    found = nflog(PAYLOADS[1])
    assert (found.origin.sequence, found.origin.identity) == (8, "nflog:seq:8")
    assert nflog_datagram.sequence(memoryview(b"")) is None


def test_nflog_record_has_the_index_of_a_deleted_device() -> None:
    found = nflog(PAYLOADS[0], lambda _: None)
    assert found.out_interface is None
    assert found.details["out_ifindex"] == 2


def test_nflog_capture_on_netdev_egress_begins_with_the_link_header() -> None:
    packet = bytes.fromhex("4500001d61f240004011c3470aca00020aca0001d1300035000915b178")
    link = bytes.fromhex("d29ef2b45cdace766b73e8f30800")
    found = nflog(
        message(
            [
                (nflog_datagram.NFULA_PACKET_HDR, struct.pack("!HBx", 0x0800, 1)),
                (nflog_datagram.NFULA_PREFIX, b"ocsf-nft:sb:link:\0"),
                (nflog_datagram.NFULA_IFINDEX_OUTDEV, struct.pack("!I", 2)),
                (nflog_datagram.NFULA_L2HDR, link),
                (nflog_datagram.NFULA_PAYLOAD, link + packet),
            ],
            family=5,
        )
    )
    assert (found.source, found.destination_port, found.rule) == ("10.202.0.2", 53, "link")


def test_nflog_egress_frame_has_the_claimed_protocol_if_it_differs() -> None:
    addresses = bytes.fromhex("d29ef2b45cdace766b73e8f3")
    for hook, ethertype, claimed, details in (
        (1, 0x88B5, 0x0800, {"ethertype": 0x88B5, "claimed_protocol": 0x0800}),
        (1, 0x88B5, 0x88B5, {"ethertype": 0x88B5}),
        (1, 0x0600, 0x0800, {"ethertype": 0x0600, "claimed_protocol": 0x0800}),
        (1, 0x0040, 0x0800, {"ethertype": 0x0040}),  # IEEE 802.3: a length
        (0, 0x88B5, 0x88B6, {}),
    ):
        frame = addresses + ethertype.to_bytes(2, "big") + bytes(20)
        header = (nflog_datagram.NFULA_PACKET_HDR, struct.pack("!HBx", claimed, hook))
        found = nflog(message([header, (nflog_datagram.NFULA_PAYLOAD, frame)], family=5))
        decoded = facts(found)
        shown = ("ethertype", "claimed_protocol")
        assert {name: decoded[name] for name in shown if name in decoded} == details
        assert found.captured_sum == zlib.adler32(frame)
    short = nflog(message([header, (nflog_datagram.NFULA_PAYLOAD, frame[:13])], family=5))
    assert "ethertype" not in facts(short)
    assert nflog(message([header])).captured_sum is None


def test_nflog_bridge_port_is_the_physical_device_of_ip_and_the_only_device_of_a_frame() -> None:
    ports = [
        (nflog_datagram.NFULA_IFINDEX_INDEV, 2), (nflog_datagram.NFULA_IFINDEX_OUTDEV, 3),
        (nflog_datagram.NFULA_IFINDEX_PHYSINDEV, 4), (nflog_datagram.NFULA_IFINDEX_PHYSOUTDEV, 3),
    ]  # fmt: skip
    header = (nflog_datagram.NFULA_PACKET_HDR, struct.pack("!HBx", 0x0800, 2))
    devices = [(kind, struct.pack("!I", index)) for kind, index in ports]
    sides = ("in", "out", "physical_in", "physical_out")
    for family, attributes, shown in (
        (2, devices, ("d2", "d3", "d4", None)),
        (2, devices[:2], ("d2", "d3", None, None)),
        (2, devices[2:], (None, None, "d4", "d3")),
        (7, devices, ("d4", "d3", None, None)),
        (7, devices[:2], ("d2", "d3", None, None)),
    ):
        found = nflog(message([header, *attributes], family=family), lambda index: f"d{index}")
        decoded = facts(found)
        assert tuple(decoded.get(f"{side}_interface") for side in sides) == shown, family


@pytest.mark.parametrize(
    ("length", "shown"), [(6, "02c0ffee0001"), (0, ""), (60, "02c0ffee00010203")]
)
def test_nflog_message_hardware_address_has_its_own_length(length: int, shown: str) -> None:
    address = bytes.fromhex("02c0ffee00010203")
    found = nflog(
        message(
            [
                (nflog_datagram.NFULA_PACKET_HDR, struct.pack("!HBx", 0x0800, 3)),
                (nflog_datagram.NFULA_HWADDR, struct.pack("!HH", length, 0) + address),
            ]
        )
    )
    assert f" hwaddr={shown} " in found.origin.raw


def message(attributes: list[tuple[int, bytes]], family: int = 2) -> bytes:
    head = struct.pack("!BBH", family, 0, 5)
    return head + b"".join(netlink.attribute(kind, value) for kind, value in attributes)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "shorter than its header"),
        (message([]), "no packet header"),
        (message([(1, b"\x08")]), "no packet header"),
        (message([(1, b"\x08\x00\x03\x00"), (11, b"\0")]), "attribute 11 has 1 bytes, not 4"),
        (message([(1, b"\x08\x00\x03\x00"), (3, b"\xff" * 16)]), "is not a valid time"),
        (message([(1, b"\x08\x00\x03\x00"), (3, b"\xff" * 8)]), "timestamp has 8 bytes"),
        (message([(1, b"\x08\x00\x03\x00"), (8, b"\xff" * 8)]), "address has 8 bytes"),
    ],
)
def test_nflog_message_that_is_damaged_is_rejected_with_its_reason(
    payload: bytes, reason: str
) -> None:
    datagram = netlink.message(group_binding.PACKET, 0, payload)
    (found,) = Nflog(Namespace(), 5)._read(memoryview(datagram))
    assert isinstance(found, Reject)
    assert found.kind == "malformed"
    assert reason in found.reason
    assert found.line == f"NFLOG payload={payload.hex()}"


def test_nflog_message_timestamp_is_before_the_year_10000() -> None:
    header = (nflog_datagram.NFULA_PACKET_HDR, struct.pack("!HBx", 0x0800, 3))
    last = 253_402_300_799  # 9999-12-31T23:59:59Z
    for seconds, microseconds, is_time in (
        (0, 0, True), (last, 999_999, True), (last + 1, 0, False), (5, 1_000_000, False),
    ):  # fmt: skip
        stamp = struct.pack("!QQ", seconds, microseconds)
        payload = message([header, (nflog_datagram.NFULA_TIMESTAMP, stamp)])
        if is_time:
            assert nflog(payload).time_ns == (seconds * 1_000_000 + microseconds) * 1000
        else:
            with pytest.raises(MalformedError, match="is not a valid time"):
                nflog(payload)


def test_nflog_message_has_a_vlan_only_with_protocol_and_tag() -> None:
    header = (nflog_datagram.NFULA_PACKET_HDR, struct.pack("!HBx", 0x0800, 3))
    protocol = netlink.attribute(nflog_datagram.NFULA_VLAN_PROTO, struct.pack("!H", 0x8100))
    tag = netlink.attribute(nflog_datagram.NFULA_VLAN_TCI, struct.pack("!H", 0x2005))
    for nested, shown in ((protocol + tag, "vlan=8100:2005"), (protocol, None), (tag, None)):
        found = nflog(message([header, (nflog_datagram.NFULA_VLAN, nested)]))
        assert ("vlan=" in found.origin.raw) == (shown is not None)
        assert (shown or "") in found.origin.raw, found.origin.raw


@settings(max_examples=300)
@given(st.sampled_from(PAYLOADS), st.integers(0, 300), st.binary(max_size=8), st.integers(0, 300))
def test_nflog_decoder_never_raises(payload: bytes, position: int, noise: bytes, cut: int) -> None:
    for hostile in (
        payload[:position] + noise + payload[position + len(noise) :],
        payload[:cut],
        noise,
    ):
        with contextlib.suppress(MalformedError):
            nflog(hostile, lambda index: f"\udcff{index}")
        nflog_datagram.sequence(memoryview(hostile))


def test_nflog_line_of_each_corpus_message_parses_to_the_same_record() -> None:
    for payload in PAYLOADS:
        found = nflog(payload)
        decoded = nflog_line.parse(found.origin.raw)
        assert decoded is not None
        datagram, identity = decoded
        assert identity == found.origin.identity
        back = _record(datagram)
        assert (back, back.time_ns, back.received_ns) == (found, found.time_ns, found.received_ns)


NAME = HOSTILE_TEXT.map(
    lambda text: text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
)
DEVICE = st.none() | st.builds(Interface, UINT32, st.none() | NAME.map(lambda name: name[:60]))
OCTETS = st.none() | st.binary(max_size=40)
DATAGRAMS: st.SearchStrategy[Datagram] = st.builds(
    Datagram,
    group=UINT16,
    family=UINT8,
    hardware_protocol=UINT16,
    hook=UINT8,
    received_ns=st.integers(0, 2**62),
    prefix=NAME.map(lambda prefix: prefix[:508]),
    captured=st.binary(max_size=120),
    sequence=st.none() | UINT32,
    global_sequence=st.none() | UINT32,
    time_us=st.none() | st.integers(0, 2**57),
    input=DEVICE,
    output=DEVICE,
    physical_input=DEVICE,
    physical_output=DEVICE,
    hardware_type=st.none() | UINT16,
    hardware_header=OCTETS,
    hardware_address=OCTETS,
    link_header=OCTETS,
    vlan=st.none() | st.tuples(UINT16, UINT16),
    mark=st.none() | UINT32,
    uid=st.none() | UINT32,
    gid=st.none() | UINT32,
)


@given(DATAGRAMS)
def test_nflog_line_parses_to_the_datagram_that_was_written(datagram: Datagram) -> None:
    line = nflog_line.render(datagram, ID)
    assert line.isascii()
    assert line.isprintable()
    assert nflog_line.parse(line) == (datagram, ID)


@given(DATAGRAMS, st.data())
def test_nflog_line_that_was_changed_does_not_parse_to_the_same_datagram(
    datagram: Datagram, data: st.DataObject
) -> None:
    line = nflog_line.render(datagram, ID)
    at = data.draw(st.integers(0, len(line) - 1))
    assert nflog_line.parse(line[:at]) != (datagram, ID)
    changed = line[:at] + data.draw(st.characters()) + line[at + 1 :]
    assert changed == line or nflog_line.parse(changed) != (datagram, ID)


@given(DATAGRAMS)
def test_nflog_datagram_always_makes_a_record(datagram: Datagram) -> None:
    assert isinstance(_record(datagram), Record)


@pytest.mark.parametrize("field", ["group=70000", "uid=4294967296", "hook=300"])
def test_nflog_line_with_a_number_out_of_range_is_not_parsed(field: str) -> None:
    line = nflog_line.render(_datagram(group=7, uid=7, hook=7), ID)
    name = field.split("=", maxsplit=1)[0]
    assert nflog_line.parse(line) is not None
    assert nflog_line.parse(line.replace(f"{name}=7", field)) is None


def test_nflog_line_accepts_times_of_63_bits() -> None:
    for received_ns, is_line in (((1 << 63) - 1, True), (1 << 63, False)):
        line = nflog_line.render(_datagram(received_ns=received_ns), ID)
        assert (nflog_line.parse(line) is not None) == is_line, received_ns


def _record(datagram: Datagram) -> Record:
    return nflog_datagram.record(
        datagram, transport="nflog", identity="i", log_source="test", raw=""
    )


def _datagram(**changes: Any) -> Datagram:
    plain = Datagram(
        group=5, family=2, hardware_protocol=0x0800, hook=3, received_ns=1, prefix="p", captured=b""
    )
    return plain._replace(**changes)


def test_nflog_line_with_half_a_surrogate_pair_is_not_parsed() -> None:
    line = nflog_line.render(_datagram(prefix="PLACEHOLDER"), ID)
    assert nflog_line.parse(line.replace("PLACEHOLDER", r"\ud83d\ude00")) is not None
    assert nflog_line.parse(line.replace("PLACEHOLDER", r"\ud83d")) is None


def test_nflog_line_with_a_name_above_the_limit_is_not_parsed() -> None:
    for datagram in (
        _datagram(prefix="p" * 509),
        _datagram(input=Interface(1, "d" * 61)),
        _datagram(prefix="p" * 1_000_000),
    ):
        assert nflog_line.parse(nflog_line.render(datagram, ID)) is None
    assert nflog_line.parse(nflog_line.render(_datagram(prefix="p" * 508), ID)) is not None


@pytest.mark.parametrize("identity", ["kmsg:1:2:3", "", "nflog:" + "x" * 251, "nflog:\ud83d"])
def test_nflog_line_with_an_identity_of_another_transport_is_not_parsed(identity: str) -> None:
    assert nflog_line.parse(nflog_line.render(_datagram(), identity)) is None


def test_nflog_line_without_an_identity_is_parsed() -> None:
    line = nflog_line.render(_datagram(), ID).replace(f" id={json.dumps(ID)}", "")
    assert nflog_line.parse(line) == (_datagram(), None)
