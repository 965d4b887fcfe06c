"""The account that a restart restores, row by row."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.flow import KINDS
from ocsf_nft.flows.sandbox_account import SandboxAccount
from ocsf_nft.state.change import Account, AccountChange, Position
from tests.flows.kernel_model import RULE
from tests.flows.reading import (
    NOW,
    SECOND,
    attempts,
    changes,
    key,
    observe,
    reading,
    record,
    tcp,
)
from tests.flows.stored import FILE, AccountFile

if TYPE_CHECKING:
    from pathlib import Path

    from ocsf_nft.attempt import Attempt


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sb" / FILE


def _account() -> SandboxAccount:
    return SandboxAccount("sb", begun_ns=NOW - SECOND)


def _flows(change: AccountChange) -> int:
    """Return the number of changed counters of flows."""
    return sum(key.kind in KINDS for key in change.parts)


def _due(account: SandboxAccount, second: int) -> list[Attempt]:
    return attempts(account.due(second * SECOND, closing=True))


def test_record_of_a_packet_reported_without_its_flow_is_not_reported_after_a_restart(
    path: Path,
) -> None:
    """A restarted service reads the kernel log from the killed service's position."""
    database, account = AccountFile(path).opened(), _account()
    observe(account, reading({}))
    observe(account, reading({}, NOW + SECOND, overflow=1))
    assert [each.packets for each in attempts(account.due(SECOND))] == [1]
    database.put(changes(account))
    taken = _account()
    database.load(taken)
    database.close()
    assert taken.record(record(tcp()), 60 * SECOND) is None
    for second in (60, 61):
        observe(taken, reading({}, NOW + second * SECOND, overflow=1))
    assert _due(taken, 61) == []
    assert [(each.reported, each.counter_mismatch) for each in taken.balances()] == [(1, 0)]


def test_unchanged_rows_are_not_written_again_and_obsolete_rows_are_deleted(
    path: Path,
) -> None:
    database, account = AccountFile(path).opened(), _account()
    observe(account, reading({key(tcp()): 1}))
    assert len(_due(account, 1)) == 1
    assert _flows(changes(account)) == 1
    assert _flows(changes(account)) == 0
    observe(account, reading({key(tcp()): 2}, NOW + SECOND))
    database.put(changes(account))
    _due(account, 2)
    for second in (700, 701):
        observe(account, reading({}, NOW + second * SECOND, refused=2))
    database.put(changes(account))
    taken = _account()
    database.load(taken)
    database.close()
    assert not list(taken.rules[RULE].counters.entries["flows4"])


def test_counters_of_a_set_that_is_empty_again_need_no_memory() -> None:
    account, number = _account(), 2_000
    observe(account, reading({key(tcp(port)): 1 for port in range(1, number + 1)}))
    table = account.rules[RULE].counters.entries["flows4"]
    assert sys.getsizeof(table._counters) > 10_000
    for second in (1, 700, 701):
        _due(account, second)
        changes(account)
        if second > 1:
            observe(account, reading({}, NOW + second * SECOND, refused=number))
    assert len(table) == 0
    assert sys.getsizeof(table._counters) < 100
    changes(account)
    assert not table._shared


def test_time_range_after_a_restart_contains_a_packet_that_came_during_a_slow_reading(
    path: Path,
) -> None:
    database, account = AccountFile(path).opened(), _account()
    observe(account, reading({}, NOW - SECOND))
    database.put(changes(account))
    assert account.record(record(tcp(), at_ns=NOW + SECOND), 0) is not None
    slow = reading({key(tcp()): 1}, NOW, idle_ms=100)
    observe(account, replace(slow, ended_ns=NOW + 5 * SECOND, ended_ms=slow.ended_ms + 5_000))
    database.put(changes(account))
    observe(account, reading({}, NOW + 6 * SECOND, refused=2))  # the kernel omits the element
    database.put(changes(account))
    taken = _account()
    database.load(taken)
    database.close()
    observe(taken, reading({key(tcp()): 2}, NOW + 10 * SECOND, idle_ms=8_000))
    (attempt,) = _due(taken, 30)
    assert attempt.start_ns <= NOW + 2 * SECOND <= attempt.end_ns


def test_position_is_that_of_the_source_that_was_read_last(path: Path) -> None:
    database = AccountFile(path).opened()
    for source, position in (("kmsg", "7"), ("journal", "s=1")):
        database.put(AccountChange("sb"), position=Position("sb", source, position))
        assert database.account("sb").position == ("sb", source, position)
        database.put(AccountChange("sb"))
        assert database.account("sb").position == ("sb", source, position)
    database.close()


def test_unreported_packets_of_many_flows_are_restored_with_their_user(path: Path) -> None:
    account, taken = _account(), _account()
    observe(account, reading({key(tcp(port)): 2 for port in range(1, 1101)}))
    for _ in account.aggregate_overflow(SECOND):
        pass
    database = AccountFile(path).opened()
    database.put(changes(account))
    database.load(taken)
    database.close()
    aggregate = taken.rules[RULE].by_user[1000]
    assert (
        aggregate.flows,
        aggregate.counter.unreported_packets,
        aggregate.counter.unreported_bytes,
    ) == (100, 200, 12000)
    reported = attempts(taken.due(2 * SECOND, closing=True))
    assert sum(each.packets for each in reported) == 2200


def test_removed_account_leaves_its_events(path: Path) -> None:
    database, account = AccountFile(path).opened(), _account()
    observe(account, reading({key(tcp()): 3}))
    database.put(changes(account), ["one"], Position("sb", "kmsg", "7"))
    database.remove_account("sb")
    assert database.account("sb") == Account()
    assert database.uids() == ["one"]
    database.close()
