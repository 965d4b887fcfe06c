"""Tests of the waits of live sources, with a clock that only the waits advance."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.netns import Namespace
from ocsf_nft.sources.journal import Journal
from ocsf_nft.sources.journal.kernel import Chunk
from ocsf_nft.sources.journal.library import LibraryReader
from ocsf_nft.sources.kernel_message import PrefixFilter
from ocsf_nft.sources.nflog import Nflog

if TYPE_CHECKING:
    from collections.abc import Iterator

_JOURNAL = "ocsf_nft.sources.journal"


class _Clock:
    """Fake clock that replaces the modules `time` and `asyncio`."""

    def __init__(self) -> None:
        self.now_ns = 500_000_000
        self.waits: list[float | None] = []

    def monotonic(self) -> float:
        return self.now_ns / 1e9

    def monotonic_ns(self) -> int:
        return self.now_ns

    def time_ns(self) -> int:
        return self.now_ns

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now_ns += round(seconds * 1e9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr(f"{_JOURNAL}.library.time", clock)
    monkeypatch.setattr(f"{_JOURNAL}.library.asyncio", clock)
    monkeypatch.setattr(f"{_JOURNAL}.source.time", clock)
    return clock


def test_journal_reader_checks_entries_each_10_ms_and_files_4_times_a_second(clock: _Clock) -> None:
    requests: list[int] = []
    files: list[int] = []

    def next_entry() -> bool:
        requests.append(clock.now_ns)
        return False

    reader = LibraryReader(None, PrefixFilter())
    reader._reader = SimpleNamespace(
        process=lambda: files.append(clock.now_ns), _next=next_entry, close=lambda: None
    )
    assert asyncio.run(reader.read(1.0)) == Chunk()
    milliseconds = [each // 1_000_000 for each in requests]
    assert milliseconds == list(range(500, 1501, 10))
    assert [each // 1_000_000 for each in files] == [500, 750, 1000, 1250, 1500]
    assert clock.waits == [0.01] * 100 + [0]


def test_journal_cursor_without_records_gives_a_batch_each_second(clock: _Clock) -> None:
    chunks: Iterator[tuple[int, str | None]] = iter([
        (400_000_000, "first"), (300_000_000, None), (299_999_999, "second"), (1, None),
        (5_000_000_000, "third"),
    ])  # fmt: skip
    waits: list[float | None] = []

    async def read(timeout_s: float | None) -> Chunk:
        waits.append(timeout_s)
        later_ns, cursor = next(chunks)
        clock.now_ns += later_ns
        return Chunk(cursor=cursor)

    async def two_batches() -> list[str | None]:
        source = Journal(directory=Path("/"))
        source._reader = SimpleNamespace(read=read)  # type: ignore[assignment]
        batches = source.batches()
        return [(await anext(batches)).cursor for _ in range(2)]

    assert asyncio.run(two_batches()) == ["second", "third"]
    assert waits == [None, *map(pytest.approx, (0.6, 0.3, 1e-9)), None]


async def test_nflog_overrun_is_reported_after_150_ms_without_a_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float | None] = []

    async def until_readable(_descriptor: int, timeout_s: float | None) -> bool:
        waits.append(timeout_s)
        if timeout_s is None:
            raise EOFError
        return False

    monkeypatch.setattr("ocsf_nft.sources.nflog.source.until_readable", until_readable)
    source = Nflog(Namespace(), 5)
    source._socket = SimpleNamespace(fileno=lambda: -1)  # type: ignore[assignment]
    source._overrun = True
    batches = source.batches()
    assert [gap.dropped for gap in (await anext(batches)).gaps] == [None]
    with pytest.raises(EOFError):
        await anext(batches)
    assert waits == [0.15, None]


def test_nflog_batch_has_at_most_1024_records_and_forged_datagrams(clock: _Clock) -> None:
    sizes = iter([4] * 1024)
    forged = SimpleNamespace(recvfrom_into=lambda _buffer: (next(sizes), (4711, 0)))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("ocsf_nft.sources.nflog.source.time", clock)
        source = Nflog(Namespace(), 5)
        batch = source._drain(forged)  # type: ignore[arg-type]
    assert (len(batch.records), len(batch.rejected)) == (0, 1024)
