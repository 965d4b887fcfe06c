"""The account that a restart restores, row by row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ocsf_nft.accounting import state_db
from ocsf_nft.accounting.sandbox_accounting import Ledger
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


def _ledger() -> Ledger:
    return Ledger("sb", begun_ns=NOW - SECOND)


def _due(ledger: Ledger, second: int) -> list[Attempt]:
    return attempts(ledger.due(second * SECOND, closing=True))


def _store(path: Path) -> None:
    kept, ledger = state_db.Book(path).open(), _ledger()
    observe(ledger, reading({key(tcp()): 3}))
    kept.commit(changes(ledger), [])
    kept.close()


def test_record_of_a_packet_reported_without_its_flow_is_not_reported_after_a_restart(
    path: Path,
) -> None:
    """A restarted service reads the kernel log from the killed service's position."""
    kept, ledger = state_db.Book(path).open(), _ledger()
    observe(ledger, reading({}))
    observe(ledger, reading({}, NOW + SECOND, overflow=1))
    assert [each.packets for each in attempts(ledger.due(SECOND))] == [1]
    kept.commit(changes(ledger), [])
    taken = _ledger()
    kept.load(taken)
    kept.close()
    assert taken.record(record(tcp()), 60 * SECOND) is None
    for second in (60, 61):
        observe(taken, reading({}, NOW + second * SECOND, overflow=1))
    assert _due(taken, 61) == []
    assert [(each.reported, each.imbalance) for each in taken.balances()] == [(1, 0)]


def test_unchanged_rows_are_not_written_again_and_obsolete_rows_are_deleted(
    path: Path,
) -> None:
    kept, ledger = state_db.Book(path).open(), _ledger()
    observe(ledger, reading({key(tcp()): 1}))
    assert len(_due(ledger, 1)) == 1
    assert len(changes(ledger).counted) == 1
    assert changes(ledger).counted == []
    observe(ledger, reading({key(tcp()): 2}, NOW + SECOND))
    kept.commit(changes(ledger), [])
    _due(ledger, 2)
    for second in (700, 701):
        observe(ledger, reading({}, NOW + second * SECOND, refused=2))
    kept.commit(changes(ledger), [])
    taken = _ledger()
    kept.load(taken)
    kept.close()
    assert taken.rules[RULE].entries["flows4"] == {}


def test_cursor_is_the_latest_of_its_own_source(path: Path) -> None:
    kept = state_db.Book(path).open()
    assert kept.position("kmsg") is None
    kept.commit(state_db.Changes(), [], ("kmsg", "7"))
    assert (kept.position("kmsg"), kept.position("journal")) == ("7", None)
    kept.commit(state_db.Changes(), [])
    assert kept.position("kmsg") == "7"
    kept.commit(state_db.Changes(), [], ("journal", "s=1"))
    assert (kept.position("kmsg"), kept.position("journal")) == (None, "s=1")
    kept.close()


def test_unreported_packets_of_many_flows_are_restored_with_their_user(path: Path) -> None:
    ledger, taken = _ledger(), _ledger()
    observe(ledger, reading({key(tcp(port)): 2 for port in range(1, 1101)}))
    for _ in ledger.fold(SECOND):
        pass
    kept = state_db.Book(path).open()
    kept.commit(changes(ledger), [])
    kept.load(taken)
    kept.close()
    pot = taken.rules[RULE].many[1000]
    assert (pot.flows, pot.counted.owed_packets, pot.counted.owed_bytes) == (100, 200, 12000)
    reported = attempts(taken.due(2 * SECOND, closing=True))
    assert sum(each.packets for each in reported) == 2200


def test_removed_account_leaves_no_file(path: Path) -> None:
    _store(path)
    state_db.Book(path).open().remove()
    assert not path.parent.exists()
