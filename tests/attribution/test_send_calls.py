"""Whose call a packet was, case by case."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest

from ocsf_nft.attribution import send_calls
from ocsf_nft.attribution.bpf_layout import Call, Closed
from ocsf_nft.attribution.send_calls import Calls
from tests.attribution import calling
from tests.attribution.calling import SECOND, SYN, TCP, UDP, image, logged

if TYPE_CHECKING:
    from ocsf_nft.attribution.call_match import Match
    from ocsf_nft.record import Record

NOW: Final = 100 * SECOND


def call(by: int, time_ns: int, **facts: Any) -> Call:
    """A process begins a connection of TCP."""
    return calling.call(by, time_ns, **({"protocol": TCP} | facts))


def record(read_ns: int, **facts: Any) -> Record:
    """The record of its first packet."""
    return calling.record(read_ns, **({"protocol": TCP, "tcp_flags": SYN} | facts))


def match(calls_made: Calls, *records: Record, now_ns: int = NOW) -> list[Match | None]:
    return list(calls_made.matches(logged(*records, now_ns=now_ns)))


def of(*told: Call | Closed) -> Calls:
    found = Calls()
    for each in told:
        if isinstance(each, Closed):
            found.close(each)
        else:
            found.add(each)
    return found


def who(found: Match | None) -> tuple[set[int], bool] | None:
    """The numbers of the processes, and whether it was one of them."""
    return None if found is None else ({each.image.pid for each in found.calls}, found.is_sender)


def test_a_call_that_the_kernel_saw_is_whose_packet_it_is() -> None:
    (found,) = match(of(call(7, NOW - 1000, comm=b"early"), call(7, NOW - 500)), record(NOW))
    assert who(found) == ({7}, True)
    assert found is not None
    assert found.calls[0].comm == b"x"  # as it was called latest


@pytest.mark.parametrize("wrong", [{"source_port": 9}, {"protocol": 136}, {"destination_port": 9}])
def test_a_packet_of_another_socket_or_to_elsewhere_is_nobodys(wrong: dict[str, Any]) -> None:
    assert match(of(call(7, NOW - 1000)), record(NOW, **wrong)) == [None]
    assert match(of(call(7, NOW - 1000, destination=bytes(4))), record(NOW)) == [None]


@pytest.mark.parametrize("facts", [{"uid": None}, {"protocol": None}, {"rule": "link"}])
def test_what_no_socket_of_a_process_has_sent_is_nobodys(facts: dict[str, Any]) -> None:
    made = of(call(7, NOW - 1000), call(8, NOW - 900, is_connect=True))
    assert match(made, record(NOW, **facts)) == [None]


@pytest.mark.parametrize(
    ("flags", "is_sender"),
    [(2, True), (2 | 64, True), (2 | 1, True), (16, False), (18, False), (0, False)],
)
def test_of_tcp_who_has_connected_is_known_to_have_sent_the_first_packet_alone(
    flags: int, *, is_sender: bool
) -> None:
    made = of(call(7, NOW - 1000, protocol=TCP))
    (found,) = match(made, record(NOW, protocol=TCP, tcp_flags=flags))
    assert who(found) == ({7}, is_sender)
    (found,) = match(made, record(NOW, tcp_flags=None))
    assert who(found) == ({7}, False)


def test_calls_lists_all_that_may_have_sent_a_datagram() -> None:
    udp = record(NOW, protocol=UDP, tcp_flags=None)
    told = (
        call(7, NOW - 1000, protocol=UDP, is_connect=True, source_port=0),
        call(8, NOW - 500, protocol=UDP),
    )
    assert list(map(who, match(of(*told), udp))) == [({7, 8}, False)]
    assert list(map(who, match(of(*told[:1]), udp))) == [({7}, False)]
    assert list(map(who, match(of(told[1]), udp))) == [({8}, False)]
    # Of too many, those alone that have sent from the packet's port.
    many = (told[0]._replace(image=image(each), socket=each) for each in range(100, 116))
    assert list(map(who, match(of(*many, told[1]), udp))) == [({8}, False)]


@pytest.mark.parametrize("protocol", [1, 16, 17, 58, 136])
def test_calls_knows_the_sender_of_tcp_alone(protocol: int) -> None:
    """Of a datagram, the sender may be a connected socket, or one that gave its port up."""
    made = of(call(7, NOW - 1000, protocol=protocol))
    assert list(map(who, match(made, record(NOW, protocol=protocol)))) == [({7}, False)]


@pytest.mark.parametrize("header", ["extension_headers", "ip_options"])
def test_calls_knows_no_sender_of_a_packet_that_may_be_on_a_detour(header: str) -> None:
    """Its destination may be that of another call: the one that was told is the last one."""
    made = of(call(7, NOW - 1000))
    detour = record(NOW, details={header: 1})
    assert list(map(who, match(made, detour, record(NOW)))) == [({7}, False), ({7}, True)]


def test_what_may_be_of_somebody_who_is_not_told_of_says_nothing_of_when_others_were() -> None:
    udp, tcp = record(NOW, source_port=9, protocol=UDP), record(NOW)
    told = (
        call(7, NOW - 5000, socket=7),
        Closed(NOW - 4000, 7),
        call(9, NOW - 3000, socket=9, source_port=9, protocol=UDP),
        call(8, NOW - 2000, socket=8),
    )
    assert list(map(who, match(of(*told), udp, tcp))) == [({9}, False), ({7, 8}, True)]
    # A first packet of TCP can only be of who has connected.
    first = call(9, NOW - 3000, socket=9, source_port=9)
    found = match(of(*told[:2], first, told[3]), replace(tcp, source_port=9), tcp)
    assert list(map(who, found)) == [({9}, True), ({8}, True)]


@pytest.mark.parametrize(("number", "is_told"), [(16, True), (17, False)])
def test_of_too_many_nobody_is_told(number: int, *, is_told: bool) -> None:
    made = of(*(call(each, NOW - 1000) for each in range(number)))
    (found,) = match(made, record(NOW))
    assert (found is not None) == is_told


def test_the_same_port_is_anothers_when_it_was_closed() -> None:
    tcp: dict[str, Any] = {"protocol": TCP}
    made = of(
        call(7, NOW - 9000, socket=1, **tcp),
        Closed(NOW - 8000, 1),
        call(9, NOW - 7000, socket=9, source_port=9, **tcp),
        Closed(NOW - 6500, 9),
        call(8, NOW - 6000, socket=2, **tcp),
    )
    first = record(NOW, tcp_flags=2, **tcp)
    found = match(made, first, replace(first, source_port=9), first)
    assert list(map(who, found)) == [({7}, True), ({9}, True), ({8}, True)]
    # Without anything between them it may have been either.
    assert list(map(who, match(of(*made_of(made)), first))) == [({7, 8}, True)]


def test_what_was_closed_before_anything_was_logged_is_not_it() -> None:
    made = of(call(7, NOW - 9000), Closed(NOW - 8000, 1), call(8, NOW - 6000, socket=2))
    (found,) = made.matches(logged(record(NOW), now_ns=NOW, since_ns=NOW - 7000))
    assert who(found) == ({8}, True)


def made_of(found: Calls) -> list[Call | Closed]:
    told: list[Call | Closed] = []
    for each in found._order:
        told.append(each.call)
        if each.until_ns < NOW:
            told.append(Closed(each.until_ns, each.call.socket))
    return told


def test_where_calls_were_lost_it_may_have_been_others_until_all_is_known_again() -> None:
    """A process may be silent for half a second more: packets come, and are read, ten later."""
    made = of(call(7, NOW - 1000))
    made.lose(NOW)
    made.lose(NOW - SECOND)  # what was told before that is read later
    later_ns = NOW + 20 * SECOND + SECOND // 2
    for now_ns, is_sender in ((NOW, False), (later_ns - 1, False), (later_ns, True)):
        made.add(call(7, now_ns - 1000))
        assert list(map(who, match(made, record(now_ns), now_ns=now_ns))) == [({7}, is_sender)]


def test_no_more_calls_are_kept_than_should_and_who_was_forgotten_may_have_sent_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(send_calls, "_KEPT", 100)
    made = of(
        *(call(7, NOW - 1000 + each, socket=each + 1, source_port=each) for each in range(99))
    )
    made.add(call(7, NOW - 900))
    assert list(map(who, match(made, record(NOW)))) == [({7}, True)]
    for each in range(100, 400):
        made.add(call(7, NOW - 1000 + each, socket=each + 1, source_port=each % 3))
        made.add(call(each, NOW, is_connect=True, socket=each + 1))
    assert len(made._order) == 100
    assert sum(map(len, made._by_way.values())) == sum(map(len, made._by_socket.values())) == 100
    assert list(map(who, match(made, record(NOW)))) == [({7}, False)]


def test_who_calls_too_often_to_be_told_may_have_sent_anything() -> None:
    """Nothing of it is told for half a second more, and its packet is sent ten seconds later."""
    made = of(call(7, NOW - 1000), call(8, NOW - 900, source_port=9, is_any=True))
    assert list(map(who, match(made, record(NOW)))) == [({7}, False)]
    since_ns = NOW - 900 + 10_500_000_000
    for earlier_ns, is_sender in ((1, False), (0, True)):
        now_ns = since_ns + SECOND
        made = of(call(8, NOW - 900, socket=8, source_port=9, protocol=TCP, is_any=True))
        made.add(call(7, now_ns, protocol=TCP))
        packet = record(now_ns, protocol=TCP, tcp_flags=2)
        told = logged(packet, now_ns=now_ns, since_ns=since_ns - earlier_ns)
        assert list(map(who, made.matches(told))) == [({7}, is_sender)]


def test_of_many_calls_that_are_alike_no_more_are_looked_at_than_are_of_use() -> None:
    made = of(*(call(7, NOW - 100 + each, socket=each + 1) for each in range(63)))
    assert list(map(who, match(made, record(NOW)))) == [({7}, True)]
    # Also where the last one is of a later time than the packet.
    made.add(call(7, NOW + 10, socket=64))
    assert list(map(who, match(made, record(NOW)))) == [({7}, False)]


def test_what_was_closed_before_all_that_comes_is_forgotten_without_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(send_calls, "_KEPT", 10)
    made = Calls()
    for number in range(100):
        now_ns = NOW + number * 1000
        made.add(call(number, now_ns, socket=number + 1, source_port=number, protocol=TCP))
        made.close(Closed(now_ns + 500, number + 1))
        packet = record(now_ns + 600, source_port=number, protocol=TCP, tcp_flags=2)
        found = match(made, packet, now_ns=now_ns + 600)
        assert found[0] is not None
        assert found[0].is_sender


def test_calls_remembers_whether_an_evicted_call_may_be_of_a_later_packet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(send_calls, "_KEPT", 2)
    elsewhere = (call(8, NOW - 800, socket=8, source_port=9), call(7, NOW - 700, socket=7))
    for closed, is_sender in (
        ((), False),
        ((Closed(NOW - 599, 9),), False),
        ((Closed(NOW - 601, 9),), True),
    ):
        made = of(call(9, NOW - 900, socket=9), *closed, *elsewhere)
        (found,) = made.matches(logged(record(NOW), now_ns=NOW, since_ns=NOW - 600))
        assert who(found) == ({7}, is_sender)


def test_calls_stores_a_call_for_twenty_seconds() -> None:
    """Ten until its last packet, and ten more until the record of that is read."""
    made = of(call(7, NOW - 20 * SECOND), call(8, NOW, socket=2, source_port=9))
    assert [each.call.image.pid for each in made._order] == [7, 8]
    made = of(call(7, NOW - 20 * SECOND - 1), call(8, NOW, socket=2, source_port=9))
    assert [each.call.image.pid for each in made._order] == [8]
    assert len(made._by_way) == len(made._by_socket) == 1
    assert list(map(who, match(made, record(NOW, source_port=9)))) == [({8}, True)]
