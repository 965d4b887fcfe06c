"""State database of an account: restarts, damaged files, and killed writers."""

from __future__ import annotations

import dataclasses
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

from ocsf_nft.accounting import state_db
from ocsf_nft.accounting.sandbox_accounting import SandboxAccount
from ocsf_nft.errors import SourceError
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


def _state(account: SandboxAccount) -> object:
    return {
        name: (
            rule_account.epoch,
            {
                each: state_db._columns(counter)
                for kind in rule_account.entries
                for each, counter in rule_account.entries[kind].items()
            },
            state_db._state(rule_account),
        )
        for name, rule_account in account.rules.items()
    }


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
    database = state_db.StateDatabase(path).open()
    database.commit(changes(account), [b"one", b"two"])
    database.close()
    return account


def test_account_is_restored_unchanged(path: Path) -> None:
    left, taken = _stored_account(path), _account()
    database = state_db.StateDatabase(path).open()
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
    database = state_db.StateDatabase(path).open()
    database.commit(changes(left), [])
    database.load(taken)
    database.close()
    observe(taken, one)
    assert [balance.dropped for balance in taken.balances()] == [1]


@given(steps=st.lists(st.dictionaries(st.integers(1, 6), st.integers(1, 9), max_size=6)))
def test_changes_alone_restore_the_account(
    tmp_path_factory: pytest.TempPathFactory, steps: list[dict[int, int]]
) -> None:
    database = state_db.StateDatabase(tmp_path_factory.mktemp("book") / state_db.FILE).open()
    account = _account()
    for second, counts in enumerate(steps):
        at_ns = NOW + second * 400 * SECOND
        observe(
            account, reading({key(tcp(port)): number for port, number in counts.items()}, at_ns)
        )
        if second % 2:
            _due(account, second)
        database.commit(changes(account), [])
        taken = _account()
        database.load(taken)
        assert _state(taken) == _state(account)
    database.close()


def test_undelivered_events_are_returned_unchanged(path: Path) -> None:
    _stored_account(path)
    database = state_db.StateDatabase(path).open()
    assert database.undelivered() == (b"one", b"two")
    database.commit(changes(_account()), [b"three"])
    assert database.undelivered() == (b"three",)
    database.close()


def test_reported_packets_are_not_reported_again_after_a_restart(path: Path) -> None:
    database, account = state_db.StateDatabase(path).open(), _account()
    observe(account, reading({}))
    assert account.record(record(tcp()), 0) is not None
    database.commit(changes(account), [b"event"])
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
    database = state_db.StateDatabase(path).open()
    database.commit(changes(account), [])
    database.load(taken)
    database.close()
    assert _state(taken) == _state(account)


def _spoil_header(path: Path) -> None:
    path.write_bytes(b"no database at all" * 100)


def _spoil_pages(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))


def _run(statement: str) -> object:
    def spoil(path: Path) -> None:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute(statement)
        connection.close()

    return spoil


DAMAGE = {
    "header": _spoil_header,
    "pages": _spoil_pages,
    "no JSON": _run("UPDATE rule SET state = '{'"),
    "another JSON": _run("UPDATE rule SET state = '[]'"),
    "JSON without numbers": _run("UPDATE rule SET state = replace(state, '5', '\"x\"')"),
    "deep JSON": _run("UPDATE rule SET state = replace(hex(zeroblob(50000)), '0', '[')"),
    "no state": _run("UPDATE rule SET state = NULL"),
    "key of another length": _run(
        "UPDATE counted SET data = x'00' WHERE data = (SELECT min(data) FROM counted)"
    ),
    "key that is text": _run(
        "UPDATE counted SET data = 'abc' WHERE data = (SELECT min(data) FROM counted)"
    ),
    "unknown set": _run("UPDATE counted SET kind = 'flows5'"),
    "unknown rule": _run("UPDATE counted SET rule = 'x'"),
    "text for a number": _run("UPDATE counted SET unreported_packets = 'many'"),
    "other columns": _run("ALTER TABLE rule ADD COLUMN more"),
    "open without JSON": _run("UPDATE opened SET state = '{'"),
    "open without state": _run("UPDATE opened SET state = NULL"),
    "open in another JSON": _run("UPDATE opened SET state = '[]'"),
    "open of an unknown rule": _run("UPDATE opened SET rule = 'x'"),
    "open under another name": _run("UPDATE opened SET identity = identity || 'x'"),
    "open in an unknown set": _run("UPDATE opened SET state = replace(state, 'flows4', 'flows5')"),
    "open of another length": _run(
        "UPDATE opened SET state = replace(state, '\"03000000', '\"0300')"
    ),
    "open without numbers": _run("UPDATE opened SET state = replace(state, ':6,', ':\"6\",')"),
    "open with no such number": _run("UPDATE opened SET state = replace(state, ':6,', ':666,')"),
    "open with no such word": _run(
        "UPDATE opened SET state = replace(state, 'nfnetlink_log', 'x')"
    ),
    "open without a record": _run("UPDATE opened SET state = replace(state, 'record\"', 'x\"')"),
    "open without texts": _run("UPDATE opened SET state = replace(state, '\"egress\"', '{}')"),
    "open without a list": _run(
        "UPDATE opened SET state = replace(state, '[\"record/1\"]', '\"x\"')"
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_database_is_quarantined_and_the_account_starts_empty(
    path: Path, damage: str
) -> None:
    _stored_account(path)
    DAMAGE[damage](path)  # type: ignore[operator]
    database, account = state_db.StateDatabase(path).open(), _account()
    database.load(account)
    assert account.rules == {}
    assert path.with_suffix(".damaged").exists()
    observe(account, reading({key(tcp()): 1}))
    database.commit(changes(account), [b"one"])
    assert database.undelivered() == (b"one",)
    database.close()
    again = state_db.StateDatabase(path).open()
    taken = _account()
    again.load(taken)
    again.close()
    assert _state(taken) == _state(account)


def test_read_only_user_does_not_touch_a_damaged_database(path: Path) -> None:
    _stored_account(path)
    _spoil_pages(path)
    before = path.read_bytes()
    database = state_db.StateDatabase(path).open(read_only=True)
    with pytest.raises(SourceError, match="can't be read"):
        database.load(_account())
    database.close()
    assert path.read_bytes() == before


def test_reader_sees_one_state_while_another_process_writes(path: Path) -> None:
    _stored_account(path)
    writer, account = state_db.StateDatabase(path).open(), _account()
    writer.load(account)
    stop = threading.Event()
    torn: list[set[int]] = []

    def read() -> int:
        reader, times = state_db.StateDatabase(path).open(read_only=True), 0
        while not stop.is_set() or not times:
            taken, times = _account(), times + 1
            reader.load(taken)
            entries = taken.rules[RULE].entries["flows4"].values()
            seen = {each.seen_packets for each in entries if each.seen_packets}
            torn.extend([seen] if len(seen) != 1 else [])
        reader.close()
        return times

    pool = ThreadPoolExecutor(1)
    reading_on = pool.submit(read)
    for number in range(8, 40):
        counts = {key(tcp(port)): number for port in range(1, 1100)}
        observe(account, reading(counts, NOW + number * SECOND, overflow=9))
        writer.commit(changes(account), [])
    stop.set()
    assert reading_on.result(30)
    pool.shutdown()
    writer.close()
    assert torn == []


def test_gaps_are_summed_by_source(path: Path) -> None:
    database = state_db.StateDatabase(path).open()
    for records in (3, 0, 4):
        database.add_dropped("nflog", records)
    database.add_dropped("kmsg", 1)
    assert set(database.dropped_records()) == {("nflog", 3, 7), ("kmsg", 1, 1)}
    database.close()


_WRITER = """
import sys
from pathlib import Path
from ocsf_nft.accounting import state_db
from ocsf_nft.accounting.sandbox_accounting import SandboxAccount
from tests.accounting.reading import NOW, SECOND, attempts, changes, key, observe, reading, tcp

account = SandboxAccount("sb", begun_ns=NOW - SECOND)
database = state_db.StateDatabase(Path(sys.argv[1])).open()
database.load(account)
number = 0
while True:
    number += 1
    counts = {key(tcp(port)): number for port in range(1, 200)}
    observe(account, reading(counts, NOW + number * SECOND))
    reported = sum(each.packets for each in attempts(account.due(number * SECOND, closing=True)))
    database.commit(changes(account), [str(number).encode()])
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
        database, account = state_db.StateDatabase(path).open(), _account()
        database.load(account)
        (event,) = database.undelivered()
        database.close()
        number = int(event)
        assert number in {written, written + 1}
        rule_account = account.rules[RULE]
        assert {each.seen_packets for each in rule_account.entries["flows4"].values()} == {number}
        assert rule_account.reported == rule_account.refused.packets == 199 * number
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
