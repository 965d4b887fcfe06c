"""Conversion between clocks, also if the scheduler stops the thread between two readings."""

from __future__ import annotations

import time
from itertools import chain, repeat
from typing import TYPE_CHECKING

import pytest

from ocsf_nft import clocks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_EPOCH_NS = 1_000_000_000_000


class _Machine:
    """Two clocks that advance by the given nanoseconds before each reading."""

    def __init__(self, pauses: Iterable[int]) -> None:
        self.now_ns = 0
        self._pauses: Iterator[int] = chain(pauses, repeat(100))

    def kernel_clock(self, clock: int) -> int:
        assert clock == time.CLOCK_BOOTTIME
        self.now_ns += next(self._pauses)
        return self.now_ns

    def wall_clock(self) -> int:
        self.now_ns += next(self._pauses)
        return _EPOCH_NS + self.now_ns


@pytest.mark.parametrize(
    "pauses",
    [
        (),
        (0, 5_000_000),  # between the first reading and the wall clock
        (0, 0, 5_000_000),  # between the wall clock and the second reading
        (0, 5_000_000, 0, 0, 7_000_000, 0, 0, 0, 9_000_000),
        (0, 5_000_000, 0, 0, 1_500, 1_500, *(0, 5_000_000, 0) * 10),  # short once, never exact
    ],
)
def test_epoch_of_ignores_readings_that_were_interrupted(
    monkeypatch: pytest.MonkeyPatch, pauses: tuple[int, ...]
) -> None:
    machine = _Machine(pauses)
    monkeypatch.setattr(time, "clock_gettime_ns", machine.kernel_clock)
    monkeypatch.setattr(time, "time_ns", machine.wall_clock)
    assert abs(clocks.epoch_of(time.CLOCK_BOOTTIME) - _EPOCH_NS) <= 100


def test_epoch_of_ends_on_a_machine_that_always_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = _Machine([9_000_000, 8_000_000, 0, *[1_000_000] * 300])
    monkeypatch.setattr(time, "clock_gettime_ns", machine.kernel_clock)
    monkeypatch.setattr(time, "time_ns", machine.wall_clock)
    assert abs(clocks.epoch_of(time.CLOCK_BOOTTIME) - _EPOCH_NS) <= 1_000_000


def test_epoch_of_agrees_with_the_kernel() -> None:
    before_ns = time.time_ns()
    booted_ns = clocks.epoch_of(time.CLOCK_BOOTTIME)
    now_ns = booted_ns + time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert before_ns - 10_000 <= now_ns <= time.time_ns() + 10_000
