"""What a capture tells becomes attributions, of each sandbox by itself."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.attribution.bpf_capture import Lost
from ocsf_nft.attribution.bpf_layout import NOBODY, Closed
from ocsf_nft.attribution.capture_method import Captured
from ocsf_nft.errors import UnsupportedError
from tests.attribution.calling import NETNS, SECOND, TCP, image
from tests.attribution.programs import Programs, made, read
from tests.attribution.test_process_snapshots import Names, portrait

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.attribution.bpf_layout import Told
    from ocsf_nft.attribution.capture_method import Named
    from ocsf_nft.process import Attribution
    from ocsf_nft.record import Record

OTHER = NETNS + 1
#: Two clocks are not read at the same time.
_CLOCK_NS = SECOND // 10


def now() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@pytest.fixture
def programs() -> Iterator[Programs]:
    found = Programs()
    yield found
    os.close(found.descriptor)


@pytest.fixture
def captured(programs: Programs) -> Captured:
    sandboxes = {"sb": NETNS, "other": OTHER}
    return Captured(programs, sandboxes, Names())  # type: ignore[arg-type]


def tell(captured: Captured, *events: Told) -> None:
    programs: Any = captured._capture
    programs.readings.append(list(events))
    assert captured.take_in() is False


def named(captured: Captured, said: Record, sandbox: str = "sb", since_ns: int = 0) -> Named:
    (match,) = captured.matches(sandbox, [said], since_ns)
    return captured.named(sandbox, match)


def by(captured: Captured, said: Record, sandbox: str = "sb") -> Attribution:
    found = named(captured, said, sandbox).attribution
    assert found is not None
    assert found.rung == "capture"
    return found


def pids(found: Attribution) -> dict[int, int | None]:
    assert found.process is None
    return {each.process.pid: each.calls for each in found.seen}


def test_who_was_seen_to_send_it_is_named_with_all_that_is_known(captured: Captured) -> None:
    tell(captured, portrait(7), made(7))
    found = by(captured, read())
    assert found.process is not None
    assert (found.process.pid, found.process.path) == (7, "/usr/bin/curl")
    assert (found.sureness, found.seen) == ("high", ())
    assert found.reason == "the kernel saw it send the packet"
    tell(captured, made(7))
    assert named(captured, read()).image == image(7)


def test_sent_packet_has_the_time_of_its_call(captured: Captured) -> None:
    began_ns = time.time_ns()
    tell(captured, made(7))
    ended_ns = time.time_ns()
    found = by(captured, read())
    assert found.sent_ns is not None
    assert began_ns - _CLOCK_NS <= found.sent_ns <= ended_ns + _CLOCK_NS
    tell(captured, made(7), made(8))
    assert by(captured, read()).sent_ns is None


def test_of_several_that_sent_the_same_each_may_be_it(captured: Captured) -> None:
    tell(captured, made(7), made(8))
    found = by(captured, read())
    assert pids(found) == {7: None, 8: None}
    assert found.sureness == "medium"
    assert found.reason == "the kernel saw each of them send what may be the packet"


def test_where_it_may_have_been_somebody_unseen_nobody_is_named(captured: Captured) -> None:
    tell(captured, made(7), made(0, image=NOBODY))
    found = by(captured, read())
    assert pids(found) == {7: None}
    assert found.sureness == "low"
    assert found.reason.startswith("it had a socket that the packet may be of, and others may")


def test_what_is_let_pass_was_not_refused(captured: Captured) -> None:
    tell(captured, made(7))
    assert named(captured, read(verdict="permit")) == (None, None)


def test_no_packet_from_before_the_first_record_is_its_own(captured: Captured) -> None:
    tell(captured, made(7))
    later_ns = now()
    assert named(captured, read(), since_ns=later_ns) == (None, None)
    tell(captured, made(8))
    assert named(captured, read(), since_ns=later_ns).image == image(8)


def test_one_that_is_still_to_be_told_is_late(captured: Captured) -> None:
    assert captured.is_late("sb", [read()])
    tell(captured, made(7))
    assert not captured.is_late("sb", [read()])
    assert captured.is_late("sb", [read(), read()])
    assert captured.is_late("other", [read()])


@pytest.mark.parametrize("set_by", [-3600, 3600])
def test_a_clock_that_is_set_leaves_what_comes_after_it_known(
    captured: Captured, set_by: int
) -> None:
    tell(captured, made(7))
    named(captured, read(received_ns=time.time_ns() + set_by * SECOND))
    tell(captured, made(7))
    assert named(captured, read()).image == image(7)


def test_of_whom_nothing_was_told_nothing_is_said(captured: Captured) -> None:
    assert named(captured, read()) == (None, None)
    tell(captured, made(7, source_port=9))
    assert named(captured, read()) == (None, None)


def test_who_calls_in_another_sandbox_is_none_of_this_one(captured: Captured) -> None:
    tell(captured, made(7, netns=OTHER), made(8, netns=OTHER + 1))
    assert named(captured, read()) == (None, None)
    assert by(captured, read(), "other").process is not None


def test_a_record_of_before_is_nobodys_who_is_seen_now(captured: Captured) -> None:
    """Of a log that is read on, after nobody has looked for a while."""
    tell(captured, made(7))
    before = read(time_ns=time.time_ns() - 60 * 10**9)
    assert named(captured, before) == (None, None)


@pytest.mark.parametrize(
    ("lost", "sureness"), [(Lost(1, 0), "low"), (Lost(0, 1), "high"), (Lost(0, 0), "high")]
)
def test_where_calls_were_lost_it_may_have_been_others(
    captured: Captured, programs: Programs, lost: Lost, sureness: str
) -> None:
    tell(captured, made(7))
    programs.so_far = lost
    captured.take_in()
    assert by(captured, read()).sureness == sureness
    assert captured.lost == lost


def test_what_there_was_no_time_to_read_is_lost_too(captured: Captured) -> None:
    tell(captured, made(7))
    captured.lose()
    assert by(captured, read()).sureness == "low"


def test_whose_portrait_was_lost_may_run_something_else_by_now(
    captured: Captured, programs: Programs
) -> None:
    tell(captured, portrait(7))
    assert captured.is_latest(image(7))
    programs.so_far = Lost(0, 1)
    captured.take_in()
    assert not captured.is_latest(image(7))
    tell(captured, portrait(7))
    assert captured.is_latest(image(7))


def test_where_each_packet_is_a_call_of_one_process_it_is_the_one(captured: Captured) -> None:
    tell(captured, *(made(7) for _ in range(5)))
    found = captured.since_last("sb", read(), 5, time.time_ns())
    assert found is not None
    assert found.process is not None
    assert (found.process.pid, found.sureness, found.seen) == (7, "high", ())
    assert captured.since_last("sb", read(), 5, time.time_ns()) is None


@pytest.mark.parametrize("packets", [4, 6, 1000])
def test_where_there_were_more_or_fewer_packets_it_may_have_been_others(
    captured: Captured, packets: int
) -> None:
    tell(captured, *(made(7) for _ in range(5)))
    found = captured.since_last("sb", read(), packets, time.time_ns())
    assert found is not None
    assert (pids(found), found.sureness) == ({7: 5}, "medium")


def test_of_several_that_tried_each_is_named_with_how_often(captured: Captured) -> None:
    tell(captured, made(7), made(8), made(7))
    found = captured.since_last("sb", read(), 3, time.time_ns())
    assert found is not None
    assert (pids(found), found.sureness, found.unnamed) == ({7: 2, 8: 1}, "high", 0)


def test_of_many_that_tried_it_is_said_how_many_more_there_were(captured: Captured) -> None:
    for packets in (40, 32):
        tell(captured, *(made(number) for number in range(1, 41)))
        found = captured.since_last("sb", read(), packets, time.time_ns())
        assert found is not None
        assert (len(found.seen), found.unnamed, found.sureness) == (32, 8, "medium")


def test_what_was_told_by_itself_is_not_told_again(captured: Captured) -> None:
    tell(captured, made(7), made(7))
    one = by(captured, read()).process
    assert one is not None
    captured.told("sb", read(), one)
    captured.told("sb", read(uid=None), one)
    captured.told("other", read(), one)
    found = captured.since_last("sb", read(), 1, time.time_ns())
    assert found is not None
    assert found.process == one


def test_what_was_sent_after_the_packets_were_counted_is_none_of_them(captured: Captured) -> None:
    tell(captured, made(7))
    counted_ns = time.time_ns()
    tell(captured, made(8))
    for pid, began_ns in ((7, counted_ns), (8, time.time_ns())):
        counted = read(received_ns=began_ns)
        found = captured.since_last("sb", counted, 1, began_ns)
        assert found is not None
        assert found.process is not None
        assert found.process.pid == pid


def test_where_one_was_told_as_nobodys_the_others_may_be_anybodys(captured: Captured) -> None:
    tell(captured, made(7), made(8))
    captured.told("sb", read(), None)
    found = captured.since_last("sb", read(), 2, time.time_ns())
    assert found is not None
    assert (pids(found), found.sureness) == ({7: 1, 8: 1}, "medium")


def test_nobody_has_tried_what_no_user_has(captured: Captured) -> None:
    tell(captured, made(7))
    assert captured.since_last("sb", read(uid=None), 1, time.time_ns()) is None
    assert captured.since_last("sb", read(uid=0), 1, time.time_ns()) is None
    assert captured.since_last("other", read(), 1, time.time_ns()) is None


def test_of_many_frames_nobody_is_told(captured: Captured) -> None:
    tell(captured, made(7, is_frame=True), made(8))
    for packet in ({}, {"protocol": None, "destination": None}):
        frame = read(rule="link", **packet)
        assert captured.since_last("sb", frame, 1, time.time_ns()) is None
    assert captured.since_last("sb", read(), 1, time.time_ns()) is not None


@pytest.fixture(params=["no types", "permissive"])
def calling(request: pytest.FixtureRequest, programs: Programs) -> Captured:
    """Where calls are told, and not what is refused."""
    programs.knows_types = request.param == "permissive"
    permissive = {NETNS, OTHER} if programs.knows_types else set()
    sandboxes = {"sb": NETNS, "other": OTHER}
    return Captured(programs, sandboxes, Names(), permissive=permissive)  # type: ignore[arg-type]


def test_where_calls_are_told_who_made_it_has_probably_sent_the_packet(calling: Captured) -> None:
    tell(calling, made(7), made(8, socket=2, protocol=TCP))
    assert not calling.is_late("sb", [read(source_port=9)])
    for verdict in ("permit", "deny"):
        found = by(calling, read(protocol=TCP, tcp_flags=2, verdict=verdict))
        assert (found.process is not None, found.sureness) == (True, "medium")
        assert found.reason == "the kernel saw it make a call that the packet may be of"
    assert (pids(by(calling, read())), by(calling, read()).sureness) == ({7: None}, "low")
    tell(calling, made(9))
    found = by(calling, read())
    assert (pids(found), found.sureness) == ({7: None, 9: None}, "low")
    seen = calling.since_last("sb", read(), 2, time.time_ns())
    assert seen is not None
    assert (pids(seen), seen.sureness) == ({7: 1, 9: 1}, "medium")


def test_who_has_only_had_the_socket_may_not_be_it(calling: Captured) -> None:
    tell(calling, made(7, is_connect=True))
    found = by(calling, read())
    assert (pids(found), found.sureness) == ({7: None}, "low")


def test_a_socket_is_closed_wherever_it_is(calling: Captured) -> None:
    tell(calling, made(7, socket=1), made(8, socket=2, netns=OTHER))
    tell(calling, Closed(now(), 1), Closed(now(), 2))
    since_ns = now() + 1000
    for sandbox in ("sb", "other"):
        assert named(calling, read(), sandbox, since_ns) == (None, None)


def test_a_capture_that_has_ended_says_so(captured: Captured, programs: Programs) -> None:
    assert captured.descriptors == (programs.descriptor,)
    captured.check()
    programs.fault = "somebody has detached it"
    for ask in (captured.check, captured.take_in):
        with pytest.raises(UnsupportedError, match="somebody has detached it"):
            ask()
    captured.close()
    assert programs.is_closed


def test_what_a_process_ran_last_is_known(captured: Captured) -> None:
    after = image(7)._replace(execs=2)
    tell(captured, portrait(7), portrait(7)._replace(image=after))
    assert captured.is_latest(after)
    assert not captured.is_latest(image(7))
