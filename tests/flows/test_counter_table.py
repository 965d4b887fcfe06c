"""Counters at rest share memory, and nothing of them is forgotten."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.flow import Element
from ocsf_nft.flows.counter_table import CounterTable
from ocsf_nft.flows.flow_counter import ELEMENT_TIMEOUT_MS, FlowCounter
from tests.flows.reading import NOW, SECOND, reading

DATA = b"a flow's key"
FACTS: dict[str, Any] = {
    "since_ns": NOW,
    "last_ns": NOW + SECOND,
    "seen_packets": 3,
    "seen_bytes": 180,
    "last_ms": 70_000,
    "expires_ms": 670_000,
    "missed": 0,
    "is_shown": True,
    "is_aggregated": False,
}
BEFORE = Element(DATA, 3, 180, 0)


def resting(read_ns: int = NOW, **facts: Any) -> CounterTable:
    table = CounterTable()
    table[DATA] = FlowCounter(**FACTS | facts)
    table.rest(DATA, read_ns)
    return table


def is_resting(table: CounterTable) -> bool:
    return not list(table.active())


def facts_of(counter: FlowCounter | None) -> dict[str, Any]:
    assert counter is not None
    return {name: getattr(counter, name) for name in FACTS}


@given(
    missed=st.integers(0, 2),
    is_shown=st.booleans(),
    is_aggregated=st.booleans(),
    last_ms=st.none() | st.integers(0, 99),
    expires_ms=st.none() | st.integers(0, 99),
)
def test_counter_keeps_its_state_while_it_rests(**facts: Any) -> None:
    table = resting(**facts)
    assert is_resting(table)
    assert facts_of(table.get(DATA)) == FACTS | facts
    assert not is_resting(table)


def test_change_of_a_counter_stays() -> None:
    table = resting()
    for packets in (4, 5):
        counter = table.get(DATA)
        assert counter is not None
        counter.seen_packets = packets
    assert facts_of(table.get(DATA))["seen_packets"] == 5


@pytest.mark.parametrize(
    "facts",
    [
        {"unreported_packets": 1},
        {"unreported_packets": -1},
        {"unreported_bytes": 1},
        {"unreported_bytes": -1},
        {"seen_packets": 0},
    ],
)
def test_counter_with_news_does_not_rest(facts: dict[str, int]) -> None:
    """A packet that an event reports before a reading shows it is such news."""
    assert not is_resting(resting(**facts))


@pytest.mark.parametrize(
    ("read_ns", "since_ns"),
    [
        (NOW - SECOND, NOW),
        (NOW + SECOND // 2, NOW + SECOND // 2),
        (NOW + 9 * SECOND, NOW + SECOND),
    ],
)
def test_next_packet_is_later_than_the_last_one_and_than_the_reading(
    read_ns: int, since_ns: int
) -> None:
    assert facts_of(resting(read_ns).get(DATA))["since_ns"] == since_ns


def test_equal_counters_need_the_memory_of_one() -> None:
    number, table = 10_000, CounterTable()
    keys = [each.to_bytes(16) for each in range(number)]
    tracemalloc.start()
    try:
        for each in keys:
            table[each] = FlowCounter(**FACTS)
            table.rest(each, NOW)
        table.tidy()
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(table) == len(list(table)) == number
    assert used < 60 * number  # the table itself; one counter has about 150 bytes
    for each in keys:
        del table[each]
    assert len(table) == 0
    assert table.get(keys[0]) is None


@pytest.mark.parametrize(
    ("element", "facts"),
    [
        (BEFORE._replace(packets=4), {}),
        (BEFORE._replace(packets=2), {}),
        (BEFORE._replace(bytes=181), {}),
        (BEFORE._replace(data=b"another flow's key"), {}),
        (BEFORE, {"is_shown": False}),
        (BEFORE, {"last_ms": None}),
        (BEFORE, {"last_ms": 70_000 - 1_000}),  # a reading that has the number of an earlier time
        (BEFORE, {"last_ms": 70_000 - ELEMENT_TIMEOUT_MS}),  # another element
    ],
)
def test_reading_with_news_is_noticed(element: Element, facts: dict[str, Any]) -> None:
    table = resting(**facts)
    assert not table.rests(element, reading({}, 70_000 * 1_000_000))
    assert is_resting(table)


@pytest.mark.parametrize(
    ("at_ms", "idle_ms", "facts"),
    [
        (70_000, 0, {}),
        (70_000, 10, {}),
        (700_000, 630_000, {"last_ms": 100_000}),  # longer than the timeout
        (70_000, 0, {"last_ms": 70_000 - 999}),
        (ELEMENT_TIMEOUT_MS + 70_000, ELEMENT_TIMEOUT_MS, {}),
    ],
)
def test_same_numbers_at_the_same_time_are_no_news(
    at_ms: int, idle_ms: int, facts: dict[str, Any]
) -> None:
    element = BEFORE._replace(idle_ms=idle_ms)
    assert resting(**facts).rests(element, reading({}, at_ms * 1_000_000))


def test_active_counter_is_always_read() -> None:
    table = resting()
    table.get(DATA)
    assert not table.rests(BEFORE, reading({}, 70_000 * 1_000_000))
