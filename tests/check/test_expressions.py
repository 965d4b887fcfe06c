"""Tests of a rule's matches and statements for one packet."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.check.field_values import flags_of
from ocsf_nft.check.packet import (
    MARKS,
    NEW,
    TCP,
    UNTRACKED,
    Bits,
    InterfaceName,
    Packet,
    Span,
    Truth,
    bits,
    exactly,
)
from ocsf_nft.check.rule_match import Matcher
from ocsf_nft.check.ruleset import UNKNOWN, Ruleset, from_json

if TYPE_CHECKING:
    from collections.abc import Iterable

_PACKET: Final = Packet(
    version=4,
    protocol=TCP,
    source=exactly(0xAC100002),  # 172.16.0.2
    destination=exactly(0x01020304),
    source_port=Span(32768, 60999),
    destination_port=exactly(443),
    input_interface=InterfaceName("vmtap-1"),
    output_interface=InterfaceName("", is_prefix=True, excluded_prefixes=("vmtap-", "lo")),
    mark=exactly(6),
)
_LATER: Final = replace(_PACKET, is_first=False)
_EITHER: Final = replace(_PACKET, state=Bits(NEW.alternatives | UNTRACKED.alternatives))
_VMS: Final = replace(_PACKET, input_interface=InterfaceName("vmtap-", is_prefix=True), mark=MARKS)
_IPV6: Final = replace(_PACKET, version=6, source=exactly((1 << 128) - 1))

_DPORT: Final = {"payload": {"protocol": "tcp", "field": "dport"}}
_SPORT: Final = {"payload": {"protocol": "tcp", "field": "sport"}}
_SADDR: Final = {"payload": {"protocol": "ip", "field": "saddr"}}
_SADDR6: Final = {"payload": {"protocol": "ip6", "field": "saddr"}}
_FLAGS: Final = {"payload": {"protocol": "tcp", "field": "flags"}}
_STATE: Final = {"ct": {"key": "state"}}
_MARK: Final = {"meta": {"key": "mark"}}
_LENGTH: Final = {"meta": {"key": "length"}}
_IN: Final = {"meta": {"key": "iifname"}}
_OUT: Final = {"meta": {"key": "oifname"}}
_BOTH: Final = {"concat": [_SADDR, _DPORT]}
_NO, _MAYBE, _YES = Truth.NO, Truth.MAYBE, Truth.YES

_SETS: Final = from_json(
    {
        "nftables": [
            {"set": {"family": "inet", "table": "t", "name": "unread", "elem": "?"}},
            {"set": {"family": "inet", "table": "t", "name": "ports", "size": 65, "elem": [443]}},
            {"set": {"family": "inet", "table": "t", "name": "full", "size": 64, "elem": [443]}},
            {"map": {"family": "inet", "table": "t", "name": "marks", "elem": [[443, 2]]}},
            {"map": {"family": "inet", "table": "t", "name": "rest", "elem": [[22, 1], ["*", 2]]}},
            {"rule": {"family": "inet", "table": "t", "chain": "c", "expr": [
                {"set": {"op": "add", "elem": _SADDR, "set": "@unread"}}]}},
        ]
    }
)  # fmt: skip


def _matcher(ruleset: Ruleset = _SETS) -> Matcher:
    return Matcher(ruleset, lambda _: None)


def _assert_answers(cases: Iterable[tuple[Any, str, Any, Packet, Truth]]) -> None:
    for left, operator, right, packet, expected in cases:
        body = {"op": operator, "left": left, "right": right}
        answer = _matcher().match(("inet", "t"), body, packet)
        assert answer is expected, (left, operator, right)


def test_match_compares_a_field_with_a_limit() -> None:
    _assert_answers(
        (left, operator, right, _IPV6 if left is _SADDR6 else _PACKET, expected)
        for left, operator, right, expected in (
            (_DPORT, "<", 443, _NO), (_DPORT, "<", 444, _YES),
            (_DPORT, "<=", 442, _NO), (_DPORT, "<=", 443, _YES),
            (_DPORT, ">", 443, _NO), (_DPORT, ">", 442, _YES),
            (_DPORT, ">=", 444, _NO), (_DPORT, ">=", 443, _YES),
            (_SPORT, "<", 32768, _NO), (_SPORT, "<=", 32768, _MAYBE), (_SPORT, "<", 61000, _YES),
            (_SPORT, ">", 60999, _NO), (_SPORT, ">=", 60999, _MAYBE), (_SPORT, ">", 32767, _YES),
            (_SADDR6, ">", "::1", _YES), (_SADDR6, "<=", "::1", _NO),
            (_DPORT, "<", {"range": [1, 1000]}, _MAYBE), (_LENGTH, ">", 0, _MAYBE),
        )
    )  # fmt: skip


def test_match_masks_numbers() -> None:
    fragment = {"payload": {"protocol": "ip", "field": "frag-off"}}
    _assert_answers(
        (left, operator, right, packet, expected)
        for left, operator, right, packet, expected in (
            ({"&": [_MARK, 3]}, "==", 2, _PACKET, _YES),
            ({"&": [_MARK, 3]}, "!=", 2, _PACKET, _NO),
            ({"|": [_MARK, 9]}, "==", 15, _PACKET, _YES),
            ({"^": [_MARK, 3]}, "==", 5, _PACKET, _YES),
            ({"&": [_MARK, 3]}, "==", 2, _VMS, _MAYBE),
            ({"&": [_MARK]}, "==", 2, _PACKET, _MAYBE),
            ({"&": [_SADDR6, 3]}, "!=", 2, _PACKET, _NO),
            ({"&": [fragment, 0x3FFF]}, "==", 0, _PACKET, _YES),
            ({"&": [fragment, 0x4000]}, "==", 0, _PACKET, _MAYBE),
            (_MARK, "in", 4, _PACKET, _YES), (_MARK, "!", 4, _PACKET, _NO),
            (_MARK, "in", 9, _PACKET, _NO), (_MARK, "!", 9, _PACKET, _YES),
            (_MARK, "in", True, _PACKET, _MAYBE), (_MARK, "in", 4, _VMS, _MAYBE),
            (_LENGTH, "in", 4, _PACKET, _MAYBE),
        )
    )  # fmt: skip


def test_match_compares_flags() -> None:
    of_state = {"&": [_STATE, {"|": ["established", "new"]}]}
    handshake = {"&": [_FLAGS, {"|": ["fin", "syn", "rst", "ack"]}]}
    _assert_answers(
        [
            (_STATE, "in", ["established", "new"], _PACKET, _YES),
            (_STATE, "in", "established", _PACKET, _NO),
            (_STATE, "!", "established", _PACKET, _YES),
            (_STATE, "==", "new", _EITHER, _MAYBE),
            (_STATE, "==", "established", _EITHER, _NO),
            (_STATE, "in", "new", _EITHER, _MAYBE),
            (_STATE, "in", ["new", "untracked"], _EITHER, _YES),
            # An element that a rule puts into a set may be any state.
            (_STATE, "==", {"set": ["established", UNKNOWN]}, _PACKET, _MAYBE),
            (_STATE, "==", {"set": [UNKNOWN, "new"]}, _PACKET, _YES),
            (of_state, "==", "new", _PACKET, _YES),
            (of_state, "==", "established", _PACKET, _NO),
            (of_state, "==", 0, _PACKET, _NO),
            (of_state, "==", "new", _EITHER, _MAYBE),
            ({"&": [_STATE, "established"]}, "==", 0, _EITHER, _YES),
            (handshake, "==", "syn", _PACKET, _YES),
            (handshake, "==", {"|": ["syn", "ack"]}, _PACKET, _NO),
            (handshake, "==", "ack", _LATER, _MAYBE),
            ({"&": [_FLAGS, {"|": [{"|": ["syn", "fin"]}, "rst"]}]}, "==", "syn", _PACKET, _YES),
            ({"&": [_FLAGS, {"|": ["ack", {"|": ["fin"]}]}]}, "==", {"|": []}, _PACKET, _YES),
            (_FLAGS, "!", ["syn", "ack"], _PACKET, _NO),
        ]
    )  # fmt: skip
    assert flags_of({"|": [{"|": ["a", "b"]}, "c", 0]}) == {"a", "b", "c"}
    assert bits("").masked(frozenset({"a"})) == bits("")


def test_match_compares_names_of_interfaces() -> None:
    literal = replace(_PACKET, input_interface=InterfaceName("vmtap*"))
    any_name = replace(_PACKET, input_interface=InterfaceName("", is_prefix=True))
    _assert_answers(
        [
            (_IN, "==", "vmtap-1", _PACKET, _YES), (_IN, "==", "vmtap-2", _PACKET, _NO),
            (_IN, "==", "vmtap\\*", literal, _YES), (_IN, "==", "vmtap\\*", _PACKET, _NO),
            (_IN, "==", 5, _PACKET, _MAYBE), (_IN, "==", "5", _PACKET, _NO),
            (_IN, "==", "5", any_name, _MAYBE),
            (_IN, "==", "vm*", _VMS, _YES), (_IN, "==", "vmtap-1*", _VMS, _MAYBE),
            (_IN, "==", "eth*", _VMS, _NO),
            (_OUT, "==", "lo", _PACKET, _NO), (_OUT, "==", "up0", _PACKET, _MAYBE),
            (_OUT, "==", "vmtap-1*", _PACKET, _NO), (_OUT, "==", "vm*", _PACKET, _MAYBE),
            (_OUT, "==", "up*", _PACKET, _MAYBE),
        ]
    )  # fmt: skip


def test_match_reads_protocols_and_addresses_in_any_form() -> None:
    protocol = {"meta": {"key": "l4proto"}}
    _assert_answers(
        (left, "==", right, _PACKET, expected)
        for left, right, expected in (
            (protocol, "tcp", _YES), (protocol, "udp", _NO), (protocol, "icmp", _NO),
            (protocol, 6, _YES), (protocol, "6", _YES), (protocol, 17, _NO),
            (protocol, {"range": [1, 5]}, _NO), (protocol, {"range": [1, 6]}, _YES),
            (_DPORT, "443", _YES), (_DPORT, "444", _NO), (_DPORT, "https", _MAYBE),
            (_MARK, {"prefix": {"addr": 4, "len": 30}}, _MAYBE),
            (_SADDR, {"prefix": {"addr": "172.16.0.0", "len": 30}}, _YES),
            (_SADDR, {"prefix": {"addr": "172.16.0.4", "len": 30}}, _NO),
            (_SADDR, {"prefix": {"addr": "host", "len": 30}}, _MAYBE),
            (_SADDR, {"range": ["172.16.0.3", "172.16.0.9"]}, _NO),
            (_SADDR, {"range": ["172.16.0.2", "172.16.0.9"]}, _YES),
            (_SADDR, {"range": ["host", "172.16.0.9"]}, _MAYBE),
        )
    )  # fmt: skip


def test_match_knows_which_addresses_are_local() -> None:
    local = replace(_PACKET, is_destination_local=_YES, is_source_local=_NO, has_reverse_route=_NO)
    to = {"fib": {"result": "type", "flags": ["daddr"]}}
    by = {"fib": {"result": "type", "flags": ["daddr", "iif"]}}
    by_mark = {"fib": {"result": "type", "flags": ["daddr", "mark"]}}
    source = {"fib": {"result": "type", "flags": "saddr"}}
    back = {"fib": {"result": "oif", "flags": ["saddr", "iif"]}}
    _assert_answers(
        (left, "==", right, packet, expected)
        for left, right, packet, expected in (
            (to, "local", local, _YES), (to, "unicast", local, _NO),
            (to, "local", _PACKET, _NO), (to, "unicast", _PACKET, _YES),
            (by, "unicast", _PACKET, _MAYBE), (by, "unicast", local, _NO),
            (by_mark, "unicast", _PACKET, _YES),
            (source, "local", local, _NO), (source, "unicast", local, _YES),
            (to, "broadcast", local, _NO), (to, "prohibit", local, _MAYBE),
            (to, UNKNOWN, local, _MAYBE), (back, UNKNOWN, local, _MAYBE), (back, "0", local, _YES),
            (back, True, local, _NO), (back, False, local, _YES), (back, "5", local, _MAYBE),
            ({"fib": {"result": "oif", "flags": ["daddr"]}}, True, local, _MAYBE),
        )
    )  # fmt: skip


def test_match_finds_the_elements_of_a_set() -> None:
    timed = {"elem": {"val": 443, "timeout": 60}}
    here = {"concat": ["172.16.0.2", 443]}
    _assert_answers(
        (left, operator, right, _PACKET, expected)
        for left, operator, right, expected in (
            (_DPORT, "==", {"set": [timed]}, _YES), (_DPORT, "!=", {"set": [timed]}, _NO),
            (_DPORT, "==", {"set": 443}, _YES), (_DPORT, "==", "@ports", _YES),
            (_DPORT, "!=", "@ports", _NO), (_SADDR, "==", "@unread", _MAYBE),
            (_SADDR, "!=", "@unread", _MAYBE), (_DPORT, "==", "@other", _MAYBE),
            (_BOTH, "==", here, _YES), (_BOTH, "!=", here, _NO),
            (_BOTH, "==", {"concat": ["172.16.0.2", 22]}, _NO),
            (_BOTH, "==", {"concat": ["*", 443]}, _YES),
            (_BOTH, "==", {"concat": ["172.16.0.2", 443, 1]}, _MAYBE),
            (_BOTH, "==", "172.16.0.2", _MAYBE),
            ({"concat": [_SADDR6, _DPORT]}, "!=", here, _NO),
        )
    )  # fmt: skip


def test_match_of_an_unknown_form_is_undecided() -> None:
    assert _matcher().match(("inet", "t"), None, _PACKET) is _MAYBE
    _assert_answers(
        (left, operator, right, _PACKET, _MAYBE)
        for left, operator, right in (
            (_DPORT, "~", 443), ("443", "==", 443), ({"meta": "mark"}, "==", 6),
            ({"socket": {"key": "mark"}}, "==", 6), ({"exthdr": {"name": "new"}}, "==", True),
            ({**_MARK, **_DPORT}, "==", 6), ({"exthdr": {"name": []}}, "==", True),
            ({"payload": {"protocol": [], "field": "dport"}}, "==", 443),
            ({"payload": {"protocol": "tcp", "field": {}}}, "==", 443),
            ({"fib": {"flags": [[]], "result": "type"}}, "==", "local"),
            ({"fib": {"flags": ["saddr", "iif"], "result": []}}, "==", True),
        )
    )  # fmt: skip


def test_statement_can_run_if_its_map_or_field_has_a_value() -> None:
    def assignment(data: Any, key: Any = _DPORT) -> dict[str, Any]:
        return {"key": _MARK, "value": {"map": {"key": key, "data": data}}}

    def change(name: str, operator: str = "add") -> dict[str, Any]:
        return {"op": operator, "elem": _SADDR, "set": f"@{name}"}

    for kind, body, expected in (
        ("mangle", assignment("@marks"), _YES),
        ("mangle", assignment("@marks", _SPORT), _NO),
        ("mangle", assignment("@rest"), _YES),
        ("mangle", assignment("@rest", _SADDR6), _NO),
        ("mangle", assignment("@unread"), _MAYBE),
        ("mangle", assignment({"set": [[22, 1]]}), _NO),
        ("mangle", assignment("@marks", _SADDR6), _NO),
        ("mangle", {"key": _SADDR6, "value": 1}, _NO),
        ("mangle", {"key": {"tcp option": {"name": "maxseg"}}, "value": 1}, _MAYBE),
        ("set", change("ports"), _YES),
        ("set", change("full"), _MAYBE),
        ("set", change("full", "delete"), _YES),
        ("set", change("unread"), _MAYBE),
        ("set", change("other"), _MAYBE),
        ("set", {**change("ports"), "elem": _SADDR6}, _NO),
        ("reject", {"type": "icmpv6"}, _NO),
        ("reject", {"type": "icmp"}, _YES),
        ("drop", None, _YES),
    ):
        answer = _matcher().can_run(("inet", "t"), kind, body, _PACKET)
        assert answer is expected, (kind, body)


def test_statement_for_another_protocol_or_version_can_not_run() -> None:
    udp = replace(_PACKET, protocol=17)
    for kind, body, packet, expected in (
        ("reject", {"type": "icmpv6"}, _PACKET, _NO), ("reject", {"type": "icmp"}, _PACKET, _YES),
        ("reject", {"type": "icmpv6"}, _IPV6, _YES), ("reject", {"type": "icmp"}, _IPV6, _NO),
        ("reject", {"type": "icmpx"}, _PACKET, _YES), ("reject", None, _PACKET, _YES),
        ("dnat", {"family": "ip"}, _IPV6, _NO), ("dnat", {"family": "ip6"}, _IPV6, _YES),
        ("synproxy", {}, _PACKET, _YES), ("synproxy", {}, udp, _NO), ("log", {}, udp, _YES),
        ("mangle", {"key": {"tcp option": {}}}, _PACKET, _MAYBE),
        ("mangle", {"key": {"tcp option": {}}}, udp, _NO),
        ("mangle", {"key": _DPORT}, _PACKET, _YES), ("mangle", {"key": _DPORT}, udp, _NO),
        ("mangle", {"key": _MARK, "value": _DPORT}, udp, _NO),
        ("mangle", {"value": {"map": {"key": _DPORT, "data": {"set": [443]}}}}, _PACKET, _YES),
        ("mangle", {"value": {"map": {"key": _DPORT, "data": {"set": [[22, 1]]}}}}, _PACKET, _NO),
        ("mangle", {"key": _MARK, "value": _DPORT}, _PACKET, _YES),
    ):  # fmt: skip
        answer = _matcher().can_run(("inet", "t"), kind, body, packet)
        assert answer is expected, (kind, body, packet)


def test_match_of_a_header_of_another_protocol_never_holds() -> None:
    udp_port = {"payload": {"protocol": "udp", "field": "dport"}}
    any_port = {"payload": {"protocol": "th", "field": "dport"}}
    echo = {"payload": {"protocol": "icmp", "field": "type"}}
    _assert_answers(
        (left, operator, 443, _PACKET, expected)
        for left, operator, expected in (
            (udp_port, "==", _NO), (udp_port, "!=", _NO), (echo, "==", _NO), (echo, "!=", _NO),
            (any_port, "==", _YES), (any_port, "!=", _NO),
        )
    )  # fmt: skip


def test_joined_packet_is_known_where_both_packets_agree() -> None:
    one = replace(_PACKET, is_destination_local=_YES, is_source_local=_NO, has_reverse_route=_MAYBE)
    for field in ("is_destination_local", "is_source_local", "has_reverse_route"):
        for answer in (_NO, _MAYBE, _YES):
            changed: dict[str, Any] = {field: answer, "mark": exactly(7)}
            joined = one.joined(replace(one, **changed))
            same = getattr(one, field) is answer
            assert getattr(joined, field) is (answer if same else _MAYBE), (field, answer)
            others = {"is_destination_local", "is_source_local", "has_reverse_route"} - {field}
            assert all(getattr(joined, other) is getattr(one, other) for other in others)


def test_large_maps_of_one_ruleset_are_searched_separately() -> None:
    matcher = _matcher()
    with_port = [[port, 1] for port in range(400, 500)]
    without_port = [[port, 1] for port in range(500, 600)]
    for _ in range(50):
        for pairs, expected in ((with_port, _YES), (without_port, _NO)):
            body = {"value": {"map": {"key": _DPORT, "data": {"set": pairs}}}}
            assert matcher.can_run(("inet", "t"), "mangle", body, _PACKET) is expected
