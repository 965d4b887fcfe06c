"""Who makes us look all the time is looked for a part of it."""

from __future__ import annotations

import time

import pytest

from ocsf_nft.attribution.time_budget import Credit


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the time is, as the only element."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_second_may_be_spent_at_once_and_after_that_a_quarter_of_the_time(
    clock: list[float],
) -> None:
    credit = Credit()
    assert credit.has_some()
    credit.spend(1.0)
    assert not credit.has_some()
    for _ in range(10):
        clock[0] += 4.0
        assert credit.has_some()
        credit.spend(1.0)
        assert not credit.has_some()


def test_who_spends_nothing_saves_no_more_than_a_second(clock: list[float]) -> None:
    credit = Credit()
    clock[0] += 3600
    credit.spend(1.0)
    assert not credit.has_some()


def test_who_spends_too_much_waits_for_it(clock: list[float]) -> None:
    credit = Credit()
    credit.spend(2.0)
    clock[0] += 4.0
    assert not credit.has_some()
    clock[0] += 0.1
    assert credit.has_some()
