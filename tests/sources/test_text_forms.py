"""Tests of kernel log lines that the corpus lacks: damaged, or logged with fewer flags."""

from __future__ import annotations

import re
import struct

import pytest

from ocsf_nft.record import Reject
from ocsf_nft.sources import packet
from ocsf_nft.sources.text import grammar
from ocsf_nft.sources.text import line as text_line
from tests.sources import kernel_printer
from tests.sources.corpus_cases import read, record
from tests.sources.test_packet import HEAD, record_of_facts

_IPV6 = (
    "SRC=fd02:0202:0000:0000:0000:0000:0000:0002 DST=2001:0db8:0000:0000:0000:0000:0000:0007 "
    "LEN=68 TC=0 HOPLIMIT=64 FLOWLBL=0 "
)
_IPV4 = "SRC=10.0.0.2 DST=203.0.113.7 LEN=60 TOS=0x00 PREC=0x00 TTL=64 ID=1 "
_PORTS = "PROTO=TCP SPT=1 DPT=443 SEQ=0 ACK=0 WINDOW=8192 RES=0x00 SYN URGP=0 "
_UDP6 = "PROTO=UDP SPT=1 DPT=53 LEN=28 "
_REDIRECT = "PROTO=ICMP TYPE=5 CODE=1 GATEWAY={} "


def test_text_line_with_a_wrong_field_is_rejected_with_its_name() -> None:
    for packet_text, reason in (
        (f"MAC=45 TUNNEL=192.0.2.1 {_IPV4}PROTO=6 ", "TUNNEL is not two addresses"),
        (f"MAC=45 TUNNEL=192.0.2.1->x {_IPV4}PROTO=6 ", "TUNNEL is not an IP address"),
        (f"{_IPV6}OPT ( FRAG:4 ID:0000abcd ) {_PORTS}", "FRAG is not a multiple of 8"),
        (f"{_IPV6}OPT ( FRAG:65529 ID:0000abcd ) {_PORTS}", "FRAG is 65529, more than 65528"),
        (_IPV4 + _REDIRECT.format("fd02::9"), "GATEWAY is not an IPv4 address"),
        (_IPV4 + _REDIRECT.format("10.0.0"), "GATEWAY is not an IPv4 address"),
        (f"{_IPV4}PROTO=TCP INCOMPLETE [4294967296 bytes] ", "more bytes than a packet can have"),
        (f"{_IPV4}{_PORTS}OPT (020405B4 UID=0 ", "OPT is not closed"),
        (f"{_IPV4}{_PORTS}OPT () ", "OPT has no octets"),
        (f"{_IPV4}{_PORTS}OPT (0204056) ", "OPT has no octets"),
        (f"{_IPV4}{_PORTS}OPT ({'00' * 41}) ", "OPT has no octets"),
        (_IPV4.replace("10.0.0.2", "10.0.0.02") + _PORTS, "SRC is not an IP address"),
        (_IPV4.replace("203.0.113.7", "2001:db8::7") + _PORTS, "two IP versions"),
        (_IPV4.replace("10.0.0.2", "fd02::2") + _PORTS, "two IP versions"),
        (_IPV6.replace("fd02", "10.0.0.2", 1) + _UDP6, "SRC is not an IP address"),
        (re.sub(r"SRC=\S+", "SRC=10.0.0.2", _IPV6) + _UDP6, "two IP versions"),
        (re.sub(r"DST=\S+", "DST=10.0.0.2", _IPV6) + _UDP6, "two IP versions"),
        (_IPV6.replace("TC=0", "TC=256") + _UDP6, "TC is 256, more than 255"),
        (_IPV6.replace("HOPLIMIT=64", "HOPLIMIT=256") + _UDP6, "HOPLIMIT is 256"),
        (_IPV6.replace("FLOWLBL=0", "FLOWLBL=1048576") + _UDP6, "FLOWLBL is 1048576"),
        (_IPV6 + _UDP6.replace("SPT=1", "SPT=65536"), "SPT is 65536, more than 65535"),
        (_IPV6 + _UDP6.replace("DPT=53", "DPT=65536"), "DPT is 65536, more than 65535"),
        (_IPV6 + _UDP6.replace("LEN=28", "LEN=65536"), "LEN is 65536, more than 65535"),
    ):
        found = read(HEAD + packet_text)
        assert isinstance(found, Reject), packet_text
        assert found.kind == "malformed", packet_text
        assert reason in found.reason, packet_text


def test_text_line_accepts_icmp_types_up_to_255() -> None:
    line = f"{HEAD}{_IPV4}PROTO=ICMP TYPE={{}} CODE=0 "
    assert record(line.format(255)).details["icmp_type"] == 255
    found = read(line.format(256))
    assert isinstance(found, Reject)
    assert "TYPE is 256, more than 255" in found.reason


def test_text_line_with_an_ipv4_source_and_ipv6_fields_is_rejected() -> None:
    addresses = "SRC=10.0.0.2 DST=203.0.113.7 LEN=68 "
    for fields in ("TC=0 HOPLIMIT=64 FLOWLBL=0 ", "TC=0 "):
        found = read(HEAD + addresses + fields + _UDP6)
        assert isinstance(found, Reject)
        assert found.reason == "TC is at a wrong position"


def test_text_line_accepts_the_largest_incomplete_bytes() -> None:
    found = record(f"{HEAD}{_IPV4}PROTO=TCP INCOMPLETE [4294967295 bytes] ")
    assert found.details["incomplete_bytes"] == 4294967295


def test_ipv6_fragment_is_read_without_the_brackets_of_logged_options() -> None:
    """Read a line of a rule without ``flags ip options``: FRAG alone (dump_ipv6_packet)."""
    first = record(f"{HEAD}{_IPV6}FRAG:0 INCOMPLETE ID:0000abcd {_PORTS}")
    assert (first.details["fragment_offset"], first.details["ip_id"]) == (0, 0xABCD)
    assert first.details["more_fragments"] is True
    assert (first.protocol, first.destination_port) == (6, 443)
    later = record(f"{HEAD}{_IPV6}FRAG:65528 ID:0000abcd PROTO=TCP ")
    assert (later.details["fragment_offset"], later.protocol) == (65528, 6)
    assert "more_fragments" not in later.details
    assert "truncated" not in later.details


def test_tcp_options_beyond_the_packets_end_are_incomplete_in_bytes_and_text() -> None:
    """Read a packet of 40 bytes whose header claims 60."""
    header = bytes.fromhex("4500002805954000400600000aca0002cb007107")
    for version, ip in ((4, header), (6, bytes.fromhex("6000000000140640") + bytes(31) + b"\1")):
        data = ip + struct.pack("!HHIIHHHH", 1, 443, 7, 8, 0xF002, 64240, 0, 0)
        printed = (kernel_printer.ipv4 if version == 4 else kernel_printer.ipv6)(data)
        assert printed.endswith("OPT (TRUNCATED)")
        from_text = record(HEAD + printed)
        assert from_text == record_of_facts(packet.ip_facts(data, version))
        assert from_text.details["incomplete"] is True
        assert "tcp_options" not in from_text.details
        assert (from_text.destination_port, from_text.tcp_flags) == (443, 2)


def test_esp_after_a_later_fragment_is_named_but_not_decoded() -> None:
    """Read no ESP header after a fragment with an offset."""
    addresses = bytes(15) + b"\1" + bytes(15) + b"\2"
    for offset, spi in ((8, None), (0, 0x1001)):
        fragment = struct.pack("!BBHI", 50, 0, offset, 0xABCD)
        body = fragment + struct.pack("!II", 0x1001, 1) + bytes(20)
        data = struct.pack("!IHBB", 0x60000000, len(body), 44, 64) + addresses + body
        from_text = record(HEAD + kernel_printer.ipv6(data))
        assert from_text == record_of_facts(packet.ip_facts(data, 6))
        assert (from_text.protocol, from_text.details.get("spi")) == (50, spi)
        assert from_text.details["fragment_offset"] == offset


def test_text_line_without_a_required_last_word_is_truncated() -> None:
    mac = "MACSRC=02:00:00:00:00:01 MACDST=02:00:00:00:00:02 MACPROTO={} "
    arp = "ARP HTYPE=1 PTYPE=0x0800 OPCODE=1 "
    icmp, inner = "PROTO=ICMP TYPE=3 CODE=1 ", "SRC=1.1.1.1 DST=2.2.2.2 LEN=40 "
    sender = "MACSRC=02:00:00:00:00:01 IPSRC=10.0.0.2 "
    for line, is_truncated in (
        (_IPV4, True),
        (f"{_IPV4}PROTO=TCP ", True),
        (_IPV4 + _PORTS, False),
        (f"{_IPV4}{_PORTS}UID=0 ", True),
        (f"{_IPV4}{_PORTS}UID=0 GID=0 ", False),
        (_IPV4 + icmp, True),
        (f"{_IPV4}{icmp}[", True),
        (f"{_IPV4}{icmp}[TRUNCATED", True),
        (f"{_IPV4}{icmp}[TRUNCATED] ", False),
        (f"{_IPV4}{icmp}[{inner}", True),
        (f"{_IPV4}{icmp}[{inner}PROTO=253 ", True),
        (f"{_IPV4}{icmp}[{inner}PROTO=253 ] ", False),
        (f"{_IPV4}PROTO=TCP SPT=1 DPT=443 WINDOW=8192 ", True),
        (f"{_IPV4}PROTO=TCP SPT=1 DPT=443 WINDOW=8192 RES=0x00 SYN ", True),
        (f"{_IPV4}PROTO=UDP SPT=1 DPT=53 ", True),
        (f"{_IPV4}PROTO=ESP ", True),
        (f"{_IPV4}PROTO=ESP SPI=0x1 ", False),
        (f"{_IPV4}PROTO=AH INCOMPLETE [4 bytes] ", False),
        (f"{_IPV6}PROTO=AH ", False),  # an extension header in IPv6
        (f"{_IPV4}PROTO=ICMP TYPE=8 CODE=0 ID=1 ", True),
        (f"{_IPV4}PROTO=ICMP TYPE=8 CODE=0 ID=1 SEQ=1 ", False),
        (f"{_IPV4}PROTO=ICMP TYPE=12 CODE=0 ", True),
        (f"{_IPV4}PROTO=ICMP TYPE=12 CODE=0 PARAMETER=3 ", False),
        (f"{_IPV4}PROTO=ICMP TYPE=5 CODE=1 ", True),
        (f"{_IPV4}PROTO=ICMP TYPE=3 CODE=4 [{inner}PROTO=253 ] ", True),
        (f"{_IPV4}PROTO=ICMP TYPE=3 CODE=4 [{inner}PROTO=253 ] MTU=1300 ", False),
        (f"{_IPV6}PROTO=ICMPv6 TYPE=4 CODE=0 ", True),
        (f"{_IPV6}PROTO=ICMPv6 TYPE=2 CODE=0 [{_IPV6}PROTO=253 ] ", True),
        (f"{_IPV6}PROTO=ICMPv6 TYPE=128 CODE=0 ID=1 SEQ=1 ", False),
        (_IPV6, True),
        (f"{_IPV6}OPT ( ", True),
        (f"{_IPV6}FRAG:0 ", True),
        (f"{_IPV6}FRAG:0 ID:0000abcd ", True),
        (f"{_IPV6}OPT ( FRAG:0 ", True),
        (f"{_IPV6}{_UDP6}", False),
        (mac.format("0800"), True),
        (mac.format("86dd"), True),
        (mac.format("88b5"), False),
        ("ARP HTYPE=1 ", True),
        ("ARP HTYPE=1 PTYPE=0x0800 ", True),
        (arp, False),
        (f"{arp}{sender}", True),
        (f"{arp}{sender}MACDST=00:00:00:00:00:00 ", True),
        (f"{arp}{sender}MACDST=00:00:00:00:00:00 IPDST=10.0.0.1", False),
    ):
        assert record(HEAD + line).details.get("truncated", False) is is_truncated, line


def test_text_line_last_word_is_accepted_if_it_can_not_be_longer() -> None:
    for line, name, value in (
        ("TRUNCATED", "incomplete", True),
        ("SRC=10.0.0.2 DST=203.0.113.7 LEN=60 TRUNCATED", "incomplete", True),
        (f"{_IPV6}TRUNCATED", "incomplete", True),
        (f"{_IPV6}FRAG:TRUNCATED", "incomplete", True),
        (f"{_IPV4}PROTO=ICMP TYPE=3 CODE=1 [TRUNCATED", "quoted", {"incomplete": True}),
        (
            "ARP HTYPE=1 PTYPE=0x0800 OPCODE=12",
            "arp",
            {"hardware_type": 1, "protocol_type": 0x0800, "operation": 12},
        ),
    ):
        from_text = record(HEAD + line).details
        assert from_text.get(name) == value, line
        assert "unparsed" not in from_text, line
    for line in (
        f"{_IPV4}PROTO=TCP SPT=1 DPT=44",
        "ARP HTYPE=12",
        f"{_IPV4}{_PORTS}UID=100",
        f"{_IPV4}{_PORTS}UI",
    ):
        from_text = record(HEAD + line).details
        assert (from_text["unparsed"], from_text["truncated"]) == (line.split()[-1], True)
    from_text = record(f"{HEAD}{_IPV4}{_PORTS}OPT (0204").details
    assert (from_text["unparsed"], from_text["truncated"]) == ("OPT (0204", True)


@pytest.mark.parametrize(
    "link", ["", "MAC=02:00:00:00:00:01:02:00:00:00:00:02:08:00 ", "MAC=45:00 "]
)
def test_usual_line_gives_the_facts_of_the_grammar(link: str) -> None:
    message = (
        f"IN=eth0 OUT= {link}SRC=192.0.2.1 DST=192.0.2.2 LEN=40 TOS=0x00 PREC=0x00 TTL=64 ID=1 "
        "PROTO=TCP SPT=5555 DPT=22 WINDOW=1024 RES=0x00 SYN URGP=0 "
    )
    match = text_line._COMMON.fullmatch(message)
    assert (match is None) is (link == "MAC=45:00 ")
    assert match is None or text_line._common_facts(match) == grammar.read(message)
