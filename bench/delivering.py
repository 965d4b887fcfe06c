"""Rate of events through the store and a forwarder to each kind of sink."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gzip
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pyarrow.parquet import ParquetFile

from bench import disk, jetstream, lines, receivers, rsyslog, stage
from bench.subject import Subject
from ocsf_nft.config.sinks.base import SecretTable
from ocsf_nft.config.sinks.brokers import NatsSink
from ocsf_nft.config.sinks.http import HttpSink, OpenSearchSink, OtlpSink, SplunkHecSink
from ocsf_nft.config.sinks.local import FileSink, UnixSink
from ocsf_nft.config.sinks.parquet import ParquetSink
from ocsf_nft.config.sinks.syslog import SyslogSink
from ocsf_nft.delivery.event_stream import EventStream
from ocsf_nft.delivery.sink_db import SinkDatabase
from ocsf_nft.service.outlet import Outlet
from ocsf_nft.service.sink_delivery import SinkDelivery
from ocsf_nft.state.change import Change
from ocsf_nft.state.retry_until_writable import StorageRetrier
from ocsf_nft.state.state_store import StateStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from ocsf_nft.config.sinks.base import SinkTable

_EVENTS: Final = 10_000
#: As many as an account stores at once.
_BATCH: Final = 256
#: For sinks that are too slow for the usual number.
_FEW_EVENTS: Final = 500
_TIMEOUT_S: Final = 60.0
#: A sink with a longer batch time makes few large batches, and needs no start.
_LONG_S: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    what: str
    events: int
    seconds: float
    cpu_s: float
    missing: int = 0

    def row(self) -> tuple[str, ...]:
        return (
            self.what,
            f"{self.events:,}",
            f"{self.events / self.seconds:,.0f}",
            f"{self.cpu_s / self.events * 1e6:,.0f}",
            f"{100 * self.cpu_s / self.seconds:.0f}",
        )


#: A sink's configuration (None for none), and a function that counts the events that arrived.
Target: TypeAlias = "tuple[SinkTable | None, Callable[[], int]]"
Destination: TypeAlias = "Callable[[Path], AbstractContextManager[Target]]"


def run() -> Subject:
    """Measure each in turn; raise an OcsfNftError if a delivery is not possible."""
    events = lines.lines(_EVENTS + 1)
    notes = [
        "Stored by 256 and synced, while stored events are delivered, with each sink's defaults:",
        "batches of 500 (bulk: 1,000, Parquet: 10,000), a file synced with each. Receivers are",
        "programs of their own on the same cores, which read and count; bulk: parse and answer.",
        "CPU: all of ours for storing and delivering; rsyslog's own.",
        f"Disk: {disk.name()}.",
    ]
    measured = [_ours("no sink: stored only", nowhere, events)]
    measured += [_ours(what, destination, events) for what, destination in DESTINATIONS.items()]
    server = jetstream.binary()
    if server is None:
        notes.append("nats-server is not installed: not measured.")
    else:
        what = f"NATS JetStream in files, {jetstream.version(server)}"
        measured.append(_ours(what, functools.partial(_nats, server), events))
    peer = rsyslog.binary()
    if peer is None:
        notes.append("rsyslog is not installed: not measured.")
    else:
        notes.append(f"{rsyslog.version(peer)}: imptcp, a queue of type Disk, omfwd or omfile.")
        measured += _peers(peer, events)
    return Subject(
        title=f"Delivering events that are stored first (real ones, {lines.mean_bytes(events)})",
        columns=("sink", "events", "events/s", "CPU µs an event", "CPU %"),
        rows=tuple(each.row() for each in measured),
        notes=tuple(notes),
        failures=tuple(
            f"{each.what}: {each.missing:,} events did not arrive, or more did"
            for each in measured
            if each.missing
        ),
    )


def _ours(what: str, destination: Destination, events: Sequence[bytes]) -> _Measured:
    with disk.folder() as folder, destination(Path(folder)) as (table, arrived):
        try:
            seconds, cpu_s = asyncio.run(delivered(table, Path(folder) / "store.sqlite3", events))
        except TimeoutError as error:
            raise stage.BenchError(f"{what}: not delivered within {_TIMEOUT_S:g} s") from error
        missing = abs(len(events) - _settled(arrived, len(events)))
    return _Measured(
        what=what, events=len(events) - 1, seconds=seconds, cpu_s=cpu_s, missing=missing
    )


def _settled(arrived: Callable[[], int], expected: int) -> int:
    """Return the number of arrived events, once all have arrived or a second is over."""
    end = time.monotonic() + 1
    while (number := arrived()) != expected and time.monotonic() < end:
        time.sleep(0.05)
    return number


async def delivered(
    table: SinkTable | None, path: Path, events: Sequence[bytes]
) -> tuple[float, float]:
    """Return seconds and CPU seconds until a sink has all events but the first, which starts it.

    The events are stored in a new database at ``path``. Raises TimeoutError after a minute.
    """
    found = [] if table is None else [Outlet.of(table)]
    retrier = StorageRetrier(asyncio.Event())
    sinks = SinkDatabase(path.with_name("sinks.sqlite3"), max_bytes=1 << 30, max_seconds=1e9)
    async with (
        asyncio.timeout(_TIMEOUT_S),
        StateStore(path, retrier) as store,
        SinkDelivery(found, _stream(store), sinks, retrier) as delivery,
    ):
        await store.commit(Change(events=events[:1]))
        if all(each.batch_settings.seconds < _LONG_S for each in found):
            while any(each.pending for each in delivery.forwarders):  # noqa: ASYNC110 - no event to wait for
                await asyncio.sleep(0.01)
        begun, cpu_s = time.perf_counter(), time.process_time()
        for at in range(1, len(events), _BATCH):
            await store.commit(Change(events=events[at : at + _BATCH]))
        await asyncio.gather(*(each.drain() for each in delivery.forwarders))
        return time.perf_counter() - begun, time.process_time() - cpu_s


def _stream(store: StateStore) -> EventStream:
    """Return the events of a store, in the same process: a service has a process for the sinks."""
    stream = EventStream(store.database.path, store.database.identity, store.database.end)
    store.on_stored = stream.advance
    store.database.retention.acknowledged = {}
    return stream


@contextlib.contextmanager
def nowhere(_: Path) -> Iterator[Target]:
    """Yield no destination: events are only stored."""
    yield None, lambda: _EVENTS + 1


@contextlib.contextmanager
def _file(folder: Path, **more: Any) -> Iterator[Target]:
    destination = folder / "out"
    yield FileSink(path=destination / "events.jsonl", **more), lambda: _lines_in(destination)


def _lines_in(folder: Path) -> int:
    number = 0
    for path in folder.iterdir():
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rb") as file:
            number += sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
    return number


@contextlib.contextmanager
def _parquet(folder: Path) -> Iterator[Target]:
    destination = folder / "lake"
    yield (
        ParquetSink(type="parquet", directory=destination, region="eu-central-1"),
        lambda: sum(ParquetFile(path).metadata.num_rows for path in destination.rglob("*.parquet")),
    )


@contextlib.contextmanager
def _received(
    kind: receivers.Kind, table: Callable[[str], SinkTable], folder: Path
) -> Iterator[Target]:
    with receivers.listening(kind, folder) as receiver:
        yield table(receiver.address), lambda: receiver.events


@contextlib.contextmanager
def _hec(folder: Path) -> Iterator[Target]:
    token = folder / "token"
    token.write_text("none")
    with receivers.listening("hec", folder) as receiver:
        yield (
            SplunkHecSink(
                type="splunk_hec", url=_url(receiver.address), token=SecretTable(file=token)
            ),
            lambda: receiver.events,
        )


@contextlib.contextmanager
def _nats(server: str, folder: Path) -> Iterator[Target]:
    with jetstream.serving(server, folder) as url:
        table = NatsSink(type="nats", servers=(url,), subject=jetstream.SUBJECT)
        yield table, lambda: asyncio.run(jetstream.events(url))


def _url(port: str) -> str:
    return f"http://{receivers.HOST}:{port}"


#: Context manager of each destination, by its name in tables. The first one is a file.
DESTINATIONS: Final[dict[str, Destination]] = {
    "file": _file,
    "file, not synced": functools.partial(_file, sync=False),
    "file, rotated at 8 MiB, compressed": functools.partial(
        _file, rotate_bytes=8 << 20, compress=True
    ),
    "file, in OCSF 1.1.0": functools.partial(_file, ocsf_version="1.1.0"),
    "file, in OCSF 1.9.0": functools.partial(_file, ocsf_version="1.9.0"),
    "file, lean": functools.partial(_file, detail="lean"),
    "Unix socket": functools.partial(
        _received, "unix", lambda destination: UnixSink(type="unix", path=destination)
    ),
    "syslog, TCP": functools.partial(
        _received,
        "tcp",
        lambda destination: SyslogSink(
            type="syslog", transport="tcp", host=receivers.HOST, port=int(destination)
        ),
    ),
    "HTTP, NDJSON": functools.partial(
        _received, "http", lambda destination: HttpSink(type="http", url=_url(destination))
    ),
    "OpenSearch bulk, gzip": functools.partial(
        _received,
        "bulk",
        lambda destination: OpenSearchSink(type="opensearch", url=_url(destination)),
    ),
    "OTLP, gzip": functools.partial(
        _received, "otlp", lambda destination: OtlpSink(type="otlp", url=_url(destination))
    ),
    "Splunk HEC, gzip": _hec,
    "Parquet in a directory": _parquet,
}


def _peers(path: str, events: Sequence[bytes]) -> Iterator[_Measured]:
    """Yield the measurements of the same lines through rsyslog."""
    for to, deliver in (("TCP", rsyslog.to_tcp), ("a synced file", rsyslog.to_file)):
        for is_synced in (False, True):
            number = _EVENTS if to == "TCP" and not is_synced else _FEW_EVENTS
            with disk.folder() as folder:
                work = deliver(path, Path(folder), events[:number], is_synced=is_synced)
            queue = "synced" if is_synced else "not synced"
            yield _Measured(
                what=f"rsyslog to {to}, queue {queue}",
                events=work.events,
                seconds=work.seconds,
                cpu_s=work.cpu_s,
            )
