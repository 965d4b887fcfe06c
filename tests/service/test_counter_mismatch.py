"""Counts that differ for a short or a long time."""

from __future__ import annotations

import time

import pytest

from ocsf_nft.flows.sandbox_account import Balance
from ocsf_nft.service.counter_mismatch import CounterMismatch


def balance(refused: int, reported: int) -> Balance:
    return Balance(
        sandbox="sb", rule="egress", refused=refused, reported=reported, aggregated=0, pending=0,
        dropped=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("refused", "reported", "text"), [(3, 1, "+2 packets"), (1, 4, "-3 packets")]
)
def test_counts_that_differ_for_a_minute_are_a_fault(
    monkeypatch: pytest.MonkeyPatch, refused: int, reported: int, text: str
) -> None:
    times = iter((1000.0, 1059.9, 1060.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    mismatch = CounterMismatch()
    mismatch.observe([balance(refused, reported), balance(5, 5)])
    mismatch.observe([balance(refused, reported)])
    early, late = mismatch.fault, mismatch.fault
    assert early is None
    assert str(late).endswith(f"{text} of rule egress")
    mismatch.observe([balance(reported, reported)])
    assert mismatch.fault is None


def test_new_difference_begins_a_new_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((1000.0, 1080.0, 1120.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    mismatch = CounterMismatch()
    for each in (balance(2, 1), balance(2, 2), balance(3, 2)):
        mismatch.observe([each])
    assert mismatch.fault is None
