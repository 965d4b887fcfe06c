"""The account that a restart restores, row by row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ocsf_nft.accounting import state_db
from ocsf_nft.accounting.sandbox_accounting import SandboxAccount
from tests.accounting.kernel_model import RULE
from tests.accounting.reading import (
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

if TYPE_CHECKING:
    from pathlib import Path

    from ocsf_nft.attempt import Attempt


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sb" / state_db.FILE


def _account() -> SandboxAccount:
    return SandboxAccount("sb", begun_ns=NOW - SECOND)


def _due(account: SandboxAccount, second: int) -> list[Attempt]:
    return attempts(account.due(second * SECOND, closing=True))


def _store(path: Path) -> None:
    database, account = state_db.StateDatabase(path).open(), _account()
    observe(account, reading({key(tcp()): 3}))
    database.commit(changes(account), [])
    database.close()


def test_record_of_a_packet_reported_without_its_flow_is_not_reported_after_a_restart(
    path: Path,
) -> None:
    """A restarted service reads the kernel log from the killed service's position."""
    database, account = state_db.StateDatabase(path).open(), _account()
    observe(account, reading({}))
    observe(account, reading({}, NOW + SECOND, overflow=1))
    assert [each.packets for each in attempts(account.due(SECOND))] == [1]
    database.commit(changes(account), [])
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
    database, account = state_db.StateDatabase(path).open(), _account()
    observe(account, reading({key(tcp()): 1}))
    assert len(_due(account, 1)) == 1
    assert len(changes(account).counters) == 1
    assert changes(account).counters == []
    observe(account, reading({key(tcp()): 2}, NOW + SECOND))
    database.commit(changes(account), [])
    _due(account, 2)
    for second in (700, 701):
        observe(account, reading({}, NOW + second * SECOND, refused=2))
    database.commit(changes(account), [])
    taken = _account()
    database.load(taken)
    database.close()
    assert taken.rules[RULE].entries["flows4"] == {}


def test_cursor_is_the_latest_of_its_own_source(path: Path) -> None:
    database = state_db.StateDatabase(path).open()
    assert database.position("kmsg") is None
    database.commit(state_db.Changes(), [], ("kmsg", "7"))
    assert (database.position("kmsg"), database.position("journal")) == ("7", None)
    database.commit(state_db.Changes(), [])
    assert database.position("kmsg") == "7"
    database.commit(state_db.Changes(), [], ("journal", "s=1"))
    assert (database.position("kmsg"), database.position("journal")) == (None, "s=1")
    database.close()


def test_unreported_packets_of_many_flows_are_restored_with_their_user(path: Path) -> None:
    account, taken = _account(), _account()
    observe(account, reading({key(tcp(port)): 2 for port in range(1, 1101)}))
    for _ in account.aggregate_overflow(SECOND):
        pass
    database = state_db.StateDatabase(path).open()
    database.commit(changes(account), [])
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


def test_removed_account_leaves_no_file(path: Path) -> None:
    _store(path)
    state_db.StateDatabase(path).open().remove()
    assert not path.parent.exists()
