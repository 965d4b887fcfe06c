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
from ocsf_nft.sources.journal.command import CommandReader
from ocsf_nft.sources.journal.library import LibraryReader
from ocsf_nft.sources.nflog import Nflog
from tests.kernel import kernel_log
from tests.kernel.attempts import GROUP, UNPRIVILEGED, attempt, refused
from tests.kernel.journald import journald
from tests.kernel.reading import dropped, joined, until, until_quiet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.netns import Namespace

pytestmark = [pytest.mark.kernel, pytest.mark.kernel_log]

ReaderKind = Literal["library", "command"]
TOLERANCE_NS = 200_000_000
#: journalctl reports an entry only when inotify does.
QUIET_S = 1.0


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    with journald(tmp_path) as running:
        yield running.directory


@pytest.fixture(params=["library", "command"])
def reader_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ReaderKind:
    chosen: ReaderKind = request.param
    if chosen == "command":
        monkeypatch.setattr(journal_library, "available", lambda _directory: False)
    return chosen


async def test_journal_gives_one_record_for_each_attempt_equal_to_nflogs(
    namespace: Namespace, sandbox: str, directory: Path, reader_kind: ReaderKind
) -> None:
    total = 2 * len(UNPRIVILEGED)
    async with (
        Journal(frozenset({sandbox}), directory=directory) as journal,
        Nflog(namespace, GROUP) as nflog,
    ):
        assert isinstance(
            journal._reader, LibraryReader if reader_kind == "library" else CommandReader
        )
        before = time.time_ns()
        attempt(namespace, 0, 1, *(kind for kind, *_ in UNPRIVILEGED))
        attempt(namespace, 1000, 1, *(kind for kind, *_ in UNPRIVILEGED))
        text = await until(journal.batches(), lambda batch: len(batch.records) >= total)
        netlink = await until(nflog.batches(), lambda batch: len(batch.records) >= total)
    assert refused(namespace) == total
    assert text.records == netlink.records
    assert not text.rejected
    for record in text.records:
        # A late first record looks like a drift of the kernel's clock.
        assert before - TOLERANCE_NS <= record.time_ns <= record.received_ns + TOLERANCE_NS
        assert record.origin.transport == "journal"
    assert len({record.origin.identity for record in text.records}) == total


@pytest.mark.usefixtures("reader_kind")
async def test_journal_source_resumes_without_missing_or_repeated_records(
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
    # The first batch may have journald's notice of messages missed before its start.
    assert not second.gaps + third.gaps


@pytest.mark.usefixtures("reader_kind")
async def test_journal_message_of_a_program_is_forged(
    namespace: Namespace, sandbox: str, directory: Path
) -> None:
    async with Journal(frozenset({sandbox}), directory=directory) as source:
        kernel_log.write(f"<4>ocsf-nft:{sandbox}:egress:IN= OUT=sb0 SRC=10.0.0.1 DST=1.1.1.1")
        attempt(namespace, 0, 1, "udp4")
        read = await until(source.batches(), lambda batch: bool(batch.records))
    assert len(read.records) == 1
    assert [reject.kind for reject in read.rejected] == ["forged"]


async def test_journal_source_counts_messages_that_journald_missed(
    namespace: Namespace, sandbox: str, directory: Path
) -> None:
    async with Journal(frozenset({sandbox}), directory=directory) as source:
        attempt(namespace, 0, 20_000, "flood")
        # journald logs its notice with the first message after the missed ones.
        attempt(namespace, 0, 1, "udp4")
        batches = source.batches()
        read = await until(batches, lambda batch: len(batch.records) + dropped(batch) >= 20_001)
        read = joined(read, await until_quiet(batches, seconds=QUIET_S))
    assert len(read.records) < 20_001
    # Other messages of the machine may be among the missed ones.
    assert 20_001 <= len(read.records) + dropped(read) < 20_101


async def test_journal_source_reads_a_compressed_journal_also_without_libsystemd(
    namespace: Namespace, sandbox: str, tmp_path: Path
) -> None:
    with journald(tmp_path, compress="yes") as running:
        async with Journal(frozenset({sandbox}), directory=running.directory) as source:
            attempt(namespace, 0, 2, "udp4")
            read = await until(source.batches(), lambda batch: len(batch.records) >= 2)
    assert len(read.records) == 2


@pytest.mark.parametrize("cursor", ["garbage", "kmsg:1:2", ""])
@pytest.mark.usefixtures("reader_kind")
async def test_journal_source_refuses_an_invalid_cursor(directory: Path, cursor: str) -> None:
    with pytest.raises(SourceError, match=r"is no position|journalctl"):
        await read_for_ever(cursor, directory)


@pytest.mark.usefixtures("reader_kind")
async def test_journal_source_reports_a_deleted_cursor_as_a_gap(
    namespace: Namespace, sandbox: str, directory: Path
) -> None:
    deleted = f"s={'1' * 32};i=1;b={'2' * 32};m=1;t=1;x=1"
    async with Journal(frozenset({sandbox}), deleted, directory) as source:
        attempt(namespace, 0, 1, "udp4")
        read = await until(source.batches(), lambda batch: bool(batch.records))
    assert read.gaps[0].dropped is None


async def test_journal_source_raises_if_journalctl_exits(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_library, "available", lambda _directory: False)
    async with Journal(directory=directory) as source:
        assert isinstance(source._reader, CommandReader)
        assert source._reader._process is not None
        os.kill(source._reader._process.pid, signal.SIGKILL)
        with pytest.raises(SourceError, match="journalctl ended unexpectedly: it was killed"):
            await until(source.batches(), lambda _: False)


async def test_journal_source_raises_for_an_absent_folder(tmp_path: Path) -> None:
    with pytest.raises(AbsentError, match="there is no journal folder"):
        await Journal(directory=tmp_path / "none").__aenter__()


BOOT, NEXT_BOOT = "3" * 32, "4" * 32


def append(directory: Path, *entries: tuple[str, bytes]) -> None:
    """Write entries (boot id and fields) to the folder's journal."""
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


async def test_journal_source_reads_the_missed_count_only_from_journalds_notice(
    tmp_path: Path,
) -> None:
    missed = b"MESSAGE_ID=e9bf28e6e834481bb6f48f548ad13606\nMESSAGE=Missed %d kernel messages"
    append(
        tmp_path,
        (BOOT, b"_TRANSPORT=kernel\nSYSLOG_FACILITY=0\nMESSAGE=first"),
        (BOOT, b"_TRANSPORT=driver\n" + missed % 1234),
        (BOOT, b"_TRANSPORT=journal\n" + missed % 99),
    )
    before = f"s={'1' * 32};i=0;b={BOOT};m=1;t=1;x=1"
    async with Journal(cursor=before, directory=tmp_path) as source:
        batches = source.batches()
        read = await until(batches, lambda batch: len(batch.gaps) >= 2)
        read = joined(read, await until_quiet(batches, seconds=QUIET_S))
    assert [gap.dropped for gap in read.gaps] == [None, 1234]


def kernel_entry(sandbox: str, port: int) -> bytes:
    line = (
        f"ocsf-nft:{sandbox}:egress:IN= OUT=sb0 SRC=10.0.0.1 DST=1.1.1.1 LEN=60 TOS=0x00 "
        f"PREC=0x00 TTL=64 ID=1 DF PROTO=TCP SPT=40000 DPT={port} WINDOW=64240 RES=0x00 SYN URGP=0"
    )
    return f"_TRANSPORT=kernel\nSYSLOG_FACILITY=0\nMESSAGE={line}".encode()


@pytest.mark.usefixtures("reader_kind")
async def test_journal_source_reads_records_of_earlier_boots(sandbox: str, tmp_path: Path) -> None:
    entries = [
        (boot, kernel_entry(sandbox, port)) for port, boot in enumerate([BOOT, BOOT, NEXT_BOOT], 1)
    ]
    append(tmp_path, *entries)
    start = f"s={'1' * 32};i=0;b={BOOT};m=1;t=1;x=1"
    async with Journal(frozenset({sandbox}), start, tmp_path) as source:
        read = await until(source.batches(), lambda batch: len(batch.records) >= 3)
    assert [record.destination_port for record in read.records] == [1, 2, 3]


@pytest.mark.usefixtures("reader_kind")
async def test_journal_source_waits_for_the_first_entry(sandbox: str, tmp_path: Path) -> None:
    append(tmp_path)
    async with Journal(frozenset({sandbox}), directory=tmp_path) as source:
        batches = source.batches()
        first = asyncio.ensure_future(until(batches, lambda batch: bool(batch.records)))
        await asyncio.sleep(0.2)
        await asyncio.to_thread(append, tmp_path, (BOOT, kernel_entry(sandbox, 443)))
        read = await first
    assert [record.destination_port for record in read.records] == [443]


@pytest.mark.usefixtures("reader_kind")
async def test_journal_cursor_advances_without_records(
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
        moved = await until(batches, lambda batch: batch.cursor not in {None, start.cursor})
    assert not moved.records + moved.gaps + moved.rejected
    async with Journal(cursor=moved.cursor, directory=tmp_path) as source:
        assert not (await until_quiet(source.batches(), seconds=0.3)).gaps


async def test_journal_source_raises_for_a_journalctl_line_above_a_megabyte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_library, "available", lambda _directory: False)
    message = b"x" * (1 << 20)
    append(tmp_path, (BOOT, b"_TRANSPORT=kernel\nSYSLOG_FACILITY=0\nMESSAGE=" + message))
    start = f"s={'1' * 32};i=0;b={BOOT};m=1;t=1;x=1"
    async with Journal(cursor=start, directory=tmp_path) as source:
        with pytest.raises(SourceError, match="journalctl wrote a line of more than a megabyte"):
            await until(source.batches(), lambda _: False)


@pytest.mark.usefixtures("reader_kind")
async def test_journal_source_leaves_nothing_open(directory: Path) -> None:
    def open_resources() -> tuple[int, list[str], list[str]]:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii")
        # asyncio reuses the threads of its pool, and its child watchers end shortly after the
        # child.
        pool = ("asyncio_", "asyncio-waitpid-")
        threads = [thread.name for thread in threading.enumerate()]
        return (
            len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - two calls fewer than Path's
            children.split(),
            [name for name in threads if not name.startswith(pool)],
        )

    before = open_resources()
    entered = asyncio.Event()
    task = asyncio.ensure_future(read_for_ever(None, directory, entered))
    async with asyncio.timeout(60):
        await entered.wait()
    await asyncio.sleep(0.3)
    assert open_resources() != before
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert open_resources() == before


async def read_for_ever(
    cursor: str | None, directory: Path, entered: asyncio.Event | None = None
) -> None:
    async with asyncio.timeout(60), Journal(cursor=cursor, directory=directory) as source:
        if entered is not None:
            entered.set()
        async for _ in source.batches():
            pass
