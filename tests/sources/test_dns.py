"""Tests of the decoder of DNS questions, beside dnspython."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rdataclass
import dns.wire
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ocsf_nft.ocsf.safe_text import visible
from ocsf_nft.record import DnsQuestion, Record
from ocsf_nft.sources.dns import question
from ocsf_nft.sources.nflog import datagram as nflog_datagram
from ocsf_nft.sources.nflog.datagram import Datagram
from tests.kernel import headers

HEADER = struct.pack("!HHHHHH", 0x1234, 0x0100, 1, 0, 0, 0)
A_IN = struct.pack("!HH", 1, 1)
#: Header without a question, of any kind of message.
_HEADERS = st.builds(
    lambda flags, questions, more: struct.pack("!HHH", 7, flags, questions) + more,
    st.sampled_from([0, 0x0100, 0x0120, 0x8180, 0x2000, 0x7FFF]) | st.integers(0, 0xFFFF),
    st.sampled_from([0, 1, 1, 1, 2, 0xFFFF]),
    st.sampled_from([bytes(6), b"\0\0\0\0\0\1"]),
)
_LABELS = st.lists(st.binary(min_size=1, max_size=66), max_size=9)
_ENDS = st.sampled_from(
    [b"\0", b"\0", b"", b"\xc0", b"\xc0\x0c", b"\xc0\x04", b"\x40ab", b"\xff\xff"]
)
_MESSAGES = st.builds(
    lambda header, labels, end, rest: (
        header + b"".join(bytes((len(label),)) + label for label in labels) + end + rest
    ),
    _HEADERS,
    _LABELS,
    _ENDS,
    st.sampled_from([A_IN, b"\0\x1c\x80\1", b"\0\1\0\3", b"\0\1\0"]) | st.binary(max_size=30),
)


def query(name: bytes, rest: bytes = A_IN) -> bytes:
    return HEADER + name + rest


def record(packet: bytes) -> Record:
    family, ethertype = (2, 0x0800) if packet[0] >> 4 == 4 else (10, 0x86DD)
    datagram = Datagram(
        group=5, family=family, hardware_protocol=ethertype, hook=3, received_ns=9, captured=packet
    )
    return nflog_datagram.record(
        datagram, transport="nflog", identity="i", log_source="test", raw="r"
    )


def udp(own: str, to: str, port: int, payload: bytes) -> bytes:
    header = struct.pack("!HHHH", 4000, port, 8 + len(payload), 0)
    return headers.other(own, to, headers.UDP, header + payload)


def by_dnspython(payload: bytes) -> DnsQuestion | None:
    """Decode the first question as dnspython does, with our rules for what counts as a query."""
    if len(payload) < 12:
        return None
    _, flags, questions, *_ = struct.unpack_from("!HHHHHH", payload)
    is_ordinary = dns.opcode.from_flags(flags) is dns.opcode.QUERY and not flags & dns.flags.QR
    if not is_ordinary or not questions:
        return None
    parser = dns.wire.Parser(payload, 12)
    try:
        name = parser.get_name()
        kind, network_class = parser.get_struct("!HH")
    except (dns.exception.DNSException, ValueError):
        return None
    if network_class & 0x7FFF != dns.rdataclass.IN:
        return None
    return DnsQuestion(name.canonicalize().to_text(omit_final_dot=True), kind)


@given(_MESSAGES | st.binary(max_size=600))
@example(query(b"\x03www\x07example\x03com\0"))
@example(query(b"\x03www\xc0\x0c"))
@example(query(b"\xc0\x04"))
@example(query((b"\x3f" + b"x" * 63) * 3 + b"\x3d" + b"y" * 61 + b"\0"))
@example(query((b"\x3f" + b"x" * 63) * 3 + b"\x3e" + b"y" * 62 + b"\0"))
@example(query((b"\x01x" * 127) + b"\0"))
def test_dns_question_is_that_of_dnspython(payload: bytes) -> None:
    expected = by_dnspython(payload)
    assert question(payload, is_tcp=False) == expected
    prefixed = len(payload).to_bytes(2, "big") + payload
    assert question(prefixed, is_tcp=True) == expected


@given(_MESSAGES)
def test_dns_name_is_bounded_printable_text(payload: bytes) -> None:
    found = question(payload, is_tcp=False)
    if found is not None:
        assert 0 < len(found.name) <= 1011
        assert found.name.isascii()
        assert visible(found.name) == found.name
        assert not found.name.endswith(".") or found.name == "." or found.name.endswith("\\.")


@given(st.binary(min_size=1, max_size=63), st.integers(0, 100))
def test_dns_question_in_a_cut_message_is_none_or_whole(label: bytes, cut: int) -> None:
    whole = query(bytes((len(label),)) + label + b"\x07example\0")
    found = question(whole[: len(whole) - cut], is_tcp=False)
    assert found in (({question(whole, is_tcp=False)}) if cut == 0 else {None})


@pytest.mark.parametrize(
    ("wire", "text"),
    [
        (b"\0", "."),
        (b"\x03WWW\x07Example\x03COM\0", "www.example.com"),
        (b"\x04_tcp\x01a\0", "_tcp.a"),
        (b"\x03a.b\x01c\0", "a\\.b.c"),
        (b"\x03a\\b\0", "a\\\\b"),
        (b"\x04\0\x1b \xff\0", "\\000\\027\\032\\255"),
        (b"\x02\xc3\xa4\0", "\\195\\164"),
    ],
)
def test_dns_name_is_in_presentation_format(wire: bytes, text: str) -> None:
    assert question(query(wire), is_tcp=False) == DnsQuestion(text, 1)


def test_dns_query_with_edns_and_further_questions_has_its_first_question() -> None:
    made = dns.message.make_query("t.example.com", "TXT", use_edns=0, payload=1232)
    expected = DnsQuestion("t.example.com", 16)
    assert question(made.to_wire(), is_tcp=False) == expected
    made.question += dns.message.make_query("other.example", "A").question
    assert question(made.to_wire(), is_tcp=False) == expected


@pytest.mark.parametrize("to", ["203.0.113.53", "2001:db8::53"])
@pytest.mark.parametrize("port", [53, 5353, 5355, 54])
def test_record_of_a_query_has_its_question(to: str, port: int) -> None:
    own = "2001:db8::2" if ":" in to else "10.200.0.2"
    wire = query(b"\x01a\x07example\0")
    expected = DnsQuestion("a.example", 1) if port != 54 else None
    datagram = udp(own, to, port, wire)
    # The TCP header has 12 bytes of options.
    header = struct.pack("!HHIIBBHHH", 4000, port, 1, 1, 0x80, 0x18, 64, 0, 0) + b"\1" * 12
    prefixed = len(wire).to_bytes(2, "big") + wire
    packets = [datagram, headers.other(own, to, headers.TCP, header + prefixed)]
    if ":" in to:
        packets.append(headers.with_extension6(datagram))
    else:
        packets.append(headers.with_flags4(datagram, headers.MORE_FRAGMENTS))
    for packet in packets:
        assert record(packet).question == expected
        assert record(packet[:-5]).question is None


def test_record_of_an_error_has_no_question_of_the_quoted_packet() -> None:
    quoted = udp("10.200.0.2", "203.0.113.53", 53, query(b"\x01a\0"))
    error = headers.other("10.200.0.2", "203.0.113.53", 1, b"\3\3" + bytes(6) + quoted)
    found = record(error)
    assert found.details["quoted"]
    assert found.question is None


def test_records_of_one_packet_are_equal_with_and_without_its_question() -> None:
    found = record(udp("10.200.0.2", "203.0.113.53", 53, query(b"\x01a\0")))
    assert found.question is not None
    assert replace(found, question=None) == found


def test_checksum_of_a_packet_is_of_its_first_128_bytes() -> None:
    packet = udp("10.200.0.2", "203.0.113.53", 53, bytes(200))
    assert record(packet).captured_sum == zlib.adler32(packet[:128])
    assert record(packet[:100]).captured_sum == zlib.adler32(packet[:100])
