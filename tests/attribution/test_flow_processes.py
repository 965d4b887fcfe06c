from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.attribution import flow_processes
from ocsf_nft.attribution.bpf_layout import NOBODY, Image
from ocsf_nft.attribution.flow_processes import Tally, Tried, Where, where_of
from tests.attribution.calling import PLACES, TCP, call, packed, record

LATER = 1 << 62
HERE = Where(1000, 17, packed(PLACES[0][0]), PLACES[0][1])


def tried(found: tuple[tuple[Any, int], ...]) -> dict[int, int]:
    return {each.image.pid: times for each, times in found}


def tallied(*by: int, **facts: Any) -> Tally:
    found = Tally()
    for number, each in enumerate(by):
        found.add(call(each, number, **facts))
    return found


def test_each_process_is_told_once_with_its_latest_call_and_how_often_it_tried() -> None:
    found = tallied(7, 8, 7, 9, 7)
    calls, unnamed, _ = found.take(HERE, LATER, LATER)
    assert tried(calls) == {8: 1, 9: 1, 7: 3}
    assert [each.time_ns for each, _ in calls] == [1, 3, 4]
    assert unnamed == 0
    assert found.take(HERE, LATER, LATER) == Tried()
    found.add(call(7, 9))
    assert tried(found.take(HERE, LATER, LATER).calls) == {7: 1}


@pytest.mark.parametrize(
    "facts", [{"owner": 1}, {"protocol": TCP}, {"destination_port": 1}, {"destination": bytes(4)}]
)
def test_who_tried_something_else_is_not_told(facts: dict[str, Any]) -> None:
    found = tallied(7, **facts)
    assert found.take(HERE, LATER, LATER) == Tried()
    assert len(found._flows) == 1


def test_who_the_process_is_for_others_decides_not_who_it_is_itself() -> None:
    """A socket belongs to the user that a process acts as when it makes it."""
    assert tried(tallied(7, uid=0, owner=1000).take(HERE, LATER, LATER).calls) == {7: 1}


@pytest.mark.parametrize("facts", [{"is_any": True}, {"image": NOBODY}])
def test_what_is_not_known_is_nobodys(facts: dict[str, Any]) -> None:
    assert tallied(7, **facts).take(HERE, LATER, LATER) == Tried()


def test_of_several_threads_none_is_told() -> None:
    found = tallied(7)
    found.add(call(7, 1, tid=8))
    found.add(call(7, 2, tid=8))
    ((latest, times),) = found.take(HERE, LATER, LATER).calls
    assert (latest.tid, times) == (0, 3)
    assert tallied(7, 7).take(HERE, LATER, LATER).calls[0][0].tid == 7


def test_what_is_called_after_the_packets_were_counted_is_of_those_that_are_counted_later() -> None:
    found = tallied(7, 7, 8, 7)  # at 0, 1, 2 and 3
    assert tried(found.take(HERE, 1, 1).calls) == {7: 2}
    found.add(call(9, 4))
    assert tried(found.take(HERE, 3, 3).calls) == {8: 1, 7: 1}
    assert tried(found.take(HERE, 3, 3).calls) == {}
    assert tried(found.take(HERE, 4, 4).calls) == {9: 1}
    assert list(found._flows) == []


def test_what_is_called_while_the_counters_are_read_may_be_counted_now_or_later() -> None:
    found = tallied(7, 8, 9)  # at 0, 1 and 2
    assert found.take(HERE, 0, 1) == Tried(((call(7, 0), 1),))
    assert found.take(HERE, 2, 2) == Tried(((call(8, 1), 1), (call(9, 2), 1)), 0, is_mixed=True)
    found.add(call(7, 3))
    assert found.take(HERE, 3, 3) == Tried(((call(7, 3), 1),))


def test_where_it_is_not_kept_when_all_were_called_it_is_not_known_which_are_counted() -> None:
    found = tallied(*[7] * 100)
    assert found.take(HERE, 35, 35).is_mixed
    assert found.take(HERE, 100, 100).is_mixed
    assert not tallied(*[7] * 100).take(HERE, 36, 36).is_mixed


def test_what_was_told_as_nobodys_leaves_it_open_whose_the_others_are() -> None:
    for pid in (None, 9):
        found = tallied(7, 7)
        found.take_one(HERE, pid)
        assert found.take(HERE, LATER, LATER) == Tried(((call(7, 1), 2),), 0, is_mixed=True)
        found.add(call(7, 1))
        assert not found.take(HERE, LATER, LATER).is_mixed
    # Its call may still come.
    found.take_one(HERE, None)
    found.add(call(7, 1))
    assert found.take(HERE, LATER, LATER).is_mixed


def test_who_connects_has_not_tried_yet() -> None:
    assert tallied(7, is_connect=True).take(HERE, LATER, LATER) == Tried()


def test_frames_are_nobodys_here_whatever_they_say_they_are() -> None:
    """Others may have sent other frames, and their counters are told apart by what they say."""
    assert list(tallied(7, is_frame=True)._flows) == []
    assert where_of(record(0, rule="link")) is None
    assert where_of(record(0, rule="link", protocol=None, destination=None)) is None


def test_a_record_says_what_it_is_of() -> None:
    assert where_of(record(0)) == HERE
    assert where_of(record(0, uid=None)) is None
    assert where_of(record(0, protocol=None)) is None
    assert where_of(record(0, destination=None)) is None
    portless = record(0, destination_port=None, destination="2001:db8::7")
    assert where_of(portless) == Where(1000, 17, bytes.fromhex("20010db8" + "0" * 23 + "7"), 0)


def test_what_was_told_by_itself_is_not_told_again() -> None:
    found = tallied(7, 7, 8)
    found.take_one(HERE, 7)
    found.take_one(HERE, 8)
    found.take_one(HERE, 9)
    found.take_one(HERE._replace(uid=0), 7)
    assert tried(found.take(HERE, LATER, LATER).calls) == {7: 1}
    assert list(found._flows) == [HERE._replace(uid=0)]


def test_tally_forgets_the_time_of_an_attempt_that_was_reported_alone() -> None:
    found = tallied(7, 7)  # at 0 and 1
    found.take_one(HERE, 7)
    assert tried(found.take(HERE, 0, 0).calls) == {7: 1}
    assert found.take(HERE, LATER, LATER) == Tried()


def test_of_too_many_flows_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_processes, "_FLOWS", 3)
    found = Tally()
    for port in (1, 2, 3, 1, 4):
        found.add(call(7, 0, destination_port=port))
    assert [where.port for where in found._flows] == [3, 1, 4]


def test_tally_drops_a_flow_after_the_report_of_its_last_call() -> None:
    found = tallied(7, 8)
    found.take_one(HERE, 7)
    assert list(found._flows) == [HERE]
    found.take_one(HERE, 8)
    assert list(found._flows) == []


def test_tally_keeps_a_reported_flow_with_unnamed_or_uncertain_senders() -> None:
    found = started(*range(1, 34))
    for pid in range(2, 34):
        found.take_one(HERE, pid)
    assert found.take(HERE, LATER, LATER).unnamed == 1
    found.take_one(HERE, None)
    found.add(call(7, 0))
    found.take_one(HERE, 7)
    assert found.take(HERE, LATER, LATER).is_mixed


def started(*began: int) -> Tally:
    """A tally of processes by when they were started."""
    found = Tally()
    for each in began:
        found.add(call(7, 0, image=Image(pid=each or 1, started_ns=each, execs=0)))
    return found


def test_of_many_processes_the_latest_are_named_and_the_others_counted() -> None:
    calls, unnamed, _ = started(*range(1, 101)).take(HERE, LATER, LATER)
    assert list(tried(calls)) == list(range(69, 101))
    assert unnamed == 68


def test_who_comes_again_and_was_not_named_any_more_is_not_counted_again() -> None:
    assert started(*(list(range(1, 34)) * 10)).take(HERE, LATER, LATER).unnamed == 1
    assert started(*(list(range(33, 0, -1)) * 10)).take(HERE, LATER, LATER).unnamed == 1


@given(began=st.lists(st.integers(1, 60), max_size=150))
def test_there_were_as_many_as_are_told_at_least_and_each_call_is_told_once(
    began: list[int],
) -> None:
    calls, unnamed, _ = started(*began).take(HERE, LATER, LATER)
    assert len(calls) <= 32
    assert len(calls) + unnamed <= len(set(began))
    assert bool(unnamed) == (len(set(began)) > 32)
    for each, times in calls:
        assert 1 <= times <= began.count(each.image.pid)
