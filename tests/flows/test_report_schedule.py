"""Intervals between reports of one flow: they double up to a minute."""

from __future__ import annotations

from ocsf_nft.flows.report_schedule import Schedule

SECOND = 1_000_000_000
STEPS = (1, 2, 4, 8, 16, 32, 60, 60)


def test_schedule_doubles_its_interval_up_to_a_minute() -> None:
    schedule = Schedule(5)
    for step in STEPS:
        due_ns = schedule.reported_ns + step * SECOND
        assert schedule.due_ns == due_ns
        assert schedule.is_due(due_ns, due_ns)
        assert not schedule.is_due(due_ns - 1, due_ns - 1)
        schedule.mark_reported(due_ns)


def test_schedule_continues_with_the_interval_of_earlier_reports() -> None:
    for times, step in enumerate(STEPS, 1):
        assert Schedule(5, times).due_ns == 5 + step * SECOND
    assert Schedule(5, 1 << 62).due_ns == 5 + 60 * SECOND


def test_report_is_due_ten_seconds_after_the_last_packet() -> None:
    schedule = Schedule(0, 7)
    assert schedule.is_due(30 * SECOND, 20 * SECOND)
    assert not schedule.is_due(30 * SECOND, 20 * SECOND + 1)


def test_flow_is_over_ten_seconds_after_its_last_packet_and_report() -> None:
    schedule = Schedule(20 * SECOND)
    for last_ns in (0, 20 * SECOND):
        assert schedule.is_over(30 * SECOND, last_ns)
        assert not schedule.is_over(30 * SECOND - 1, last_ns)
    assert not schedule.is_over(30 * SECOND, 21 * SECOND)
