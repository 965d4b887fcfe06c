"""Long failure of one sink: the other sinks are not affected, and it gets all events later."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import pytest

from ocsf_nft.lab import GATEWAY4, PROXY_PORT
from tests.delivery.sinks.servers import AnyJson, serving
from tests.kernel import command, conftest
from tests.kernel.test_crash import load, start_run, stored
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

#: Memory that the failed sink may cost: at most the growth of a run that is warming up.
_KIB = 12 * 1024


def resident_kib(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(5, id="seconds"),
        pytest.param(
            float(os.environ.get("OCSF_NFT_OUTAGE_SECONDS", "60")), id="long",
            marks=[pytest.mark.slow, pytest.mark.long],
        ),
    ],
)  # fmt: skip
async def test_failed_sink_blocks_no_other_takes_no_memory_and_gets_all_events_in_order(
    lab: Lab,
    state: StateDirectory,
    tmp_path: Path,
    seconds: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(command, "COMMAND", command.with_constants(command.LONG_STOP))
    port, receiver, sent = free_port(), AnyJson(), list[int]()
    file, config = tmp_path / "events.jsonl", tmp_path / "ocsf-nft.toml"
    config.write_text(
        f"""
        state_dir = "{state.path}"
        [[sandbox]]
        name = "{conftest.SANDBOX}"
        netns = "{lab.sandbox}"
        proxy = ["{GATEWAY4}:{PROXY_PORT}"]
        install = true
        [[sink]]
        path = "{file}"
        [[sink]]
        type = "http"
        name = "dead"
        url = "http://127.0.0.1:{port}/"
        retry_seconds = 1
        """
    )
    process = await start_run(config, ())
    assert process.stderr is not None
    reading: asyncio.Task[bytes] | None = None
    try:
        while b"ready" not in await process.stderr.readline():
            pass
        reading = asyncio.create_task(process.stderr.read())
        # Few flows, so that the memory of a run for them soon reaches its maximum.
        async with load(lab, sent, ports=500):
            await _until(lambda: file.exists() and file.stat().st_size > 0)
            # The memory of a run after its start, with the sink already failed.
            await asyncio.sleep(min(seconds / 2, 20))
            before = resident_kib(process.pid)
            await asyncio.sleep(seconds)
            grown = resident_kib(process.pid) - before
            assert grown < _KIB, f"{grown} KiB more than before"
            # A file that waits for the dead sink never catches up.
            await _until(lambda: len(stored(state)) - len(file.read_bytes().splitlines()) < 600)
            assert receiver.lines == []
        async with serving(receiver, port=port):
            await _until(lambda: len(receiver.lines) >= len(stored(state)))
            process.terminate()
            assert await asyncio.wait_for(process.wait(), 120) == 0, (await reading).decode()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    uids = [event["metadata"]["uid"] for event in stored(state)]
    got = [orjson.loads(line)["metadata"]["uid"] for line in receiver.lines]
    assert got == uids
    assert [
        orjson.loads(line)["metadata"]["uid"] for line in file.read_bytes().splitlines()
    ] == uids


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not holds():  # noqa: ASYNC110 - the files of another process
            await asyncio.sleep(0.2)
