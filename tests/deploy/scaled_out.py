"""Helpers for tests of deploy/scale-out: hosts, collectors, and their results."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import duckdb
import nats
import orjson

from ocsf_nft import config
from ocsf_nft.delivery.forwarder import Forwarder
from ocsf_nft.delivery.receiver_settings import Tls
from ocsf_nft.state.state_db import FILE
from tests.delivery.sample_events import packets
from tests.delivery.stores import Store
from tests.deploy.nats_cluster import PASSWORDS, SCALE_OUT, NatsCluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

    from nats.aio.client import Client
    from nats.js import JetStreamContext

    from ocsf_nft.delivery.sinks.base import Message

EVENTS_OF_A_HOST = 600
#: The events of each host begin a day after those of the host before it.
_SINCE_MS = 1_795_000_000_000
_DAY_MS = 86_400_000

#: A collector that dies after its sink has the first batch, before it acknowledges it.
DIES = """
import os, runpy, signal, sys
from ocsf_nft.delivery.sinks.parquet import Parquet
deliver = Parquet.deliver
async def and_die(self, messages):
    await deliver(self, messages)
    os.kill(os.getpid(), signal.SIGKILL)
Parquet.deliver = and_die
program, file = sys.argv[1:]
sys.argv = [program, file]
sys.path.insert(0, os.path.dirname(program))
runpy.run_path(program, run_name="__main__")
"""


@contextlib.asynccontextmanager
async def connected_as(
    cluster: NatsCluster, user: str, errors: list[str] | None = None
) -> AsyncIterator[Client]:
    """Connect with a user's password; append errors of the connection to ``errors``."""

    async def add_error(error: Exception) -> None:
        if errors is not None:
            errors.append(str(error))

    client = await nats.connect(
        cluster.urls[0],
        user=user,
        password=PASSWORDS[user],
        tls=Tls(ca=cluster.certificates.ca).context(),
        tls_handshake_first=True,
        error_cb=add_error,
    )
    try:
        yield client
    finally:
        await client.close()


def settings(cluster: NatsCluster, lake: Path, **given: Any) -> dict[str, Any]:
    quick = {"group": "lake", "block_events": 100, "block_seconds": 0.5, "lease_seconds": 2.0}
    sink = {"type": "parquet", "directory": str(lake), "region": "test"}
    return cluster.table("collector") | quick | {"sink": sink} | given


class Collector:
    """A collector's process, and its log."""

    def __init__(self, file: Path, *program: str) -> None:
        self._log = file.with_suffix(".log")
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *program, str(SCALE_OUT / "collector.py"), str(file)], stderr=log
            )

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """Return the delivered blocks, as first and last sequence number."""
        found = re.findall(r'"event":"delivered","first":(\d+),"last":(\d+)', self.log_text)
        return [(int(first), int(last)) for first, last in found]

    @property
    def log_text(self) -> str:
        return self._log.read_text()

    async def has(self, blocks: int) -> None:
        await until(lambda: len(self.blocks) >= blocks)

    def end(self, number: signal.Signals = signal.SIGKILL) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


@contextlib.contextmanager
def running_collectors(
    cluster: NatsCluster, lake: Path, names: Sequence[str]
) -> Iterator[list[Collector]]:
    found: list[Collector] = []
    try:
        for name in names:
            file = cluster.written(f"{name}.toml", settings(cluster, lake))
            found.append(Collector(file))
        yield found
    finally:
        for each in found:
            each.end()


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not is_so():  # noqa: ASYNC110 - other processes send no notification
            await asyncio.sleep(0.02)


@dataclass
class Host:
    """A host's store, its forwarder to the cluster, and its future events."""

    store: Store
    forwarder: Forwarder
    events: list[Message]

    async def store_events(self, number: int) -> None:
        """Store the next ``number`` of its events."""
        now, self.events = self.events[:number], self.events[number:]
        await self.store.put([each.line for each in now])


@contextlib.asynccontextmanager
async def hosting(cluster: NatsCluster, folder: Path, number: int) -> AsyncIterator[Host]:
    found = tomllib.loads((SCALE_OUT / "host.toml").read_text())
    found["sink"][0] |= cluster.table("host") | {"retry_seconds": 0.5, "batch_seconds": 0.05}
    (table,) = config.parse(found, where="host.toml").sinks
    async with Store(folder / f"host-{number}" / FILE) as store:
        await store.register([table.called])
        forwarder = Forwarder(
            table.called,
            table.sink(),
            store.stream,
            store.sinks,
            batch_settings=table.batch_settings,
            retrier=store.retrier,
            on_advance=store.advanced,
        )
        task = asyncio.create_task(forwarder.run())
        try:
            since_ms = _SINCE_MS + number * _DAY_MS
            yield Host(store, forwarder, packets(EVENTS_OF_A_HOST, since_ms=since_ms))
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def published(host: JetStreamContext, batch: Sequence[Message]) -> None:
    for each in batch:
        await host.publish("ocsf.test", each.line, headers={"Nats-Msg-Id": each.uid})


async def blocks_of(stream: JetStreamContext, group: str) -> list[list[int]]:
    """Return all blocks of a group."""
    state = (await stream.stream_info("ocsf-blocks")).state
    found = [
        await stream.get_msg("ocsf-blocks", number)
        for number in range(state.first_seq, state.last_seq + 1)
    ]
    return [orjson.loads(each.data or b"") for each in found if str(each.subject).endswith(group)]


def query_result(query: str) -> duckdb.DuckDBPyRelation:
    found = duckdb.sql(query)
    assert found is not None
    return found


async def leader_of(cluster: NatsCluster, stream: JetStreamContext) -> int:
    """Return the number of the server that leads the stream of events."""
    info = (await stream.stream_info("ocsf")).cluster
    assert info is not None
    return cluster.number(str(info.leader))


async def all_acknowledged(stream: JetStreamContext) -> None:
    """Wait until all events are in blocks, and all blocks are delivered."""
    async with asyncio.timeout(60):
        while not await _is_acknowledged(stream):  # noqa: ASYNC110 - the servers send no notification
            await asyncio.sleep(0.1)


async def _is_acknowledged(stream: JetStreamContext) -> bool:
    try:
        last = (await stream.stream_info("ocsf")).state.last_seq
        block = await stream.get_last_msg("ocsf-blocks", "ocsf-blocks.lake")
        group = await stream.consumer_info("ocsf-blocks", "lake")
    except nats.errors.Error:  # while there is no leader
        return False
    is_cut = orjson.loads(block.data or b"")[1] == last
    return is_cut and not group.num_pending and not group.num_ack_pending


def rows_of(lake: Path) -> list[str]:
    """Return the uid of each row of the lake."""
    found = duckdb.read_parquet(f"{lake}/**/*.parquet").select("metadata.uid")
    return [uid for (uid,) in found.fetchall()]


def queries(lake: Path) -> list[str]:
    """Return the queries of the README, for a lake."""
    readme = (SCALE_OUT / "README.md").read_text()
    (block,) = re.findall(r"```sql\n(.*?)```", readme, flags=re.DOTALL)
    found = block.replace("/lake/", f"{lake}/").split(";")
    return [query for query in found if query.strip()]


def files_of(lake: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in lake.rglob("*.parquet")}
