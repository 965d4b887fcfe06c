"""Attribution by the events of a capture, for each sandbox separately."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.attribution.bpf_capture import UNKNOWN_IMAGE, ClosedSocket, Dropped
from ocsf_nft.attribution.capture_method import CaptureMethod
from ocsf_nft.errors import UnsupportedError
from tests.attribution.calling import NETNS, SECOND, TCP, image
from tests.attribution.programs import OTHER, Programs, call_now, record_now
from tests.attribution.test_process_snapshots import Names, snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.attribution.bpf_capture import CaptureEvent
    from ocsf_nft.process import Attribution
    from ocsf_nft.record import Record

#: Difference of two clocks that are not read at the same time.
_CLOCK_NS = SECOND // 10


def now() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@pytest.fixture
def programs() -> Iterator[Programs]:
    found = Programs()
    yield found
    os.close(found.descriptor)


def _watching(programs: Programs, names: Names) -> CaptureMethod:
    made = CaptureMethod(programs, names)  # type: ignore[arg-type]
    for netns in (NETNS, OTHER):
        made.watch(netns, is_permissive=False)
    return made


@pytest.fixture
def captured(programs: Programs) -> CaptureMethod:
    return _watching(programs, Names())


def emit(captured: CaptureMethod, *events: CaptureEvent) -> None:
    programs: Any = captured.capture
    programs.readings.append(list(events))
    assert captured.read_events() is False


def result(
    captured: CaptureMethod, record: Record, netns: int = NETNS, since_ns: int = 0
) -> Attribution | None:
    (match,) = captured.matches(netns, [record], since_ns)
    return captured.attribution(netns, match)


def sender(captured: CaptureMethod, record: Record, since_ns: int = 0) -> int | None:
    """Return the number of the process that sent the packet."""
    found = result(captured, record, since_ns=since_ns)
    return None if found is None or found.process is None else found.process.pid


def attribution(captured: CaptureMethod, record: Record, netns: int = NETNS) -> Attribution:
    found = result(captured, record, netns)
    assert found is not None
    assert found.method == "capture"
    return found


def pids(found: Attribution) -> dict[int, int | None]:
    assert found.process is None
    return {each.process.pid: each.calls for each in found.seen}


def test_capture_names_the_sender_with_all_known_details(captured: CaptureMethod) -> None:
    emit(captured, snapshot(7), call_now(7))
    found = attribution(captured, record_now())
    assert found.process is not None
    assert (found.process.pid, found.process.path) == (7, "/usr/bin/curl")
    assert (found.confidence, found.seen) == ("high", ())
    assert found.reason == "the kernel saw it send the packet"


def test_sent_packet_has_the_time_of_its_call(captured: CaptureMethod) -> None:
    began_ns = time.time_ns()
    emit(captured, call_now(7))
    ended_ns = time.time_ns()
    found = attribution(captured, record_now())
    assert found.sent_ns is not None
    assert began_ns - _CLOCK_NS <= found.sent_ns <= ended_ns + _CLOCK_NS
    emit(captured, call_now(7), call_now(8))
    assert attribution(captured, record_now()).sent_ns is None


def test_senders_of_equal_packets_are_all_candidates(captured: CaptureMethod) -> None:
    emit(captured, call_now(7), call_now(8))
    found = attribution(captured, record_now())
    assert pids(found) == {7: None, 8: None}
    assert found.confidence == "medium"
    assert found.reason == "the kernel saw each of them send a packet that may be this one"


def test_possible_unknown_sender_gives_low_confidence(captured: CaptureMethod) -> None:
    emit(captured, call_now(7), call_now(0, image=UNKNOWN_IMAGE))
    found = attribution(captured, record_now())
    assert pids(found) == {7: None}
    assert found.confidence == "low"
    assert found.reason.startswith("it had a socket that may have sent the packet; other processes")


def test_accepted_packet_has_no_refused_one(captured: CaptureMethod) -> None:
    emit(captured, call_now(7))
    assert result(captured, record_now(verdict="permit")) is None


def test_packet_from_before_the_first_record_does_not_match(captured: CaptureMethod) -> None:
    emit(captured, call_now(7))
    later_ns = now()
    assert result(captured, record_now(), since_ns=later_ns) is None
    emit(captured, call_now(8))
    assert sender(captured, record_now(), since_ns=later_ns) == 8


def test_record_without_an_event_is_pending(captured: CaptureMethod) -> None:
    assert captured.is_event_pending(NETNS, [record_now()])
    emit(captured, call_now(7))
    assert not captured.is_event_pending(NETNS, [record_now()])
    assert captured.is_event_pending(NETNS, [record_now(), record_now()])
    assert captured.is_event_pending(OTHER, [record_now()])


@pytest.mark.parametrize("set_by", [-3600, 3600])
def test_changed_clock_does_not_affect_later_records(captured: CaptureMethod, set_by: int) -> None:
    emit(captured, call_now(7))
    result(captured, record_now(received_ns=time.time_ns() + set_by * SECOND))
    emit(captured, call_now(7))
    assert sender(captured, record_now()) == 7


def test_record_without_a_matching_event_has_no_attribution(captured: CaptureMethod) -> None:
    assert result(captured, record_now()) is None
    emit(captured, call_now(7, source_port=9))
    assert result(captured, record_now()) is None


def test_event_of_another_sandbox_does_not_match(captured: CaptureMethod) -> None:
    emit(captured, call_now(7, netns=OTHER), call_now(8, netns=OTHER + 1))
    assert result(captured, record_now()) is None
    assert attribution(captured, record_now(), OTHER).process is not None


def test_record_from_before_the_capture_has_no_attribution(captured: CaptureMethod) -> None:
    """The log is read after a time without a capture."""
    emit(captured, call_now(7))
    before = record_now(time_ns=time.time_ns() - 60 * 10**9)
    assert result(captured, before) is None


@pytest.mark.parametrize(
    ("dropped", "confidence"),
    [(Dropped(1, 0), "low"), (Dropped(0, 1), "high"), (Dropped(0, 0), "high")],
)
def test_dropped_calls_give_low_confidence(
    captured: CaptureMethod, programs: Programs, dropped: Dropped, confidence: str
) -> None:
    emit(captured, call_now(7))
    programs.drops = dropped
    captured.read_events()
    assert attribution(captured, record_now()).confidence == confidence
    assert captured.dropped == dropped


def test_unread_events_count_as_dropped(captured: CaptureMethod) -> None:
    emit(captured, call_now(7))
    captured.note_dropped()
    assert attribution(captured, record_now()).confidence == "low"


def test_dropped_snapshots_make_the_latest_images_unknown(
    captured: CaptureMethod, programs: Programs
) -> None:
    emit(captured, snapshot(7))
    assert captured.snapshots.is_latest(image(7))
    programs.drops = Dropped(0, 1)
    captured.read_events()
    assert not captured.snapshots.is_latest(image(7))
    emit(captured, snapshot(7))
    assert captured.snapshots.is_latest(image(7))


def test_process_with_one_call_for_each_packet_is_the_sender(captured: CaptureMethod) -> None:
    emit(captured, *(call_now(7) for _ in range(5)))
    found = captured.since_last(NETNS, record_now(), 5, time.time_ns())
    assert found is not None
    assert found.process is not None
    assert (found.process.pid, found.confidence, found.seen) == (7, "high", ())
    assert captured.since_last(NETNS, record_now(), 5, time.time_ns()) is None


@pytest.mark.parametrize("packets", [4, 6, 1000])
def test_different_numbers_of_packets_and_calls_give_medium_confidence(
    captured: CaptureMethod, packets: int
) -> None:
    emit(captured, *(call_now(7) for _ in range(5)))
    found = captured.since_last(NETNS, record_now(), packets, time.time_ns())
    assert found is not None
    assert found.process is not None
    calls = {each.process.pid: each.calls for each in found.seen}
    assert (found.process.pid, calls, found.confidence) == (7, {7: 5}, "medium")


def test_several_callers_are_named_with_their_numbers_of_calls(captured: CaptureMethod) -> None:
    emit(captured, call_now(7), call_now(8), call_now(7))
    found = captured.since_last(NETNS, record_now(), 3, time.time_ns())
    assert found is not None
    assert (pids(found), found.confidence, found.unnamed) == ({7: 2, 8: 1}, "high", 0)


def test_many_callers_are_named_in_part_and_counted(captured: CaptureMethod) -> None:
    for packets in (40, 32):
        emit(captured, *(call_now(number) for number in range(1, 41)))
        found = captured.since_last(NETNS, record_now(), packets, time.time_ns())
        assert found is not None
        assert (len(found.seen), found.unnamed, found.confidence) == (32, 8, "medium")


def test_separately_reported_packet_is_not_counted_again(captured: CaptureMethod) -> None:
    emit(captured, call_now(7), call_now(7))
    one = attribution(captured, record_now()).process
    assert one is not None
    captured.mark_reported(NETNS, record_now(), one)
    captured.mark_reported(NETNS, record_now(uid=None), one)
    captured.mark_reported(OTHER, record_now(), one)
    found = captured.since_last(NETNS, record_now(), 1, time.time_ns())
    assert found is not None
    assert found.process == one


def test_call_after_the_counters_is_of_the_next_packets(captured: CaptureMethod) -> None:
    emit(captured, call_now(7))
    counted_ns = time.time_ns()
    emit(captured, call_now(8))
    for pid, began_ns in ((7, counted_ns), (8, time.time_ns())):
        counted = record_now(received_ns=began_ns)
        found = captured.since_last(NETNS, counted, 1, began_ns)
        assert found is not None
        assert found.process is not None
        assert found.process.pid == pid


def test_packet_reported_without_sender_makes_the_callers_uncertain(
    captured: CaptureMethod,
) -> None:
    emit(captured, call_now(7), call_now(8))
    captured.mark_reported(NETNS, record_now(), None)
    found = captured.since_last(NETNS, record_now(), 2, time.time_ns())
    assert found is not None
    assert (pids(found), found.confidence) == ({7: 1, 8: 1}, "medium")


def test_flow_of_another_user_or_sandbox_has_no_callers(captured: CaptureMethod) -> None:
    emit(captured, call_now(7))
    assert captured.since_last(NETNS, record_now(uid=None), 1, time.time_ns()) is None
    assert captured.since_last(NETNS, record_now(uid=0), 1, time.time_ns()) is None
    assert captured.since_last(OTHER, record_now(), 1, time.time_ns()) is None


def test_flow_of_frames_has_no_callers(captured: CaptureMethod) -> None:
    emit(captured, call_now(7, is_frame=True), call_now(8))
    for packet in ({}, {"protocol": None, "destination": None}):
        frame = record_now(rule="link", **packet)
        assert captured.since_last(NETNS, frame, 1, time.time_ns()) is None
    assert captured.since_last(NETNS, record_now(), 1, time.time_ns()) is not None


@pytest.fixture
def calling(programs: Programs) -> CaptureMethod:
    """Return a method whose capture reports calls and no refused packets."""
    programs.reports_refused = False
    names: Any = Names()
    return _watching(programs, names)


def test_caller_is_the_sender_with_medium_confidence(calling: CaptureMethod) -> None:
    emit(calling, call_now(7), call_now(8, socket=2, protocol=TCP))
    assert not calling.is_event_pending(NETNS, [record_now(source_port=9)])
    for verdict in ("permit", "deny"):
        found = attribution(calling, record_now(protocol=TCP, tcp_flags=2, verdict=verdict))
        assert (found.process is not None, found.confidence) == (True, "medium")
        assert found.reason == "the kernel saw it make a call that may have sent the packet"
    assert (
        pids(attribution(calling, record_now())),
        attribution(calling, record_now()).confidence,
    ) == ({7: None}, "low")
    emit(calling, call_now(9))
    found = attribution(calling, record_now())
    assert (pids(found), found.confidence) == ({7: None, 9: None}, "low")
    seen = calling.since_last(NETNS, record_now(), 2, time.time_ns())
    assert seen is not None
    assert (pids(seen), seen.confidence) == ({7: 1, 9: 1}, "medium")


def test_process_that_only_connected_has_low_confidence(calling: CaptureMethod) -> None:
    emit(calling, call_now(7, is_connect=True))
    found = attribution(calling, record_now())
    assert (pids(found), found.confidence) == ({7: None}, "low")


def test_closed_socket_is_closed_in_every_sandbox(calling: CaptureMethod) -> None:
    emit(calling, call_now(7, socket=1), call_now(8, socket=2, netns=OTHER))
    emit(calling, ClosedSocket(now(), 1), ClosedSocket(now(), 2))
    since_ns = now() + 1000
    for sandbox in (NETNS, OTHER):
        assert result(calling, record_now(), sandbox, since_ns) is None


def test_stopped_capture_raises_its_reason(captured: CaptureMethod, programs: Programs) -> None:
    assert captured.capture.descriptors == (programs.descriptor,)
    captured.capture.check()
    programs.fault = "another process has detached it"
    for ask in (captured.capture.check, captured.read_events):
        with pytest.raises(UnsupportedError, match="another process has detached it"):
            ask()
    captured.capture.close()
    assert programs.is_closed


def test_latest_image_of_a_process_is_known(captured: CaptureMethod) -> None:
    after = image(7)._replace(execs=2)
    emit(captured, snapshot(7), snapshot(7)._replace(image=after))
    assert captured.snapshots.is_latest(after)
    assert not captured.snapshots.is_latest(image(7))
