"""Tests of the time budget of process lookups."""

from __future__ import annotations

import time

import pytest

from ocsf_nft.attribution.socket_method import TimeBudget


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the clock's time, as the only element."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_budget_is_a_second_at_once_and_then_a_quarter_of_the_time(
    clock: list[float],
) -> None:
    budget = TimeBudget()
    assert budget.has_time_left()
    budget.spend(1.0)
    assert not budget.has_time_left()
    for _ in range(10):
        clock[0] += 4.0
        assert budget.has_time_left()
        budget.spend(1.0)
        assert not budget.has_time_left()


def test_unspent_budget_is_at_most_a_second(clock: list[float]) -> None:
    budget = TimeBudget()
    clock[0] += 3600
    budget.spend(1.0)
    assert not budget.has_time_left()


def test_overspent_budget_is_unavailable_for_some_time(clock: list[float]) -> None:
    budget = TimeBudget()
    budget.spend(2.0)
    clock[0] += 4.0
    assert not budget.has_time_left()
    clock[0] += 0.1
    assert budget.has_time_left()
