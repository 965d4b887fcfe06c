"""Tests of the parser of kernel lines: by position, and without invented values."""

from __future__ import annotations

import dataclasses
import json
import re
import time
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocsf_nft.record import Record, Reject
from ocsf_nft.sources import packet_fields as fact
from ocsf_nft.sources import text
from ocsf_nft.sources.text import grammar
from tests.sources.corpus_cases import MESSAGES, cases, read, record
from tests.strategies import HOSTILE_TEXT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

EXPECTED = Path(__file__).parent.parent / "corpus" / "kernel_records.expected.jsonl"
UDP = (
    "SRC=10.0.0.2 DST=203.0.113.7 LEN=48 TOS=0x00 PREC=0x00 TTL=64 ID=1 DF "
    "PROTO=UDP SPT=1234 DPT=53 LEN=28 UID=1000 GID=1000 "
)
TCP = (
    "SRC=10.0.0.2 DST=203.0.113.7 LEN=60 TOS=0x00 PREC=0x00 TTL=64 ID=1 DF "
    "PROTO=TCP SPT=44000 DPT=443 WINDOW=64240 RES=0x00 SYN URGP=0 "
)
OURS = "ocsf-nft:sb:egress:"


def facts(found: Record) -> dict[str, Any]:
    """Return a record's facts, those of a nested packet under dotted names."""
    decoded = {
        item.name: getattr(found, item.name)
        for item in dataclasses.fields(found)
        if item.compare and item.name != "details" and getattr(found, item.name) is not None
    }
    return decoded | dict(_flat(found.details, ""))


def _flat(details: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for name, value in details.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield path + name, value


def reject(message: str) -> Reject:
    found = read(message)
    assert isinstance(found, Reject), found
    return found


def test_text_facts_of_the_corpus_equal_the_reviewed_table() -> None:
    with EXPECTED.open() as lines:
        expected = [json.loads(line) for line in lines]
    decoded = [
        {"name": case.name, "records": [facts(record(message)) for message in case.messages]}
        for case in cases()
    ]
    assert decoded == expected


# Facts of corpus lines that a person read, without the prefix.
REVIEWED: dict[str, dict[str, Any]] = {
    "tcp4 syn root": {
        "out_interface": "h2s0", "ip_version": 4, "source": "10.202.0.2",
        "destination": "203.0.113.7", "length": 60, "tos": 0, "ttl": 64, "ip_id": 1429,
        "dont_fragment": True, "protocol": 6, "source_port": 41254, "destination_port": 443,
        "tcp_sequence": 2665114552, "tcp_acknowledgment": 0, "tcp_window": 64240,
        "tcp_reserved": 0, "tcp_flags": 2, "tcp_urgent_pointer": 0,
        "tcp_options": "020405b40402080a3aff2c62000000000103030a", "uid": 0, "gid": 0,
    },
    "tcp4 mark max": {"mark": 0xFFFFFFFF, "destination_port": 443},
    "tcp4 flags FPU": {"tcp_flags": 32 | 8 | 1},
    "tcp4 flags SECN": {"tcp_flags": 256 | 128 | 64 | 2},
    "tcp4 urgptr": {"tcp_flags": 32 | 16 | 8, "tcp_urgent_pointer": 77},
    "tcp4 truncated header (8B)": {"protocol": 6, "incomplete_bytes": 8, "length": 28},
    "mptcp6 syn": {
        "ip_version": 6, "source": "fd02:202::2", "destination": "2001:db8::7", "length": 84,
        "traffic_class": 0, "hop_limit": 64, "flow_label": 10932, "source_port": 36476,
    },
    "udp4 port 0 dst 65535": {"source_port": 0, "destination_port": 65535, "udp_length": 9},
    "udplite4": {"protocol": 136, "destination_port": 53},
    "icmp4 echo ping socket": {
        "protocol": 1, "icmp_type": 8, "icmp_code": 0, "icmp_id": 38081, "icmp_sequence": 0,
        "ip_id": 47756,
    },
    "icmp4 unreach w/ inner tcp": {
        "source": "10.202.0.2", "destination": "203.0.113.7", "length": 68, "protocol": 1,
        "icmp_type": 3, "icmp_code": 1, "quoted.source": "203.0.113.7",
        "quoted.destination": "10.202.0.2", "quoted.length": 40, "quoted.protocol": 6,
        "quoted.source_port": 443, "quoted.destination_port": 55555, "quoted.tcp_flags": 2,
        "uid": 0,
    },
    "icmp4 fragneeded mtu": {"icmp_mtu": 1300, "quoted.protocol": 17, "quoted.udp_length": 8},
    "icmp4 redirect": {"icmp_gateway": "10.202.0.9", "icmp_type": 5, "quoted.source_port": 1},
    "icmp4 param problem": {"icmp_parameter": 3},
    "icmp6 pkt too big": {"icmp_mtu": 1280, "protocol": 58, "quoted.protocol": 6},
    "icmp6 param problem": {"icmp_pointer": 6, "quoted.protocol": 59},
    "sctp init v6": {"protocol": 132},
    "esp v4": {"protocol": 50, "spi": 0x1001},
    "ah v6": {"spi": 0x2002, "protocol": 97, "extension_headers": 3},
    "frag4 MF icmp": {"more_fragments": True, "ip_id": 80, "icmp_id": 0},
    "frag6 first": {
        "fragment_offset": 0, "more_fragments": True, "ip_id": 0xABCD, "destination_port": 443,
    },
    "v6 truncated ext": {"incomplete_bytes": 4294965250, "protocol": 6, "extension_headers": 1},
    "ipv4 options RR+TS": {
        "ip_options": "070b040000000000000000440c0901000000000000000000", "source_port": 3,
    },
    "ipv4 dscp ef ttl 1 df": {"tos": 0xB8, "ttl": 1},
    "forward icmp from nested": {
        "in_interface": "h2n0", "out_interface": "h2s0", "mac_source": "66:9a:78:9e:a1:48",
        "mac_destination": "7a:ba:e7:da:a8:16", "ethertype": 0x0800, "ttl": 63,
    },
    "l2 ethertype 88b5": {"ethertype": 0x88B5, "mac_source": "4e:a2:fc:b7:c2:75"},
    "gw ingress vlan 7": {"vlan_protocol": 0x8100, "vlan_id": 7, "vlan_priority": 3},
    "gw ingress QinQ": {"vlan_id": 7, "vlan_priority": 0, "ethertype": 0x8100},
    "gw ingress arp": {
        "ethertype": 0x0806, "mac_destination": "ff:ff:ff:ff:ff:ff", "arp.hardware_type": 1,
        "arp.protocol_type": 0x0800, "arp.operation": 1, "arp.mac_source": "4e:a2:fc:b7:c2:75",
        "arp.source": "10.202.0.2", "arp.mac_destination": "00:00:00:00:00:00",
        "arp.destination": "10.202.0.1",
    },
    "iface named DPT=22": {"out_interface": "DPT=22", "destination_port": 443},
    "iface named UID=0": {"out_interface": "UID=0", "uid": 1000},
    "iface named PROTO=ICMP": {"out_interface": "PROTO=ICMP", "protocol": 6},
    "prefix 'osb:h2-sb:=DST=1.1.1'": {"destination": "203.0.113.7"},
}  # fmt: skip


@pytest.mark.parametrize(
    "case", [case for case in cases() if case.name in REVIEWED], ids=lambda case: case.name
)
def test_text_facts_equal_those_that_a_person_read(case: Any) -> None:
    decoded = facts(record(case.messages[0]))
    assert {name: decoded.get(name) for name in REVIEWED[case.name]} == REVIEWED[case.name]


def test_text_line_has_no_facts_beyond_the_reviewed_ones() -> None:
    decoded = facts(record(cases()[0].messages[0]))
    assert decoded == REVIEWED["tcp4 syn root"] | {
        "prefix": "osb:h2-sb:out:",
        "rule": "osb:h2-sb:out:",
    }


def test_text_prefix_of_ours_gives_sandbox_and_rule() -> None:
    found = record(f"{OURS}IN= OUT=eth0 {UDP}")
    assert (found.prefix, found.sandbox, found.rule) == (OURS, "sb", "egress")
    assert found.verdict is None


def test_text_prefix_of_a_permissive_fence_gives_the_verdict_permit() -> None:
    found = record(f"{OURS}permissive:IN= OUT=eth0 {UDP}")
    assert found.prefix == f"{OURS}permissive:"
    assert (found.sandbox, found.rule, found.verdict) == ("sb", "egress", "permit")


@pytest.mark.parametrize(
    "device", ["permissive", "permissive,", "IN=permissive", "egress.permissive"]
)
def test_text_device_name_can_not_make_a_refused_packet_permitted(device: str) -> None:
    found = record(f"{OURS}IN={device} OUT=eth0 {UDP}")
    assert (found.sandbox, found.rule, found.verdict) == ("sb", "egress", None)


@pytest.mark.parametrize(
    "prefix",
    [
        f"{OURS}permissive",
        f"{OURS}permissive: ",
        f"{OURS}Permissive:",
        f"{OURS}permissive:permissive:",
        f"{OURS} permissive:",
        f"{OURS}enforcing:",
        "ocsf-nft:sb:permissive:egress:",
        "ocsf-nft:sb::permissive:",
    ],
)
def test_text_prefix_similar_to_a_permissive_one_is_malformed(prefix: str) -> None:
    assert reject(f"{prefix}IN= OUT=eth0 {UDP}").kind == "malformed"


@given(st.text(st.sampled_from("permissive:IN= OUT"), max_size=40))
def test_text_verdict_permit_comes_only_from_the_prefix(noise: str) -> None:
    found = read(f"{OURS}{noise}IN= OUT=eth0 {UDP}")
    if isinstance(found, Record) and found.verdict == "permit":
        assert noise.startswith("permissive:")
    elif isinstance(found, Record):
        assert not noise.startswith("permissive:")


@pytest.mark.parametrize(
    "message", ["", "usb 1-1: new device", "device eth0 entered IN=", "IN=eth0"]
)
def test_text_without_a_netfilter_record_gives_none(message: str) -> None:
    assert read(message) is None


@pytest.mark.parametrize(
    "name", ["DST=9.9.9.9", "UID=0", "IN=", "OUT=", "SRC=1.1.1.1", "[x]", "(", "x)y", "ü", "a\\b"]
)
def test_text_device_may_have_the_name_of_a_field(name: str) -> None:
    found = record(f"{OURS}IN={name} OUT={name} PHYSIN={name} PHYSOUT={name} {UDP}")
    assert (found.in_interface, found.out_interface) == (name, name)
    assert found.details["physical_in_interface"] == name
    assert found.details["physical_out_interface"] == name
    assert (found.destination, found.uid, found.destination_port) == ("203.0.113.7", 1000, 53)


@pytest.mark.parametrize(
    "prefix",
    ["IN= OUT= DST=1.1.1.1 ", "x IN=a OUT=b SRC=1.2.3.4 ", "IN= OUT=h2s0 ", "[UFW BLOCK] ", ""],
)
def test_text_foreign_prefix_may_resemble_a_record(prefix: str) -> None:
    found = record(f"{prefix}IN= OUT=eth0 {UDP}")
    assert found.prefix == prefix
    assert (found.source, found.destination) == ("10.0.0.2", "203.0.113.7")


def test_text_line_with_two_possible_starts_is_ambiguous() -> None:
    assert reject(f"x IN=IN= OUT=eth0 {UDP}").kind == "ambiguous"
    assert reject(f"{'x' * 200}IN= OUT=eth0 {UDP}").kind == "ambiguous"


def test_text_foreign_prefix_has_at_most_127_characters() -> None:
    # NF_LOG_PREFIXLEN of include/uapi/linux/netfilter/nf_log.h, with a final zero
    assert record(f"{'x' * 127}IN= OUT=eth0 {UDP}").prefix == "x" * 127
    refused = reject(f"{'x' * 128}IN= OUT=eth0 {UDP}")
    assert refused.reason == "its prefix is longer than 127 characters"


def test_text_prefix_of_ours_is_never_ambiguous() -> None:
    assert record(f"{OURS}IN=IN= OUT=eth0 {UDP}").in_interface == "IN="


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (f"{OURS}IN= OUT=eth0 {TCP.replace('443', '70000')}", "DPT is 70000, more than 65535"),
        (f"{OURS}IN= OUT=eth0 {TCP.replace('443', '0443')}", "DPT is not a number"),
        (f"{OURS}IN= OUT=eth0 {TCP.replace('443', '٤٤٣')}", "DPT is not a number"),
        (f"{OURS}IN= OUT=eth0 {TCP.replace('443', '-1')}", "DPT is not a number"),
        (f"{OURS}IN= OUT=eth0 {TCP.replace('TTL=64', 'TTL=256')}", "TTL is 256, more than 255"),
        (f"{OURS}IN= OUT=eth0 {TCP.replace('DF', 'FRAG:8192')}", "FRAG is 8192, more than 8191"),
        (f"{OURS}IN= OUT=eth0 {TCP.replace('.7 ', '.777 ')}", "DST is not an IP address"),
        (f"{OURS}IN= OUT=eth0 {TCP.replace('.7 ', '.07 ')}", "DST is not an IP address"),
        (f"{OURS}IN= OUT=eth0 {TCP.replace('203.0.113.7', '::1')}", "two IP versions"),
        (f"{OURS}IN= OUT=eth0 {TCP.replace('10.0.0.2', 'fe80::1%eth0')}", "SRC is not an IP"),
        (f"{OURS}IN= OUT=eth0 {UDP.replace('UID=1000', 'UID=4294967296')}", "UID is 4294967296"),
        (f"{OURS}IN= OUT=eth0 SRC=1.1.1.1 {UDP}", "DST is missing"),
        (f"{OURS}IN= OUT=eth0 {UDP}DST=9.9.9.9 ", "DST occurs twice"),
        (f"{OURS}IN= OUT=eth0 {UDP}UID=0 ", "UID occurs twice"),
        (f"{OURS}IN= OUT=eth0 {UDP}[SRC=1.1.1.1 DST=2.2.2.2 ] ", "[ is at a wrong position"),
        (f"{OURS}IN= OUT=eth0 MAC=zz {UDP}", "MAC is not a link header"),
        (f"{OURS}IN= OUT=eth0 {TCP.replace('PROTO=TCP', 'PROTO=6')}", "SPT is at a wrong position"),
        (f"{OURS}hello", "it begins like our prefix"),
        (f"{OURS}IN= OUT=eth0 {UDP.partition('PROTO')[0]}PROTO=256 ", "PROTO is not a protocol"),
        ("ocsf-nft:a b:egress:IN= OUT=eth0 " + UDP, "it begins like our prefix"),
        (f"{OURS}IN=eth0", "devices"),
        (f"{OURS}IN= OUT=eth0 SRC=10.0", "inside SRC"),
        (f"{OURS}IN= OUT=eth0 {UDP[:25]}", "inside DST"),
    ],
)
def test_text_line_is_rejected_with_the_wrong_field(message: str, reason: str) -> None:
    found = reject(message)
    assert found.kind == "malformed"
    assert reason in found.reason
    assert found.line == message


#: Largest value of each field, by name of the corpus line that has the field.
LIMITS: dict[str, dict[str, int]] = {
    "tcp4 syn root": {
        "LEN": 524_280, "TTL": 0xFF, "ID": 0xFFFF, "SPT": 0xFFFF, "DPT": 0xFFFF,
        "SEQ": 0xFFFFFFFF, "ACK": 0xFFFFFFFF, "WINDOW": 0xFFFF, "URGP": 0xFFFF,
        "UID": 0xFFFFFFFF, "GID": 0xFFFFFFFF,
    },
    "mptcp6 syn": {
        "LEN": 0xFFFF + 40, "TC": 0xFF, "HOPLIMIT": 0xFF, "FLOWLBL": 0xFFFFF, "SPT": 0xFFFF,
        "DPT": 0xFFFF, "SEQ": 0xFFFFFFFF, "ACK": 0xFFFFFFFF, "WINDOW": 0xFFFF, "URGP": 0xFFFF,
    },
    "udp4 port 0 dst 65535": {"SPT": 0xFFFF, "DPT": 0xFFFF},
    "icmp4 echo ping socket": {"CODE": 0xFF, "SEQ": 0xFFFF},
    "icmp4 fragneeded mtu": {"MTU": 0xFFFF},
    "icmp4 param problem": {"PARAMETER": 0xFF},
    "icmp6 pkt too big": {"MTU": 0xFFFFFFFF},
    "gw ingress vlan 7": {"VID": 0xFFFF},
}  # fmt: skip


def test_text_field_accepts_its_largest_value_and_none_above() -> None:
    lines = {case.name: case.messages[0] for case in cases()}
    for name, fields in LIMITS.items():
        for key, limit in fields.items():
            largest, larger = (
                re.sub(rf" {key}=\d+", f" {key}={value}", lines[name], count=1)
                for value in (limit, limit + 1)
            )
            found = record(largest)
            assert limit in facts(found).values() or key == "VID", (name, key)
            assert f"{key} is {limit + 1}, more than {limit}" in reject(larger).reason, (name, key)


def test_text_accepts_protocol_numbers_up_to_255() -> None:
    begin, _, _ = UDP.partition("PROTO=")
    for number in (0, 2, 99, 253, 254, 255):
        found = record(f"{OURS}IN= OUT=eth0 {begin}PROTO={number} ")
        assert found.protocol == number


def test_text_words_that_the_kernel_never_prints_are_stored_as_unparsed() -> None:
    found = record(f"{OURS}IN= OUT=eth0 {UDP}NEW=1 evil ")
    assert found.details["unparsed"] == "NEW=1 evil"
    assert found.uid == 1000
    assert "truncated" not in found.details


def test_text_extra_spaces_and_a_line_break_are_ignored() -> None:
    message = f"{OURS}IN= OUT=eth0 {UDP}"
    assert record(message.replace(" ", "  ").replace("IN=  ", "IN= ")) == record(message)
    assert record(f"{message}\r\n") == record(message)


def test_text_of_a_rule_with_fewer_log_flags_has_fewer_facts() -> None:
    found = record("IN=eth0 OUT= MAC=02:00:00:00:00:01:02:00:00:00:00:02:08:00 " + TCP)
    assert "tcp_sequence" not in found.details
    assert found.uid is None
    assert found.mac_source == "02:00:00:00:00:02"
    assert found.ethertype == 0x0800


def test_text_reserved_bit_of_an_older_kernel_is_the_flag_ae() -> None:
    found = record(f"{OURS}IN= OUT=eth0 {TCP.replace('RES=0x00', 'RES=0x0c')}")
    assert found.tcp_flags == 256 | 2
    assert found.details["tcp_reserved"] == 1


def test_text_has_header_and_outer_addresses_of_a_tunnel() -> None:
    blob = ":".join(["45"] * 20)
    found = record(f"IN=sit0 OUT= MAC={blob} TUNNEL=192.0.2.1->192.0.2.2 {UDP}")
    assert found.details["link_header"] == "45" * 20
    assert found.details["tunnel_source"] == "192.0.2.1"
    assert found.details["tunnel_destination"] == "192.0.2.2"
    assert found.mac_source is None


def test_text_line_without_last_space_has_a_last_value_that_can_not_be_longer() -> None:
    whole = f"{OURS}IN= OUT=eth0 {TCP}"
    assert record(whole.rstrip()) == record(whole)
    plain = f"{OURS}IN= OUT=eth0 {UDP}".removesuffix("UID=1000 GID=1000 ")
    assert record(plain.rstrip()) == record(plain)


def test_text_line_accepts_a_last_udp_length_that_fits_the_headers() -> None:
    start = (
        f"{OURS}IN= OUT=eth0 SRC=10.0.0.2 DST=203.0.113.7 LEN={{}} TOS=0x00 PREC=0x00 TTL=64 ID=1 "
    )
    ports = "PROTO=UDP SPT=1 DPT=53 LEN=9"
    for length, options, is_stored in (
        (29, "", True), (28, "", False), (30, "", False),
        (33, "OPT (07040400) ", True), (29, "OPT (07040400) ", False),
    ):  # fmt: skip
        found = record(start.format(length) + options + ports)
        assert ("udp_length" in found.details) == is_stored, (length, options)
    for length, is_stored in ((49, True), (48, False), (50, False)):
        found = record(
            f"{OURS}IN= OUT=eth0 SRC=2001:db8:0000:0000:0000:0000:0000:0001 "
            f"DST=2001:db8:0000:0000:0000:0000:0000:0002 LEN={length} TC=0 HOPLIMIT=64 FLOWLBL=0 "
            + ports
        )
        assert ("udp_length" in found.details) == is_stored, length


def test_text_last_value_that_may_lack_digits_is_unparsed() -> None:
    found = record(f"{OURS}IN= OUT=eth0 {UDP}".rstrip())
    assert (found.uid, found.gid) == (1000, None)
    assert found.details["truncated"] is True
    assert found.details["unparsed"] == "GID=1000"


def test_text_line_that_is_cut_in_a_quoted_packet_is_a_record() -> None:
    (case,) = (each for each in cases() if each.name == "icmp4 ttl exceeded")
    (message,) = case.messages
    begin, end = message.index("[SRC="), message.index(" ]")
    for cut in range(begin + len("[SRC="), end):
        found = record(message[:cut])
        assert (found.protocol, found.details["truncated"]) == (1, True), message[:cut]


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_text_line_that_is_cut_has_no_other_facts_than_the_whole_line(case: Any) -> None:
    for message in case.messages:
        whole = facts(record(message))
        for end in range(len(message)):
            found = read(message[:end])
            if isinstance(found, Record):
                decoded = facts(found)
                decoded.pop("truncated", None)
                decoded.pop("unparsed", None)
                assert decoded.items() <= whole.items(), message[:end]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(MESSAGES), st.data())
def test_text_line_that_is_shuffled_or_spliced_has_only_values_that_it_contains(
    message: str, data: st.DataObject
) -> None:
    other = data.draw(st.sampled_from(MESSAGES))
    words = message.split(" ")
    match data.draw(st.sampled_from(["shuffle", "splice", "insert"])):
        case "shuffle":
            line = " ".join(data.draw(st.permutations(words)))
        case "splice":
            line = message[: data.draw(st.integers(0, len(message)))]
            line += other[data.draw(st.integers(0, len(other))) :]
        case _:
            at = data.draw(st.integers(0, len(words)))
            line = " ".join(
                [*words[:at], data.draw(st.sampled_from(other.split(" "))), *words[at:]]
            )
    found = read(line)
    if not isinstance(found, Record):
        return
    for name, key in (("source_port", "SPT"), ("destination_port", "DPT"), ("uid", "UID")):
        value = getattr(found, name)
        assert value is None or f"{key}={value} " in f"{line} "
    if found.ip_version == 4:
        assert f"SRC={found.source} " in line
        assert f"DST={found.destination} " in line


@settings(max_examples=300)
@given(HOSTILE_TEXT, st.sampled_from(["", OURS, f"{OURS}IN= OUT=eth0 ", f"IN= OUT=a {UDP}"]))
def test_text_parser_never_raises(noise: str, start: str) -> None:
    read(start + noise)
    read(noise + start)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(MESSAGES), st.integers(0, 400), st.characters())
def test_text_parser_never_raises_on_a_changed_character(
    message: str, position: int, character: str
) -> None:
    read(message[:position] + character + message[position + 1 :])


def test_text_regular_expression_and_grammar_give_equal_records() -> None:
    for message in MESSAGES:
        found = record(message)
        by_grammar = grammar.read(message[len(found.prefix) :])
        assert found == fact.record(
            found.prefix, by_grammar, time_ns=0, received_ns=0, origin=found.origin
        )


@given(st.lists(st.sampled_from(["IN=", " OUT=", " ", "x", "I", "\n"])).map("".join))
def test_text_candidate_has_two_devices(message: str) -> None:
    assert text.is_candidate(message) == bool(re.search("IN=[^ ]* OUT=", message))


def test_text_candidate_check_is_fast_on_a_long_line() -> None:
    started = time.process_time()
    assert not text.is_candidate("IN=" * 100_000)
    assert time.process_time() - started < 1


@pytest.mark.parametrize("hostile", ["IN= OUT= SRC=a{} DST=1.1.1.1 ", "IN= OUT= SRC=::1 DST=b{} "])
def test_text_parser_does_not_store_long_values(hostile: str) -> None:
    read(OURS + hostile)
    tracemalloc.start()
    try:
        for number in range(50):
            assert isinstance(read(OURS + hostile.format(f"{number}" + "a" * 100_000)), Reject)
        used_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used_bytes < 1_000_000
