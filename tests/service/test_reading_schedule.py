"""Times at which the counters of a sandbox are read."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest

from ocsf_nft.service.reading_schedule import ReadingSchedule


@dataclass
class Clock:
    now: float = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: made.now)
    return made


def _pauses(schedule: ReadingSchedule, clock: Clock, number: int) -> list[float]:
    """Read an idle sandbox some times; return the pauses."""
    found = []
    for _ in range(number):
        schedule.note_reading(0.001)
        schedule.plan(is_active=False)
        found.append(schedule.wait_seconds)
        clock.now += found[-1]
    return found


def test_pauses_of_an_idle_sandbox_grow_to_the_longest(clock: Clock) -> None:
    assert _pauses(ReadingSchedule(), clock, 8) == [1, 2, 4, 8, 16, 30, 30, 30]
    assert _pauses(ReadingSchedule(1.0), clock, 3) == [1, 1, 1]


def test_pause_of_an_active_sandbox_is_a_second(clock: Clock) -> None:
    schedule = ReadingSchedule()
    _pauses(schedule, clock, 8)
    schedule.note_reading(0.001)
    schedule.plan(is_active=True)
    assert (schedule.early_seconds, schedule.wait_seconds) == (0.5, 1)
    assert _pauses(schedule, clock, 2) == [2, 4]


@pytest.mark.parametrize(
    ("took", "pause"), [(0.001, 0.5), (0.1, 1.0), (1.0, 2.0), (1.1, 11.0), (5.0, 30.0)]
)
def test_readings_take_a_tenth_of_the_time_also_if_records_come(
    clock: Clock, took: float, pause: float
) -> None:
    schedule = ReadingSchedule()
    schedule.note_reading(took)
    schedule.plan(is_active=True)
    assert schedule.early_seconds == pytest.approx(pause)
    assert schedule.wait_seconds == pytest.approx(max(pause, 1))
    clock.now += pause
    assert schedule.early_seconds == 0


@pytest.mark.parametrize(
    ("expiry_seconds", "pause"), [(None, 30), (100, 30), (20, 20.5), (0.1, 0.6), (-9, 0.5)]
)
def test_pause_ends_soon_after_the_first_flow_expires(
    clock: Clock, expiry_seconds: float | None, pause: float
) -> None:
    schedule = ReadingSchedule()
    _pauses(schedule, clock, 8)
    schedule.note_reading(0.001)
    schedule.plan(is_active=False, expiry_seconds=expiry_seconds)
    assert schedule.wait_seconds == pytest.approx(pause)


def test_reading_is_late_after_its_planned_time(clock: Clock) -> None:
    schedule = ReadingSchedule()
    schedule.note_reading(0.001)
    schedule.plan(is_active=False)
    clock.now += 1
    assert schedule.late_seconds == schedule.unread_seconds == 0
    clock.now += 7
    assert schedule.late_seconds == schedule.unread_seconds == 7
    schedule.note_reading(0.001)
    assert schedule.late_seconds == schedule.unread_seconds == 0


def test_pauses_after_failures_grow_and_none_counts_as_a_reading(clock: Clock) -> None:
    schedule = ReadingSchedule()
    schedule.note_reading(0.001)
    schedule.plan(is_active=True)
    found = []
    for _ in range(8):
        clock.now += schedule.wait_seconds
        schedule.note_failure()
        assert schedule.late_seconds == 0
        schedule.plan(is_active=True)
        found.append(schedule.wait_seconds)
    assert found == [1, 2, 4, 8, 16, 30, 30, 30]
    assert schedule.unread_seconds == sum(found[:-1])
    clock.now += 30
    schedule.note_reading(0.001)
    schedule.plan(is_active=True)
    assert (schedule.wait_seconds, schedule.unread_seconds) == (1, 0)
