"""Tests of the attribution of packets to reported calls, case by case."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest

from ocsf_nft.attribution import send_calls
from ocsf_nft.attribution.bpf_capture import Call, ClosedSocket
from ocsf_nft.attribution.send_calls import SendCalls
from tests.attribution import calling
from tests.attribution.calling import SECOND, SYN, TCP, UDP, image, logged

if TYPE_CHECKING:
    from ocsf_nft.attribution.packet_matching import Match
    from ocsf_nft.record import Record

NOW: Final = 100 * SECOND


def call(by: int, time_ns: int, **facts: Any) -> Call:
    """Return a call that begins a TCP connection."""
    return calling.call(by, time_ns, **({"protocol": TCP} | facts))


def record(read_ns: int, **facts: Any) -> Record:
    """Return the record of its first packet."""
    return calling.record(read_ns, **({"protocol": TCP, "tcp_flags": SYN} | facts))


def match(calls_made: SendCalls, *records: Record, now_ns: int = NOW) -> list[Match | None]:
    return list(calls_made.matches(logged(*records, now_ns=now_ns)))


def stored(*events: Call | ClosedSocket) -> SendCalls:
    found = SendCalls()
    for each in events:
        if isinstance(each, ClosedSocket):
            found.mark_closed(each)
        else:
            found.add(each)
    return found


def senders(found: Match | None) -> tuple[set[int], bool] | None:
    """Return the numbers of the candidates, and True if one of them is the sender."""
    return None if found is None else ({each.image.pid for each in found.calls}, found.is_sender)


def test_first_tcp_packet_is_of_the_reported_call() -> None:
    (found,) = match(stored(call(7, NOW - 1000, comm=b"early"), call(7, NOW - 500)), record(NOW))
    assert senders(found) == ({7}, True)
    assert found is not None
    assert found.calls[0].comm == b"x"  # its latest name


@pytest.mark.parametrize("wrong", [{"source_port": 9}, {"protocol": 136}, {"destination_port": 9}])
def test_packet_of_another_socket_or_destination_does_not_match(wrong: dict[str, Any]) -> None:
    assert match(stored(call(7, NOW - 1000)), record(NOW, **wrong)) == [None]
    assert match(stored(call(7, NOW - 1000, destination=bytes(4))), record(NOW)) == [None]


@pytest.mark.parametrize("facts", [{"uid": None}, {"protocol": None}, {"rule": "link"}])
def test_packet_that_no_process_sent_by_a_socket_does_not_match(facts: dict[str, Any]) -> None:
    made = stored(call(7, NOW - 1000), call(8, NOW - 900, is_connect=True))
    assert match(made, record(NOW, **facts)) == [None]


@pytest.mark.parametrize(
    ("flags", "is_sender"),
    [(2, True), (2 | 64, True), (2 | 1, True), (16, False), (18, False), (0, False)],
)
def test_only_the_first_tcp_packet_has_a_known_sender(flags: int, *, is_sender: bool) -> None:
    made = stored(call(7, NOW - 1000, protocol=TCP))
    (found,) = match(made, record(NOW, protocol=TCP, tcp_flags=flags))
    assert senders(found) == ({7}, is_sender)
    (found,) = match(made, record(NOW, tcp_flags=None))
    assert senders(found) == ({7}, False)


def test_datagram_lists_all_possible_senders() -> None:
    udp = record(NOW, protocol=UDP, tcp_flags=None)
    calls = (
        call(7, NOW - 1000, protocol=UDP, is_connect=True, source_port=0),
        call(8, NOW - 500, protocol=UDP),
    )
    assert list(map(senders, match(stored(*calls), udp))) == [({7, 8}, False)]
    assert list(map(senders, match(stored(*calls[:1]), udp))) == [({7}, False)]
    assert list(map(senders, match(stored(calls[1]), udp))) == [({8}, False)]
    # If there are too many, only those that have sent from the packet's port.
    many = (calls[0]._replace(image=image(each), socket=each) for each in range(100, 116))
    assert list(map(senders, match(stored(*many, calls[1]), udp))) == [({8}, False)]


@pytest.mark.parametrize("protocol", [1, 16, 17, 58, 136])
def test_only_tcp_packets_have_a_known_sender(protocol: int) -> None:
    """The sender of a datagram may use a connected socket, or one that gave up its port."""
    made = stored(call(7, NOW - 1000, protocol=protocol))
    assert list(map(senders, match(made, record(NOW, protocol=protocol)))) == [({7}, False)]


@pytest.mark.parametrize("header", ["extension_headers", "ip_options"])
def test_packet_with_a_routing_header_has_no_known_sender(header: str) -> None:
    """Its destination may be that of another call: the reported one is the final destination."""
    made = stored(call(7, NOW - 1000))
    detour = record(NOW, details={header: 1})
    assert list(map(senders, match(made, detour, record(NOW)))) == [({7}, False), ({7}, True)]


def test_packet_with_an_uncertain_sender_does_not_narrow_the_times_of_others() -> None:
    udp, tcp = record(NOW, source_port=9, protocol=UDP), record(NOW)
    events = (
        call(7, NOW - 5000, socket=7),
        ClosedSocket(NOW - 4000, 7),
        call(9, NOW - 3000, socket=9, source_port=9, protocol=UDP),
        call(8, NOW - 2000, socket=8),
    )
    assert list(map(senders, match(stored(*events), udp, tcp))) == [({9}, False), ({7, 8}, True)]
    # The first packet of a TCP connection can only be of the process that connected.
    first = call(9, NOW - 3000, socket=9, source_port=9)
    found = match(stored(*events[:2], first, events[3]), replace(tcp, source_port=9), tcp)
    assert list(map(senders, found)) == [({9}, True), ({8}, True)]


@pytest.mark.parametrize(("number", "is_named"), [(16, True), (17, False)])
def test_too_many_candidates_are_not_named(number: int, *, is_named: bool) -> None:
    made = stored(*(call(each, NOW - 1000) for each in range(number)))
    (found,) = match(made, record(NOW))
    assert (found is not None) == is_named


def test_port_of_a_closed_socket_is_of_the_next_caller() -> None:
    tcp: dict[str, Any] = {"protocol": TCP}
    made = stored(
        call(7, NOW - 9000, socket=1, **tcp),
        ClosedSocket(NOW - 8000, 1),
        call(9, NOW - 7000, socket=9, source_port=9, **tcp),
        ClosedSocket(NOW - 6500, 9),
        call(8, NOW - 6000, socket=2, **tcp),
    )
    first = record(NOW, tcp_flags=2, **tcp)
    found = match(made, first, replace(first, source_port=9), first)
    assert list(map(senders, found)) == [({7}, True), ({9}, True), ({8}, True)]
    # Without a packet between them, both are candidates.
    assert list(map(senders, match(stored(*made_of(made)), first))) == [({7, 8}, True)]


def test_socket_closed_before_the_record_was_logged_does_not_match() -> None:
    made = stored(call(7, NOW - 9000), ClosedSocket(NOW - 8000, 1), call(8, NOW - 6000, socket=2))
    (found,) = made.matches(logged(record(NOW), now_ns=NOW, since_ns=NOW - 7000))
    assert senders(found) == ({8}, True)


def made_of(found: SendCalls) -> list[Call | ClosedSocket]:
    events: list[Call | ClosedSocket] = []
    for each in found._order:
        events.append(each.call)
        if each.until_ns < NOW:
            events.append(ClosedSocket(each.until_ns, each.call.socket))
    return events


def test_dropped_calls_make_candidates_uncertain_for_some_time() -> None:
    """Calls may be unreported for 0.5 s more; packets are sent 10 s later, and read 10 s later."""
    made = stored(call(7, NOW - 1000))
    made.note_dropped(NOW)
    made.note_dropped(NOW - SECOND)  # an earlier time, read later
    later_ns = NOW + 20 * SECOND + SECOND // 2
    for now_ns, is_sender in ((NOW, False), (later_ns - 1, False), (later_ns, True)):
        made.add(call(7, now_ns - 1000))
        assert list(map(senders, match(made, record(now_ns), now_ns=now_ns))) == [({7}, is_sender)]


def test_evicted_calls_make_candidates_uncertain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(send_calls, "_MOST_STORED", 100)
    made = stored(
        *(call(7, NOW - 1000 + each, socket=each + 1, source_port=each) for each in range(99))
    )
    made.add(call(7, NOW - 900))
    assert list(map(senders, match(made, record(NOW)))) == [({7}, True)]
    for each in range(100, 400):
        made.add(call(7, NOW - 1000 + each, socket=each + 1, source_port=each % 3))
        made.add(call(each, NOW, is_connect=True, socket=each + 1))
    assert len(made._order) == 100
    assert sum(map(len, made._by_key.values())) == sum(map(len, made._by_socket.values())) == 100
    assert list(map(senders, match(made, record(NOW)))) == [({7}, False)]


def test_process_with_too_many_calls_may_have_sent_any_packet() -> None:
    """Its calls are unreported for 0.5 s more, and its packet is sent up to 10 s later."""
    made = stored(call(7, NOW - 1000), call(8, NOW - 900, source_port=9, is_any=True))
    assert list(map(senders, match(made, record(NOW)))) == [({7}, False)]
    since_ns = NOW - 900 + 10_500_000_000
    for earlier_ns, is_sender in ((1, False), (0, True)):
        now_ns = since_ns + SECOND
        made = stored(call(8, NOW - 900, socket=8, source_port=9, protocol=TCP, is_any=True))
        made.add(call(7, now_ns, protocol=TCP))
        packet = record(now_ns, protocol=TCP, tcp_flags=2)
        records = logged(packet, now_ns=now_ns, since_ns=since_ns - earlier_ns)
        assert list(map(senders, made.matches(records))) == [({7}, is_sender)]


def test_only_the_latest_of_many_similar_calls_are_checked() -> None:
    made = stored(*(call(7, NOW - 100 + each, socket=each + 1) for each in range(63)))
    assert list(map(senders, match(made, record(NOW)))) == [({7}, True)]
    # Also if the last one is later than the packet.
    made.add(call(7, NOW + 10, socket=64))
    assert list(map(senders, match(made, record(NOW)))) == [({7}, False)]


def test_eviction_of_sockets_closed_before_has_no_effect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(send_calls, "_MOST_STORED", 10)
    made = SendCalls()
    for number in range(100):
        now_ns = NOW + number * 1000
        made.add(call(number, now_ns, socket=number + 1, source_port=number, protocol=TCP))
        made.mark_closed(ClosedSocket(now_ns + 500, number + 1))
        packet = record(now_ns + 600, source_port=number, protocol=TCP, tcp_flags=2)
        found = match(made, packet, now_ns=now_ns + 600)
        assert found[0] is not None
        assert found[0].is_sender


def test_evicted_call_makes_later_candidates_uncertain_until_its_socket_was_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(send_calls, "_MOST_STORED", 2)
    elsewhere = (call(8, NOW - 800, socket=8, source_port=9), call(7, NOW - 700, socket=7))
    for closed, is_sender in (
        ((), False),
        ((ClosedSocket(NOW - 599, 9),), False),
        ((ClosedSocket(NOW - 601, 9),), True),
    ):
        made = stored(call(9, NOW - 900, socket=9), *closed, *elsewhere)
        (found,) = made.matches(logged(record(NOW), now_ns=NOW, since_ns=NOW - 600))
        assert senders(found) == ({7}, is_sender)


def test_call_is_stored_for_twenty_seconds() -> None:
    """Its last packet is at most 10 s later, and the read of that packet's record 10 s more."""
    made = stored(call(7, NOW - 20 * SECOND), call(8, NOW, socket=2, source_port=9))
    assert [each.call.image.pid for each in made._order] == [7, 8]
    made = stored(call(7, NOW - 20 * SECOND - 1), call(8, NOW, socket=2, source_port=9))
    assert [each.call.image.pid for each in made._order] == [8]
    assert len(made._by_key) == len(made._by_socket) == 1
    assert list(map(senders, match(made, record(NOW, source_port=9)))) == [({8}, True)]
