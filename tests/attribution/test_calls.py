"""Whose call a packet was, case by case."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest

from ocsf_nft.attribution import calls
from ocsf_nft.attribution.calls import Calls
from ocsf_nft.attribution.layout import Call, Closed
from tests.attribution.calling import BOOTED_NS, ICMP, SECOND, TCP, call, record

if TYPE_CHECKING:
    from ocsf_nft.attribution.calls import Match
    from ocsf_nft.record import Record

NOW: Final = 100 * SECOND


def match(calls_made: Calls, *records: Record, now_ns: int = NOW) -> list[Match | None]:
    moments = calls_made.moments(records, BOOTED_NS, now_ns)
    return [calls_made.match(each, moment) for each, moment in zip(records, moments, strict=True)]


def of(*told: Call | Closed, knows_types: bool = True) -> Calls:
    found = Calls(sees_refusals=knows_types)
    for each in told:
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


def test_what_nobody_could_read_is_no_frame() -> None:
    made = of(call(7, NOW - 1000, is_frame=True, is_refused=True))
    unread = {"protocol": None, "source_port": None, "destination": None, "destination_port": None}
    assert match(made, record(NOW, **unread)) == [None]
    assert list(map(who, match(made, record(NOW, rule="link", **unread)))) == [({7}, True)]


@pytest.mark.parametrize(
    ("flags", "is_sender"), [(2, True), (2 | 64, True), (16, False), (18, False), (0, False)]
)
def test_of_tcp_who_has_connected_is_known_to_have_sent_the_first_packet_alone(
    flags: int, *, is_sender: bool
) -> None:
    made = of(call(7, NOW - 1000, protocol=TCP))
    (found,) = match(made, record(NOW, protocol=TCP, tcp_flags=flags))
    assert who(found) == ({7}, is_sender)
    (found,) = match(made, record(NOW, protocol=TCP))
    assert who(found) == ({7}, False)


def test_a_first_packet_of_tcp_may_be_made_by_hand() -> None:
    raw = call(8, NOW - 500, protocol=TCP, socket=0, source_port=0, destination_port=0)
    packet = record(NOW, protocol=TCP, tcp_flags=2)
    made = of(call(7, NOW - 1000, protocol=TCP), raw._replace(is_refused=True))
    assert list(map(who, match(made, packet))) == [({7, 8}, True)]
    assert list(map(who, match(of(raw._replace(is_refused=True)), packet))) == [({8}, True)]


def test_where_a_socket_is_connected_others_may_use_it_that_are_not_told_of() -> None:
    told = (call(7, NOW - 1000, is_connect=True, source_port=0), call(7, NOW - 500))
    let_pass = record(NOW, verdict="permit")
    for made, packet in (
        (of(*told), let_pass),
        (of(*told, knows_types=False), record(NOW)),
        (of(*told[:1]), record(NOW)),
    ):
        assert list(map(who, match(made, packet))) == [({7}, False)]
    assert list(map(who, match(of(*told), record(NOW)))) == [({7}, True)]
    assert list(map(who, match(of(told[1]), let_pass))) == [({7}, True)]


def test_where_nothing_is_refused_what_was_refused_before_is_not_it() -> None:
    pinged = {"protocol": ICMP, "source_port": 0, "destination_port": 0}
    ping = record(NOW, protocol=ICMP, source_port=None, destination_port=None)
    made = of(call(7, NOW - 1000, is_refused=True, **pinged))
    assert list(map(who, match(made, ping))) == [({7}, True)]
    assert list(map(who, match(made, replace(ping, verdict="permit")))) == [({7}, False)]


def test_what_may_be_of_somebody_who_is_not_told_of_says_nothing_of_when_others_were() -> None:
    udp, tcp = record(NOW, source_port=9), record(NOW, protocol=TCP, tcp_flags=2)
    told = (
        call(7, NOW - 5000, socket=7, protocol=TCP),
        Closed(NOW - 4000, 7),
        call(9, NOW - 3000, socket=9, source_port=9),
        call(8, NOW - 2000, socket=8, protocol=TCP),
    )
    found = match(of(*told, knows_types=False), udp, tcp)
    assert list(map(who, found)) == [({9}, True), ({7, 8}, True)]
    assert list(map(who, match(of(*told), udp, tcp))) == [({9}, True), ({8}, True)]


def test_frames_are_whoever_sent_any_then() -> None:
    frame = record(NOW, rule="link", protocol=None, destination=None)
    made = of(call(7, NOW + 500, is_frame=True, is_refused=True), call(9, NOW - 500))
    assert list(map(who, match(made, frame))) == [({7}, True)]
    made.add(call(8, NOW + 600, is_frame=True, is_refused=True))
    assert list(map(who, match(made, frame))) == [({7, 8}, True)]


@pytest.mark.parametrize(("number", "is_told"), [(16, True), (17, False)])
def test_of_too_many_nobody_is_told(number: int, *, is_told: bool) -> None:
    made = of(*(call(each, NOW - 1000) for each in range(number)))
    (found,) = match(made, record(NOW))
    assert (found is not None) == is_told


def test_the_same_port_is_anothers_when_it_was_closed() -> None:
    made = of(
        call(7, NOW - 9000, socket=1),
        Closed(NOW - 8000, 1),
        call(9, NOW - 7000, socket=9, source_port=9),
        Closed(NOW - 6500, 9),
        call(8, NOW - 6000, socket=2),
    )
    between = record(NOW, source_port=9)
    found = match(made, record(NOW), between, record(NOW))
    assert list(map(who, found)) == [({7}, True), ({9}, True), ({8}, True)]
    # Without anything between them it may have been either.
    assert list(map(who, match(of(*made_of(made)), record(NOW)))) == [({7, 8}, True)]


def made_of(found: Calls) -> list[Call | Closed]:
    told: list[Call | Closed] = []
    for each in found._order:
        told.append(each.call)
        if each.until_ns < NOW:
            told.append(Closed(each.until_ns, each.call.socket))
    return told


@pytest.mark.parametrize(
    ("later_ns", "is_known"), [(0, True), (SECOND // 2, True), (SECOND, False)]
)
def test_who_is_not_told_of_for_a_while_is_known_for_that_while(
    later_ns: int, *, is_known: bool
) -> None:
    """So long after the last call that was told packets may be its own."""
    silent = call(7, NOW, is_refused=True, has_more=True)
    soon = call(9, NOW + later_ns, socket=9, source_port=9)
    made = of(silent, soon, call(8, NOW + later_ns + 100, is_refused=True))
    read_ns = NOW + later_ns + 200
    before, packet = record(read_ns, source_port=9), record(read_ns)
    _, found = match(made, before, packet, now_ns=read_ns)
    assert who(found) == (({7, 8} if is_known else {8}), True)


def test_where_calls_were_lost_it_may_have_been_others_until_all_is_known_again() -> None:
    made = of(call(7, NOW - 1000))
    made.lose(NOW)
    assert list(map(who, match(made, record(NOW)))) == [({7}, False)]
    later_ns = NOW + 19 * SECOND
    made.add(call(7, later_ns - 1000))
    assert list(map(who, match(made, record(later_ns), now_ns=later_ns))) == [({7}, False)]
    later_ns = NOW + 21 * SECOND
    made.add(call(7, later_ns - 1000))
    assert list(map(who, match(made, record(later_ns), now_ns=later_ns))) == [({7}, True)]


def test_no_more_calls_are_kept_than_should_and_who_was_forgotten_may_have_sent_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calls, "_KEPT", 100)
    made = of(*(call(7, NOW - 1000 + each, socket=each + 1) for each in range(100)))
    assert list(map(who, match(made, record(NOW)))) == [({7}, True)]
    for each in range(100, 400):
        made.add(call(7, NOW - 1000 + each, socket=each + 1))
        made.add(call(each, NOW, is_connect=True, socket=each + 1))
    assert len(made._order) == len(made._connected) == 100
    assert sum(map(len, made._by_key.values())) == sum(map(len, made._by_socket.values())) == 100
    assert list(map(who, match(made, record(NOW)))) == [({7}, False)]


def test_what_was_closed_before_all_that_comes_is_forgotten_without_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calls, "_KEPT", 10)
    made = Calls(sees_refusals=True)
    for number in range(100):
        now_ns = NOW + number * 1000
        made.add(call(number, now_ns, socket=number + 1, source_port=number))
        made.add(Closed(now_ns + 500, number + 1))
        packet = record(now_ns + 600, source_port=number)
        found = match(made, packet, now_ns=now_ns + 600)
        assert found[0] is not None
        assert found[0].is_sender


def test_nothing_old_is_kept() -> None:
    made = of(call(7, NOW - 21 * SECOND), call(8, NOW, socket=2, source_port=9))
    assert [each.call.image.pid for each in made._order] == [8]
    assert len(made._by_key) == len(made._by_socket) == 1
    assert list(map(who, match(made, record(NOW, source_port=9)))) == [({8}, True)]


@pytest.mark.parametrize("set_by", [-3600 * SECOND, 3600 * SECOND])
def test_a_clock_that_is_set_leaves_what_comes_after_it_known(set_by: int) -> None:
    made = of(call(7, NOW - 1000), Closed(NOW - 500, 1))
    match(made, record(NOW + set_by))
    assert list(map(who, match(made, record(NOW)))) == [({7}, True)]
