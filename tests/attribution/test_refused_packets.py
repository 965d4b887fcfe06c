"""Whose a refused packet was, case by case."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from ocsf_nft.attribution import refused_packets
from ocsf_nft.attribution.bpf_layout import NOBODY, Call
from ocsf_nft.attribution.refused_packets import Refusals
from tests.attribution.calling import SECOND, TCP, call, logged, record

if TYPE_CHECKING:
    from ocsf_nft.attribution.call_match import Match
    from ocsf_nft.record import Record

NOW: Final = 100 * SECOND
ANY: Final = {"is_any": True, "protocol": 0, "source_port": 0, "destination": b""}


def test_repeats_are_those_of_the_program_in_the_kernel() -> None:
    source = (Path(refused_packets.__file__).parent / "bpf/capture.bpf.c").read_text("utf-8")
    assert f"#define AGAIN {refused_packets._SILENCE_NS}ULL\n" in source
    assert f"#define TIMES {refused_packets._KEPT_ALIKE}\n" in source


def of(*told: Call) -> Refusals:
    found = Refusals()
    for each in told:
        found.add(each)
    return found


def match(told: Refusals, *records: Record, since_ns: int = 0) -> list[Match | None]:
    return list(told.matches(logged(*records, now_ns=NOW, since_ns=since_ns)))


def who(told: Refusals, *records: Record, since_ns: int = 0) -> list[tuple[set[int], bool] | None]:
    """The numbers of the processes, and whether it was one of them."""
    return [
        None if each is None else ({one.image.pid for one in each.calls}, each.is_sender)
        for each in match(told, *records, since_ns=since_ns)
    ]


def test_who_was_told_to_have_sent_it_has_sent_it() -> None:
    assert who(of(call(7, NOW)), record(NOW)) == [({7}, True)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"source_port": 9},
        {"protocol": 136},
        {"destination_port": 9},
        {"destination": "203.0.113.8"},
        {"uid": 0},
        {"uid": None},
        {"protocol": None},
        {"rule": "link"},
    ],
    ids=str,
)
def test_what_has_another_header_or_user_is_nobodys(wrong: dict[str, Any]) -> None:
    assert who(of(call(7, NOW)), record(NOW, **wrong)) == [None]


@pytest.mark.parametrize(
    ("flags", "is_syn"),
    [(2, True), (2 | 64, True), (2 | 1, True), (16, False), (18, False), (0, False)],
)
def test_of_tcp_what_begins_a_connection_is_another_packet_than_the_others(
    flags: int, *, is_syn: bool
) -> None:
    packet = record(NOW, protocol=TCP, tcp_flags=flags)
    told = of(call(7, NOW, protocol=TCP, is_syn=True), call(8, NOW, protocol=TCP))
    assert who(told, packet) == [({7 if is_syn else 8}, True)]
    # Flags of what is no TCP are no flags.
    assert who(of(call(7, NOW)), record(NOW, tcp_flags=flags)) == [({7}, True)]


def test_packet_without_ports_is_of_who_sent_one_without() -> None:
    ping = call(7, NOW, protocol=1, source_port=0, destination_port=0)
    packet = record(NOW, protocol=1, source_port=None, destination_port=None)
    assert who(of(ping), packet) == [({7}, True)]


def test_a_packet_is_of_one_record() -> None:
    told = of(call(7, NOW - 3), call(7, NOW - 2))
    assert who(told, record(NOW), record(NOW), record(NOW)) == [({7}, True), ({7}, True), None]
    assert (told._kept, told._by_key) == (0, {})
    told.add(call(8, NOW - 1))
    assert who(told, record(NOW)) == [({8}, True)]


def test_what_was_told_first_is_of_the_record_that_was_logged_first() -> None:
    told = of(call(7, NOW - 3), call(7, NOW - 2))
    assert who(told, record(NOW)) == [({7}, True)]
    assert who(told, record(NOW), since_ns=NOW - 2) == [({7}, True)]


def test_of_several_that_sent_the_same_it_may_have_been_each_and_stays_so() -> None:
    told = of(call(7, NOW - 3), call(8, NOW - 2))
    assert who(told, record(NOW), record(NOW)) == [({7, 8}, True)] * 2


@pytest.mark.parametrize(("number", "is_told"), [(16, True), (17, False)])
def test_of_too_many_nobody_is_told(number: int, *, is_told: bool) -> None:
    (found,) = who(of(*(call(each, NOW) for each in range(1, number + 1))), record(NOW))
    assert (found is not None) == is_told


def test_what_was_refused_before_the_first_record_was_logged_is_not_it() -> None:
    told = of(call(7, NOW - 5000), call(8, NOW - 1000))
    assert who(told, record(NOW), since_ns=NOW - 1000) == [({8}, True)]
    assert who(told, record(NOW), since_ns=NOW - 999) == [None]
    assert who(told, record(NOW), since_ns=NOW - 5000) == [({7}, True)]


def test_a_packet_is_the_one_of_the_same_bytes() -> None:
    told = of(call(7, NOW, sum=1), call(8, NOW, sum=2), call(9, NOW, sum=3))
    packets = [record(NOW, captured_sum=number) for number in (2, 3, 4, 1, 1)]
    assert who(told, *packets) == [({8}, True), ({9}, True), None, ({7}, True), None]
    # Where they were not read it may be any.
    told = of(call(7, NOW, sum=1), call(8, NOW))
    assert who(told, *packets[3:]) == [({7, 8}, True)] * 2
    assert who(told, packets[0]) == [({8}, True)]


def test_where_a_record_has_no_bytes_its_packet_was_told_about_when_it_was_logged() -> None:
    soon_ns = 500_000_000
    for packet, told in (
        (record(NOW), call(7, NOW - soon_ns - 1, sum=1)),
        (record(NOW, captured_sum=1), call(7, NOW - soon_ns - 1)),
    ):
        assert who(of(told), packet) == [({7}, False)]
        assert who(of(told._replace(time_ns=NOW - soon_ns)), packet) == [({7}, True)]
    assert who(of(call(7, NOW - SECOND, sum=1)), record(NOW, captured_sum=1)) == [({7}, True)]


def test_where_nobody_knows_who_sent_one_it_may_have_been_anybody() -> None:
    told = of(call(7, NOW), call(0, NOW, image=NOBODY))
    assert who(told, record(NOW)) == [({7}, False)]
    assert who(of(call(0, NOW, image=NOBODY)), record(NOW)) == [None]


def test_what_could_not_be_read_may_be_any_packet() -> None:
    told = of(call(7, NOW), call(8, NOW, **ANY))
    packets = record(NOW), record(NOW, source_port=9), record(NOW, uid=0)  # of another user
    assert who(told, *packets) == [({7, 8}, True), ({8}, True), None]
    assert who(told, packets[0]) == [({7}, True)]


def test_frames_are_whoever_sent_any_then() -> None:
    frame = record(NOW, rule="link", protocol=None, destination=None)
    sent = call(7, NOW, is_frame=True)
    assert who(of(sent, call(9, NOW)), frame, frame) == [({7}, True), None]
    assert who(of(sent, call(8, NOW, is_frame=True)), frame) == [({7, 8}, True)]
    assert who(of(sent), replace(frame, uid=0)) == [None]


@pytest.mark.parametrize(
    ("later_ns", "is_known"), [(0, True), (SECOND // 2, True), (SECOND, False)]
)
def test_who_is_not_told_for_a_while_may_have_sent_it_for_that_while(
    later_ns: int, *, is_known: bool
) -> None:
    told = of(call(7, NOW - later_ns, has_more=True, sum=1), call(8, NOW, sum=2))
    found = who(told, *[record(NOW, captured_sum=2)] * 2, since_ns=NOW)
    assert found == [({7, 8}, True)] * 2 if is_known else [({8}, True), None]
    # What is not told is of him or of nobody, or of somebody who is still to be told of.
    assert who(told, record(NOW, captured_sum=3), since_ns=NOW) == [
        ({7}, False) if is_known else None
    ]


def test_what_is_not_told_is_not_spent() -> None:
    told = of(call(7, NOW, has_more=True, sum=1))
    assert who(told, *[record(NOW, captured_sum=1)] * 3) == [({7}, True)] * 3


def test_of_several_threads_none_is_told() -> None:
    told = of(call(7, NOW - 2, tid=8), call(7, NOW - 1))
    found = match(told, record(NOW), record(NOW))
    assert [each.calls[0].tid for each in found if each is not None] == [0, 0]
    (alone,) = match(of(call(7, NOW, tid=8)), record(NOW))
    assert alone is not None
    assert alone.calls[0].tid == 8
    told = of(call(7, NOW, tid=8, sum=1), call(7, NOW, tid=9, sum=2))
    found = match(told, record(NOW, captured_sum=1), record(NOW, captured_sum=2))
    assert [each.calls[0].tid for each in found if each is not None] == [8, 9]


def test_one_that_is_still_to_be_told_is_waited_for() -> None:
    def is_late(told: Refusals, number: int = 1, captured_sum: int | None = None) -> bool:
        packets = [record(NOW, captured_sum=captured_sum)] * number
        return told.is_late(logged(*packets, now_ns=NOW))

    assert is_late(of())
    assert is_late(of(call(7, NOW - SECOND)))  # one that was not logged
    assert not is_late(of(call(7, NOW)))
    assert is_late(of(call(7, NOW)), 2)
    assert not is_late(of(call(7, NOW), call(8, NOW)), 2)
    assert is_late(of(call(7, NOW - SECOND, has_more=True)))
    assert not is_late(of(call(7, NOW, **ANY)))
    assert is_late(of(call(7, NOW, sum=1)), captured_sum=2)
    assert not is_late(of(call(7, NOW - SECOND, sum=1)), captured_sum=1)
    for facts in ({"uid": None}, {"protocol": None}):
        assert not of().is_late(logged(record(NOW, **facts), now_ns=NOW))


def test_where_some_were_lost_it_may_have_been_others_until_what_comes_is_later() -> None:
    told = of(call(7, NOW - 1000))
    told.lose(NOW)
    assert who(told, record(NOW), since_ns=NOW - 2000) == [({7}, False)]
    told.add(call(7, NOW + 1000))
    assert who(told, record(NOW), since_ns=NOW + 1) == [({7}, True)]


def test_no_more_are_kept_than_should_and_who_was_forgotten_may_have_sent_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refused_packets, "_KEPT", 10)
    told = of(*(call(7, NOW + each, source_port=each + 1) for each in range(25)))
    assert (told._kept, len(told._by_key)) == (10, 10)
    packet = record(NOW, source_port=25)
    assert who(told, packet, since_ns=NOW + 14) == [({7}, False)]
    told.add(call(7, NOW + 25, source_port=25))
    assert who(told, packet, since_ns=NOW + 15) == [({7}, True)]


def test_refusals_evicts_the_packets_that_were_refused_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refused_packets, "_KEPT", 3)
    told = of(*(call(7, NOW + each, source_port=port) for each, port in enumerate((1, 2, 1, 3))))
    assert [key.way.source_port for key in told._by_key] == [1, 3]


def test_refusals_returns_the_latest_packet_of_a_process() -> None:
    told = of(call(7, NOW - 2, comm=b"early"), call(7, NOW - 1, comm=b"late"))
    (found,) = match(told, record(NOW))
    assert found is not None
    assert [each.comm for each in found.calls] == [b"late"]


def test_who_was_silent_when_it_was_forgotten_may_have_sent_what_comes_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refused_packets, "_KEPT", 1)
    told = of(call(7, NOW, has_more=True), call(8, NOW + 1, source_port=9))
    packet = record(NOW, source_port=9)
    assert who(told, packet, since_ns=NOW + 1) == [({8}, False)]


def test_of_many_alike_the_latest_are_kept_and_it_may_have_been_one_of_the_others() -> None:
    told = of(*(call(7, NOW + each, sum=each + 1) for each in range(1000)))
    assert told._kept == 8
    packets = [record(NOW, captured_sum=number) for number in (1000, 1000, 999, 1)]
    late_ns = NOW + 992
    assert who(told, *packets, since_ns=late_ns) == [({7}, True), None, ({7}, True), None]
    assert told._kept == 6
    assert who(told, *packets[:1], since_ns=NOW + 990) == [({7}, False)]


def test_of_many_processes_alike_the_first_is_forgotten() -> None:
    told = of(*(call(each, NOW + each) for each in range(1, 19)))
    assert told._kept == 17
    told.add(call(99, NOW + 99, source_port=9))
    packet = record(NOW, source_port=9)
    assert who(told, packet, since_ns=NOW + 1) == [({99}, False)]
