from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from ocsf_nft.errors import AbsentError, SourceError
from ocsf_nft.sources.journal import Journal
from ocsf_nft.sources.journal import library as journal_library
from ocsf_nft.sources.journal import source as journal_source
from ocsf_nft.sources.journal.command import CommandReading
from ocsf_nft.sources.journal.library import LibraryReading
from ocsf_nft.sources.nflog import Nflog
from tests.kernel import kernel_log
from tests.kernel.attempts import GROUP, UNPRIVILEGED, attempt, refused
from tests.kernel.journald import journald
from tests.kernel.reading import joined, lost, until, until_quiet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.netns import Namespace

pytestmark = [pytest.mark.kernel, pytest.mark.kernel_log]

Way = Literal["library", "command"]
TOLERANCE_NS = 200_000_000
#: journalctl tells of an entry only when inotify does.
QUIET_S = 1.0


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    with journald(tmp_path) as running:
        yield running.directory


@pytest.fixture(params=["library", "command"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Way:
    chosen: Way = request.param
    if chosen == "command":
        monkeypatch.setattr(journal_library, "available", lambda _directory: False)
    return chosen


async def test_each_attempt_is_one_record_equal_to_netlinks(
    namespace: Namespace, sandbox: str, directory: Path, way: Way
) -> None:
    total = 2 * len(UNPRIVILEGED)
    async with (
        Journal(frozenset({sandbox}), directory=directory) as journal,
        Nflog(namespace, GROUP) as nflog,
    ):
        assert isinstance(journal._reading, LibraryReading if way == "library" else CommandReading)
        before = time.time_ns()
        attempt(namespace, 0, 1, *(kind for kind, *_ in UNPRIVILEGED))
        attempt(namespace, 1000, 1, *(kind for kind, *_ in UNPRIVILEGED))
        after = time.time_ns()
        text = await until(journal.batches(), lambda batch: len(batch.records) >= total)
        netlink = await until(nflog.batches(), lambda batch: len(batch.records) >= total)
    assert refused(namespace) == total
    assert text.records == netlink.records
    assert not text.rejects
    for record in text.records:
        assert before - TOLERANCE_NS <= record.time_ns <= after + TOLERANCE_NS
        assert record.origin.transport == "journal"
    assert len({record.origin.identity for record in text.records}) == total


@pytest.mark.usefixtures("way")
async def test_resuming_neither_loses_nor_doubles(
    namespace: Namespace, sandbox: str, directory: Path
) -> None:
    names = frozenset({sandbox})
    async with Journal(names, directory=directory) as source:
        attempt(namespace, 0, 10, "udp4")
        first = await until(source.batches(), lambda batch: len(batch.records) >= 10)
    attempt(namespace, 0, 5, "udp6")
    async with Journal(names, first.cursor, directory) as source:
        attempt(namespace, 0, 3, "tcp4")
        batches = source.batches()
        second = await until(batches, lambda batch: len(batch.records) >= 8)
        second = joined(second, await until_quiet(batches, seconds=QUIET_S))
    async with Journal(names, second.cursor, directory) as source:
        third = await until_quiet(source.batches(), seconds=QUIET_S)
    assert [record.protocol for record in second.records] == [17] * 5 + [6] * 3
    assert not third.records
    identities = [record.origin.identity for record in first.records + second.records]
    assert len(set(identities)) == len(identities) == 18
    # The first may see journald say what it had missed before it was started.
    assert not second.gaps + third.gaps


@pytest.mark.usefixtures("way")
async def test_what_a_program_writes_is_a_forgery(
    namespace: Namespace, sandbox: str, directory: Path
) -> None:
    async with Journal(frozenset({sandbox}), directory=directory) as source:
        kernel_log.write(f"<4>ocsf-nft:{sandbox}:egress:IN= OUT=sb0 SRC=10.0.0.1 DST=1.1.1.1")
        attempt(namespace, 0, 1, "udp4")
        read = await until(source.batches(), lambda batch: bool(batch.records))
    assert len(read.records) == 1
    assert [reject.kind for reject in read.rejects] == ["forged"]


async def test_what_journald_missed_is_counted(
    namespace: Namespace, sandbox: str, directory: Path
) -> None:
    async with Journal(frozenset({sandbox}), directory=directory) as source:
        attempt(namespace, 0, 20_000, "flood")
        # Its notice comes with the first message after those that it missed.
        attempt(namespace, 0, 1, "udp4")
        batches = source.batches()
        read = await until(batches, lambda batch: len(batch.records) + lost(batch) >= 20_001)
        read = joined(read, await until_quiet(batches, seconds=QUIET_S))
    assert len(read.records) < 20_001
    # What else the machine logs meanwhile may be among what was missed.
    assert 20_001 <= len(read.records) + lost(read) < 20_101


async def test_a_compressed_journal_is_read_whether_libsystemd_can_open_it_or_not(
    namespace: Namespace, sandbox: str, tmp_path: Path
) -> None:
    with journald(tmp_path, compress="yes") as running:
        async with Journal(frozenset({sandbox}), directory=running.directory) as source:
            attempt(namespace, 0, 2, "udp4")
            read = await until(source.batches(), lambda batch: len(batch.records) >= 2)
    assert len(read.records) == 2


@pytest.mark.parametrize("cursor", ["garbage", "kmsg:1:2", ""])
@pytest.mark.usefixtures("way")
async def test_a_position_that_is_none_is_refused(directory: Path, cursor: str) -> None:
    with pytest.raises(SourceError, match=r"is no position|journalctl"):
        await read_for_ever(cursor, directory)


@pytest.mark.usefixtures("way")
async def test_a_position_that_is_gone_is_a_gap(
    namespace: Namespace, sandbox: str, directory: Path
) -> None:
    gone = f"s={'1' * 32};i=1;b={'2' * 32};m=1;t=1;x=1"
    async with Journal(frozenset({sandbox}), gone, directory) as source:
        attempt(namespace, 0, 1, "udp4")
        read = await until(source.batches(), lambda batch: bool(batch.records))
    assert read.gaps[0].lost is None


async def test_the_end_of_journalctl_is_an_error(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_library, "available", lambda _directory: False)
    async with Journal(directory=directory) as source:
        assert isinstance(source._reading, CommandReading)
        assert source._reading._process is not None
        os.kill(source._reading._process.pid, signal.SIGKILL)
        with pytest.raises(SourceError, match="journalctl ended unexpectedly: it was killed"):
            await until(source.batches(), lambda _: False)


async def test_files_that_are_not_there_or_not_readable_are_named(tmp_path: Path) -> None:
    with pytest.raises(AbsentError, match="there is no journal folder"):
        await Journal(directory=tmp_path / "none").__aenter__()


BOOT, NEXT_BOOT = "3" * 32, "4" * 32


def append(directory: Path, *entries: tuple[str, bytes]) -> None:
    """Write entries, each a boot and its fields, to the folder's journal."""
    export = b"".join(
        b"__REALTIME_TIMESTAMP=%d\n__MONOTONIC_TIMESTAMP=%d\n_BOOT_ID=%s\n%s\n\n"
        % (1_700_000_000_000_000 + number, 1_000_000 + number, boot.encode(), fields)
        for number, (boot, fields) in enumerate(entries)
    )
    subprocess.run(
        ["/usr/lib/systemd/systemd-journal-remote", "-o", str(directory / "system.journal"), "-"],
        input=export,
        env={"SYSTEMD_JOURNAL_COMPRESS": "0"},
        capture_output=True,
        check=True,
    )


async def test_an_exported_journal_tells_how_many_were_missed(tmp_path: Path) -> None:
    missed = b"MESSAGE_ID=e9bf28e6e834481bb6f48f548ad13606\nMESSAGE=Missed %d kernel messages"
    append(
        tmp_path,
        (BOOT, b"_TRANSPORT=kernel\nSYSLOG_FACILITY=0\nMESSAGE=first"),
        (BOOT, b"_TRANSPORT=driver\n" + missed % 1234),
        (BOOT, b"_TRANSPORT=journal\n" + missed % 99),
    )
    before = f"s={'1' * 32};i=0;b={BOOT};m=1;t=1;x=1"
    async with Journal(cursor=before, directory=tmp_path) as source:
        read = await until_quiet(source.batches(), seconds=QUIET_S)
    assert [gap.lost for gap in read.gaps] == [None, 1234]


def kernel_entry(sandbox: str, port: int) -> bytes:
    line = (
        f"ocsf-nft:{sandbox}:egress:IN= OUT=sb0 SRC=10.0.0.1 DST=1.1.1.1 LEN=60 TOS=0x00 "
        f"PREC=0x00 TTL=64 ID=1 DF PROTO=TCP SPT=40000 DPT={port} WINDOW=64240 RES=0x00 SYN URGP=0"
    )
    return f"_TRANSPORT=kernel\nSYSLOG_FACILITY=0\nMESSAGE={line}".encode()


@pytest.mark.usefixtures("way")
async def test_what_was_logged_before_a_reboot_is_read_after_it(
    sandbox: str, tmp_path: Path
) -> None:
    entries = [
        (boot, kernel_entry(sandbox, port)) for port, boot in enumerate([BOOT, BOOT, NEXT_BOOT], 1)
    ]
    append(tmp_path, *entries)
    start = f"s={'1' * 32};i=0;b={BOOT};m=1;t=1;x=1"
    async with Journal(frozenset({sandbox}), start, tmp_path) as source:
        read = await until(source.batches(), lambda batch: len(batch.records) >= 3)
    assert [record.destination_port for record in read.records] == [1, 2, 3]


@pytest.mark.usefixtures("way")
async def test_a_journal_that_is_empty_yet_is_waited_for(sandbox: str, tmp_path: Path) -> None:
    append(tmp_path)
    async with Journal(frozenset({sandbox}), directory=tmp_path) as source:
        batches = source.batches()
        first = asyncio.ensure_future(until(batches, lambda batch: bool(batch.records)))
        await asyncio.sleep(0.2)
        await asyncio.to_thread(append, tmp_path, (BOOT, kernel_entry(sandbox, 443)))
        read = await first
    assert [record.destination_port for record in read.records] == [443]


@pytest.mark.usefixtures("way")
async def test_a_journal_position_moves_on_without_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_source, "_CURSOR_INTERVAL_S", 0.05)
    append(tmp_path, (BOOT, b"_TRANSPORT=kernel\nSYSLOG_FACILITY=0\nMESSAGE=first"))
    async with Journal(directory=tmp_path) as source:
        batches = source.batches()
        start = await anext(batches)
        await asyncio.to_thread(
            append, tmp_path, (BOOT, b"_TRANSPORT=kernel\nSYSLOG_FACILITY=0\nMESSAGE=second")
        )
        moved = await until(batches, lambda batch: batch.cursor is not None)
    assert start.cursor != moved.cursor
    assert not moved.records + moved.gaps + moved.rejects
    async with Journal(cursor=moved.cursor, directory=tmp_path) as source:
        assert not (await until_quiet(source.batches(), seconds=0.3)).gaps


async def test_a_line_of_more_than_a_megabyte_ends_the_reading_by_journalctl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_library, "available", lambda _directory: False)
    message = b"x" * (1 << 20)
    append(tmp_path, (BOOT, b"_TRANSPORT=kernel\nSYSLOG_FACILITY=0\nMESSAGE=" + message))
    start = f"s={'1' * 32};i=0;b={BOOT};m=1;t=1;x=1"
    async with Journal(cursor=start, directory=tmp_path) as source:
        with pytest.raises(SourceError, match="journalctl wrote a line of more than a megabyte"):
            await until(source.batches(), lambda _: False)


@pytest.mark.usefixtures("way")
async def test_leaving_and_cancelling_leave_nothing_behind(directory: Path) -> None:
    def held() -> tuple[int, list[str], list[str]]:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii")
        # asyncio keeps its pool's threads for the next call, and its child watchers end by
        # themselves, a moment after the child.
        pool = ("asyncio_", "asyncio-waitpid-")
        threads = [thread.name for thread in threading.enumerate()]
        return (
            len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - two calls fewer than Path's
            children.split(),
            [name for name in threads if not name.startswith(pool)],
        )

    before = held()
    task = asyncio.ensure_future(read_for_ever(None, directory))
    await asyncio.sleep(0.3)
    assert held() != before
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert held() == before


async def read_for_ever(cursor: str | None, directory: Path) -> None:
    async with asyncio.timeout(20), Journal(cursor=cursor, directory=directory) as source:
        async for _ in source.batches():
            pass
