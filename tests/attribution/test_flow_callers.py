from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.attribution import flow_callers
from ocsf_nft.attribution.bpf_capture import UNKNOWN_IMAGE, ProcessImage
from ocsf_nft.attribution.flow_callers import FlowCallers, FlowProcesses, FlowTarget, flow_target
from tests.attribution.calling import TARGETS, TCP, call, packed, record

LATER = 1 << 62
HERE = FlowTarget(1000, 17, packed(TARGETS[0][0]), TARGETS[0][1])


def times_by_pid(found: tuple[tuple[Any, int], ...]) -> dict[int, int]:
    return {each.image.pid: times for each, times in found}


def flows_of(*by: int, **facts: Any) -> FlowProcesses:
    found = FlowProcesses()
    for number, each in enumerate(by):
        found.add(call(each, number, **facts))
    return found


def test_each_process_has_its_latest_call_and_its_number_of_calls() -> None:
    found = flows_of(7, 8, 7, 9, 7)
    calls, unnamed, _ = found.take(HERE, LATER, LATER)
    assert times_by_pid(calls) == {8: 1, 9: 1, 7: 3}
    assert [each.time_ns for each, _ in calls] == [1, 3, 4]
    assert unnamed == 0
    assert found.take(HERE, LATER, LATER) == FlowCallers()
    found.add(call(7, 9))
    assert times_by_pid(found.take(HERE, LATER, LATER).calls) == {7: 1}


def targets(found: FlowProcesses) -> list[FlowTarget]:
    """Return the stored flows, by user and age."""
    return [target for flows in found._by_user.values() for target in flows]


@pytest.mark.parametrize(
    "facts", [{"owner": 1}, {"protocol": TCP}, {"destination_port": 1}, {"destination": bytes(4)}]
)
def test_call_of_another_flow_is_not_counted(facts: dict[str, Any]) -> None:
    found = flows_of(7, **facts)
    assert found.take(HERE, LATER, LATER) == FlowCallers()
    assert len(targets(found)) == 1


def test_flow_is_of_the_owner_of_the_socket() -> None:
    """A socket belongs to the user as which a process acts when it makes it."""
    assert times_by_pid(flows_of(7, uid=0, owner=1000).take(HERE, LATER, LATER).calls) == {7: 1}


@pytest.mark.parametrize("facts", [{"is_any": True}, {"image": UNKNOWN_IMAGE}])
def test_call_with_an_unknown_flow_or_sender_is_ignored(facts: dict[str, Any]) -> None:
    assert flows_of(7, **facts).take(HERE, LATER, LATER) == FlowCallers()


def test_calls_of_several_threads_name_no_thread() -> None:
    found = flows_of(7)
    found.add(call(7, 1, tid=8))
    found.add(call(7, 2, tid=8))
    ((latest, times),) = found.take(HERE, LATER, LATER).calls
    assert (latest.tid, times) == (0, 3)
    assert flows_of(7, 7).take(HERE, LATER, LATER).calls[0][0].tid == 7


def test_call_after_the_counters_is_of_the_next_packets() -> None:
    found = flows_of(7, 7, 8, 7)  # at 0, 1, 2 and 3
    assert times_by_pid(found.take(HERE, 1, 1).calls) == {7: 2}
    found.add(call(9, 4))
    assert times_by_pid(found.take(HERE, 3, 3).calls) == {8: 1, 7: 1}
    assert times_by_pid(found.take(HERE, 3, 3).calls) == {}
    assert times_by_pid(found.take(HERE, 4, 4).calls) == {9: 1}
    assert targets(found) == []


def test_call_during_the_read_of_the_counters_is_uncertain() -> None:
    found = flows_of(7, 8, 9)  # at 0, 1 and 2
    assert found.take(HERE, 0, 1) == FlowCallers(((call(7, 0), 1),))
    assert found.take(HERE, 2, 2) == FlowCallers(
        ((call(8, 1), 1), (call(9, 2), 1)), 0, is_mixed=True
    )
    found.add(call(7, 3))
    assert found.take(HERE, 3, 3) == FlowCallers(((call(7, 3), 1),))


def test_calls_without_a_stored_time_are_uncertain() -> None:
    found = flows_of(*[7] * 100)
    assert found.take(HERE, 35, 35).is_mixed
    assert found.take(HERE, 100, 100).is_mixed
    assert not flows_of(*[7] * 100).take(HERE, 36, 36).is_mixed


def test_packet_reported_without_sender_makes_the_flow_uncertain() -> None:
    for pid in (None, 9):
        found = flows_of(7, 7)
        found.remove_reported(HERE, pid)
        assert found.take(HERE, LATER, LATER) == FlowCallers(((call(7, 1), 2),), 0, is_mixed=True)
        found.add(call(7, 1))
        assert not found.take(HERE, LATER, LATER).is_mixed
    # The call of the reported packet may still come.
    found.remove_reported(HERE, None)
    found.add(call(7, 1))
    assert found.take(HERE, LATER, LATER).is_mixed


def test_connect_is_not_counted() -> None:
    assert flows_of(7, is_connect=True).take(HERE, LATER, LATER) == FlowCallers()


def test_frames_are_not_counted() -> None:
    """Other processes may have sent other frames; the counters differ by the frames' fields."""
    assert targets(flows_of(7, is_frame=True)) == []
    assert flow_target(record(0, rule="link")) is None
    assert flow_target(record(0, rule="link", protocol=None, destination=None)) is None


def test_target_is_the_flow_of_a_record() -> None:
    assert flow_target(record(0)) == HERE
    assert flow_target(record(0, uid=None)) is None
    assert flow_target(record(0, protocol=None)) is None
    assert flow_target(record(0, destination=None)) is None
    portless = record(0, destination_port=None, destination="2001:db8::7")
    assert flow_target(portless) == FlowTarget(
        1000, 17, bytes.fromhex("20010db8" + "0" * 23 + "7"), 0
    )


def test_separately_reported_packet_is_not_counted_again() -> None:
    found = flows_of(7, 7, 8)
    found.remove_reported(HERE, 7)
    found.remove_reported(HERE, 8)
    found.remove_reported(HERE, 9)
    found.remove_reported(HERE._replace(uid=0), 7)
    assert times_by_pid(found.take(HERE, LATER, LATER).calls) == {7: 1}
    assert targets(found) == [HERE._replace(uid=0)]


def test_separately_reported_packet_has_no_stored_time() -> None:
    found = flows_of(7, 7)  # at 0 and 1
    found.remove_reported(HERE, 7)
    assert times_by_pid(found.take(HERE, 0, 0).calls) == {7: 1}
    assert found.take(HERE, LATER, LATER) == FlowCallers()


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ({"tid": 8}, {"tid": 9}, {"tid": 0}),
        ({"tid": 8}, {"tid": 8}, {"tid": 8}),
        ({"uid": 0, "comm": b"before"}, {"uid": 7, "comm": b"after"}, {"uid": 7, "comm": b"after"}),
    ],
)
@pytest.mark.parametrize("others", [0, 64])
def test_reported_packet_may_be_that_of_the_call_before(
    before: dict[str, Any], after: dict[str, Any], named: dict[str, Any], others: int
) -> None:
    """The process may have changed its user or name meanwhile, or a thread of it has called."""
    found = FlowProcesses()
    calls = [call(7, 0, **before), *(call(8, 1) for _ in range(others - 1)), call(7, 2, **after)]
    for each in calls:
        found.add(each)
    found.remove_reported(HERE, 7)
    (of_7,) = [each for each, _ in found.take(HERE, LATER, LATER).calls if each.image.pid == 7]
    assert {name: getattr(of_7, name) for name in named} == named


def test_process_with_a_reported_packet_keeps_its_order() -> None:
    found = flows_of(7, 7, 8, *[9] * 64)
    found.remove_reported(HERE, 7)
    calls = found.take(HERE, LATER, LATER).calls
    assert [(each.image.pid, times) for each, times in calls] == [(7, 1), (8, 1), (9, 64)]


def test_oldest_of_too_many_flows_are_evicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_callers, "_FLOWS", 3)
    found = FlowProcesses()
    for port in (1, 2, 3, 1, 4):
        found.add(call(7, 0, destination_port=port))
    assert [target.port for target in targets(found)] == [3, 1, 4]


def test_flood_of_a_user_evicts_no_flow_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_callers, "_FLOWS", 4)
    found = FlowProcesses()
    for user in (2000, 2001):
        found.add(call(user, 0, owner=user, uid=user))
        for port in range(1, 9):
            found.add(call(7, 0, destination_port=port))
    assert [(target.uid, target.port) for target in targets(found)][:2] == [
        (2000, HERE.port), (2001, HERE.port),
    ]  # fmt: skip
    assert found._number == len(targets(found)) == 4
    for user in (2000, 2001):
        assert [each.image.pid for each, _ in found.take(HERE._replace(uid=user), 0, 0).calls] == [
            user
        ]


def test_flow_is_dropped_after_the_report_of_its_last_call() -> None:
    found = flows_of(7, 8)
    found.remove_reported(HERE, 7)
    assert targets(found) == [HERE]
    found.remove_reported(HERE, 8)
    assert targets(found) == []


def test_reported_flow_with_unnamed_or_uncertain_senders_stays() -> None:
    found = started(*range(1, 98))  # of these, 33 are before the latest 64
    for pid in range(2, 98):
        found.remove_reported(HERE, pid)
    assert found.take(HERE, LATER, LATER).unnamed == 1
    found.remove_reported(HERE, None)
    found.add(call(7, 0))
    found.remove_reported(HERE, 7)
    assert found.take(HERE, LATER, LATER).is_mixed


def started(*began: int) -> FlowProcesses:
    """Return the flow of processes with these start times."""
    found = FlowProcesses()
    for each in began:
        found.add(call(7, 0, image=ProcessImage(pid=each or 1, started_ns=each, execs=0)))
    return found


def test_latest_of_many_processes_are_named_and_the_others_counted() -> None:
    calls, unnamed, _ = started(*range(1, 101)).take(HERE, LATER, LATER)
    assert list(times_by_pid(calls)) == list(range(69, 101))
    assert unnamed == 68


def test_unnamed_process_that_calls_again_is_not_counted_again() -> None:
    assert started(*(list(range(1, 34)) * 10)).take(HERE, LATER, LATER).unnamed == 1
    assert started(*(list(range(33, 0, -1)) * 10)).take(HERE, LATER, LATER).unnamed == 1


@given(began=st.lists(st.integers(1, 60), max_size=150))
def test_named_and_unnamed_processes_are_at_most_all_processes(
    began: list[int],
) -> None:
    calls, unnamed, _ = started(*began).take(HERE, LATER, LATER)
    assert len(calls) <= 32
    assert len(calls) + unnamed <= len(set(began))
    assert bool(unnamed) == (len(set(began)) > 32)
    for each, times in calls:
        assert 1 <= times <= began.count(each.image.pid)


def test_flows_without_a_change_for_long_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = iter((10, 20, 30))
    monkeypatch.setattr(time, "clock_gettime_ns", lambda _: next(now_ns))
    found = flows_of(7)
    found.add(call(8, 1, destination_port=9))
    found.remove_reported(HERE, 99)  # another process: the flow is uncertain from now on
    found.remove_old(20)
    assert found.take(HERE, LATER, LATER).is_mixed
    assert targets(found) == []
    assert not found._by_user
