"""The example of many hosts on a real cluster: its guarantees when parts of it die."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import re
import signal
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from nats.js.errors import NotFoundError

from ocsf_nft import config
from ocsf_nft.delivery.sinks.base import BatchSettings
from ocsf_nft.errors import DeliveryError
from ocsf_nft.service.outlet import Outlet
from tests.delivery.receiver import Receiver
from tests.delivery.sample_events import packets
from tests.delivery.sinks.batches import messages
from tests.deploy.nats_cluster import SCALE_OUT, NatsCluster
from tests.deploy.scaled_out import (
    DIES,
    EVENTS_OF_A_HOST,
    Collector,
    all_acknowledged,
    blocks_of,
    connected_as,
    files_of,
    hosting,
    leader_of,
    published,
    queries,
    query_result,
    rows_of,
    running_collectors,
    settings,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path
    from types import ModuleType

    from nats.js import JetStreamContext

_HOSTS = 5


class Programs(NamedTuple):
    """The modules of deploy/scale-out, as its programs import them."""

    cluster: ModuleType
    delivering: ModuleType
    collector: ModuleType
    streams: ModuleType


@pytest.fixture(scope="module")
def programs() -> Iterator[Programs]:
    sys.path.insert(0, str(SCALE_OUT))
    try:
        yield Programs(*map(importlib.import_module, Programs._fields))
    finally:
        sys.path.remove(str(SCALE_OUT))
        for name in Programs._fields:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsCluster]:
    with NatsCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        _made(_make_streams(cluster))
        yield cluster


def _make_streams(cluster: NatsCluster, gib: int = 1) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, SCALE_OUT / "streams.py", cluster.file("operator"), "--gib", str(gib)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _made(program: subprocess.Popen[str]) -> None:
    output, errors = program.communicate(timeout=90)
    assert program.returncode == 0, errors
    assert output.splitlines() == [
        f"{name}: on 3 servers" for name in ("ocsf", "ocsf-blocks", "ocsf-refused")
    ]


@pytest.fixture
async def stream(cluster: NatsCluster, programs: Programs) -> AsyncIterator[JetStreamContext]:
    """Yield the operator's connection, to empty streams."""
    table = programs.cluster.ClusterTable.model_validate(cluster.table("operator"))
    async with programs.cluster.connected(table) as stream:
        for name in ("ocsf", "ocsf-blocks", "ocsf-refused"):
            with contextlib.suppress(NotFoundError):
                await stream.delete_stream(name)
        await programs.streams.make(table, replicas=3, gib=1)
        yield stream


@pytest.fixture
async def collecting(
    cluster: NatsCluster, programs: Programs, stream: JetStreamContext
) -> AsyncIterator[JetStreamContext]:
    """Yield a collector's connection."""
    del stream  # needed only to create the streams
    table = programs.cluster.ClusterTable.model_validate(cluster.table("collector"))
    async with programs.cluster.connected(table) as found:
        yield found


@pytest.fixture
async def host(cluster: NatsCluster, stream: JetStreamContext) -> AsyncIterator[JetStreamContext]:
    """Yield a host's connection."""
    del stream  # the same
    async with connected_as(cluster, "host") as client:
        yield client.jetstream()


def _group(cluster: NatsCluster, programs: Programs, lake: Path, **given: Any) -> Any:
    """Return a collector's configuration with short times and small blocks."""
    return programs.collector.Config.model_validate(settings(cluster, lake, **given))


def test_readmes_kafka_sink_is_a_valid_configuration() -> None:
    (block,) = re.findall(
        r"```toml\n(.*?)```", (SCALE_OUT / "README.md").read_text(), flags=re.DOTALL
    )
    found = tomllib.loads(block) | {"host_log": "kmsg"}
    assert (
        config.parse(found, where="README").sinks[0].called == "kafka://kafka-1.example:9093/ocsf"
    )


def test_programs_accept_the_files_of_the_example(programs: Programs) -> None:
    assert config.load(SCALE_OUT / "host.toml").sinks[0].called == "cluster"
    for name in ("lake", "siem"):
        found = tomllib.loads((SCALE_OUT / f"{name}.toml").read_text())
        assert programs.collector.Config.model_validate(found).group == name
    found = tomllib.loads((SCALE_OUT / "operator.toml").read_text())
    programs.cluster.ClusterTable.model_validate(found)


def test_servers_environment_has_each_variable_of_their_configuration() -> None:
    required = re.findall(r"(?m)^[^#\"\n]*\$([A-Z_]+)$", (SCALE_OUT / "nats.conf").read_text())
    provided = re.findall(r"(?m)^([A-Z_]+)=", (SCALE_OUT / "servers.env").read_text())
    assert sorted(set(required)) == sorted(provided)


def test_query_of_the_readme_returns_each_event_once(tmp_path: Path) -> None:
    table = pa.table({"metadata": [{"uid": "a"}, {"uid": "b"}, {"uid": "a"}], "n": [1, 2, 1]})
    pq.write_table(table, tmp_path / "x.parquet")
    each_once, twice = queries(tmp_path)
    found = query_result(each_once).select("metadata.uid", "n").fetchall()
    assert sorted(found) == [("a", 1), ("b", 2)]
    assert query_result(twice).fetchall() == [(1,)]


async def test_existing_streams_keep_their_events(
    cluster: NatsCluster, host: JetStreamContext, stream: JetStreamContext
) -> None:
    await published(host, messages(b"1", b"2"))
    await asyncio.to_thread(_made, _make_streams(cluster))
    info = await stream.stream_info("ocsf")
    assert info.state.messages == 2
    assert (info.config.num_replicas, info.config.duplicate_window) == (3, 600)


def test_streams_of_a_new_cluster_wait_for_its_servers(tmp_path: Path) -> None:
    with NatsCluster(tmp_path) as cluster:
        cluster.kill(2)
        program = _make_streams(cluster)
        assert program.stderr is not None
        assert "ocsf: wait for 3 servers\n" in program.stderr  # after lines of asyncio
        cluster.start(2)
        _made(program)


def test_streams_for_more_servers_than_there_are_end_with_a_sentence(
    tmp_path: Path, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs.streams, "_TRIES", 1)
    with NatsCluster(tmp_path) as cluster:
        arguments = ["streams.py", str(cluster.file("operator")), "--replicas", "5", "--gib", "1"]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit, match=r"no suitable peers .* Start the missing servers"):
            programs.streams.main()


async def test_blocks_are_consecutive_with_concurrent_collectors(
    cluster: NatsCluster,
    programs: Programs,
    collecting: JetStreamContext,
    host: JetStreamContext,
    stream: JetStreamContext,
    tmp_path: Path,
) -> None:
    cut = programs.cluster.cut
    lake, other = (
        _group(cluster, programs, tmp_path, group=name, block_events=10, block_seconds=seconds)
        for name, seconds in (("lake", 3600.0), ("other", 0.0))
    )
    await published(host, packets(35))
    await asyncio.gather(*(cut(collecting, group) for group in [lake, other] * 5))
    assert await blocks_of(stream, "lake") == [[1, 10], [11, 20], [21, 30]]
    assert await blocks_of(stream, "other") == [[1, 10], [11, 20], [21, 30], [31, 35]]
    await published(host, packets(5, since_ms=0))
    await asyncio.gather(*(cut(collecting, group) for group in [lake, other] * 5))
    assert (await blocks_of(stream, "lake"))[3:] == [[31, 40]]
    assert (await blocks_of(stream, "other"))[4:] == [[36, 40]]


async def test_block_has_duplicate_events_once(
    programs: Programs,
    collecting: JetStreamContext,
    host: JetStreamContext,
    stream: JetStreamContext,
) -> None:
    window = (await stream.stream_info("ocsf")).config.evolve(duplicate_window=0.1)
    await stream.update_stream(window)
    batch = messages(*(b"%d" % number for number in range(300)))
    await published(host, batch)
    await asyncio.sleep(0.2)
    await published(host, batch[:100])
    assert (await stream.stream_info("ocsf")).state.messages == 400
    assert await programs.cluster.read(collecting, 1, 400) == batch
    assert await programs.cluster.read(collecting, 300, 301) == [batch[299], batch[0]]


async def test_events_removed_before_delivery_are_reported(
    programs: Programs,
    collecting: JetStreamContext,
    host: JetStreamContext,
    stream: JetStreamContext,
    capsys: pytest.CaptureFixture[str],
) -> None:
    batch = messages(*(b"%d" % number for number in range(10)))
    await published(host, batch)
    await stream.purge_stream("ocsf", seq=8)
    assert await programs.cluster.read(collecting, 1, 10) == batch[7:]
    assert "removed before delivery" in (output := capsys.readouterr().out)
    assert "events=7" in output
    assert await programs.cluster.read(collecting, 1, 5) == []
    assert "events=5" in capsys.readouterr().out


async def test_collector_rewrites_the_same_files_after_a_death_before_acknowledgement(
    cluster: NatsCluster, host: JetStreamContext, stream: JetStreamContext, tmp_path: Path
) -> None:
    lake = tmp_path / "lake"
    await published(host, batch := packets(250))
    file = cluster.written("dies.toml", settings(cluster, lake, block_events=1000))
    dying = Collector(file, "-c", DIES)
    try:
        assert await asyncio.to_thread(dying.process.wait, 60) == -signal.SIGKILL
    finally:
        dying.end()
    before = files_of(lake)
    when = {path: path.stat().st_mtime_ns for path in lake.rglob("*.parquet")}
    with running_collectors(cluster, lake, ["next"]) as (collector,):
        await collector.has(1)
        assert collector.end(signal.SIGTERM) == 0
    assert (await stream.consumer_info("ocsf-blocks", "lake")).num_ack_pending == 0
    assert files_of(lake) == before
    assert all(path.stat().st_mtime_ns > before_ns for path, before_ns in when.items())
    assert sorted(rows_of(lake)) == sorted(each.uid for each in batch)


async def test_block_is_retried_while_the_sink_is_down(
    cluster: NatsCluster, host: JetStreamContext, tmp_path: Path
) -> None:
    lake = tmp_path / "away" / "lake"
    await published(host, batch := packets(10))
    with running_collectors(cluster, lake, ["retrying"]) as (collector,):
        await until(lambda: "can't be written" in collector.log_text)
        assert collector.blocks == []
        lake.parent.mkdir()
        await collector.has(1)
    assert sorted(rows_of(lake)) == sorted(each.uid for each in batch)


async def test_refused_events_go_to_their_stream_and_the_rest_is_delivered(
    programs: Programs, collecting: JetStreamContext, stream: JetStreamContext
) -> None:
    batch = messages(*(b"%d" % number for number in range(10)))
    sink = Receiver(bad={"uid-1"}, poisonous={"uid-4", "uid-7"})
    outlet = Outlet(name="it", sink=sink)
    await programs.delivering.deliver(collecting, outlet, batch)
    assert sink.got == [each.uid for n, each in enumerate(batch) if n not in {1, 4, 7}]
    state = (await stream.stream_info("ocsf-refused")).state
    refused = [await stream.get_msg("ocsf-refused", n + 1) for n in range(state.messages)]
    assert [each.data for each in refused] == [b"1", b"4", b"7"]
    assert [(each.headers or {})["Reason"] for each in refused] == [
        "bad",
        "something is wrong",
        "something is wrong",
    ]


async def test_block_with_an_undelivered_part_is_not_delivered(
    programs: Programs, collecting: JetStreamContext
) -> None:
    outlet = Outlet(name="it", sink=Receiver(most=2))
    with pytest.raises(DeliveryError, match="busy"):
        await programs.delivering.deliver(collecting, outlet, messages(b"1", b"2", b"3"))


def test_block_is_always_split_into_the_same_batches_for_a_sink(programs: Programs) -> None:
    batch = messages(b"xxxx", b"xxxx", b"x" * 20, b"x", b"x", b"x", b"x")
    found = [
        list(programs.delivering.parts(batch, BatchSettings(events=3, bytes=10))) for _ in range(2)
    ]
    assert found[0] == found[1]
    assert [len(part) for part in found[0]] == [2, 1, 3, 1]


async def test_password_of_a_host_allows_only_to_publish_events(
    cluster: NatsCluster, stream: JetStreamContext
) -> None:
    assert await stream.stream_info("ocsf")
    errors: list[str] = []
    async with connected_as(cluster, "host", errors) as client:
        for subject in (
            "ocsf-blocks.lake",
            "ocsf-refused",
            "$JS.API.STREAM.DELETE.ocsf",
            "$JS.API.STREAM.PURGE.ocsf",
            "$JS.API.STREAM.MSG.GET.ocsf",
            "$JS.API.DIRECT.GET.ocsf",
            "$JS.API.CONSUMER.CREATE.ocsf.mine",
            "$JS.ACK.ocsf-blocks.lake.1.1.1.1.0",
            "_INBOX_collector.x",
        ):
            await client.publish(subject, b"")
        for subject in ("ocsf.>", "_INBOX_collector.>", ">", "$JS.>"):
            await client.subscribe(subject)
        await client.flush()
        assert (await client.jetstream().publish("ocsf.mine", b"{}")).stream == "ocsf"
    assert len(errors) == 13
    assert all("permissions violation" in each.lower() for each in errors)


async def test_killed_servers_and_collectors_lose_and_duplicate_no_events(
    cluster: NatsCluster, stream: JetStreamContext, tmp_path: Path
) -> None:
    lake, third = tmp_path / "lake", EVENTS_OF_A_HOST // 3
    async with contextlib.AsyncExitStack() as stack:
        hosts = [
            await stack.enter_async_context(hosting(cluster, tmp_path, number))
            for number in range(_HOSTS)
        ]
        uids = [each.uid for host in hosts for each in host.events]
        collectors = stack.enter_context(running_collectors(cluster, lake, ["one", "two"]))
        for host in hosts:
            await host.store_events(third)
        await until(lambda: any(each.blocks for each in collectors))
        # Kill the leader of the stream while the hosts send.
        await asyncio.gather(*(host.store_events(third) for host in hosts))
        leader = await leader_of(cluster, stream)
        cluster.kill(leader)
        before = sum(len(each.blocks) for each in collectors)
        await until(lambda: sum(len(each.blocks) for each in collectors) > before)
        # Kill a collector that has delivered blocks while the collectors deliver.
        at_work = next(each for each in collectors if each.blocks)
        await asyncio.gather(*(host.store_events(third) for host in hosts))
        at_work.end()
        async with asyncio.timeout(60):
            await asyncio.gather(*(host.forwarder.drain() for host in hosts))
        await all_acknowledged(stream)
        cluster.start(leader)
    assert sorted(rows_of(lake)) == sorted(uids)
    each_once, twice = queries(lake)
    found = query_result(each_once).select("metadata.uid").fetchall()
    assert sorted(uid for (uid,) in found) == sorted(uids)
    assert query_result(twice).fetchall() == [(0,)]
