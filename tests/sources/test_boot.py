from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.sources.boot import KernelClock

SLACK = 20_000_000
SECOND = 1_000_000_000

arrivals = st.lists(
    st.tuples(
        st.integers(0, 5 * SECOND),  # time since the previous record
        st.integers(0, SLACK),  # time of delivery to the reader
        st.booleans(),  # the reader was waiting
    ),
    min_size=1,
    max_size=50,
)


@given(st.lists(st.tuples(st.integers(0, 10**18), st.integers(0, 10**15), st.booleans())))
def test_kernel_clock_never_goes_backwards_or_into_the_future(
    records: list[tuple[int, int, bool]],
) -> None:
    clock = KernelClock(SLACK)
    read_ns = last = 0
    for stamp, later, waited in records:
        read_ns += later
        made = clock.monotonic_ns(stamp, read_ns, waited=waited)
        assert last <= made <= read_ns
        last = made


@given(st.integers(-100 * SECOND, 100 * SECOND), arrivals)
def test_kernel_clock_error_is_below_the_slack_after_a_waiting_read(
    drift: int, records: list[tuple[int, int, bool]]
) -> None:
    clock = KernelClock(SLACK)
    made = read = 1_000_000 * SECOND  # long enough for such a drift of the clocks
    is_bounded = False
    for since, delivery_ns, waited in records:
        made += since
        read = max(read, made + delivery_ns)
        is_waited_for = waited and read == made + delivery_ns
        is_bounded = is_bounded or is_waited_for
        converted = clock.monotonic_ns(made - drift, read, waited=is_waited_for)
        if is_bounded:
            assert abs(converted - made) <= SLACK


@given(
    st.integers(-50, 50),
    st.lists(st.tuples(st.integers(0, 100 * SECOND), st.integers(0, SLACK)), max_size=20),
    st.integers(0, 3600 * SECOND),
    st.integers(0, 100 * SECOND),
)
def test_kernel_clock_takes_a_stopped_reader_for_no_drift(
    ppm: int, records: list[tuple[int, int]], stop: int, since: int
) -> None:
    """Read records as from journald: all count as waited for, but one waited in a queue."""
    clock = KernelClock(SLACK)
    made = read = 100_000 * SECOND

    def error(delivery_ns: int) -> int:
        nonlocal read
        read = max(read, made + delivery_ns)
        stamp = made - made * ppm // 1_000_000
        return abs(clock.monotonic_ns(stamp, read, waited=True) - made)

    error(0)
    for between, delivery_ns in records:
        made = read + between
        assert error(delivery_ns) <= SLACK
    made += since
    allowed = SLACK + (max(read, made + stop) - 100_000 * SECOND) // 5_000
    assert error(stop) <= allowed


def test_kernel_clock_gives_a_stopped_reader_the_times_of_queued_records() -> None:
    clock = KernelClock(SLACK)
    for number in range(1, 10):
        assert clock.monotonic_ns(number * SECOND, number * SECOND + 100_000, waited=True)
    made = 10 * SECOND
    assert abs(clock.monotonic_ns(made, made + 30 * SECOND, waited=True) - made) < 10_000_000


def test_kernel_clock_without_drift_returns_the_stamp() -> None:
    clock = KernelClock(SLACK)
    for number in range(10):
        stamp = number * SECOND
        assert clock.monotonic_ns(stamp, stamp + 4_000_000, waited=True) == stamp


def test_kernel_clock_ignores_the_age_of_records_read_without_waiting() -> None:
    clock = KernelClock(SLACK)
    assert clock.monotonic_ns(SECOND, 60 * SECOND, waited=False) == SECOND
    assert clock.monotonic_ns(61 * SECOND, 61 * SECOND + 1, waited=True) == 61 * SECOND


@pytest.mark.parametrize(("early", "corrected"), [(50_000_000, 0), (150_000_000, 50_000_000)])
def test_kernel_clock_tolerates_early_reader_stamps_up_to_the_lag(
    early: int, corrected: int
) -> None:
    clock = KernelClock(100_000_000, 100_000_000)
    assert clock.monotonic_ns(SECOND, SECOND - early, waited=True) == SECOND - corrected


def test_kernel_clock_stamp_within_the_lag_does_not_widen_the_drift_limit() -> None:
    clock = KernelClock(0, lag_ns=SECOND // 10)
    assert clock.monotonic_ns(SECOND, SECOND - SECOND // 20, waited=False) == SECOND
    read_ns = 2 * SECOND + SECOND // 25
    # The clocks drift apart by at most 100 ppm.
    assert clock.monotonic_ns(2 * SECOND, read_ns, waited=True) == 2 * SECOND + read_ns // 10_000


def test_kernel_clock_stamp_beyond_the_lag_moves_the_difference() -> None:
    clock = KernelClock(0, lag_ns=SECOND // 10)
    made = clock.monotonic_ns(SECOND, SECOND - SECOND // 5, waited=False)
    assert made == SECOND - SECOND // 10


def test_kernel_clock_shows_by_how_much_late_first_records_can_mislead_it() -> None:
    """A busy machine delays the first records, and then no more."""
    clock, late = KernelClock(SLACK), 3 * SECOND
    made = 100_000 * SECOND
    for number in range(20):
        stamp = made + number * SECOND // 10
        result = clock.monotonic_ns(stamp, stamp + late, waited=True)
        assert result - clock.unproven_ns == stamp, "at the earliest, there is no drift"
    for number in range(20, 60):  # the results never decrease
        stamp = made + number * SECOND // 10
        result = clock.monotonic_ns(stamp, stamp + SLACK // 2, waited=True)
        assert 0 <= result - clock.unproven_ns - stamp <= SLACK
    assert result - stamp <= SLACK


@pytest.mark.parametrize(
    ("records", "seconds", "is_proven"), [(8, 10, True), (7, 10, False), (8, 9.9, False)]
)
def test_kernel_clock_takes_a_drift_as_proven_after_enough_records_and_time(
    records: int, seconds: float, is_proven: bool
) -> None:
    clock, drift, made = KernelClock(SLACK), 4 * SECOND, 100_000 * SECOND
    for number in range(records):
        read = made + round(number * seconds * SECOND / (records - 1))
        clock.monotonic_ns(read - drift, read + (number != 3), waited=True)
    assert clock.unproven_ns == (1 if is_proven else drift - SLACK + 1)


def test_kernel_clock_limits_the_drift_to_100_ppm() -> None:
    assert KernelClock(0).monotonic_ns(0, 10_000 * SECOND, waited=True) == SECOND
