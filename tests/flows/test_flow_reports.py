"""Times of a flow's own reports, and the eviction of its state."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.flows.report_schedule import FlowReport, Schedule
from ocsf_nft.flows.sandbox_account import SandboxAccount
from tests.flows.kernel_model import RULE, keys
from tests.flows.reading import (
    NOW,
    SECOND,
    attempts,
    changes,
    ended,
    key,
    observe,
    reading,
    record,
    tcp,
)
from tests.flows.stored import FILE, AccountFile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ocsf_nft.attempt import Attempt, FanOut, IncidentEnd
    from ocsf_nft.flow import Key

METADATA = "169.254.169.254"
CUT = dataclasses.replace(tcp(), port=None)


@pytest.fixture
def account() -> SandboxAccount:
    begun = SandboxAccount("sb", begun_ns=NOW - SECOND, preferred=frozenset({METADATA}))
    observe(begun, reading({}))
    return begun


def _step(
    account: SandboxAccount, counts: Mapping[Key, int], second: float, *, closing: bool = False
) -> list[Attempt | FanOut | IncidentEnd]:
    at_ns = int(second * SECOND)
    observe(account, reading(counts, NOW + at_ns))
    return list(account.due(at_ns, closing=closing))


def test_report_intervals_double_from_a_second_to_a_minute() -> None:
    schedule = Schedule(0)
    due = [schedule.due_ns]
    for _ in range(8):
        schedule.mark_reported(0)
        due.append(schedule.due_ns)
    assert due == [each * SECOND for each in (1, 2, 4, 8, 16, 32, 60, 60, 60)]
    after_restart = [Schedule(0, times).due_ns // SECOND for times in (1, 2, 6, 7, 8, 1 << 40)]
    assert after_restart == [1, 2, 32, 60, 60, 60]


def test_report_is_due_at_the_end_of_its_interval_and_when_a_flow_is_over() -> None:
    schedule = Schedule(0, 7)
    assert not schedule.is_due(60 * SECOND - 1, 60 * SECOND - 1)
    assert schedule.is_due(60 * SECOND, 60 * SECOND)
    assert not schedule.is_due(10 * SECOND, 1)
    assert schedule.is_due(10 * SECOND, 0)
    assert not schedule.is_over(10 * SECOND, 1)
    assert schedule.is_over(10 * SECOND, 0)


def test_flow_without_a_report_is_over_after_ten_seconds() -> None:
    report = FlowReport(begun_ns=0)
    assert not report.is_over(10 * SECOND - 1)
    assert report.is_over(10 * SECOND)


@pytest.mark.parametrize(("second", "packets"), [(60.999, []), (61, [5])])
def test_flow_waits_for_an_unread_record_for_a_minute_when_no_reading_comes(
    account: SandboxAccount, second: float, packets: list[int]
) -> None:
    assert account.record(record(tcp(1)), 0) is not None
    assert _step(account, {key(tcp(2)): 5}, 1) == []
    found = attempts(account.due(int(second * SECOND)))
    assert [each.packets for each in found] == packets


def test_flow_that_a_record_began_waits_for_no_other_record(account: SandboxAccount) -> None:
    assert account.record(record(tcp(1)), 0) is not None
    observe(account, reading({key(tcp(2)): 2}, NOW + SECOND))
    assert account.record(record(tcp(2), at_ns=NOW + SECOND), SECOND) is not None
    assert [each.packets for each in attempts(_step(account, {key(tcp(2)): 5}, 2))] == [4]


def test_slots_of_priority_destinations_are_free_again_after_their_flows_end(
    account: SandboxAccount,
) -> None:
    flood = {key(tcp(port)): 1 for port in range(1, 1501)}

    def single(first: int, second: int) -> int:
        priority = {key(tcp(port, METADATA)): 1 for port in range(first, first + 20)}
        found = attempts(_step(account, flood | priority, second))
        return sum(each.record.destination == METADATA for each in found)

    _step(account, flood, 1)
    assert single(100, 1) == 16
    assert single(200, 1) == 0
    _step(account, flood, 20)
    # The user's quota has recovered by now, so these flows use it up first.
    spent = {key(tcp(port, "198.51.100.9")): 1 for port in range(1, 1201)}
    flood |= spent
    _step(account, flood, 21)
    assert single(300, 21) == 16


def test_record_without_a_port_matches_no_ended_flow(account: SandboxAccount) -> None:
    counts = {key(tcp()): 1}
    _step(account, counts, 1)
    assert len(ended(_step(account, counts, 12))) == 1
    found = account.record(record(CUT, at_ns=NOW + 13 * SECOND), 13 * SECOND)
    assert found is not None
    assert found.record.destination_port is None


def test_record_without_a_port_matches_the_latest_flow_to_its_destination(
    account: SandboxAccount,
) -> None:
    _step(account, {key(tcp(1)): 1}, 1)
    both = {key(tcp(1)): 1, key(tcp(2)): 1}
    _step(account, both, 6)
    # The first flow ends, and the latest one stays known.
    assert len(ended(_step(account, both, 12))) == 1
    assert account.record(record(CUT, at_ns=NOW + 12 * SECOND), 12 * SECOND) is None


def test_record_without_a_port_matches_a_flow_from_before_a_restart(
    account: SandboxAccount, tmp_path: Path
) -> None:
    _step(account, {key(tcp()): 1}, 1)
    stored, taken = AccountFile(tmp_path / FILE).opened(), SandboxAccount("sb", begun_ns=NOW)
    stored.put(changes(account))
    stored.load(taken)
    stored.close()
    assert taken.record(record(CUT, at_ns=NOW + 2 * SECOND), 2 * SECOND) is None
    assert [each.packets for each in attempts(_step(taken, {key(tcp()): 3}, 3))] == [2]


def test_aggregated_report_names_only_the_flows_since_the_one_before(
    account: SandboxAccount,
) -> None:
    flood = {key(tcp(port)): 1 for port in range(1, 1501)}

    def aggregation(second: int) -> list[tuple[int, int | None, int]]:
        found = attempts(_step(account, flood, second))
        return [
            (each.packets, each.aggregation.flows, len(each.aggregation.sample))
            for each in found
            if each.aggregation is not None
        ]

    assert aggregation(1) == [(500, 500, 10)]
    flood |= {key(tcp(port, "198.51.100.9")): 2 for port in range(1, 31)}
    flood |= {key(tcp(1500)): 8}
    # The quota is ten flows a second. The aggregated flow that grew is not a new one.
    assert aggregation(2) == [(2 * 20 + 7, 20, 10)]


def test_flow_whose_only_packet_was_reported_elsewhere_is_not_aggregated(
    account: SandboxAccount,
) -> None:
    assert account.record(record(tcp(9999)), 0) is not None
    flood = {key(tcp(port)): 1 for port in range(1, 1501)} | {key(CUT): 1}
    for second in (1, 2):  # the packet of the record was counted without its port
        observe(account, reading(flood, NOW + second * SECOND))
    for _ in account.aggregate_overflow(2 * SECOND):
        pass
    found = attempts(account.due(2 * SECOND))
    (aggregation,) = [each.aggregation for each in found if each.aggregation is not None]
    assert (aggregation.flows, sum(each.packets for each in found)) == (500, 1500)


def test_frames_never_count_as_packets_without_slot(account: SandboxAccount) -> None:
    frame = dataclasses.replace(tcp(), destination=None, protocol=None, port=None, ethertype=0x0806)
    found = attempts(_step(account, {key(frame): 2}, 1))
    assert [(each.packets, each.aggregation) for each in found] == [(2, None)]
    assert account.rules[RULE].without_flow == 0


def test_flow_with_a_record_waits_for_no_other_record(account: SandboxAccount) -> None:
    assert account.record(record(tcp(1)), 0) is not None
    assert _step(account, {key(tcp(2)): 5}, 1) == []
    assert account.record(record(tcp(2), at_ns=NOW + SECOND), SECOND) is None
    assert [each.packets for each in attempts(account.due(2 * SECOND, closing=False))] == [5]


def test_resumed_flow_is_reported_as_often_as_a_new_one(account: SandboxAccount) -> None:
    for second in range(1, 33):
        _step(account, {key(tcp()): second}, second)
    assert len(ended(_step(account, {key(tcp()): 32}, 60))) == 1
    reported = [
        second
        for second in range(100, 110)
        if attempts(_step(account, {key(tcp()): second}, second))
    ]
    assert reported == [100, 101, 103, 107]


def test_attempt_of_one_packet_has_its_latest_record(account: SandboxAccount) -> None:
    assert account.record(record(tcp(), 1, NOW + SECOND), SECOND) is not None
    assert account.record(record(tcp(), 2, NOW + 3 * SECOND), 3 * SECOND) is None
    (attempt,) = attempts(_step(account, {key(tcp()): 2}, 4))
    assert attempt.record.origin.identity == "record/2"
    assert attempt.start_ns == NOW + 3 * SECOND


def test_waiting_record_matches_its_own_counter_when_there_is_one(account: SandboxAccount) -> None:
    without_slot = keys(record(tcp()))[-2]
    assert len(attempts(_step(account, {without_slot: 1}, 1))) == 1
    assert account.record(record(tcp(443), at_ns=NOW + 2 * SECOND), 2 * SECOND) is None
    reported = attempts(_step(account, {without_slot: 2, key(tcp(443)): 1}, 3))
    assert {(each.record.origin.transport, each.aggregation is None) for each in reported} == {
        ("nflog", True),
        ("counters", False),
    }
    assert account.rules[RULE]._waiting == {}
