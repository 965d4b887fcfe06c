"""Counts and times of one flow, at the limits of each duration that the account uses."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.flow import Count, Element
from ocsf_nft.flows import reconciler
from ocsf_nft.flows.flow_counter import ELEMENT_TIMEOUT_MS, FlowCounter
from ocsf_nft.flows.sandbox_account import SandboxAccount
from ocsf_nft.process import Attribution
from tests.flows.kernel_model import RULE
from tests.flows.reading import (
    NOW,
    SECOND,
    attempts,
    changes,
    key,
    observe,
    on_demand,
    reading,
    record,
    tcp,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ocsf_nft.attempt import Attempt
    from ocsf_nft.flow import Key
    from ocsf_nft.record import Record

MINUTE = 60 * SECOND
ELEMENT_TIMEOUT_NS = ELEMENT_TIMEOUT_MS * 1_000_000
FLOW = key(tcp())
BY = Attribution(method="capture", confidence="high", reason="it was seen")
OTHER = Attribution(method="socket", confidence="medium", reason="it has the socket")


@pytest.fixture
def account() -> SandboxAccount:
    begun = SandboxAccount("sb", begun_ns=NOW - SECOND)
    observe(begun, reading({}))
    return begun


def _step(
    account: SandboxAccount, counts: Mapping[Key, int], at_ns: int, *, idle_ms: int = 0, **more: Any
) -> list[Attempt]:
    """Read at a time after NOW and report one second later."""
    observe(account, reading(counts, NOW + at_ns, idle_ms=idle_ms, **more))
    return attempts(account.due(at_ns + SECOND))


def test_element_timeout_equals_the_timeout_in_the_ruleset() -> None:
    text = (Path(__file__).parents[2] / "rules/accounting.nft").read_text("utf-8")
    sets = re.findall(r"set (?:flows4|flows6|others)_egress \{(.*?)\}", text, re.DOTALL)
    found = {line.strip() for each in sets for line in each.splitlines() if "timeout 1" in line}
    assert found == {f"timeout {ELEMENT_TIMEOUT_MS // 60_000}m"}
    assert ELEMENT_TIMEOUT_MS % 60_000 == 0


def test_packet_between_the_readings_of_a_count_and_of_its_time_is_counted_once(
    account: SandboxAccount,
) -> None:
    found = [
        *_step(account, {FLOW: 1}, SECOND),
        *_step(account, {FLOW: 1}, 20 * SECOND, idle_ms=19_000),
    ]
    found += _step(account, {FLOW: 1}, 580 * SECOND, refused=2)
    for second in (610, 612):  # the kernel omits the element
        found += _step(account, {}, second * SECOND, refused=2)
    found += _step(account, {FLOW: 2}, 614 * SECOND, idle_ms=34_000)
    found += _step(account, {FLOW: 2}, 690 * SECOND, idle_ms=110_000)
    assert [attempt.packets for attempt in found] == [1, 1]


def test_time_range_contains_a_packet_that_came_during_a_slow_reading(
    account: SandboxAccount,
) -> None:
    """The reading shows the time of the packet before only as the end of the reading."""
    assert account.record(record(tcp(), at_ns=NOW + 900_000_000), 0) is not None
    slow = reading({FLOW: 1}, NOW, idle_ms=100)
    ended_ms = slow.ended_ms + 5_000
    observe(account, replace(slow, ended_ns=NOW + 5 * SECOND, ended_ms=ended_ms))
    for second in (6, 7):  # the kernel omits the element
        assert _step(account, {}, second * SECOND, refused=2) == []
    (attempt,) = _step(account, {FLOW: 2}, 20 * SECOND, idle_ms=18_000)
    assert attempt.start_ns <= NOW + 2 * SECOND <= attempt.end_ns


@pytest.mark.parametrize("idle_s", [299, 300, 301, 400, 599])
def test_flow_that_resumes_after_an_idle_gap_is_counted_once(
    account: SandboxAccount, idle_s: int
) -> None:
    assert [each.packets for each in _step(account, {FLOW: 10}, SECOND)] == [10]
    assert _step(account, {FLOW: 10}, idle_s * SECOND, idle_ms=(idle_s - 1) * 1000) == []
    (attempt,) = _step(account, {FLOW: 11}, (idle_s + 2) * SECOND, idle_ms=500)
    assert (attempt.packets, attempt.bytes) == (1, 60)
    # The window starts at the earliest when a reading showed no new packet.
    assert attempt.start_ns == NOW + idle_s * SECOND
    assert attempt.end_ns == NOW + (idle_s + 2) * SECOND - 500_000_000


def _update(
    counter: FlowCounter,
    packets: int,
    at_ns: int,
    *,
    idle_ms: int = 0,
    octets: int = 60,
    settled_ns: int | None = None,
) -> int:
    """Read a counter at a time after NOW; the reading before was settled, or None."""
    settled_ms = None if settled_ns is None else (NOW + settled_ns) // 1_000_000
    element = Element(b"", packets, packets * octets, idle_ms)
    return counter.update(element, reading({}, NOW + at_ns), NOW, settled_ms)


@pytest.mark.parametrize(("later_ms", "renewed"), [(589_000, 0), (589_001, 10)])
def test_element_with_an_unchanged_count_is_new_if_its_last_packet_is_much_later(
    later_ms: int, renewed: int
) -> None:
    counter = FlowCounter(since_ns=NOW)
    _update(counter, 10, 0)
    assert _update(counter, 10, 700 * SECOND, idle_ms=700_000 - later_ms) == renewed
    assert (counter.unreported_packets, counter.unreported_bytes) == (
        10 + renewed,
        60 * (10 + renewed),
    )


@pytest.mark.parametrize(("settled_ms", "fresh"), [(600_000, 2), (600_001, 12), (None, 2)])
def test_element_is_new_if_a_settled_reading_came_after_its_timeout(
    settled_ms: int | None, fresh: int
) -> None:
    counter = FlowCounter(since_ns=NOW)
    _update(counter, 10, 0)
    settled_ns = None if settled_ms is None else settled_ms * 1_000_000
    assert _update(counter, 12, 620 * SECOND, settled_ns=settled_ns) == fresh


def test_flow_that_resumes_after_its_timeout_keeps_its_name(account: SandboxAccount) -> None:
    """Read on demand, with the pauses of an idle sandbox."""
    assert len(_step(account, {FLOW: 1}, SECOND)) == 1
    changes(account)
    for second in (2, 30, 60, 300, 590):
        idle_ms = (second - 1) * 1000
        assert _read_on_demand(account, {FLOW: 1}, second * SECOND, idle_ms=idle_ms) == []
    assert _read_on_demand(account, {}, 602 * SECOND, refused=1) == []  # it has expired
    at_once = account.record(record(tcp()), 605 * SECOND)
    later = _read_on_demand(account, {FLOW: 1}, 605 * SECOND, refused=2)
    (attempt,) = [*([] if at_once is None else [at_once]), *later]
    assert (attempt.packets, attempt.record.destination) == (1, tcp().destination)


def _read_on_demand(
    account: SandboxAccount, counts: Mapping[Key, int], at_ns: int, **more: Any
) -> list[Attempt]:
    observe(account, on_demand(account, reading(counts, NOW + at_ns, **more)))
    changes(account)
    return attempts(account.due(at_ns + SECOND))


def test_packets_of_an_omitted_element_may_be_older_than_the_reading(
    account: SandboxAccount,
) -> None:
    assert len(_step(account, {FLOW: 1}, SECOND)) == 1
    assert _step(account, {}, 20 * SECOND, refused=2) == []
    (attempt,) = _step(account, {FLOW: 2}, 40 * SECOND, idle_ms=25_000)
    assert (attempt.start_ns, attempt.end_ns) == (NOW + SECOND, NOW + 15 * SECOND)


def test_window_begins_with_the_first_unreported_packet(account: SandboxAccount) -> None:
    assert len(_step(account, {FLOW: 1}, SECOND)) == 1
    for second in (2, 3):
        observe(account, reading({FLOW: second}, NOW + second * SECOND))
    (attempt,) = _step(account, {FLOW: 4}, 4 * SECOND)
    assert (attempt.packets, attempt.start_ns, attempt.end_ns) == (
        3,
        NOW + SECOND,
        NOW + 4 * SECOND,
    )


def test_packet_gets_neither_time_nor_process_from_a_late_record(account: SandboxAccount) -> None:
    assert len(_step(account, {FLOW: 1}, SECOND)) == 1
    late = record(tcp(), at_ns=NOW + SECOND // 2)
    assert account.record(late, 2 * SECOND, BY) is None
    (attempt,) = _step(account, {FLOW: 2}, 8 * SECOND)
    assert (attempt.packets, attempt.record.origin.transport) == (1, "counters")
    assert attempt.attribution is None
    assert (attempt.start_ns, attempt.end_ns) == (NOW + SECOND, NOW + 8 * SECOND)


@pytest.mark.parametrize(
    ("after_ns", "read_ns", "transport"),
    [(0, 1, "nflog"), (200_000_001, 1, "counters"), (200_000_001, 0, "nflog")],
)
def test_unreported_packet_gets_no_time_from_a_later_packet(
    account: SandboxAccount, after_ns: int, read_ns: int, transport: str
) -> None:
    """A delayed service reads the record of a packet before a reading shows the packet."""
    observe(account, reading({FLOW: 1}, NOW + SECOND))
    at_ns = NOW + SECOND + after_ns
    later = replace(record(tcp(), at_ns=at_ns), received_ns=at_ns + read_ns)
    found = account.record(later, MINUTE, BY)
    reported = [found] if found is not None else attempts(account.due(MINUTE))
    assert [(each.packets, each.record.origin.transport) for each in reported] == [(1, transport)]
    assert reported[0].attribution == (BY if transport == "nflog" else None)
    assert reported[0].end_ns == (at_ns if transport == "nflog" else NOW + SECOND)


def _exact(at_ns: int) -> Record:
    """Return a record of the kernel log, which has the time of its packet."""
    return replace(record(tcp(), at_ns=at_ns), received_ns=at_ns + 1)


def test_record_of_a_later_packet_names_the_attempt_that_counts_it(account: SandboxAccount) -> None:
    first = account.record(_exact(NOW + SECOND), SECOND)
    assert first is not None
    observe(account, reading({FLOW: 1}, NOW + SECOND * 3 // 2))
    observe(account, reading({FLOW: 2}, NOW + 2 * SECOND, idle_ms=400))
    assert account.record(_exact(NOW + SECOND * 23 // 10), SECOND * 23 // 10, BY) is None
    (unnamed,) = attempts(account.due(MINUTE))
    assert (unnamed.packets, unnamed.attribution) == (1, None)
    observe(account, reading({FLOW: 3}, NOW + SECOND * 31 // 10, idle_ms=800))
    (named,) = attempts(account.due(2 * MINUTE))
    assert (named.packets, named.attribution) == (1, BY)
    observe(account, reading({FLOW: 4}, NOW + 5 * SECOND))
    (next_one,) = attempts(account.due(3 * MINUTE))
    assert (next_one.packets, next_one.attribution) == (1, None), "one record names one attempt"


@pytest.mark.parametrize("is_read_first", [True, False])
def test_record_of_a_later_packet_leaves_the_attempt_its_own(
    account: SandboxAccount, is_read_first: bool
) -> None:
    first = account.record(_exact(NOW + SECOND), SECOND)
    assert first is not None
    observe(account, reading({FLOW: 1}, NOW + SECOND * 3 // 2))
    own = _exact(NOW + SECOND * 8 // 5)
    if is_read_first:
        account.record(own, 2 * SECOND, BY)
    observe(account, reading({FLOW: 2}, NOW + 2 * SECOND, idle_ms=400))
    if not is_read_first:
        account.record(own, 2 * SECOND, BY)
    account.record(_exact(NOW + SECOND * 23 // 10), SECOND * 23 // 10, OTHER)
    (attempt,) = attempts(account.due(MINUTE))
    assert (attempt.packets, attempt.attribution) == (1, BY)
    observe(account, reading({FLOW: 3}, NOW + SECOND * 31 // 10, idle_ms=800))
    (later,) = attempts(account.due(2 * MINUTE))
    assert (later.packets, later.attribution) == (1, OTHER)


def test_record_that_only_the_clocks_make_late_matches_its_packet(account: SandboxAccount) -> None:
    observe(account, reading({FLOW: 1}, NOW + SECOND))
    at_ns = NOW + SECOND + 200_000_000
    own_record = replace(record(tcp(), at_ns=at_ns), received_ns=at_ns + 1)
    attempt = account.record(own_record, 2 * SECOND, BY)
    assert attempt is not None
    assert (attempt.record.origin.transport, attempt.attribution) == ("nflog", BY)


@pytest.mark.parametrize(("early_ns", "transport"), [(0, "nflog"), (1, "counters")])
def test_record_that_only_the_clocks_make_early_matches_its_packet(
    account: SandboxAccount, early_ns: int, transport: str
) -> None:
    """The kernel's time of the packet is after the previous reading."""
    observe(account, reading({}, NOW + SECOND))
    observe(account, reading({FLOW: 1}, NOW + 2 * SECOND))
    early = record(tcp(), at_ns=NOW + SECOND - 200_000_000 - early_ns)
    found = account.record(early, 2 * SECOND)
    (attempt,) = [found] if found is not None else attempts(account.due(2 * SECOND))
    assert attempt.record.origin.transport == transport


@pytest.mark.parametrize("late_ms", [0, 1])
def test_flow_is_evicted_when_two_readings_lack_it_after_its_timeout(
    account: SandboxAccount, late_ms: int
) -> None:
    late_ns = late_ms * 1_000_000
    _step(account, {FLOW: 5}, SECOND)
    entries = account.rules[RULE].counters.entries["flows4"]
    end_ns = SECOND + ELEMENT_TIMEOUT_NS + late_ns
    _step(account, {}, end_ns, refused=5)
    assert len(entries) == 1
    _step(account, {}, end_ns + late_ns, refused=5)
    assert len(entries) == 1 - late_ms
    # A new element has more packets: all of them are new if the flow was evicted.
    (attempt,) = _step(account, {FLOW: 7}, end_ns + MINUTE, refused=12)
    assert attempt.packets == (7 if late_ns else 2)


def test_flow_that_every_other_reading_omits_is_not_evicted(
    account: SandboxAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler, "_CROWDED", 0)
    _step(account, {FLOW: 5}, SECOND)
    for minute in range(1, 9):
        counts = {FLOW: 5} if minute % 2 else {}
        assert _step(account, counts, minute * MINUTE, refused=5, idle_ms=minute * 59_000) == []
    assert len(account.rules[RULE].counters.entries["flows4"]) == 1


@pytest.mark.parametrize("back_s", [3600, 30])
def test_record_of_a_packet_counted_elsewhere_is_found_after_the_clock_is_set_back(
    account: SandboxAccount, back_s: int
) -> None:
    assert account.record(record(tcp(1)), SECOND) is not None
    for number in (1, 2, 3):
        at_ns = NOW + (number - back_s) * SECOND
        observe(account, reading({key(tcp(2)): 1}, at_ns))
    (balance,) = account.balances()
    assert (balance.reported, balance.pending, balance.counter_mismatch) == (1, 0, 0)


def test_flow_is_evicted_after_its_timeout_when_the_clock_is_set_back(
    account: SandboxAccount,
) -> None:
    _step(account, {FLOW: 5}, SECOND)
    back = -30 * 24 * 60 * MINUTE
    for at_ns in (
        2 * SECOND,
        SECOND + ELEMENT_TIMEOUT_NS,
        3 * SECOND + ELEMENT_TIMEOUT_NS,
        4 * SECOND + ELEMENT_TIMEOUT_NS,
    ):
        assert len(account.rules[RULE].counters.entries["flows4"]) == 1
        at_ms = (NOW + at_ns) // 1_000_000
        observe(account, reading({}, NOW + back + at_ns, at_ms=at_ms, refused=5))
    assert len(account.rules[RULE].counters.entries["flows4"]) == 0


def test_counter_is_as_old_as_its_first_packet_can_be() -> None:
    counter = FlowCounter(since_ns=NOW)
    assert (counter.last_ns, counter.expires_ms) == (NOW, None)
    _update(counter, 1, MINUTE, idle_ms=1_000)
    assert (counter.last_ns, counter.expires_ms) == (
        NOW + MINUTE - SECOND,
        (NOW + MINUTE - SECOND + ELEMENT_TIMEOUT_NS) // 1_000_000,
    )
    counter.grow_by(Count(1, 60), NOW + 2 * MINUTE)
    assert counter.last_ns == NOW + 2 * MINUTE
    counter.grow_by(Count(1, 60), NOW + MINUTE)
    assert counter.last_ns == NOW + 2 * MINUTE


def test_record_without_a_port_describes_a_flow_without_a_record(
    account: SandboxAccount,
) -> None:
    assert len(_step(account, {FLOW: 1}, SECOND)) == 1
    cut = replace(record(replace(tcp(), port=None)), in_interface="eth0")
    assert account.record(cut, 2 * SECOND) is None
    (attempt,) = _step(account, {FLOW: 3}, 8 * SECOND)
    assert attempt.record.in_interface == "eth0"


def test_element_with_fewer_packets_and_the_same_bytes_is_new() -> None:
    counter = FlowCounter(since_ns=NOW)
    assert _update(counter, 3, 0, octets=40) == 3
    assert _update(counter, 2, SECOND) == 2
    assert (counter.unreported_packets, counter.unreported_bytes) == (5, 240)
