"""Kills and restarts of a run at random times under load: no event is dropped or duplicated.

The sinks are real servers, and stay up while the run is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import duckdb
import nats
import orjson
import pytest
from nats.js.api import StreamConfig

from ocsf_nft.lab import GATEWAY4, PROXY_PORT
from ocsf_nft.state.archive import Archive
from ocsf_nft.state.state_db import FILE
from tests.cli import forked
from tests.delivery.sinks.brokers import NatsServer
from tests.delivery.sinks.servers import Bulk, serving
from tests.kernel import attempts, command, conftest
from tests.kernel.journald import in_journal, journald

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab

pytestmark = [pytest.mark.kernel, pytest.mark.kernel_log]

UID = 1001
PORTS = 60_000
#: Half of the kills hit a run this long after its start at the latest: while it starts, works or
#: delivers. The others hit one that is ready. A fork of the tests has imported everything already.
LATEST_SECONDS = 2.0
LATEST_SECONDS_OF_FORK = 1.2

#: Send a packet to another port each time until the input ends, then print the number of packets.
_LOAD = f"""
import os, socket, sys, threading, time
os.setgid({UID}); os.setuid({UID})
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
sent = 0
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    while not ended.wait(0.01):
        try:
            sock.sendto(b"x", ("{attempts.INTERNET4}", 1 + sent % int(sys.argv[1])))
        except OSError:
            pass
        sent += 1
print(sent)
"""


@contextlib.asynccontextmanager
async def load(lab: Lab, sent: list[int], ports: int = PORTS) -> AsyncIterator[None]:
    """Send a packet each hundredth of a second; append the number of packets to ``sent``."""
    program = ["ip", "netns", "exec", lab.sandbox, sys.executable, "-c", _LOAD, str(ports)]
    process = await asyncio.create_subprocess_exec(
        *program, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield
        output, _ = await process.communicate(b"")
        sent.append(int(output))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


#: A run with a busy machine's time to deliver all events after SIGTERM.
_PATIENT: Final = """
from ocsf_nft.cli import main
from ocsf_nft.service import delivery_start
delivery_start.DRAIN_SECONDS = 60.0
main()
"""


async def start_run(
    config: Path, under: Sequence[str], program: Sequence[str] = command.COMMAND
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *under, *program, "run", "--config", str(config),
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, limit=1 << 20,
    )  # fmt: skip


async def _fork_or_start_run(
    config: Path, under: Sequence[str], program: Sequence[str] = command.COMMAND
) -> asyncio.subprocess.Process:
    """Start a run: a fork of this process, in a third of the time, unless ``under`` runs it."""
    if under:
        return await start_run(config, under, program)
    return await asyncio.create_subprocess_exec(
        sys.executable,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, limit=1 << 20,
        preexec_fn=partial(forked.become, ("run", "--config", str(config))),
    )  # fmt: skip


async def run_and_kill(
    config: Path, under: Sequence[str], seconds: float, *, is_ready: bool
) -> None:
    """Start a run and kill it some time later; with ``is_ready``, that long after it is ready."""
    process = await _fork_or_start_run(config, under)
    assert process.stderr is not None
    messages, ready = [], asyncio.Event()

    async def read(stream: asyncio.StreamReader) -> None:
        async for line in stream:
            messages.append(line.decode())
            if '"event":"ready"' in messages[-1]:
                ready.set()

    reading = asyncio.create_task(read(process.stderr))
    if is_ready:
        async with asyncio.timeout(120):
            await ready.wait()
    await asyncio.sleep(seconds)
    process.kill()
    await process.wait()
    await reading
    assert "Traceback" not in "".join(messages), messages


async def run_until_delivered(config: Path, under: Sequence[str], has_all: Any) -> None:
    """Run until the sinks have all events, then stop in the regular way."""
    process = await _fork_or_start_run(config, under, (sys.executable, "-c", _PATIENT))
    assert process.stderr is not None
    reading = asyncio.create_task(process.stderr.read())
    try:
        async with asyncio.timeout(300):
            while not await has_all():  # noqa: ASYNC110 - the state of another process
                await asyncio.sleep(0.2)
        process.terminate()
        code = await asyncio.wait_for(process.wait(), 180)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert code == 0, (await reading).decode()


async def crash(
    lab: Lab, state: StateDirectory, folder: Path, log: str, under: Sequence[str], kills: int
) -> None:
    transport = "nflog" if log == "nflog" else "kmsg"
    fenced = await asyncio.to_thread(
        command.run, "install", "--sandbox", conftest.SANDBOX, "--netns", lab.sandbox,
        "--proxy", f"{GATEWAY4}:{PROXY_PORT}", "--state-dir", str(state.path),
        "--transport", transport,
    )  # fmt: skip
    assert fenced.code == 0, fenced.stderr
    bulk, sent = Bulk(), list[int]()
    file, lake, config = folder / "events.jsonl", folder / "lake", folder / "ocsf-nft.toml"
    async with contextlib.AsyncExitStack() as closing:
        server = closing.enter_context(NatsServer(folder))
        client = await nats.connect(server.url)
        closing.push_async_callback(client.close)
        stream = client.jetstream()
        await stream.add_stream(StreamConfig(name="ocsf", subjects=["ocsf"], duplicate_window=3600))
        async with serving(bulk) as url:
            config.write_text(
                f"""
                state_dir = "{state.path}"
                [[sandbox]]
                name = "{conftest.SANDBOX}"
                netns = "{lab.sandbox}"
                source = "{log}"
                [[sink]]
                path = "{file}"
                [[sink]]
                type = "opensearch"
                url = "{url}"
                batch_seconds = 0.05
                [[sink]]
                type = "nats"
                servers = ["{server.url}"]
                subject = "ocsf"
                batch_seconds = 0.05
                [[sink]]
                type = "parquet"
                directory = "{lake}"
                region = "eu-central-1"
                batch_seconds = 0.3
                """
            )
            async with load(lab, sent):
                for number in range(kills):
                    if number % 2:
                        latest = LATEST_SECONDS if under else LATEST_SECONDS_OF_FORK
                        seconds = random.uniform(0.05, latest)
                        await run_and_kill(config, under, seconds, is_ready=False)
                    else:
                        seconds = random.uniform(0, 0.8)
                        await run_and_kill(config, under, seconds, is_ready=True)

            async def has_all() -> bool:
                packets = sum(event["count"] for event in attempted(stored(state)))
                return bool(sent) and packets == sent[0]

            await run_until_delivered(config, under, has_all)
        events = stored(state)
        uids = {event["metadata"]["uid"] for event in events}
        assert len(uids) == len(events)
        assert sum(event["count"] for event in attempted(events)) == sent[0]
        by_port = Counter[int]()
        for event in attempted(events):
            if "port" in event.get("dst_endpoint", {}):  # not if several flows are aggregated
                by_port[event["dst_endpoint"]["port"]] += event["count"]
        assert max(by_port.values(), default=1) == 1 + (sent[0] - 1) // PORTS

        lines = [orjson.loads(line) for line in file.read_bytes().splitlines()]
        assert {event["metadata"]["uid"] for event in lines} == uids
        assert {uid for _, uid in bulk.documents} == uids
        info = await stream.stream_info("ocsf")
        assert info.state.messages == len(uids)
    # Each class has separate files, with its columns.
    rows = duckdb.read_parquet(f"{lake}/**/*.parquet", union_by_name=True)
    found = rows.select("metadata.uid").fetchall()
    assert Counter(uid for (uid,) in found) == Counter(uids)
    if log == "nflog" and kills > 20:
        # Its records can't be read again, so the time without a reader is reported.
        assert any(event.get("activity_name") == "Collection Gap" for event in events)


def stored(state: StateDirectory) -> list[dict[str, Any]]:
    path = state.path / FILE
    if not path.exists():
        return []
    with Archive(path) as archive:
        return [orjson.loads(entry.line) for entry in archive.beyond(0)]


def attempted(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        event for event in events
        if event["class_uid"] == 4001
        and event.get("actor", {}).get("user", {}).get("uid") == str(UID)
    ]  # fmt: skip


@pytest.mark.parametrize("log", ["nflog", "kmsg", "journal"])
async def test_few_kills_drop_and_duplicate_no_event(
    lab: Lab, state: StateDirectory, tmp_path: Path, log: str
) -> None:
    await _crash(lab, state, tmp_path, log, 4)


@pytest.mark.slow
@pytest.mark.parametrize(("log", "kills"), [("nflog", 100), ("kmsg", 50), ("journal", 50)])
async def test_two_hundred_kills_drop_and_duplicate_no_event(
    lab: Lab, state: StateDirectory, tmp_path: Path, log: str, kills: int
) -> None:
    await _crash(lab, state, tmp_path, log, kills)


async def _crash(lab: Lab, state: StateDirectory, folder: Path, log: str, kills: int) -> None:
    def remove_fence() -> None:
        named = ("--sandbox", conftest.SANDBOX, "--state-dir", str(state.path))
        removed = command.run("remove", *named)
        assert removed.code == 0, removed.stderr

    with contextlib.ExitStack() as stack:
        # The fence's installation changes a sysctl of the machine.
        stack.callback(remove_fence)
        under: Sequence[str] = ()
        if log == "journal":
            stack.enter_context(journald(folder / "journald"))
            under = in_journal(folder / "journald")
        await crash(lab, state, folder, log, under, kills)
