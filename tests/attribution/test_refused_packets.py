"""Attribution of refused packets to their reported senders, case by case."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from ocsf_nft.attribution import refused_packets
from ocsf_nft.attribution.bpf_capture import UNKNOWN_IMAGE, Call
from ocsf_nft.attribution.packet_matching import SILENCE_NS, LoggedRecord
from ocsf_nft.attribution.refused_packets import RefusedPackets
from tests.attribution.calling import PORTS, SECOND, TCP, call, logged, record

if TYPE_CHECKING:
    from ocsf_nft.attribution.packet_matching import Match
    from ocsf_nft.record import Record

NOW: Final = 100 * SECOND
ANY: Final = {"is_any": True, "protocol": 0, "source_port": 0, "destination": b""}


def test_repetition_limits_are_those_of_the_bpf_program() -> None:
    source = (Path(refused_packets.__file__).parent / "bpf/capture.bpf.c").read_text("utf-8")
    assert f"#define PAUSE_NS {SILENCE_NS}ULL\n" in source
    assert f"#define MAX_REPEATS {refused_packets._MOST_SIMILAR}\n" in source


def stored(*packets: Call) -> RefusedPackets:
    found = RefusedPackets()
    for each in packets:
        found.add(each)
    return found


def stored_ports(refused: RefusedPackets) -> list[list[int]]:
    """Return the source ports of the stored packets of each user."""
    return [[key.packet.source_port for key in each._by_key] for each in refused._by_user.values()]


def matches(refused: RefusedPackets, *records: Record, since_ns: int = 0) -> list[Match | None]:
    return list(refused.matches(logged(*records, now_ns=NOW, since_ns=since_ns)))


def senders(
    refused: RefusedPackets, *records: Record, since_ns: int = 0
) -> list[tuple[set[int], bool] | None]:
    """Return the numbers of the candidates, and True if one of them is the sender."""
    return [
        None if each is None else ({one.image.pid for one in each.calls}, each.is_sender)
        for each in matches(refused, *records, since_ns=since_ns)
    ]


def test_packet_is_of_its_reported_sender() -> None:
    assert senders(stored(call(7, NOW)), record(NOW)) == [({7}, True)]


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
def test_packet_with_another_header_or_user_has_no_sender(wrong: dict[str, Any]) -> None:
    assert senders(stored(call(7, NOW)), record(NOW, **wrong)) == [None]


@pytest.mark.parametrize(
    ("flags", "is_syn"),
    [(2, True), (2 | 64, True), (2 | 1, True), (16, False), (18, False), (0, False)],
)
def test_tcp_syn_and_other_packets_of_a_connection_are_different_packets(
    flags: int, *, is_syn: bool
) -> None:
    packet = record(NOW, protocol=TCP, tcp_flags=flags)
    refused = stored(call(7, NOW, protocol=TCP, is_syn=True), call(8, NOW, protocol=TCP))
    assert senders(refused, packet) == [({7 if is_syn else 8}, True)]
    # Flags are ignored for other protocols.
    assert senders(stored(call(7, NOW)), record(NOW, tcp_flags=flags)) == [({7}, True)]


def test_packet_without_ports_is_of_the_sender_of_one_without() -> None:
    ping = call(7, NOW, protocol=1, source_port=0, destination_port=0)
    packet = record(NOW, protocol=1, source_port=None, destination_port=None)
    assert senders(stored(ping), packet) == [({7}, True)]


def test_reported_packet_belongs_to_one_record() -> None:
    refused = stored(call(7, NOW - 3), call(7, NOW - 2))
    assert senders(refused, record(NOW), record(NOW), record(NOW)) == [
        ({7}, True),
        ({7}, True),
        None,
    ]
    assert (refused._number, refused._by_user) == (0, {})
    refused.add(call(8, NOW - 1))
    assert senders(refused, record(NOW)) == [({8}, True)]


def test_packet_reported_first_belongs_to_the_record_logged_first() -> None:
    refused = stored(call(7, NOW - 3), call(7, NOW - 2))
    assert senders(refused, record(NOW)) == [({7}, True)]
    assert senders(refused, record(NOW), since_ns=NOW - 2) == [({7}, True)]


def test_senders_of_equal_packets_all_stay_candidates() -> None:
    refused = stored(call(7, NOW - 3), call(8, NOW - 2))
    assert senders(refused, record(NOW), record(NOW)) == [({7, 8}, True)] * 2


@pytest.mark.parametrize(("number", "is_named"), [(16, True), (17, False)])
def test_too_many_senders_are_not_named(number: int, *, is_named: bool) -> None:
    (found,) = senders(stored(*(call(each, NOW) for each in range(1, number + 1))), record(NOW))
    assert (found is not None) == is_named


def test_packet_refused_before_the_record_was_logged_does_not_match() -> None:
    refused = stored(call(7, NOW - 5000), call(8, NOW - 1000))
    assert senders(refused, record(NOW), since_ns=NOW - 1000) == [({8}, True)]
    assert senders(refused, record(NOW), since_ns=NOW - 999) == [None]
    assert senders(refused, record(NOW), since_ns=NOW - 5000) == [({7}, True)]


def test_packet_matches_the_record_with_the_same_bytes() -> None:
    refused = stored(call(7, NOW, sum=1), call(8, NOW, sum=2), call(9, NOW, sum=3))
    packets = [record(NOW, captured_sum=number) for number in (2, 3, 4, 1, 1)]
    assert senders(refused, *packets) == [({8}, True), ({9}, True), None, ({7}, True), None]
    # If its bytes were not read, a packet may match any record.
    refused = stored(call(7, NOW, sum=1), call(8, NOW))
    assert senders(refused, *packets[3:]) == [({7, 8}, True)] * 2
    assert senders(refused, packets[0]) == [({8}, True)]


def test_record_without_bytes_matches_a_packet_reported_at_about_its_time() -> None:
    soon_ns = 500_000_000
    for packet, reported in (
        (record(NOW), call(7, NOW - soon_ns - 1, sum=1)),
        (record(NOW, captured_sum=1), call(7, NOW - soon_ns - 1)),
    ):
        assert senders(stored(reported), packet) == [({7}, False)]
        soon = reported._replace(time_ns=NOW - soon_ns)
        assert senders(stored(soon), packet) == [({7}, True)]
    assert senders(stored(call(7, NOW - SECOND, sum=1)), record(NOW, captured_sum=1)) == [
        ({7}, True)
    ]


def test_packet_without_a_known_sender_makes_the_candidates_uncertain() -> None:
    refused = stored(call(7, NOW), call(0, NOW, image=UNKNOWN_IMAGE))
    assert senders(refused, record(NOW)) == [({7}, False)]
    assert senders(stored(call(0, NOW, image=UNKNOWN_IMAGE)), record(NOW)) == [None]


def test_unreadable_packet_may_be_any_packet() -> None:
    refused = stored(call(7, NOW), call(8, NOW, **ANY))
    packets = record(NOW), record(NOW, source_port=9), record(NOW, uid=0)  # of another user
    assert senders(refused, *packets) == [({7, 8}, True), ({8}, True), None]
    assert senders(refused, packets[0]) == [({7}, True)]


def test_frame_may_be_of_any_sender_of_a_frame() -> None:
    frame = record(NOW, rule="link", protocol=None, destination=None)
    sent = call(7, NOW, is_frame=True)
    assert senders(stored(sent, call(9, NOW)), frame, frame) == [({7}, True), None]
    assert senders(stored(sent, call(8, NOW, is_frame=True)), frame) == [({7, 8}, True)]
    assert senders(stored(sent), replace(frame, uid=0)) == [None]


@pytest.mark.parametrize(
    ("later_ns", "is_known"), [(0, True), (SECOND // 2, True), (SECOND, False)]
)
def test_sender_that_is_not_reported_for_a_while_stays_a_candidate_for_that_time(
    later_ns: int, *, is_known: bool
) -> None:
    refused = stored(call(7, NOW - later_ns, has_more=True, sum=1), call(8, NOW, sum=2))
    found = senders(refused, *[record(NOW, captured_sum=2)] * 2, since_ns=NOW)
    assert found == [({7, 8}, True)] * 2 if is_known else [({8}, True), None]
    # A packet that is not reported is of this process or of an unknown sender, or is reported soon.
    assert senders(refused, record(NOW, captured_sum=3), since_ns=NOW) == [
        ({7}, False) if is_known else None
    ]


def test_sender_with_unreported_packets_is_not_removed() -> None:
    refused = stored(call(7, NOW, has_more=True, sum=1))
    assert senders(refused, *[record(NOW, captured_sum=1)] * 3) == [({7}, True)] * 3


def test_packets_of_several_threads_name_no_thread() -> None:
    refused = stored(call(7, NOW - 2, tid=8), call(7, NOW - 1))
    found = matches(refused, record(NOW), record(NOW))
    assert [each.calls[0].tid for each in found if each is not None] == [0, 0]
    (alone,) = matches(stored(call(7, NOW, tid=8)), record(NOW))
    assert alone is not None
    assert alone.calls[0].tid == 8
    refused = stored(call(7, NOW, tid=8, sum=1), call(7, NOW, tid=9, sum=2))
    found = matches(refused, record(NOW, captured_sum=1), record(NOW, captured_sum=2))
    assert [each.calls[0].tid for each in found if each is not None] == [8, 9]


def test_pending_report_of_a_packet_is_detected() -> None:
    def is_pending(
        refused: RefusedPackets, number: int = 1, captured_sum: int | None = None
    ) -> bool:
        packets = [record(NOW, captured_sum=captured_sum)] * number
        return refused.is_event_pending(logged(*packets, now_ns=NOW))

    assert is_pending(stored())
    assert is_pending(stored(call(7, NOW - SECOND)))  # one that was not logged
    assert not is_pending(stored(call(7, NOW)))
    assert is_pending(stored(call(7, NOW)), 2)
    assert not is_pending(stored(call(7, NOW), call(8, NOW)), 2)
    assert is_pending(stored(call(7, NOW - SECOND, has_more=True)))
    assert not is_pending(stored(call(7, NOW, **ANY)))
    assert is_pending(stored(call(7, NOW, sum=1)), captured_sum=2)
    assert not is_pending(stored(call(7, NOW - SECOND, sum=1)), captured_sum=1)
    for facts in ({"uid": None}, {"protocol": None}):
        assert not stored().is_event_pending(logged(record(NOW, **facts), now_ns=NOW))


def test_packet_without_a_known_protocol_has_the_sender_of_equal_bytes() -> None:
    packet = record(NOW, protocol=None, captured_sum=3)
    for other in ({"sum": 3}, {**ANY, "sum": 4}, {**ANY, "sum": 0}, {**ANY, "owner": 1, "sum": 3}):
        assert senders(stored(call(7, NOW, **other)), packet) == [None]
    refused = stored(call(7, NOW, **ANY, sum=3), call(8, NOW, **ANY, sum=4))
    assert list(refused.are_awaited(logged(packet, packet, now_ns=NOW))) == [False, True]
    assert senders(refused, packet, packet) == [({7}, True), None]


def test_dropped_reports_make_candidates_uncertain_until_packets_are_later() -> None:
    refused = stored(call(7, NOW - 1000))
    refused.note_dropped(NOW)
    assert senders(refused, record(NOW), since_ns=NOW - 2000) == [({7}, False)]
    refused.add(call(7, NOW + SECOND))
    assert senders(refused, record(NOW), since_ns=NOW + SILENCE_NS + 1) == [({7}, True)]


def test_sender_is_uncertain_while_another_may_pause_after_a_dropped_report() -> None:
    """The report of the eighth packet of process 8 is dropped. Its next ones are not reported."""
    refused = stored(*(call(8, NOW + each) for each in range(7)))
    refused.note_dropped(NOW + 8)
    refused.add(call(7, NOW + 100))
    late_ns = NOW + SILENCE_NS
    assert senders(refused, record(NOW), since_ns=NOW + 9) == [({7}, False)]
    refused.add(call(7, late_ns + 100))
    assert senders(refused, record(NOW), since_ns=late_ns + 9) == [({7}, True)]


def test_evicted_packets_make_later_candidates_uncertain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refused_packets, "_MOST_STORED", 10)
    refused = stored(*(call(7, NOW + each, source_port=each + 1) for each in range(25)))
    assert (refused._number, len(refused._by_user[1000])) == (10, 10)
    packet = record(NOW, source_port=25)
    assert senders(refused, packet, since_ns=NOW + 14) == [({7}, False)]
    refused.add(call(7, NOW + 25, source_port=25))
    assert senders(refused, packet, since_ns=NOW + 15) == [({7}, True)]


def test_refused_packets_evict_the_packets_refused_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refused_packets, "_MOST_STORED", 3)
    refused = stored(
        *(call(7, NOW + each, source_port=port) for each, port in enumerate((1, 2, 1, 3)))
    )
    (ports,) = stored_ports(refused)
    assert ports == [1, 3]


def test_flood_of_a_user_evicts_no_packet_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refused_packets, "_MOST_STORED", 10)
    rare = [call(each, NOW, owner=each, uid=each) for each in (8, 9)]
    flood = [call(7, NOW + each, source_port=each + 1) for each in range(1, 100)]
    refused = stored(*flood[:30], rare[0], *flood[30:60], rare[1], *flood[60:])
    assert refused._number == 10
    assert senders(refused, record(NOW, uid=8), since_ns=NOW - 1) == [({8}, True)]
    assert senders(refused, record(NOW, uid=9), since_ns=NOW - 1) == [({9}, True)]
    assert senders(refused, record(NOW, source_port=100), since_ns=NOW - 1) == [({7}, False)]
    assert refused._number == 7


def test_evicted_packets_of_a_user_make_only_his_senders_uncertain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refused_packets, "_MOST_STORED", 2)
    refused = stored(*(call(7, NOW + each, source_port=each + 1) for each in range(3)))
    assert senders(refused, record(NOW, source_port=2), record(NOW, source_port=3)) == [
        ({7}, False),
        ({7}, False),
    ]
    assert not refused._by_user
    for each in (call(8, NOW, owner=8, uid=8), call(7, NOW + 3)):
        refused.add(each)
    assert senders(refused, record(NOW, uid=8), since_ns=NOW - 1) == [({8}, True)]
    assert senders(refused, record(NOW), since_ns=NOW - 1) == [({7}, False)]


def test_evicted_packets_of_too_many_users_make_all_senders_uncertain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refused_packets, "_MOST_STORED", 1)
    monkeypatch.setattr(refused_packets, "_MOST_EVICTED", 1)
    users = [call(user, NOW + user, owner=user, uid=user) for user in (1, 2, 3)]
    for since_ns, is_sender in ((NOW + 1, False), (NOW + 2, True)):
        packet = record(NOW, uid=3)
        assert senders(stored(*users), packet, since_ns=since_ns) == [({3}, is_sender)]


def test_report_is_awaited_if_there_are_fewer_than_records() -> None:
    refused = stored(call(7, NOW), call(8, NOW, source_port=9, has_more=True))
    packets = [
        record(NOW),
        record(NOW),  # only one report
        record(NOW, source_port=9),
        record(NOW, source_port=9),  # more packets may be unreported
        record(NOW, uid=5),
        record(NOW, uid=None),  # no socket sent it
    ]
    awaited = list(refused.are_awaited(logged(*packets, now_ns=NOW, since_ns=0)))
    assert awaited == [False, True, False, False, True, False]


def test_match_has_the_latest_packet_of_a_process() -> None:
    refused = stored(call(7, NOW - 2, comm=b"early"), call(7, NOW - 1, comm=b"late"))
    (found,) = matches(refused, record(NOW))
    assert found is not None
    assert [each.comm for each in found.calls] == [b"late"]


def test_evicted_sender_with_unreported_packets_stays_possible(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refused_packets, "_MOST_STORED", 1)
    refused = stored(call(7, NOW, has_more=True), call(8, NOW + 1, source_port=9))
    packet = record(NOW, source_port=9)
    assert senders(refused, packet, since_ns=NOW + 1) == [({8}, False)]


def test_dropped_report_does_not_shorten_the_time_of_an_evicted_sender(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refused_packets, "_MOST_STORED", 1)
    refused = stored(call(7, NOW, has_more=True), call(8, NOW + 1, source_port=9))
    refused.note_dropped(NOW)
    packet = record(NOW, source_port=9)
    assert senders(refused, packet, since_ns=NOW + 1) == [({8}, False)]


def test_evicted_similar_packets_make_earlier_records_uncertain() -> None:
    refused = stored(*(call(7, NOW + each, sum=each + 1) for each in range(1000)))
    assert refused._number == 8
    packets = [record(NOW, captured_sum=number) for number in (1000, 1000, 999, 1)]
    late_ns = NOW + 992
    assert senders(refused, *packets, since_ns=late_ns) == [({7}, True), None, ({7}, True), None]
    assert refused._number == 6
    assert senders(refused, *packets[:1], since_ns=NOW + 990) == [({7}, False)]


def test_first_of_many_senders_of_similar_packets_is_evicted() -> None:
    refused = stored(*(call(each, NOW + each) for each in range(1, 19)))
    assert refused._number == 17
    refused.add(call(99, NOW + 99, source_port=9))
    packet = record(NOW, source_port=9)
    assert senders(refused, packet, since_ns=NOW + 1) == [({99}, False)]


def test_old_packets_are_removed() -> None:
    found = stored(call(7, NOW - 3), call(8, NOW - 2, source_port=9))
    found.remove_old(NOW - 4)
    assert stored_ports(found) == [[PORTS[0], 9]]
    found.remove_old(NOW - 3)
    assert senders(found, record(NOW)) == [None]
    found.add(call(9, NOW, source_port=8))
    assert senders(found, record(NOW, source_port=9)) == [({8}, True)]
    found.remove_old(NOW)
    assert not found._by_user
    assert found._number == 0


def test_removed_sender_may_have_sent_more_packets_without_a_report() -> None:
    found = stored(call(7, NOW, has_more=True))
    found.remove_old(NOW + 100)
    for passed_ns, is_sender in ((200, False), (SILENCE_NS + 1, True)):
        found.add(call(8, NOW + 600 * SECOND))
        late = LoggedRecord(record(NOW), NOW - 1, NOW + 700 * SECOND, NOW + passed_ns)
        (match,) = found.matches([late])
        assert match is not None
        assert match.is_sender is is_sender


def test_removal_of_an_old_packet_leaves_later_senders_certain() -> None:
    found = stored(call(7, NOW), call(8, NOW + 600 * SECOND, source_port=9))
    found.remove_old(NOW + 480 * SECOND)
    late = record(NOW + 600 * SECOND, source_port=9)
    now_ns = NOW + 600 * SECOND
    (match,) = found.matches(logged(late, now_ns=now_ns, since_ns=NOW - 1))
    assert match is not None
    assert match.is_sender
    early = record(NOW + 479 * SECOND, source_port=9)  # its sender may have been removed
    found = stored(call(7, NOW), call(8, NOW + 600 * SECOND, source_port=9))
    found.remove_old(NOW + 480 * SECOND)
    (logged_early,) = logged(early, now_ns=now_ns, since_ns=NOW - 1)
    (match,) = found.matches([logged_early._replace(stamp_ns=early.time_ns)])
    assert match is not None
    assert not match.is_sender
