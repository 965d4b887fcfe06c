"""Rates of storing, reading and acknowledging events: our store, and others on the same disk."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, Self

import orjson

from bench import disk, lines, stage
from bench.subject import Subject, milliseconds, percentile
from ocsf_nft.delivery.event_stream import EventStream
from ocsf_nft.delivery.sink_db import SinkDatabase
from ocsf_nft.state.change import Change
from ocsf_nft.state.retry_until_writable import StorageRetrier
from ocsf_nft.state.state_store import StateStore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_BATCHES: Final = (1, 16, 256)
#: The stores are measured in turn, so that other load of the disk affects all equally.
_ROUNDS: Final = 3
_SECONDS: Final = 0.25
#: More than can be stored in that time.
_EVENTS: Final = 20_000
#: The default batch of a forwarder for reading and acknowledging.
_READ: Final = 500
_READ_BYTES: Final = 1 << 20
_SINK: Final = "bench"
_SYNCS: Final = 200


class _EventStore(Protocol):
    """Durable store of events in a folder."""

    #: Whether it also stores the position of a sink.
    has_checkpoints: bool

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...

    async def put(self, events: Sequence[bytes]) -> None:
        """Store events; return when they are on the disk."""

    async def read(self, beyond: int) -> int:
        """Read the next events after a number; return how many there were."""

    async def acknowledge(self, until: int) -> None:
        """Store that a sink has all events up to a number; a power cut may revert this."""


class _Ours:
    """Our state database, and our database of checkpoints."""

    has_checkpoints = True

    def __init__(self, folder: Path) -> None:
        retrier = StorageRetrier(asyncio.Event())
        self._store = StateStore(folder / "store.sqlite3", retrier, max_bytes=1 << 40)
        self._sinks = SinkDatabase(folder / "sinks.sqlite3", max_bytes=1 << 40, max_seconds=1e9)

    async def __aenter__(self) -> Self:
        await self._store.__aenter__()
        self._sinks.open()
        self._sinks.register([_SINK], self._store.database.identity, 0)
        self._stream = EventStream(
            self._store.database.path, self._store.database.identity, self._store.database.end
        )
        self._store.on_stored = self._stream.advance
        return self

    async def __aexit__(self, *_: object) -> None:
        self._sinks.close()
        await self._store.__aexit__(None, None, None)

    async def put(self, events: Sequence[bytes]) -> None:
        await self._store.commit(Change(events=events))

    async def read(self, beyond: int) -> int:
        return len(self._stream.read(beyond, self._stream.end, events=_READ, size=_READ_BYTES))

    async def acknowledge(self, until: int) -> None:
        self._sinks.acknowledge(_SINK, until)


class _ByHand:
    """SQLite database with the same tables, in the same mode, without retention or checks."""

    has_checkpoints = True

    def __init__(self, folder: Path) -> None:
        self._connection = sqlite3.connect(folder / "by-hand.sqlite3", isolation_level=None)

    async def __aenter__(self) -> Self:
        self._connection.executescript(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"
            "CREATE TABLE event (number INTEGER PRIMARY KEY AUTOINCREMENT,"
            " uid TEXT NOT NULL UNIQUE, stored_ms INTEGER NOT NULL, line BLOB NOT NULL);"
            "CREATE TABLE sink (name TEXT PRIMARY KEY, acknowledged INTEGER);"
        )
        self._connection.execute("INSERT INTO sink VALUES (?, 0)", (_SINK,))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._connection.close()

    async def put(self, events: Sequence[bytes]) -> None:
        now_ms = time.time_ns() // 1_000_000
        self._connection.execute("BEGIN")
        self._connection.executemany(
            "INSERT OR IGNORE INTO event (uid, stored_ms, line) VALUES (?, ?, ?)",
            [(orjson.loads(event)["metadata"]["uid"], now_ms, event) for event in events],
        )
        self._connection.execute("COMMIT")

    async def read(self, beyond: int) -> int:
        statement = "SELECT number, uid, line FROM event WHERE number > ? ORDER BY number LIMIT ?"
        number, size = 0, 0
        for _, _, line in self._connection.execute(statement, (beyond, _READ)):
            size += len(line)
            if size > _READ_BYTES:
                break
            number += 1
        return number

    async def acknowledge(self, until: int) -> None:
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.execute("UPDATE sink SET acknowledged = ? WHERE name = ?", (until, _SINK))
        self._connection.execute("PRAGMA synchronous = FULL")


class _Appended:
    """A file with appended and synced lines: the lower bound of the cost."""

    has_checkpoints = False

    def __init__(self, folder: Path) -> None:
        self._file = (folder / "events.jsonl").open("w+b", buffering=0)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._file.close()

    async def put(self, events: Sequence[bytes]) -> None:
        self._file.write(b"".join(event + b"\n" for event in events))
        os.fdatasync(self._file.fileno())

    async def read(self, beyond: int) -> int:
        if beyond == 0:
            self._file.seek(0)
        chunk = self._file.read(_READ_BYTES)
        end = chunk.rfind(b"\n") + 1
        self._file.seek(end - len(chunk), os.SEEK_CUR)
        return len(chunk[:end].splitlines())

    async def acknowledge(self, until: int) -> None:
        raise NotImplementedError


_STORES: Final[dict[str, Callable[[Path], _EventStore]]] = {
    "ocsf-nft's store": _Ours,
    f"SQLite {sqlite3.sqlite_version} by hand": _ByHand,
    "append to a file, fdatasync()": _Appended,
}
_COLUMNS: Final = (*(f"stored/s by {batch}" for batch in _BATCHES), "read/s", "checkpoints/s")


def run() -> Subject:
    """Measure all stores; raise BenchError if an event is missing."""
    events = lines.lines(_EVENTS)
    rates: dict[tuple[str, str], list[float]] = {}
    for _ in range(_ROUNDS):
        for name, store in _STORES.items():
            for column, rate in asyncio.run(_measured(store, events)).items():
                rates.setdefault((name, column), []).append(rate)
    floor = milliseconds(percentile(disk.synced_ns(_SYNCS), 50))
    return Subject(
        title=f"Events that are stored durably (real ones, {lines.mean_bytes(events)})",
        columns=("by", *_COLUMNS),
        rows=tuple(
            (name, *(_shown(rates.get((name, column))) for column in _COLUMNS)) for name in _STORES
        ),
        notes=(
            f"Medians of {_ROUNDS} times {_SECONDS:g} s, in turn. Stored: on the disk when the",
            f"call returns; one call after another. Read: {_READ} a call. Checkpoints: the",
            "position of a sink, which a power cut may revert.",
            f"{disk.name()}: 4 KiB more of a file and fdatasync() take {floor} ms (p50).",
        ),
    )


def _shown(rates: Sequence[float] | None) -> str:
    return "-" if rates is None else f"{percentile(rates, 50):,.0f}"


async def _measured(
    store: Callable[[Path], _EventStore], events: Sequence[bytes]
) -> dict[str, float]:
    """Return the rate of each column."""
    found: dict[str, float] = {}
    for batch, column in zip(_BATCHES, _COLUMNS, strict=False):
        with disk.folder() as folder:
            async with store(Path(folder)) as opened:
                number, found[column] = await _put(opened, events, batch)
                if batch == _BATCHES[-1]:
                    found |= await _read_rates(opened, number)
    return found


async def _put(opened: _EventStore, events: Sequence[bytes], batch: int) -> tuple[int, float]:
    """Store for some seconds; return the number of events and the rate per second."""
    at, begun = 0, time.perf_counter()
    while (took := time.perf_counter() - begun) < _SECONDS and at < len(events):
        await opened.put(events[at : at + batch])
        at = min(at + batch, len(events))
    return at, at / took


async def _read_rates(opened: _EventStore, number: int) -> dict[str, float]:
    """Return the rates of reading and acknowledging a number of stored events."""
    found = 0
    begun = time.perf_counter()
    while (took := time.perf_counter() - begun) < _SECONDS:
        beyond = 0
        while more := await opened.read(beyond):
            beyond += more
        if beyond != number:
            raise stage.BenchError(f"{beyond} of {number} events were given back")
        found += beyond
    rates = {_COLUMNS[-2]: found / took}
    if opened.has_checkpoints:
        times = 0
        begun = time.perf_counter()
        while (took := time.perf_counter() - begun) < _SECONDS:
            times += 1
            await opened.acknowledge(times % number)
        rates[_COLUMNS[-1]] = times / took
    return rates
