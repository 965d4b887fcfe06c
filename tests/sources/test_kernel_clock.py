from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.sources.boot_clock import KernelClock

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
    made = read = 1_000_000 * SECOND  # long enough for the clocks to drift so far apart
    learned = False
    for since, on_its_way, waited in seen:
        made += since
        read = max(read, made + on_its_way)
        waited_for = waited and read == made + on_its_way
        learned = learned or waited_for
        told = clock.monotonic_ns(made - drift, read, waited=waited_for)
        if learned:
            assert abs(told - made) <= SLACK


@given(
    st.integers(-50, 50),
    st.lists(st.tuples(st.integers(0, 100 * SECOND), st.integers(0, SLACK)), max_size=20),
    st.integers(0, 3600 * SECOND),
    st.integers(0, 100 * SECOND),
)
def test_a_reader_or_journald_that_was_stopped_is_no_drift(
    ppm: int, seen: list[tuple[int, int]], stop: int, since: int
) -> None:
    """All records count as waited for, as they do when journald reads; one stood in a queue."""
    clock = KernelClock(SLACK)
    made = read = 100_000 * SECOND

    def error(on_its_way: int) -> int:
        nonlocal read
        read = max(read, made + on_its_way)
        stamp = made - made * ppm // 1_000_000
        return abs(clock.monotonic_ns(stamp, read, waited=True) - made)

    error(0)
    for between, on_its_way in seen:
        made = read + between
        assert error(on_its_way) <= SLACK
    made += since
    allowed = SLACK + (max(read, made + stop) - 100_000 * SECOND) // 5_000
    assert error(stop) <= allowed


def test_a_stopped_reader_gets_the_times_of_what_waited_for_it() -> None:
    clock = KernelClock(SLACK)
    for number in range(1, 10):
        assert clock.monotonic_ns(number * SECOND, number * SECOND + 100_000, waited=True)
    made = 10 * SECOND
    assert abs(clock.monotonic_ns(made, made + 30 * SECOND, waited=True) - made) < 10_000_000


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


def test_kernel_clock_stamp_within_the_lag_gives_no_room_for_a_later_one() -> None:
    clock = KernelClock(0, lag_ns=SECOND // 10)
    assert clock.monotonic_ns(SECOND, SECOND - SECOND // 20, waited=False) == SECOND
    read_ns = 2 * SECOND + SECOND // 25
    # The clocks drift apart by at most 100 ppm.
    assert clock.monotonic_ns(2 * SECOND, read_ns, waited=True) == 2 * SECOND + read_ns // 10_000


def test_kernel_clock_stamp_beyond_the_lag_moves_the_difference() -> None:
    clock = KernelClock(0, lag_ns=SECOND // 10)
    made = clock.monotonic_ns(SECOND, SECOND - SECOND // 5, waited=False)
    assert made == SECOND - SECOND // 10


def test_clocks_drift_apart_by_at_most_100_ppm() -> None:
    assert KernelClock(0).monotonic_ns(0, 10_000 * SECOND, waited=True) == SECOND
