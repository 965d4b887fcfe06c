"""Unit tests of schedule, quota, counter and fan-outs."""

from __future__ import annotations

import dataclasses

from ocsf_nft.flow import CounterId, Element
from ocsf_nft.flows.flow_counter import ELEMENT_TIMEOUT_MS, FlowCounter
from ocsf_nft.flows.overflow import Quota
from ocsf_nft.flows.report_schedule import OVER_NS, FlowReport, Schedule
from ocsf_nft.flows.scans import FLOWS, WITHIN_NS, FanOuts
from ocsf_nft.flows.unlogged_flows import UnloggedFlows
from tests.flows.reading import NOW, SECOND, key, reading, tcp

COUNTER_ID = CounterId(sandbox="sb", rule="egress", epoch="boot:1")


def _reported_at(steps: int) -> list[int]:
    schedule, now = Schedule(0), 0
    reported = []
    for _ in range(steps):
        while not schedule.is_due(now, now):
            now += SECOND // 2
        schedule.mark_reported(now)
        reported.append(now // SECOND)
    return reported


def test_schedule_intervals_grow_to_a_minute() -> None:
    assert _reported_at(9) == [1, 3, 7, 15, 31, 63, 123, 183, 243]


def test_ended_flow_is_due_before_its_interval_ends() -> None:
    schedule = Schedule(0)
    for _ in range(6):
        schedule.mark_reported(100 * SECOND)
    assert not schedule.is_due(101 * SECOND, 100 * SECOND)
    assert schedule.is_due(100 * SECOND + OVER_NS, 100 * SECOND)


def test_recently_reported_flow_is_not_over() -> None:
    schedule = Schedule(100 * SECOND)
    assert not schedule.is_over(100 * SECOND + OVER_NS - 1, 0)
    assert schedule.is_over(100 * SECOND + OVER_NS, 0)


def test_growing_flow_without_a_report_is_not_over() -> None:
    report = FlowReport(begun_ns=0)
    report.set_growing()
    assert not report.is_over(OVER_NS)
    assert report.is_over(2 * OVER_NS)


def test_quota_grants_a_thousand_flows_and_then_ten_a_second() -> None:
    for start in (0, 3 * SECOND, NOW):  # for any uptime of the machine
        quota = Quota()
        assert sum(quota.grants(1, start) for _ in range(2000)) == 1000
        later = range(start, start + 10 * SECOND + 1, SECOND // 20)
        assert sum(quota.grants(1, now) for now in later) == 100


def test_quota_of_a_user_is_independent_of_others() -> None:
    quota = Quota()
    assert sum(quota.grants(1, NOW) for _ in range(2000)) == 1000
    assert quota.grants(2, NOW)
    assert quota.grants(None, NOW)


def test_quota_of_users_beyond_the_limit_waits_for_idle_users() -> None:
    quota = Quota()
    assert all(quota.grants(uid, NOW) for uid in range(4096))
    assert not quota.grants(9999, NOW)
    assert quota.grants(9999, NOW + SECOND)


def _update(counter: FlowCounter, packets: int, octets: int, at_ns: int, idle_ms: int = 0) -> int:
    """Read a counter at a time after NOW; the reading before was not settled."""
    element = Element(b"", packets, octets, idle_ms)
    return counter.update(element, reading({}, NOW + at_ns), NOW, None)


def test_counter_adds_new_packets_to_the_unreported_ones() -> None:
    counter = FlowCounter(since_ns=NOW)
    assert _update(counter, 3, 180, 0) == 3
    counter.mark_reported(3, 180)
    assert _update(counter, 5, 300, SECOND, 200) == 2
    assert (counter.unreported_packets, counter.unreported_bytes) == (2, 120)
    assert counter.last_ns == NOW + SECOND - 200_000_000


def test_counter_adds_bytes_that_grow_without_packets() -> None:
    counter = FlowCounter(since_ns=NOW)
    _update(counter, 3, 180, 0)
    assert _update(counter, 3, 240, 0) == 0
    assert (counter.unreported_packets, counter.unreported_bytes) == (3, 240)


def test_smaller_counter_has_restarted() -> None:
    counter = FlowCounter(since_ns=NOW)
    _update(counter, 3, 180, 0)
    assert _update(counter, 2, 100, 0) == 2
    assert (counter.unreported_packets, counter.unreported_bytes) == (5, 280)


def test_job_that_runs_every_ten_minutes_is_counted_each_time() -> None:
    """Its element expires and is created again between two readings, and counts 1 again."""
    counter = FlowCounter(since_ns=NOW)
    assert _update(counter, 1, 60, 0) == 1
    assert _update(counter, 1, 60, 599 * SECOND, 599_000) == 0
    assert _update(counter, 1, 60, 601 * SECOND, 50) == 1
    assert counter.unreported_packets == 2


def test_setting_the_clock_forward_counts_nothing_twice() -> None:
    counter = FlowCounter(since_ns=NOW)
    _update(counter, 1, 60, 0)
    later = reading({}, NOW + 3600 * SECOND, at_ms=NOW // 1_000_000 + 500)
    assert counter.update(Element(b"", 1, 60, 500), later, NOW, None) == 0


def test_forged_counter_values_can_be_stored() -> None:
    counter, most = FlowCounter(since_ns=NOW), (1 << 64) - 1
    for packets in (most, 0, most, 0, most, 0, most):
        counter.update(Element(b"", packets, packets, most), reading({}), NOW, None)
    numbers = (
        counter.seen_packets,
        counter.seen_bytes,
        counter.unreported_packets,
        counter.unreported_bytes,
    )
    assert all(abs(number) < 1 << 63 for number in numbers)
    assert NOW - counter.last_ns <= ELEMENT_TIMEOUT_MS * 1_000_000


def _fan_outs(flows: int, uid: int = 1000) -> FanOuts:
    fan_outs = FanOuts(COUNTER_ID, {})
    for port in range(1, flows + 1):
        fan_outs.add_flow(key(tcp(port, f"192.0.2.{port % 4}", uid)), NOW)
        fan_outs.count(uid, 2)
    return fan_outs


def test_fan_out_total_of_forged_counters_is_limited() -> None:
    fan_outs = _fan_outs(FLOWS)
    for _ in range(FLOWS):
        fan_outs.count(1000, 1 << 62)
    (found,) = fan_outs.due(0)
    assert found.packets == 1 << 62


def test_few_flows_are_no_fan_out() -> None:
    assert list(_fan_outs(FLOWS - 1).due(0, closing=True)) == []


def test_fan_out_is_reported_with_its_totals_when_it_has_enough_flows() -> None:
    (found,) = _fan_outs(FLOWS).due(0)
    assert (found.stage, found.uid, found.flows, found.packets) == ("begun", 1000, FLOWS, 2 * FLOWS)
    assert (found.destinations, found.ports, len(found.sample)) == (4, FLOWS, 10)


def test_slow_flows_are_no_fan_out() -> None:
    fan_outs = FanOuts(COUNTER_ID, {})
    for half in range(400):
        if half % 7 == 0:  # 18 a minute
            fan_outs.add_flow(key(tcp(half + 1)), NOW)
        assert list(fan_outs.due(half * SECOND // 2)) == []


def test_fan_out_is_reported_at_growing_intervals_and_ends() -> None:
    fan_outs = _fan_outs(FLOWS)
    stages = [found.stage for found in fan_outs.due(0)]
    for tenths in range(1, 100):
        fan_outs.add_flow(key(tcp(1000 + tenths)), NOW)
        stages += [found.stage for found in fan_outs.due(tenths * SECOND // 10)]
    assert stages == ["begun", "goes on", "goes on", "goes on"]  # after 1, 3 and 7 seconds
    last = 99 * SECOND // 10
    (end,) = fan_outs.due(last + WITHIN_NS)
    assert (end.stage, end.flows) == ("ended", FLOWS + 99)
    assert list(fan_outs.due(last + 3 * WITHIN_NS, closing=True)) == []


def test_closing_ends_a_fan_out() -> None:
    found = list(_fan_outs(FLOWS).due(0, closing=True))
    assert [each.stage for each in found] == ["begun", "ended"]
    assert len({each.identity for each in found}) == 1


def test_thousands_of_users_neither_hide_a_fan_out_nor_fill_memory() -> None:
    fan_outs = _fan_outs(FLOWS, uid=5)
    for uid in range(10_000, 15_000):
        fan_outs.add_flow(key(tcp(1, uid=uid)), NOW)
    assert len(fan_outs._activities) <= 1024
    assert [found.uid for found in fan_outs.due(0)] == [5]


def test_unlogged_counters_are_checked_twice_for_any_number_of_records() -> None:
    class CheckedCounter(FlowCounter):
        checks = 0

        def __getattribute__(self, name: str) -> object:
            CheckedCounter.checks += name == "unreported_packets"
            return super().__getattribute__(name)

    many = 1000
    counters = [
        (key(tcp(port)), CheckedCounter(since_ns=NOW, unreported_packets=1)) for port in range(many)
    ]
    unlogged = UnloggedFlows(counters)
    assert [each[1] for each in unlogged.find(1, key(tcp(9)))] == [counters[-1][1]]
    assert unlogged.find(1, key(tcp(9, uid=2000))) == []
    for _, counter in counters:
        counter.mark_reported(1, 60)
    CheckedCounter.checks = 0
    for _ in range(many):
        assert unlogged.find(1, key(tcp(9))) == []
    assert 2 * many == CheckedCounter.checks


def test_counter_of_the_same_destination_is_taken_before_others_of_the_user() -> None:
    here, there = tcp(1), dataclasses.replace(tcp(2), destination="192.0.2.99")
    counters = [
        (key(each), FlowCounter(since_ns=NOW, unreported_packets=1)) for each in (here, there)
    ]
    for order in (counters, counters[::-1]):
        unlogged = UnloggedFlows(order)
        for packet in (here, there):
            assert [each for each, _ in unlogged.find(1, key(packet))] == [key(packet)]
        elsewhere = dataclasses.replace(here, destination="192.0.2.98")
        assert [each for each, _ in unlogged.find(1, key(elsewhere))] == [order[-1][0]]
        assert unlogged.find(2, key(here)) == []
