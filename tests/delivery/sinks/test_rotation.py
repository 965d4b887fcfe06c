from __future__ import annotations

import asyncio
import gzip
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from ocsf_nft.delivery.sinks.file import File
from ocsf_nft.delivery.sinks.rotation import OldFiles, Rotation
from ocsf_nft.errors import DeliveryError
from tests.delivery.sinks.batches import messages

if TYPE_CHECKING:
    from collections.abc import Callable

_OTHER_USER_ID = 65534
_DAY = 86_400


def old_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("events-*"))


def others(folder: Path) -> set[Path]:
    return set(folder.iterdir()) - {folder / "events.jsonl"}


def hidden(folder: Path) -> list[Path]:
    return list(folder.glob(".*"))


def content(paths: list[Path]) -> list[bytes]:
    return [gzip.decompress(p.read_bytes()) if p.suffix == ".gz" else p.read_bytes() for p in paths]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(120):
        while not condition():  # noqa: ASYNC110 - the thread sends no event
            await asyncio.sleep(0.005)


async def test_file_that_would_exceed_its_size_becomes_an_old_file(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    async with File(path=path, rotation=Rotation(full_bytes=100)) as sink:
        for letter in b"ABCDE":
            await sink.deliver(messages(b"%c" % letter * 49))
    first, second = old_files(tmp_path)
    assert content([first, second, path]) == [
        b"%c" % a * 49 + b"\n" + b"%c" % b * 49 + b"\n" if b else b"%c" % a * 49 + b"\n"
        for a, b in (b"AB", b"CD", (ord("E"), 0))
    ]
    stamp = first.name.removeprefix("events-").removesuffix(".jsonl")
    assert time.strptime(stamp.partition(".")[0], "%Y%m%dT%H%M%S")


async def test_batch_larger_than_a_file_gets_its_own_file(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    async with File(path=path, rotation=Rotation(full_bytes=100)) as sink:
        await sink.deliver(messages(b"A" * 500))
        await sink.deliver(messages(b"B" * 300, b"C" * 300))
        await sink.deliver(messages(b"D"))
    assert [len(each) for each in content([*old_files(tmp_path), path])] == [501, 602, 2]


@pytest.mark.parametrize("is_reopened", [True, False])
async def test_the_first_event_of_a_new_day_begins_a_new_file(
    tmp_path: Path, *, is_reopened: bool
) -> None:
    path = tmp_path / "events.jsonl"
    sink = File(path=path, rotation=Rotation(full_seconds=_DAY))
    yesterday = time.time() // _DAY * _DAY - 1
    await sink.open()
    await sink.deliver(messages(b"A"))
    await sink.deliver(messages(b"B"))
    assert old_files(tmp_path) == []
    os.utime(path, (yesterday, yesterday))
    if is_reopened:
        await sink.close()
        await sink.open()
    await sink.deliver(messages(b"C"))
    await sink.close()
    assert content([*old_files(tmp_path), path]) == [b"A\nB\n", b"C\n"]


async def test_old_files_sort_by_time_though_a_clock_was_set_back(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    later = tmp_path / "events-29981231T235959.999999Z.jsonl"
    later.write_bytes(b"0\n")
    (tmp_path / "events-29981331T235959.999999Z.jsonl").touch()  # no valid time
    async with File(path=path, rotation=Rotation(full_bytes=1)) as sink:
        for letter in b"ABC":
            await sink.deliver(messages(b"%c" % letter))
    (tmp_path / "events-29981331T235959.999999Z.jsonl").unlink()
    assert content([*old_files(tmp_path), path]) == [b"0\n", b"A\n", b"B\n", b"C\n"]
    assert old_files(tmp_path)[1].name == "events-29990101T000000.000000Z.jsonl"


@pytest.mark.parametrize("last", ["19700101T000000.000000Z", "29991231T235959.999999Z"])
async def test_old_file_of_a_wrong_clock_counts_and_is_not_overwritten(
    tmp_path: Path, last: str
) -> None:
    path = tmp_path / "events.jsonl"
    (tmp_path / f"events-{last}.jsonl").write_bytes(b"0\n")
    async with File(path=path, rotation=Rotation(full_bytes=1)) as sink:
        for letter in b"ABC":
            await sink.deliver(messages(b"%c" % letter))
    assert content([*old_files(tmp_path), path]) == [b"0\n", b"A\n", b"B\n", b"C\n"]
    async with File(path=path, rotation=Rotation(full_bytes=1, keep_files=1)):
        await until(lambda: len(old_files(tmp_path)) == 1)
    assert content([*old_files(tmp_path), path]) == [b"B\n", b"C\n"]


async def test_file_with_other_digits_is_no_old_file(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    other = tmp_path / "events-2\u0660\u0662\u06661125T204400.123456Z.jsonl"
    other.write_bytes(b"0\n")
    async with File(path=path, rotation=Rotation(full_bytes=1, keep_files=2)) as sink:
        for letter in b"ABC":
            await sink.deliver(messages(b"%c" % letter))
    assert content([*old_files(tmp_path), path]) == [b"A\n", b"B\n", b"0\n", b"C\n"]


async def test_newest_old_files_remain(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    async with File(path=path, rotation=Rotation(full_bytes=1, keep_files=2)) as sink:
        for letter in b"ABCDE":
            await sink.deliver(messages(b"%c" % letter))
        await until(lambda: len(old_files(tmp_path)) == 2)
    assert content([*old_files(tmp_path), path]) == [b"C\n", b"D\n", b"E\n"]


@pytest.mark.parametrize(("compress", "most"), [(True, 4000), (False, 4000), (False, 5999)])
async def test_old_files_remain_up_to_a_total_size(
    tmp_path: Path, *, compress: bool, most: int
) -> None:
    path = tmp_path / "events.jsonl"
    rotation = Rotation(full_bytes=1, keep_bytes=most, compress=compress)
    async with File(path=path, rotation=rotation) as sink:
        for letter in b"ABCDE":
            await sink.deliver(messages(b"%c" % letter * 1999))
        number = 4 if compress else 2
        await until(lambda: len(old_files(tmp_path)) == number)
        await until(lambda: all((p.suffix == ".gz") is compress for p in old_files(tmp_path)))
    assert [each[:1] for each in content(old_files(tmp_path))] == [b"A", b"B", b"C", b"D"][-number:]


async def test_old_files_are_compressed(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    async with File(path=path, rotation=Rotation(full_bytes=1, compress=True)) as sink:
        await sink.deliver(messages(b"A" * 1_000_000))
        await sink.deliver(messages(b"B"))
        await until(lambda: [each.suffix for each in old_files(tmp_path)] == [".gz"])
    (old,) = old_files(tmp_path)
    assert gzip.decompress(old.read_bytes()) == b"A" * 1_000_000 + b"\n"
    assert old.stat().st_mode & 0o777 & ~0o640 == 0
    assert old.name.endswith("Z.jsonl.gz")
    assert others(tmp_path) == {old}


async def test_close_does_not_wait_for_compression_which_is_repeated_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "events-20260101T000000.000000Z.jsonl"
    whole = os.urandom(1_000_000)
    old.write_bytes(whole)
    sink = File(path=tmp_path / "events.jsonl", rotation=Rotation(full_bytes=1, compress=True))
    write = OldFiles._write

    def write_slowly(self: OldFiles, compressed: gzip.GzipFile, chunk: bytes) -> None:
        # A close that does not stop the compression ends after this wait.
        self._stop_requested.wait(60)
        write(self, compressed, chunk)

    with monkeypatch.context() as patch:
        patch.setattr(OldFiles, "_write", write_slowly)
        async with sink:
            await until(lambda: hidden(tmp_path))
            (part,) = hidden(tmp_path)
            begun = part.stat().st_ino
            for letter in b"AB":
                await sink.deliver(messages(b"%c" % letter))
            assert part.stat().st_ino == begun
    assert old.exists()
    assert hidden(tmp_path) == []
    async with sink:
        await until(lambda: len(list(tmp_path.glob("*.gz"))) == 2)
    assert content(old_files(tmp_path)) == [whole, b"A\n"]


async def test_files_of_other_users_are_no_old_files(tmp_path: Path) -> None:
    rotation = Rotation(full_bytes=1, keep_files=1, compress=True)
    secret, foreign = tmp_path / "secret", tmp_path / "events-20260101T000000.000000Z.jsonl"
    secret.write_bytes(b"secret\n")
    foreign.write_bytes(b"foreign\n")
    os.chown(foreign, _OTHER_USER_ID, _OTHER_USER_ID)
    (tmp_path / "events-20260101T000000.000001Z.jsonl").symlink_to(secret)
    (tmp_path / "events-20260101T000000.000002Z.jsonl").mkdir()
    os.mkfifo(tmp_path / "events-20260101T000000.000003Z.jsonl")
    (tmp_path / "events-yesterday.jsonl").touch()
    (tmp_path / "other-20260101T000000.000000Z.jsonl").touch()
    before = others(tmp_path)
    async with File(path=tmp_path / "events.jsonl", rotation=rotation) as sink:
        for letter in b"AB":
            await sink.deliver(messages(b"%c" % letter))
        await until(lambda: list(tmp_path.glob("*.gz")))
    (old,) = others(tmp_path) - before
    assert content([old]) == [b"A\n"]
    assert foreign.read_bytes() == b"foreign\n"
    assert before < others(tmp_path)


async def test_target_of_a_link_is_rotated_in_its_own_directory(tmp_path: Path) -> None:
    link, folder = tmp_path / "events.jsonl", tmp_path / "disk"
    folder.mkdir()
    link.symlink_to("disk/real.jsonl")
    async with File(path=link, rotation=Rotation(full_bytes=1)) as sink:
        await sink.deliver(messages(b"A"))
        await sink.deliver(messages(b"B"))
        assert link.is_symlink()
        assert content([*sorted(folder.glob("real-*")), link]) == [b"A\n", b"B\n"]
        link.unlink()
        link.symlink_to("disk/other.jsonl")
        await sink.deliver(messages(b"C"))
        await sink.deliver(messages(b"D"))
    assert content([*sorted(folder.glob("other-*")), link]) == [b"C\n", b"D\n"]


async def test_error_for_a_file_that_can_not_be_renamed_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 250)
    async with File(path=path, rotation=Rotation(full_bytes=1)) as sink:
        await sink.deliver(messages(b"A"))
        with pytest.raises(DeliveryError, match=r"can't be renamed now that .* name too long"):
            await sink.deliver(messages(b"B"))
    assert path.read_bytes() == b"A\n"


@pytest.mark.kernel
async def test_old_file_stays_uncompressed_on_a_full_disk(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, ballast = small_disk / "events.jsonl", small_disk / "ballast"
    noise = os.urandom(300_000).replace(b"\n", b" ")
    compress, is_delivered = OldFiles._compress, threading.Event()

    def compress_later(self: OldFiles, source: Path, target: Path) -> None:
        # An unfinished compressed file would leave no room for the delivery.
        assert is_delivered.wait(60)
        compress(self, source, target)

    monkeypatch.setattr(OldFiles, "_compress", compress_later)
    with capture_logs() as logged:
        async with File(path=path, rotation=Rotation(full_bytes=1, compress=True)) as sink:
            await sink.deliver(messages(noise))
            ballast.write_bytes(b"x" * 600_000)
            await sink.deliver(messages(b"B"))
            is_delivered.set()
            # The thread tries twice if its first listing, at the opening, comes late.
            await until(lambda: logged and not hidden(small_disk))
            assert content(old_files(small_disk)) == [noise + b"\n"]
            ballast.unlink()
            await sink.deliver(messages(b"C"))
            await until(lambda: len(list(small_disk.glob("*.gz"))) == 2)
    assert content([*old_files(small_disk), path]) == [noise + b"\n", b"B\n", b"C\n"]
    assert {(line["log_level"], line["reason"]) for line in logged} == {
        ("warning", "No space left on device")
    }


def test_kill_at_any_system_call_drops_and_duplicates_no_event(tmp_path: Path) -> None:
    program = Path(__file__).with_name("killed.py")
    done = subprocess.run(
        [sys.executable, program, tmp_path],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 30


async def test_compressed_file_is_on_the_disk_before_the_plain_file_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, str]] = []

    def watched(call: Callable[..., object]) -> Callable[..., object]:
        def watch(target: int | Path, *given: object) -> object:
            path = Path(f"/proc/self/fd/{target}").readlink() if isinstance(target, int) else target
            calls.append((call.__name__, path.name.partition("Z")[2] or path.name))
            return call(target, *given)

        return watch

    (tmp_path / "events-20260101T000000.000000Z.jsonl").write_bytes(b"A\n")
    for name in ("rename", "unlink", "fsync"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    async with File(path=tmp_path / "events.jsonl", rotation=Rotation(compress=True)):
        await until(lambda: len(calls) >= 5)
    calls.remove(("fsync", tmp_path.name))  # the sync for the new file
    assert calls == [
        ("fsync", ".jsonl.gz.part"),
        ("rename", ".jsonl.gz.part"),
        ("fsync", tmp_path.name),
        ("unlink", ".jsonl"),
    ]


async def test_name_of_an_old_file_is_on_the_disk_before_the_next_file_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, sync = tmp_path / "events.jsonl", os.fsync
    begun: list[bool] = []

    def watched(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            begun.append(path.exists())
        sync(descriptor)

    async with File(path=path, rotation=Rotation(full_bytes=1)) as file:
        await file.deliver(messages(b"A"))
        monkeypatch.setattr(os, "fsync", watched)
        await file.deliver(messages(b"B"))
    assert begun == [False, True]


async def test_old_file_that_can_not_be_compressed_does_not_block_others(tmp_path: Path) -> None:
    first, second = (tmp_path / f"events-20260101T00000{n}.000000Z.jsonl" for n in range(2))
    for each in (first, second):
        each.write_bytes(b"A\n")
    (tmp_path / f".{first.name}.gz.part").mkdir()
    with capture_logs() as logged:
        async with File(path=tmp_path / "events.jsonl", rotation=Rotation(compress=True)):
            await until(lambda: not second.exists())
    assert [(line["log_level"], line["reason"]) for line in logged] == [
        ("warning", "Is a directory")
    ]
    assert old_files(tmp_path) == [first, second.with_suffix(".jsonl.gz")]


async def test_old_file_counts_with_its_compressed_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (tmp_path / f"events-20260101T00000{n}.000000Z.jsonl" for n in range(2))
    first.write_bytes(b"A" * 2000)
    sync = os.fsync

    def meanwhile(descriptor: int) -> None:
        sync(descriptor)
        if stat.S_ISREG(
            os.fstat(descriptor).st_mode
        ):  # of the compressed file, not of its directory
            second.write_bytes(b"B" * 2000)

    monkeypatch.setattr(os, "fsync", meanwhile)
    rotation = Rotation(compress=True, keep_bytes=2000)
    async with File(path=tmp_path / "events.jsonl", rotation=rotation):
        await until(lambda: not first.exists())
    assert first.with_suffix(".jsonl.gz").exists()


async def test_old_file_that_is_removed_during_the_listing_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, removed = tmp_path / "events.jsonl", tmp_path / "events-20260101T000000.000000Z.jsonl"
    removed.touch()
    lstat = Path.lstat

    def fail(self: Path) -> os.stat_result:
        if self == removed:
            raise FileNotFoundError(2, "No such file or directory")
        return lstat(self)

    monkeypatch.setattr(Path, "lstat", fail)
    async with File(path=path, rotation=Rotation(full_bytes=1)) as sink:
        for letter in b"AB":
            await sink.deliver(messages(b"%c" % letter))
    assert content([*old_files(tmp_path), path]) == [b"", b"A\n", b"B\n"]
