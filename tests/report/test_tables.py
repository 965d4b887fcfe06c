"""Tables and lists with a maximum size."""

from __future__ import annotations

from functools import reduce

from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.report.histogram import INTERVALS, HistogramBuilder
from ocsf_nft.report.tables import Counts, MostSevere, TopCounts

_TIMES = st.integers(-(10**14), 10**14)
_COUNTS = st.builds(Counts, st.just(1), st.integers(0, 99), st.integers(0, 99), _TIMES, _TIMES)


@given(st.lists(st.tuples(st.integers(0, 20), _COUNTS), min_size=1), st.integers(0, 6))
def test_top_counts_sum_is_exact_also_when_rows_are_evicted(
    added: list[tuple[int, Counts]], shown: int
) -> None:
    table: TopCounts[int] = TopCounts(3)
    for key, counts in added:
        table.add(key, counts)
    top = table.top(shown)
    parts = [counts for _, counts in top.rows] + ([top.rest] if top.rest else [])
    assert reduce(Counts.plus, parts) == reduce(Counts.plus, (counts for _, counts in added))
    packets = [counts.packets for _, counts in top.rows]
    assert len(packets) <= shown
    assert packets == sorted(packets, reverse=True)


def test_top_counts_has_how_many_rows_are_not_shown() -> None:
    table: TopCounts[int] = TopCounts(5)
    for key in range(8):
        table.add(key, Counts(1, key, 0, 0, 0))
    top = table.top(2)
    assert [key for key, _ in top.rows] == [7, 6]
    assert (top.more, top.is_bounded) == (6, False)
    for key in range(8, 20):
        table.add(key, Counts(1, key, 0, 0, 0))
    assert table.top(2).is_bounded


@given(st.lists(st.tuples(_TIMES, st.integers(0, 9), st.integers(0, 9)), min_size=1))
def test_histogram_counts_each_packet_once_in_a_bounded_number_of_intervals(
    added: list[tuple[int, int, int]],
) -> None:
    builder = HistogramBuilder()
    for each in added:
        builder.add(*each)
    found = builder.histogram()
    assert 1 <= len(found.bars) <= INTERVALS
    assert tuple(map(sum, zip(*found.bars, strict=True))) == (
        sum(blocked for _, blocked, _ in added),
        sum(allowed for _, _, allowed in added),
    )
    times = [time for time, _, _ in added]
    assert found.start_ms <= min(times) < found.start_ms + found.width_ms
    assert found.end_ms - found.width_ms <= max(times) < found.end_ms


def test_most_severe_entries_are_kept_and_the_earliest_of_equal_ones() -> None:
    found: MostSevere[str] = MostSevere(3)
    for severity, time, name in ((1, 1, "a"), (3, 9, "b"), (2, 5, "c"), (2, 4, "d"), (5, 7, "e")):
        found.add(severity, time, name)
    assert found.shortlist().entries == ("d", "e", "b")
    assert found.shortlist().more == 2
