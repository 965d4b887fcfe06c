"""Records and readings of one rule, reconciled: pending and waiting packets, and unknown flows."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.attempt import FanOut
from ocsf_nft.flow import Count
from ocsf_nft.flows.sandbox_account import SandboxAccount
from tests.flows.kernel_model import RULE, keys
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
from tests.flows.stored import FILE, AccountFile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ocsf_nft.attempt import Attempt, IncidentEnd
    from ocsf_nft.flow import Key, Reading

WITHOUT_SLOT = keys(record(tcp()))[-2]
NOW_MS = NOW // 1_000_000
MANY = {key(tcp(port)): 1 for port in range(1, 1501)}


@pytest.fixture
def account() -> SandboxAccount:
    begun = SandboxAccount("sb", begun_ns=NOW - SECOND)
    observe(begun, reading({}))
    return begun


def _due(
    account: SandboxAccount, second: float, *, closing: bool = False
) -> list[Attempt | FanOut | IncidentEnd]:
    return list(account.due(int(second * SECOND), closing=closing))


def _step(
    account: SandboxAccount, counts: Mapping[Key, int], second: int, **more: Any
) -> list[Attempt]:
    observe(account, reading(counts, NOW + second * SECOND, **more))
    return attempts(_due(account, second))


def _during(found: Reading, before: int) -> Reading:
    """Return the reading, as if it began after ``before`` refused packets."""
    of_rule = dataclasses.replace(found.rules[RULE], refused_before=Count(before, 60 * before))
    return dataclasses.replace(found, rules={RULE: of_rule})


def _pending(account: SandboxAccount) -> tuple[int, int]:
    (balance,) = account.balances()
    return balance.pending, balance.counter_mismatch


def test_pending_packets_include_those_that_came_during_the_reading(
    account: SandboxAccount,
) -> None:
    observe(account, _during(reading({key(tcp()): 3}, NOW + SECOND, refused=5), 3))
    assert _pending(account) == (5, 0)
    assert len(_due(account, 1)) == 1
    assert _pending(account) == (2, 0)


def test_pending_packets_without_a_slot_are_counted_once(account: SandboxAccount) -> None:
    observe(account, _during(reading({}, NOW + SECOND, overflow=7), 5))
    assert _pending(account) == (7, 0)
    assert len(attempts(_due(account, 1))) == 1
    assert _pending(account) == (0, 0)


def test_pending_packets_of_aggregated_flows_are_counted_once(account: SandboxAccount) -> None:
    observe(account, reading(MANY, NOW + SECOND))
    for _ in account.aggregate_overflow(SECOND):
        pass
    assert _pending(account) == (1500, 0)
    assert account.rules[RULE].by_user[1000].counter.unreported_packets == 500


def test_pending_packets_exclude_those_reported_as_evicted(account: SandboxAccount) -> None:
    first = [each for second in range(700, 709) for each in _step(account, {}, second, refused=5)]
    assert [(each.packets, each.bytes) for each in first] == [(5, 300)]
    observe(account, _during(reading({key(tcp()): 2}, NOW + 710 * SECOND, refused=7), 5))
    assert _pending(account) == (2, 0)
    later = [
        each
        for second in range(720, 740)
        for each in _step(account, {key(tcp()): 2}, second, refused=10)
    ]
    assert [(each.packets, each.bytes) for each in later] == [(2, 120), (3, 180)]


def test_packet_with_a_record_and_no_element_is_reported_once(account: SandboxAccount) -> None:
    assert account.record(record(tcp()), SECOND) is not None
    for second in (700, 701):
        observe(account, reading({}, NOW + second * SECOND, refused=1))
    assert attempts(_due(account, 701, closing=True)) == []
    assert _pending(account) == (0, 0)


def test_flows_wait_for_an_unread_record_for_three_readings_and_no_longer(
    account: SandboxAccount,
) -> None:
    assert account.record(record(tcp(1)), SECOND) is not None
    other = {key(tcp(2, uid=7)): 5}
    assert [_step(account, other, second) for second in (1, 2, 3)] == [[], [], []]
    assert [each.packets for each in _step(account, other, 4)] == [5]


@pytest.mark.parametrize(("second", "is_reported"), [(60, False), (61, True)])
def test_record_waits_for_its_counter_for_a_minute_after_packets_without_a_flow(
    account: SandboxAccount, second: int, is_reported: bool
) -> None:
    assert len(_step(account, {WITHOUT_SLOT: 1}, 1)) == 1
    found = account.record(record(tcp(443), at_ns=NOW + second * SECOND), second * SECOND)
    assert (found is not None) is is_reported


def test_record_of_an_aggregated_flow_is_not_an_attempt(account: SandboxAccount) -> None:
    assert len(_step(account, MANY, 1)) == 1001
    flow = key(tcp(1400))
    counter = account.rules[RULE].counters.entry(flow)
    assert counter is not None
    assert counter.is_aggregated
    # The user's quota has recovered by then.
    assert account.record(record(tcp(1400), at_ns=NOW + 9 * SECOND), 9 * SECOND) is None
    reported = _step(account, MANY | {flow: 4}, 10)
    assert [each.aggregation.reason for each in reported if each.aggregation is not None] == [
        "many"
    ]


def test_window_of_a_flow_begins_at_its_reported_record(account: SandboxAccount) -> None:
    observe(account, reading({key(tcp()): 3}, NOW + 2 * SECOND))
    first = account.record(record(tcp(), at_ns=NOW + SECOND), 2 * SECOND)
    assert first is not None
    (rest,) = _step(account, {key(tcp()): 3}, 13)
    assert (rest.packets, rest.start_ns, rest.end_ns) == (2, NOW + SECOND, NOW + 2 * SECOND)


def _begun(found: list[Attempt | FanOut | IncidentEnd]) -> list[tuple[str, int]]:
    return [(each.stage, each.flows) for each in found if isinstance(each, FanOut)]


def test_fan_out_counts_a_flow_once_whether_a_record_or_a_reading_has_it_first(
    account: SandboxAccount,
) -> None:
    for port in range(1, 21):
        assert account.record(record(tcp(port)), SECOND) is not None
    assert _begun(_due(account, 1)) == [("begun", 20)]
    observe(account, reading({key(tcp(port)): 1 for port in range(1, 21)}, NOW + SECOND))
    assert _begun(_due(account, 2)) == []


def test_fan_out_excludes_packets_without_a_flow(account: SandboxAccount) -> None:
    def other(protocol: int) -> Key:
        return keys(record(dataclasses.replace(tcp(), protocol=protocol)))[-2]

    observe(account, reading({other(number): 1 for number in range(1, 31)}, NOW + SECOND))
    assert _begun(_due(account, 1, closing=True)) == []


@pytest.mark.parametrize(
    ("rule", "is_outbound"),
    [
        *((rule, True) for rule in ("egress", "forward", "link", "guard")),
        *((rule, True) for rule in ("vm-forward", "vm-input", "vm-link")),
        ("ingress", False),
    ],
)
def test_fan_out_covers_rules_for_outbound_packets_only(rule: str, is_outbound: bool) -> None:
    def of_rule(found: Reading) -> Reading:
        return dataclasses.replace(
            found, rules={rule: found.rules[RULE]}, epochs={rule: found.epochs[RULE]}
        )

    account = SandboxAccount("sb", begun_ns=NOW - SECOND)
    counts = {key(tcp(port)): 1 for port in range(1, 21)}
    observe(account, of_rule(reading({})), of_rule(reading(counts, NOW + SECOND)))
    assert bool(_begun(_due(account, 1, closing=True))) is is_outbound
    if not is_outbound:
        own_record = dataclasses.replace(record(tcp(99)), rule=rule)
        assert account.record(own_record, SECOND) is not None
        assert _begun(_due(account, 2, closing=True)) == []


def test_packets_unreported_before_a_restart_are_reported_after_it(
    account: SandboxAccount, tmp_path: Path
) -> None:
    observe(account, reading({key(tcp()): 1}, NOW + SECOND))
    stored, taken = AccountFile(tmp_path / FILE).opened(), SandboxAccount("sb", begun_ns=NOW)
    stored.put(changes(account))
    stored.load(taken)
    stored.close()
    assert [each.packets for each in attempts(_due(taken, 2))] == [1]


def test_rule_that_is_gone_does_not_keep_the_time_of_the_last_reading(
    account: SandboxAccount,
) -> None:
    one = reading({}, NOW + SECOND)
    observe(
        account,
        dataclasses.replace(one, rules={"link": one.rules[RULE]}, epochs={"link": "boot:1"}),
    )
    assert account.read_ns == NOW + SECOND


def test_balance_has_no_dropped_record_when_records_are_ahead_of_the_reading(
    account: SandboxAccount,
) -> None:
    account.record(record(tcp()), SECOND)
    assert [each.dropped for each in account.balances()] == [0]


def test_record_is_matched_to_another_counter_after_two_readings(
    account: SandboxAccount,
) -> None:
    """One reading may omit an element."""
    assert account.record(record(tcp(1)), SECOND) is not None
    other = {key(tcp(2)): 1}
    assert _step(account, other, 2) == []
    found = set(account.rules[RULE].counters.entries["flows4"])
    assert found == {key(tcp(1)).data, key(tcp(2)).data}
    both = {key(tcp(1)): 1, key(tcp(2)): 1}
    assert [each.packets for each in _step(account, both, 3)] == [1]
    assert _pending(account) == (0, 0)


def test_record_is_subtracted_from_overflow_packets_after_nine_readings(
    account: SandboxAccount,
) -> None:
    assert account.record(record(tcp(1)), SECOND) is not None
    entries = account.rules[RULE].counters.entries["flows4"]
    for second in range(2, 10):
        observe(account, reading({}, NOW + second * SECOND, refused=0))
        assert len(entries) == 1
    observe(account, reading({}, NOW + 10 * SECOND, refused=0))
    assert len(entries) == 0
    assert account.rules[RULE].counters.overflow.unreported_packets == -1


def test_packets_without_an_element_have_the_time_of_the_last_reading_that_counted_more(
    account: SandboxAccount,
) -> None:
    last = {}
    for second, overflow in enumerate((5, 5, 7, 7, 7, 7), 1):
        observe(account, reading({}, NOW + second * SECOND, overflow=overflow))
        last[second] = account.rules[RULE].counters.overflow.last_ns
    assert last == {second: NOW + (1 if second < 3 else 3) * SECOND for second in last}


@pytest.fixture
def logged() -> SandboxAccount:
    """Return an account with two packets of two new flows, each with a log record."""
    account = SandboxAccount("sb", begun_ns=NOW - SECOND)
    observe(account, reading({}))
    changes(account)
    assert account.explained_packets(NOW_MS) == {RULE: 0}
    for port in (1, 2):
        assert account.record(record(tcp(port), port), NOW) is not None
    return account


def test_records_of_new_flows_explain_their_packets(logged: SandboxAccount) -> None:
    assert logged.explained_packets(NOW_MS) == {RULE: 2}
    observe(logged, reading({key(tcp(1)): 1, key(tcp(2)): 1}))
    assert logged.explained_packets(NOW_MS) == {RULE: 0}


def test_flows_are_read_from_time_to_time_although_records_explain_them(
    logged: SandboxAccount,
) -> None:
    assert logged.explained_packets(NOW_MS + 4_999) == {RULE: 2}
    assert logged.explained_packets(NOW_MS + 5_000) == {}


def test_record_of_a_known_flow_explains_nothing(logged: SandboxAccount) -> None:
    assert logged.record(record(tcp(2), 3), NOW) is None
    assert logged.explained_packets(NOW_MS) == {}


def test_records_explain_nothing_while_other_packets_are_unreported(
    logged: SandboxAccount,
) -> None:
    observe(logged, reading({key(tcp(1)): 1, key(tcp(2)): 1, key(tcp(3)): 1}))
    assert logged.explained_packets(NOW_MS) == {RULE: 0}
    assert logged.record(record(tcp(4), 4), NOW) is not None
    assert logged.explained_packets(NOW_MS) == {}


def test_flow_that_the_last_reading_lacked_is_read_again(logged: SandboxAccount) -> None:
    observe(logged, reading({key(tcp(1)): 1}, refused=2))
    assert logged.explained_packets(NOW_MS) == {}


def _balance(account: SandboxAccount) -> tuple[int, int, int]:
    (found,) = account.balances()
    return found.reported, found.pending, found.counter_mismatch


@pytest.fixture
def inheriting(account: SandboxAccount) -> SandboxAccount:
    """Return an account with one packet reported from its record, and then new counters.

    A packet of another flow is in these counters.
    """
    assert account.record(record(tcp(1)), SECOND) is not None
    observe(account, reading({key(tcp(9)): 1}, epoch="boot:2"))
    assert _balance(account) == (0, 1, 0)
    return account


def _renewed(counts: Mapping[Key, int], second: float, **more: Any) -> Reading:
    at_ns = NOW + int(second * SECOND)
    return reading({key(tcp(9)): 1, **counts}, at_ns, epoch="boot:2", **more)


@pytest.mark.parametrize(
    ("second", "idle_ms", "expected"),
    [
        (0.1, 0, 1),  # the packet of the record
        (1, 900, 1),
        (1, 0, 2),  # a later one
    ],
)
def test_packet_in_new_counters_is_a_second_one_if_it_came_later_than_the_record(
    inheriting: SandboxAccount, second: float, idle_ms: int, expected: int
) -> None:
    observe(inheriting, _renewed({key(tcp(1)): 1}, second, idle_ms=idle_ms))
    new = sum(each.packets for each in attempts(_due(inheriting, 3, closing=True)))
    assert new == expected  # with the packet of the other flow
    assert _balance(inheriting) == (2, 0, 0)


def test_packet_of_a_flow_that_new_counters_lacked_is_a_second_one(
    inheriting: SandboxAccount,
) -> None:
    assert inheriting.record(record(tcp(1), 2, NOW + SECOND), 2 * SECOND) is None
    observe(inheriting, _renewed({}, 0.1), _renewed({key(tcp(1)): 2}, 2))
    assert sum(each.packets for each in attempts(_due(inheriting, 3, closing=True))) == 3
    assert _balance(inheriting) == (3, 0, 0)


def test_packet_of_old_counters_is_never_taken_from_another_counter(
    account: SandboxAccount, tmp_path: Path
) -> None:
    assert account.record(record(tcp(1)), SECOND) is not None
    observe(account, reading({key(tcp(9)): 1}, epoch="boot:2"))
    stored, taken = AccountFile(tmp_path / FILE).opened(), SandboxAccount("sb", begun_ns=NOW)
    stored.put(changes(account))
    stored.load(taken)
    stored.close()
    for each in (account, taken):
        observe(each, _renewed({}, 1), _renewed({}, 2))
        assert [every.packets for every in attempts(_due(each, 3, closing=True))] == [1]
        observe(each, _renewed({}, 4, overflow=1))
        assert [every.packets for every in attempts(_due(each, 5, closing=True))] == [1]
        assert _balance(each) == (2, 0, 0)


def test_packet_that_the_old_total_had_is_not_one_of_the_new_counters(
    logged: SandboxAccount,
) -> None:
    explained = logged.explained_packets(NOW_MS)
    assert explained == {RULE: 2}
    observe(logged, on_demand(logged, reading({key(tcp(1)): 1, key(tcp(2)): 1})))
    observe(logged, reading({key(tcp(1)): 3}, NOW + SECOND, epoch="boot:2", idle_ms=900))
    assert sum(each.packets for each in attempts(_due(logged, 3, closing=True))) == 3
    assert _balance(logged) == (3, 0, 0)


def test_packet_without_a_slot_in_new_counters_is_reported_once(account: SandboxAccount) -> None:
    assert account.record(record(tcp(1)), SECOND) is not None
    for second in range(1, 14):
        found = reading({WITHOUT_SLOT: 1}, NOW + second * SECOND, epoch="boot:2")
        observe(account, found)
        assert attempts(_due(account, second)) == []
    assert _balance(account) == (1, 0, 0)


def test_packet_without_a_slot_in_old_counters_is_reported_once(account: SandboxAccount) -> None:
    assert account.record(record(tcp(1)), SECOND) is not None
    for second in (1, 2):
        observe(account, reading({WITHOUT_SLOT: 1}, NOW + second * SECOND))
    observe(account, reading({}, NOW + 3 * SECOND, epoch="boot:2"))
    assert attempts(_due(account, 3)) == []
    assert _balance(account) == (0, 0, 0)


def test_no_packet_of_an_earlier_boot_is_in_new_counters(account: SandboxAccount) -> None:
    assert account.record(record(tcp(1)), SECOND) is not None
    observe(account, reading({key(tcp(1)): 2}, NOW + SECOND, epoch="later:1", idle_ms=999))
    assert sum(each.packets for each in attempts(_due(account, 3, closing=True))) == 2


@pytest.mark.parametrize(("step_s", "idle_ms", "new"), [(2, 500, 0), (-2, 0, 1)])
def test_clock_step_does_not_change_which_counters_have_a_packet(
    account: SandboxAccount, step_s: int, idle_ms: int, new: int
) -> None:
    at_ms = NOW_MS + 700
    assert account.record(record(tcp(1), at_ns=NOW + SECOND // 5), SECOND) is not None
    at_ns = at_ms * 1_000_000 + step_s * SECOND
    found = reading({key(tcp(1)): 1}, at_ns, at_ms=at_ms, idle_ms=idle_ms, epoch="boot:2")
    observe(account, found)
    assert sum(each.packets for each in attempts(_due(account, 3, closing=True))) == new
    assert _balance(account) == (1, 0, 0)


def test_old_total_with_new_flows_hides_no_packet_without_a_slot(account: SandboxAccount) -> None:
    observe(account, reading({}, overflow=3))
    changes(account)
    for port in (1, 2):
        assert account.record(record(tcp(port), port), NOW) is not None
    observe(account, on_demand(account, reading({key(tcp(1)): 1, key(tcp(2)): 1}, overflow=3)))
    observe(account, reading({}, NOW + SECOND, epoch="boot:2"))
    assert [each.packets for each in attempts(_due(account, 1))] == [3]
    assert _balance(account) == (0, 0, 0)
