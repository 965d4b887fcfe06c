"""SQLite database file that is damaged, replaced or removed. See also the tests of its users."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import NoReturn

import pytest

from ocsf_nft.errors import ClosedError, DeliveryError, SourceError
from ocsf_nft.state.database import Database
from tests.descriptors import open_descriptors

_SCHEMA = "CREATE TABLE IF NOT EXISTS t (x INTEGER);"


def opened(path: Path, *, read_only: bool = False) -> Database:
    database = Database(path, _SCHEMA)
    database.open(read_only=read_only)
    return database


def rows(database: Database) -> list[int]:
    with database.transaction() as connection:
        return [x for (x,) in connection.execute("SELECT x FROM t ORDER BY x")]


def insert(database: Database, x: int) -> None:
    with database.transaction() as connection:
        connection.execute("INSERT INTO t VALUES (?)", (x,))


def test_transaction_is_stored_completely_or_not_at_all(tmp_path: Path) -> None:
    with closing(opened(tmp_path / "new" / "db")) as database:
        insert(database, 1)
        with pytest.raises(DeliveryError), database.transaction() as connection:
            connection.executescript(
                "SAVEPOINT a; INSERT INTO t VALUES (2); INSERT INTO no VALUES (3)"
            )
        assert rows(database) == [1]


def test_only_the_owner_can_access_the_database(tmp_path: Path) -> None:
    with closing(opened(tmp_path / "new" / "db")) as database:
        insert(database, 1)
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "new").iterdir()}
    assert set(modes.values()) == {0o600}, modes
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


def test_unsynced_transaction_does_not_wait_for_the_disk(tmp_path: Path) -> None:
    database = Database(tmp_path / "db", _SCHEMA, synchronous="FULL")
    database.open()
    with closing(database):
        with database.transaction("NORMAL") as connection:
            connection.execute("INSERT INTO t VALUES (1)")
            assert connection.execute("PRAGMA synchronous").fetchone() == (1,)
        with database.transaction() as connection:
            assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert rows(database) == [1]


def test_reader_creates_no_file_and_sees_new_rows(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with pytest.raises(SourceError, match="can't be read"):
        opened(path, read_only=True)
    assert not path.exists()
    with closing(opened(path)) as writer, closing(opened(path, read_only=True)) as reader:
        insert(writer, 1)
        assert rows(reader) == [1]
        with pytest.raises(SourceError, match="can't be read"):
            insert(reader, 2)


def test_folder_that_cannot_be_created_is_an_error_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DeliveryError, match=r"can't be written \(Not a directory\): make room"):
        opened(tmp_path / "file" / "folder" / "db")


def test_file_that_is_no_database_is_quarantined_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite3"
    path.write_bytes(b"no database" * 1000)
    with closing(opened(path)) as database:
        insert(database, 1)
        assert rows(database) == [1]
        (fault,) = database.faults()
        assert "a new file was created" in fault
    assert path.with_suffix(".damaged").read_bytes() == b"no database" * 1000


def test_damaged_database_is_left_alone_by_a_reader(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite3"
    path.write_bytes(b"no database" * 1000)
    with (
        closing(opened(path, read_only=True)) as database,
        pytest.raises(SourceError, match="can't be read"),
    ):
        rows(database)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_database_that_cannot_be_opened_now_is_not_quarantined(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite3"
    path.mkdir()
    with pytest.raises(DeliveryError, match="can't be written"):
        opened(path)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_first_damaged_files_stay_and_the_last_name_is_reused(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite3"
    for number in range(11):
        path.write_bytes(b"no database %2d" % number * 1000)
        opened(path).close()
    damaged = sorted(tmp_path.glob("*.damaged*"))
    assert [each.suffix for each in damaged] == [
        ".damaged",
        *(f".damaged{n}" for n in range(2, 10)),
    ]
    assert [int(each.read_bytes()[12:14]) for each in damaged] == [*range(8), 10]


def test_damaged_file_that_cannot_be_renamed_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite3"
    path.write_bytes(b"no database" * 1000)
    for number in ("", *range(2, 10)):
        path.with_suffix(f".damaged{number}").mkdir()
    with pytest.raises(DeliveryError, match=r"can't be written \(Is a directory\): make room"):
        opened(path)
    assert path.read_bytes() == b"no database" * 1000


def test_file_damaged_while_it_is_open_is_replaced_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with closing(opened(path)) as database:
        for x in range(2000):
            insert(database, x)
    with closing(opened(path)) as database, closing(opened(path, read_only=True)) as reader:
        content = path.read_bytes()
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (len(content) - 4096))
        assert database._connection is not None
        database._connection.execute("PRAGMA shrink_memory")  # empty the page cache
        for _ in range(2):
            with pytest.raises(ClosedError, match=r"db was damaged .*: restart the service"):
                rows(database)
        with pytest.raises(SourceError, match="can't be read"):
            rows(reader)
    with closing(opened(path)) as database:
        assert rows(database) == []
        assert len(database.faults()) == 1


@pytest.mark.parametrize("step", range(5))
def test_quarantine_that_a_kill_interrupts_is_finished_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    path = tmp_path / "db.sqlite3"
    path.write_bytes(b"no database" * 1000)
    left, rename = step, Path.replace

    def rename_or_die(source: Path, target: Path) -> Path:
        nonlocal left
        if not left:
            raise EOFError
        left -= 1
        return rename(source, target)

    monkeypatch.setattr(Path, "replace", rename_or_die)
    died = False
    try:
        opened(path).close()
    except EOFError:
        died = True
    monkeypatch.undo()
    assert died == (step < 4)  # the new file is complete, the old one and its log move, and it too
    with closing(opened(path)) as database:
        (fault,) = database.faults()
        assert f"{path} was damaged" in fault
        insert(database, 1)
        assert rows(database) == [1]
    content = {each.read_bytes() for each in tmp_path.glob("*.damaged*")}
    assert content == {b"no database" * 1000}


def test_damaged_file_on_a_full_disk_is_quarantined_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "db"
    with closing(opened(path)) as database:
        insert(database, 1)

        def fail(*_: object) -> NoReturn:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "replace", fail)
        for _ in range(2):
            with pytest.raises(ClosedError, match="restart the service"), database.transaction():
                raise sqlite3.DatabaseError("database disk image is malformed")
    monkeypatch.undo()
    with closing(opened(path)) as database:
        assert rows(database) == [1], "there was no real damage"


def test_other_file_at_its_path_is_replaced_by_the_open_database(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with closing(opened(path)) as database:
        insert(database, 1)
        path.unlink()
        with closing(sqlite3.connect(path)) as other, other:
            other.execute("CREATE TABLE other (y)")
        before = database._connection
        assert before is not None
        insert(database, 2)
        assert rows(database) == [1, 2]
        # If it were closed later, it would remove the log of the new file.
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            before.execute("SELECT 1")
    with closing(opened(path)) as database:
        assert rows(database) == [1, 2]


def test_restored_file_that_could_not_be_opened_is_opened_later(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with closing(opened(path)) as database:
        insert(database, 1)
        path.unlink()
        database._schema = "no SQL"
        for _ in range(2):
            with pytest.raises(DeliveryError, match="can't be written"):
                insert(database, 2)
        database._schema = _SCHEMA
        insert(database, 3)
        assert rows(database) == [1, 3]


def test_use_of_a_database_that_is_not_open_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="open the database first"):
        rows(Database(tmp_path / "db", _SCHEMA))


def test_closed_database_has_no_open_file_and_cannot_be_used(tmp_path: Path) -> None:
    before = open_descriptors(collect=True)
    for is_read_only in (False, True):
        database = opened(tmp_path / "db")
        database.close()
        database.open(read_only=is_read_only)
        assert rows(database) == []
        database.close()
        assert open_descriptors() == before
        with pytest.raises(RuntimeError, match="open the database first"):
            rows(database)


def test_only_the_owner_can_access_the_database_and_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "db"
    database = Database(path, _SCHEMA, is_exclusive=True)
    before = os.umask(0)
    try:
        database.open()
        with closing(database):
            lock = path.with_name(".db.lock")
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            assert stat.S_IMODE(lock.stat().st_mode) == 0o600
            shutil.rmtree(path.parent)
            insert(database, 1)
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            assert stat.S_IMODE(lock.stat().st_mode) == 0o600
            assert rows(database) == [1]
    finally:
        os.umask(before)


def test_only_the_owner_can_access_a_restored_folder(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "db"
    before = os.umask(0)
    try:
        with closing(opened(path)) as database:
            shutil.rmtree(path.parent)
            insert(database, 1)
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    finally:
        os.umask(before)


def test_database_is_free_for_another_once_it_is_closed(tmp_path: Path) -> None:
    first, second = (Database(tmp_path / "db", _SCHEMA, is_exclusive=True) for _ in range(2))
    first.open()
    for _ in range(2):
        with pytest.raises(ClosedError, match="another run stores its events"):
            second.open()
    lock = first._lock
    assert lock is not None
    assert lock._descriptor is not None
    copy = os.dup(lock._descriptor)  # as in a child that is about to run a program
    first.close()
    second.open()
    second.close()
    os.close(copy)


def test_database_whose_lock_was_removed_takes_it_again_with_one_descriptor(
    tmp_path: Path,
) -> None:
    path = tmp_path / "db"
    first, second = (Database(path, _SCHEMA, is_exclusive=True) for _ in range(2))
    first.open()
    with closing(first):
        before = open_descriptors(collect=True)
        path.with_name(".db.lock").unlink()
        insert(first, 1)
        assert open_descriptors() == before
        with pytest.raises(ClosedError, match="another run stores its events"):
            second.open()
        assert open_descriptors() == before


def test_database_is_restored_over_the_rest_of_an_earlier_try(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with closing(opened(path)) as database:
        insert(database, 1)
        path.with_name("db.new").write_bytes(b"no database" * 1000)
        path.unlink()
        insert(database, 2)
        # Later writes are in the log of the new file, where readers find them.
        insert(database, 3)
        with closing(opened(path, read_only=True)) as reader:
            assert rows(reader) == [1, 2, 3]
    with closing(opened(path)) as again:
        assert rows(again) == [1, 2, 3]
