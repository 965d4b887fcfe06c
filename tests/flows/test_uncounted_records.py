"""Log records that a fence did not log, by the counter of logged packets."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.flow import Count, Reading, RuleReading
from ocsf_nft.flows.uncounted_records import ReceivedRecords, UncountedRecords

if TYPE_CHECKING:
    from collections.abc import Iterable

_SECOND: Final = 1_000_000_000
_RULE: Final = "egress"


class Model:
    """A fence that logs, a reader that receives later, and readings of the counter."""

    def __init__(self) -> None:
        self.records = UncountedRecords()
        self.now_ns = 10 * _SECOND
        self.epoch = "boot:1"
        self.before = ""
        self.logged = self.received = self.forged = 0
        self.found = 0
        #: What an account would have stored.
        self.dropped = 0

    def restart(self) -> None:
        """Begin a new run with the stored numbers; the counters stay."""
        self.records = UncountedRecords()

    def read(self, *, after_ns: int = _SECOND, is_settled: bool = True) -> None:
        numbers = {(_RULE, self.epoch): self.received}
        if self.before:
            numbers = {(_RULE, self.before): 7}
        self.before = ""
        self.now_ns += after_ns
        reading = Reading(
            epochs={_RULE: self.epoch}, began_ns=self.now_ns, ended_ns=self.now_ns,
            began_ms=self.now_ns // 1_000_000, ended_ms=self.now_ns // 1_000_000,
            rules={
                _RULE: RuleReading(
                    refused_before=Count(), refused=Count(), overflow=Count(),
                    logged=self.logged, elements=None,
                )
            },
        )  # fmt: skip
        seen = ReceivedRecords(numbers, {(_RULE, self.epoch): self.dropped}, is_settled)
        self.found += sum(self.records.observe(seen, reading, self.now_ns).values())
        self.dropped = self.records.dropped(_RULE, self.epoch) or 0

    def rest(self) -> None:
        for _ in range(4):
            self.read()


@given(
    steps=st.lists(
        st.tuples(
            st.integers(0, 50),
            st.integers(0, 50),
            st.sampled_from([0.001, 0.3, 1.0, 30.0]),
            st.booleans(),
        ),
        max_size=60,
    )
)
def test_records_of_the_fence_are_never_called_forged(
    steps: Iterable[tuple[int, int, float, bool]],
) -> None:
    model = Model()
    for logged, received, seconds, is_settled in steps:
        model.logged += logged
        model.received = min(model.logged, model.received + received)
        if model.received == model.logged or not is_settled:
            model.read(after_ns=round(seconds * _SECOND), is_settled=is_settled)
        else:  # records are on their way, for less than a second
            model.read(after_ns=round(min(seconds, 0.3) * _SECOND))
            model.received = model.logged
    assert model.found == 0


@given(dropped=st.integers(0, 30), honest=st.integers(0, 30), forged=st.integers(1, 30))
def test_forged_records_are_counted_exactly_also_after_dropped_ones(
    dropped: int, honest: int, forged: int
) -> None:
    model = Model()
    model.logged += dropped + honest
    model.received += honest
    model.rest()
    assert model.found == 0
    model.received += forged
    model.rest()
    assert model.found == forged
    model.rest()
    assert model.found == forged
    model.received += 1
    model.rest()
    assert model.found == forged + 1


@given(
    rounds=st.lists(
        st.tuples(
            st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9),
            st.integers(0, 5),
        ),
        min_size=1,
        max_size=12,
    )
)  # fmt: skip
def test_forged_records_are_counted_exactly_over_restarts(
    rounds: list[tuple[int, int, int, int, int]],
) -> None:
    """Each round may have a restart just after the forged records, and others afterwards."""
    model = Model()
    for honest, dropped, forged, unread, restarts in rounds:
        model.logged += honest + dropped
        model.received += honest
        model.rest()
        model.received += forged
        model.forged += forged
        for number in range(restarts):
            model.restart()
            # Packets that are logged while no run reads. Later readings show forged records.
            model.logged += unread if number else 0
            model.rest()
            assert model.found == model.forged
        model.rest()
        assert model.found == model.forged
    for _ in range(5):
        model.restart()
        model.rest()
    assert model.found == model.forged


def test_records_dropped_long_after_the_last_one_hide_no_forged_records() -> None:
    model = Model()
    model.logged = model.received = 4
    model.rest()
    model.logged += 3
    model.rest()
    model.received += 2
    model.rest()
    assert model.found == 2


def test_forged_records_are_found_while_others_come() -> None:
    model, chance = Model(), random.Random(7)
    model.read()
    for _ in range(10):
        number = chance.randrange(1, 9)
        model.logged += number
        model.received += number + 1
        model.read(is_settled=False)
    assert model.found >= 7


def test_late_record_of_earlier_counters_is_not_forged() -> None:
    model = Model()
    model.rest()
    model.before, model.epoch = model.epoch, "boot:2"
    model.logged = 0
    model.read(after_ns=0)
    model.received = 3
    model.read(after_ns=_SECOND // 2)
    model.rest()
    assert model.found == 0
    model.received += 2
    model.rest()
    assert model.found == 2


def test_one_reading_between_log_and_count_shows_nothing() -> None:
    model = Model()
    model.rest()
    for _ in range(5):
        model.received += 1
        model.read()
        model.logged += 1
        model.read()
    assert model.found == 0


def test_counter_that_another_process_resets_shows_nothing() -> None:
    model = Model()
    model.logged, model.received = 9, 7
    model.rest()
    model.logged = 0
    model.rest()
    assert model.found == 0
    model.received += 3
    model.rest()
    assert model.found == 3


def test_reading_without_the_rule_changes_nothing() -> None:
    model = Model()
    model.logged, model.received = 9, 5
    model.rest()
    reading = Reading(epochs={}, began_ns=0, ended_ns=0, began_ms=0, ended_ms=0, rules={})
    assert model.records.observe(ReceivedRecords({}, {}, True), reading, model.now_ns) == {}
    model.received += 1
    model.rest()
    assert model.found == 1
