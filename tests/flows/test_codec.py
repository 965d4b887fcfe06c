"""Rows of an account: restarts, damaged rows, and killed writers."""

from __future__ import annotations

import dataclasses
import json
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.flows import codec
from ocsf_nft.flows.sandbox_account import SandboxAccount
from ocsf_nft.state.archive import Archive
from ocsf_nft.state.change import AccountChange, Change, DroppedRecords
from ocsf_nft.state.sealed import unseal
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


def _due(account: SandboxAccount, second: int) -> list[Attempt]:
    return attempts(account.due(second * SECOND, closing=True))


def _state(account: SandboxAccount) -> object:
    return {
        name: (
            rule_account.counter_id.epoch,
            {
                data: counter.stored()
                for table in rule_account.counters.entries.values()
                for data in table
                if (counter := table.get(data)) is not None
            },
            codec._state(rule_account),
        )
        for name, rule_account in account.rules.items()
    }


def _seen(account: SandboxAccount) -> set[int]:
    table = account.rules[RULE].counters.entries["flows4"]
    counters = (table.get(data) for data in table)
    return {each.seen_packets for each in counters if each is not None}


def _stored_account(path: Path) -> SandboxAccount:
    """Return a stored account with packets in every state.

    They are unreported, reported, aggregated, without slot, and reported before their reading.
    """
    account = _account()
    with_many = {key(tcp(port)): 3 for port in range(1, 1100)}
    observe(account, reading({}))
    account.record(record(tcp(80, uid=3)), 0)
    observe(account, reading(with_many, NOW + SECOND, overflow=5))
    assert attempts(account.due(SECOND))
    observe(account, reading(dict.fromkeys(with_many, 7), NOW + 2 * SECOND, overflow=9))
    database = AccountFile(path).opened()
    database.put(changes(account), ["one", "two"])
    database.close()
    return account


def test_account_is_restored_unchanged(path: Path) -> None:
    left, taken = _stored_account(path), _account()
    database = AccountFile(path).opened()
    database.load(taken)
    database.close()
    assert _state(taken) == _state(left)
    assert taken.balances() == left.balances() or taken.rules[RULE].pending_packets() > 0
    last = reading({key(tcp(port)): 7 for port in range(1, 1100)}, NOW + 9 * SECOND, overflow=9)
    both = []
    for account in (left, taken):
        observe(account, last, last)
        both.append(sum(each.packets for each in _due(account, 3)))
    assert both[0] == both[1] > 0


def test_received_records_stay_counted_after_a_restart(path: Path) -> None:
    left, taken = _account(), _account()
    one = reading({key(tcp()): 2})
    two_logged = {RULE: dataclasses.replace(one.rules[RULE], logged=2)}
    one = dataclasses.replace(one, rules=two_logged)
    observe(left, reading({}))
    left.record(record(tcp()), 0)
    database = AccountFile(path).opened()
    database.put(changes(left))
    database.load(taken)
    database.close()
    observe(taken, one)
    assert [balance.dropped for balance in taken.balances()] == [1]


def test_account_of_an_older_version_has_no_forged_records() -> None:
    account, taken = _account(), _account()
    observe(account, reading({key(tcp()): 2}))
    account.rules[RULE].dropped_records = -5
    account.rules[RULE].forged_records = 5
    parts = {each: value for each, value in changes(account).parts.items() if value is not None}
    codec.restore(taken, parts)
    assert _state(taken) == _state(account)
    (totals,) = (each for each in parts if each.kind == "totals")
    state = json.loads(unseal(parts[totals], *codec._keys("sb", totals)))
    del state["dropped_records"], state["forged_records"]
    older = AccountChange("sb")
    codec._add(older, totals, json.dumps(state).encode())
    taken = _account()
    codec.restore(taken, {**parts, totals: older.parts[totals] or b""})
    rule_account = taken.rules[RULE]
    assert (rule_account.dropped_records, rule_account.forged_records) == (0, 0)
    assert rule_account.counters.refused.packets == 2


@given(steps=st.lists(st.dictionaries(st.integers(1, 6), st.integers(1, 9), max_size=6)))
def test_changes_alone_restore_the_account(
    tmp_path_factory: pytest.TempPathFactory, steps: list[dict[int, int]]
) -> None:
    database = AccountFile(tmp_path_factory.mktemp("book") / FILE).opened()
    account = _account()
    for second, counts in enumerate(steps):
        at_ns = NOW + second * 400 * SECOND
        observe(
            account, reading({key(tcp(port)): number for port, number in counts.items()}, at_ns)
        )
        if second % 2:
            _due(account, second)
        database.put(changes(account))
        taken = _account()
        database.load(taken)
        assert _state(taken) == _state(account)
    database.close()


def test_reported_packets_are_not_reported_again_after_a_restart(path: Path) -> None:
    database, account = AccountFile(path).opened(), _account()
    observe(account, reading({}))
    assert account.record(record(tcp()), 0) is not None
    database.put(changes(account), ["event"])
    taken = _account()
    database.load(taken)
    database.close()
    for second in (1, 2):  # its packet found no slot, and is the one in the overflow counter
        observe(taken, reading({}, NOW + second * SECOND, overflow=1))
        assert attempts(taken.due(second * SECOND)) == []
    assert _due(taken, 3) == []


def test_new_counters_replace_the_stored_old_ones(path: Path) -> None:
    account, taken = _stored_account(path), _account()
    observe(account, reading({key(tcp()): 1}, NOW + 5 * SECOND, epoch="boot:2"))
    database = AccountFile(path).opened()
    database.put(changes(account))
    database.load(taken)
    database.close()
    assert _state(taken) == _state(account)


DAMAGE = {
    "no value": "UPDATE part SET value = NULL",
    "short value": "UPDATE part SET value = x'0102'",
    "text for a value": "UPDATE part SET value = 'many'",
    "other rule": "UPDATE part SET rule = 'x' WHERE data = (SELECT max(data) FROM part)",
    "other kind": "UPDATE part SET kind = 'flows5' WHERE data = (SELECT max(data) FROM part)",
    "other key": "UPDATE part SET data = x'00' WHERE data = (SELECT max(data) FROM part)",
    "text for a key": "UPDATE part SET data = 'abc' WHERE data = (SELECT max(data) FROM part)",
    "no totals": "DELETE FROM part WHERE kind = 'totals'",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_parts_leave_the_account_empty(path: Path, damage: str) -> None:
    _stored_account(path)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(DAMAGE[damage])
    connection.close()
    database, account = AccountFile(path).opened(), _account()
    with pytest.raises(codec.DAMAGE):
        database.load(account)
    assert account.rules == {}
    database.remove_account("sb")
    observe(account, reading({key(tcp()): 1}))
    database.put(changes(account))
    taken = _account()
    database.load(taken)
    database.close()
    assert _state(taken) == _state(account)


def test_any_changed_byte_is_noticed() -> None:
    """A changed value could lose or double packets, and SQLite has no checksums."""
    account = _account()
    observe(account, reading({key(tcp(port)): 3 for port in range(1, 30)}))
    assert attempts(account.due(SECOND))  # with an open scan
    parts = {key: value for key, value in changes(account).parts.items() if value is not None}
    assert {each.kind for each in parts} == {"totals", "flows4", "open"}
    for each in list(parts)[:: len(parts) // 8]:
        value = parts[each]
        for number in range(0, len(value), max(1, len(value) // 50)):
            spoiled = bytes([*value[:number], value[number] ^ 1, *value[number + 1 :]])
            with pytest.raises(ValueError, match="wrong checksum"):
                codec.restore(_account(), {**parts, each: spoiled})
    taken = _account()
    codec.restore(taken, parts)
    assert _state(taken) == _state(account)


def test_reader_sees_one_state_while_another_process_writes(path: Path) -> None:
    _stored_account(path)
    writer, account = AccountFile(path).opened(), _account()
    writer.load(account)
    stop = threading.Event()
    torn: list[set[int]] = []

    def read() -> int:
        times = 0
        with Archive(path) as reader:
            while not stop.is_set() or not times:
                taken, times = _account(), times + 1
                codec.restore(taken, reader.account("sb").parts)
                seen = _seen(taken) - {0}
                torn.extend([seen] if len(seen) != 1 else [])
        return times

    pool = ThreadPoolExecutor(1)
    reading_on = pool.submit(read)
    for number in range(8, 40):
        counts = {key(tcp(port)): number for port in range(1, 1100)}
        observe(account, reading(counts, NOW + number * SECOND, overflow=9))
        writer.put(changes(account))
    stop.set()
    assert reading_on.result(30)
    pool.shutdown()
    writer.close()
    assert torn == []


def test_gaps_are_summed_by_source(path: Path) -> None:
    database = AccountFile(path).opened()
    for source, records in (("nflog", 3), ("nflog", 0), ("nflog", 4), ("kmsg", 1)):
        database.commit([Change(dropped=[("sb", DroppedRecords(source, 1, records))])])
    assert set(database.dropped_records("sb")) == {("nflog", 3, 7), ("kmsg", 1, 1)}
    database.close()


_WRITER = """
import sys
from pathlib import Path
from ocsf_nft.flows.sandbox_account import SandboxAccount
from tests.flows.reading import NOW, SECOND, attempts, changes, key, observe, reading, tcp
from tests.flows.stored import AccountFile

account = SandboxAccount("sb", begun_ns=NOW - SECOND)
database = AccountFile(Path(sys.argv[1])).opened()
database.load(account)
number = 0
while True:
    number += 1
    counts = {key(tcp(port)): number for port in range(1, 200)}
    observe(account, reading(counts, NOW + number * SECOND))
    reported = sum(each.packets for each in attempts(account.due(number * SECOND, closing=True)))
    database.put(changes(account), [str(number)])
    print(number, flush=True)
"""


def test_killed_writer_leaves_a_complete_account(path: Path) -> None:
    for _ in range(5):
        path.unlink(missing_ok=True)
        command = [sys.executable, "-c", _WRITER, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(10):
                written = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            rest = writer.stdout.read().split()
        written = int(rest[-1]) if rest else written
        database, account = AccountFile(path).opened(), _account()
        database.load(account)
        number = int(database.uids()[-1])
        database.close()
        assert number in {written, written + 1}
        rule_account = account.rules[RULE]
        assert _seen(account) == {number}
        assert rule_account.reported == rule_account.counters.refused.packets == 199 * number
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
