from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.attribution import tally
from ocsf_nft.attribution.layout import NOBODY, Image
from ocsf_nft.attribution.tally import Tally, Tried, Where, where_of
from tests.attribution.calling import PLACES, TCP, call, packed, record

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
    calls, unnamed, _ = found.take(HERE, 0)
    assert tried(calls) == {8: 1, 9: 1, 7: 3}
    assert [each.time_ns for each, _ in calls] == [1, 3, 4]
    assert unnamed == 0
    assert found.take(HERE, 0) == Tried()
    found.add(call(7, 9))
    assert tried(found.take(HERE, 0).calls) == {7: 1}


@pytest.mark.parametrize(
    "facts", [{"owner": 1}, {"protocol": TCP}, {"destination_port": 1}, {"destination": bytes(4)}]
)
def test_who_tried_something_else_is_not_told(facts: dict[str, Any]) -> None:
    found = tallied(7, **facts)
    assert found.take(HERE, 0) == Tried()
    assert len(found._flows) == 1


def test_who_the_process_is_for_others_decides_not_who_it_is_itself() -> None:
    """A socket belongs to the user that a process acts as when it makes it."""
    assert tried(tallied(7, uid=0, owner=1000).take(HERE, 0).calls) == {7: 1}


@pytest.mark.parametrize("facts", [{"is_any": True}, {"image": NOBODY}])
def test_what_is_not_known_is_nobodys(facts: dict[str, Any]) -> None:
    assert tallied(7, **facts).take(HERE, 0) == Tried()


def test_of_several_threads_none_is_told() -> None:
    found = tallied(7)
    found.add(call(7, 1, tid=8))
    found.add(call(7, 2, tid=8))
    ((latest, times),) = found.take(HERE, 0).calls
    assert (latest.tid, times) == (0, 3)
    assert tallied(7, 7).take(HERE, 0).calls[0][0].tid == 7


def test_while_not_all_is_told_it_may_have_been_others() -> None:
    """What is silent when it is asked for is counted later: so it is silent then too."""
    until_ns = 500_000_000
    found = tallied(7, 7)
    assert not found.take(HERE, 0).is_silent
    found.add(call(7, 0, has_more=True))
    assert found.take(HERE, until_ns - 1) == Tried(((call(7, 0, has_more=True), 1),), 0, True)
    assert found.take(HERE, until_ns) == Tried(is_silent=True)
    assert found.take(HERE, until_ns) == Tried()


def test_who_connects_has_not_tried_yet() -> None:
    assert tallied(7, is_connect=True).take(HERE, 0) == Tried()


def test_frames_are_their_users_alone() -> None:
    found = tallied(7, is_frame=True)
    frame = record(0, rule="link", protocol=None, destination=None, source_port=None)
    where = where_of(frame)
    assert where == Where(1000)
    assert tried(found.take(where, 0).calls) == {7: 1}


def test_a_record_says_what_it_is_of() -> None:
    assert where_of(record(0)) == HERE
    assert where_of(record(0, uid=None)) is None
    portless = record(0, destination_port=None, destination="2001:db8::7")
    assert where_of(portless) == Where(1000, 17, bytes.fromhex("20010db8" + "0" * 23 + "7"), 0)


def test_what_was_told_by_itself_is_not_told_again() -> None:
    found = tallied(7, 7, 8)
    found.take_one(HERE, 7)
    found.take_one(HERE, 8)
    found.take_one(HERE, 9)
    found.take_one(HERE._replace(uid=0), 7)
    assert tried(found.take(HERE, 0).calls) == {7: 1}
    assert list(found._flows) == []


def test_of_too_many_flows_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "_FLOWS", 3)
    found = Tally()
    for port in (1, 2, 3, 1, 4):
        found.add(call(7, 0, destination_port=port))
    assert [where.port for where in found._flows] == [3, 1, 4]


def started(*began: int) -> Tally:
    """A tally of processes by when they were started."""
    found = Tally()
    for each in began:
        found.add(call(7, 0, image=Image(pid=each or 1, started_ns=each, execs=0)))
    return found


def test_of_many_processes_the_latest_are_named_and_the_others_counted() -> None:
    calls, unnamed, _ = started(*range(1, 101)).take(HERE, 0)
    assert list(tried(calls)) == list(range(69, 101))
    assert unnamed == 68


def test_who_comes_again_and_was_not_named_any_more_is_not_counted_again() -> None:
    assert started(*(list(range(1, 34)) * 10)).take(HERE, 0).unnamed == 1
    assert started(*(list(range(33, 0, -1)) * 10)).take(HERE, 0).unnamed == 1


@given(began=st.lists(st.integers(1, 60), max_size=150))
def test_there_were_as_many_as_are_told_at_least_and_each_call_is_told_once(
    began: list[int],
) -> None:
    calls, unnamed, _ = started(*began).take(HERE, 0)
    assert len(calls) <= 32
    assert len(calls) + unnamed <= len(set(began))
    assert bool(unnamed) == (len(set(began)) > 32)
    for each, times in calls:
        assert 1 <= times <= began.count(each.image.pid)
