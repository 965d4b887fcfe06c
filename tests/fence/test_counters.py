"""Limits of reading a fence's counters, without a kernel."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from ocsf_nft.errors import FenceError
from ocsf_nft.fence import counters, rule_counters
from ocsf_nft.fence.counters import Counters
from ocsf_nft.fence.namespace_reader import NamespaceReader
from ocsf_nft.flow import Count, RuleReading
from ocsf_nft.nfnetlink import InterruptedDumpError
from tests.standing import INSTALLED

if TYPE_CHECKING:
    from ocsf_nft.fence.counter_elements import ElementParser


def test_counters_are_read_until_one_deadline_in_ten_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deadlines: set[float] = set()
    monkeypatch.setattr(NamespaceReader, "rule", lambda *asked: deadlines.add(asked[-1]))
    monkeypatch.setattr(
        NamespaceReader, "current_generation", lambda *asked: deadlines.add(asked[-1])
    )
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    Counters(INSTALLED).read()
    assert deadlines == {110.0}


def test_counters_that_are_replaced_in_each_of_three_readings_are_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    readings = 0

    def read(_: Any) -> NoReturn:
        nonlocal readings
        readings += 1
        raise rule_counters.ReplacedError

    monkeypatch.setattr(rule_counters.RuleReader, "read", read)
    monkeypatch.setattr(NamespaceReader, "open", lambda _: SimpleNamespace(generation=lambda: 1))
    with pytest.raises(FenceError, match="are replaced again and again"):
        Counters(INSTALLED).read()
    assert readings == 3


def test_set_that_changes_in_each_of_three_readings_is_returned_as_it_was_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def collect(_: Any, _kind: str, elements: ElementParser, _found: Any) -> NoReturn:
        seen.append(elements.seen)
        elements.seen += 9
        raise InterruptedDumpError

    monkeypatch.setattr(rule_counters.RuleReader, "_collect", collect)
    rule = rule_counters.RuleReader(SimpleNamespace(), "inet", "ocsf_nft", "egress")  # type: ignore[arg-type]
    assert rule._elements("flows4", 1) == ()
    assert seen == [0, 0, 0]  # the limit is of each reading


@pytest.mark.parametrize(
    ("now", "explained"),
    [
        ({}, True),
        ({"refused": Count(9, 700)}, False),
        ({"logged": 9}, False),  # a packet without a log record
        ({"overflow": Count(1, 60)}, False),  # its flow had no free slot
    ],
)
def test_growth_is_explained_if_each_packet_was_logged(
    now: dict[str, Any], explained: bool
) -> None:
    last = RuleReading(
        refused_before=Count(8, 600), refused=Count(8, 600), overflow=Count(), logged=8,
        elements=None,
    )  # fmt: skip
    grown = {"refused_before": Count(10, 800), "refused": Count(10, 800), "logged": 10}
    assert counters._explains(2, 0, last, replace(last, **{**grown, **now})) is explained


@pytest.mark.parametrize(
    ("packets", "before", "explained"),
    [
        (1, 0, True),  # the record of the second one is on its way
        (1, 1, True),
        (1, 2, False),  # a record of a packet before the previous reading is missing
        (2, 2, True),
        (3, 0, False),  # more records than packets
        (0, 0, False),  # no record of the rule is known
    ],
)
def test_growth_is_explained_if_only_records_after_the_previous_reading_are_missing(
    packets: int, before: int, explained: bool
) -> None:
    last = RuleReading(
        refused_before=Count(8, 600), refused=Count(8, 600), overflow=Count(), logged=8,
        elements=None,
    )  # fmt: skip
    now = replace(last, refused=Count(10, 800), logged=10)
    assert counters._explains(packets, before, last, now) is explained
