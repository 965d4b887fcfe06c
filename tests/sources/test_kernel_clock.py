from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.sources.clock import KernelClock

SLACK = 20_000_000
SECOND = 1_000_000_000

arrivals = st.lists(
    st.tuples(
        st.integers(0, 5 * SECOND),  # since the record before
        st.integers(0, SLACK),  # on its way to the reader
        st.booleans(),  # the reader was waiting
    ),
    min_size=1,
    max_size=50,
)


@given(st.lists(st.tuples(st.integers(0, 10**18), st.integers(0, 10**15), st.booleans())))
def test_times_never_go_backwards_nor_lie_in_the_future(
    seen: list[tuple[int, int, bool]],
) -> None:
    clock = KernelClock(SLACK)
    read_ns = last = 0
    for stamp, later, waited in seen:
        read_ns += later
        made = clock.monotonic_ns(stamp, read_ns, waited=waited)
        assert last <= made <= read_ns
        last = made


@given(st.integers(-100 * SECOND, 100 * SECOND), arrivals)
def test_once_a_record_was_waited_for_the_error_is_below_the_slack(
    drift: int, seen: list[tuple[int, int, bool]]
) -> None:
    clock = KernelClock(SLACK)
    made = read = 1000 * SECOND
    learned = False
    for since, on_its_way, waited in seen:
        made += since
        read = max(read, made + on_its_way)
        waited_for = waited and read == made + on_its_way
        learned = learned or waited_for
        told = clock.monotonic_ns(made - drift, read, waited=waited_for)
        if learned:
            assert abs(told - made) <= SLACK


def test_clocks_that_agree_are_left_alone() -> None:
    clock = KernelClock(SLACK)
    for number in range(10):
        stamp = number * SECOND
        assert clock.monotonic_ns(stamp, stamp + 4_000_000, waited=True) == stamp


def test_a_batch_that_was_read_late_does_not_move_the_clock() -> None:
    clock = KernelClock(SLACK)
    assert clock.monotonic_ns(SECOND, 60 * SECOND, waited=False) == SECOND
    assert clock.monotonic_ns(61 * SECOND, 61 * SECOND + 1, waited=True) == 61 * SECOND


@pytest.mark.parametrize(("early", "told"), [(50_000_000, 0), (150_000_000, 50_000_000)])
def test_a_reader_whose_own_stamps_lag_is_believed_within_bounds(early: int, told: int) -> None:
    clock = KernelClock(100_000_000, 100_000_000)
    assert clock.monotonic_ns(SECOND, SECOND - early, waited=True) == SECOND - told
