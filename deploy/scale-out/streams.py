"""Make the streams of the cluster: `streams.py operator.toml`.

What is there already is changed to what is said here, as far as NATS allows that of a stream; no
event is removed by it. It is what `nats stream add` does, without that program.
"""

# ruff: noqa: INP001, T201 - a program, not a package, that tells what it has done

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cluster import BLOCKS, EVENTS, REFUSED, ClusterTable, connected
from nats.js.api import DiscardPolicy, StorageType, StoreCompression, StreamConfig
from nats.js.errors import NotFoundError, ServiceUnavailableError

if TYPE_CHECKING:
    from nats.js import JetStreamContext

#: What is full takes no more: then hosts wait, and keep their events in their own stores.
_EVENTS: Final = StreamConfig(
    name=EVENTS,
    subjects=[f"{EVENTS}.>"],
    max_age=3 * 86_400,
    duplicate_window=10 * 60,
    discard=DiscardPolicy.NEW,
    deny_delete=True,
    compression=StoreCompression.S2,
    allow_direct=True,  # each of the servers answers who reads a block
)
#: A group's last one says where its next one begins: it must not go.
_BLOCKS: Final = StreamConfig(
    name=BLOCKS, subjects=[f"{BLOCKS}.*"], max_msgs_per_subject=1_000_000, deny_delete=True
)
_REFUSED: Final = StreamConfig(
    name=REFUSED, subjects=[REFUSED], max_bytes=10 << 30, max_age=30 * 86_400
)


async def make(table: ClusterTable, *, replicas: int, gib: int) -> None:
    """Make the streams, each on so many servers; events may take so many GiB, uncompressed."""
    async with connected(table) as stream:
        await _led(stream)
        for config in (_EVENTS.evolve(max_bytes=gib << 30), _BLOCKS, _REFUSED):
            wanted = config.evolve(num_replicas=replicas, storage=StorageType.FILE)
            try:
                await stream.stream_info(config.name or "")
            except NotFoundError:
                await stream.add_stream(wanted)
            else:
                await stream.update_stream(wanted)
            print(f"{config.name}: on {replicas} servers")


async def _led(stream: JetStreamContext) -> None:
    """Wait until the cluster has a leader: a new one is silent for some seconds."""
    while True:
        with contextlib.suppress(TimeoutError, ServiceUnavailableError):
            async with asyncio.timeout(1):
                await stream.account_info()
                return


def main() -> None:
    """Make them as the command line says."""
    parser = argparse.ArgumentParser(description="Make the streams of the cluster.")
    parser.add_argument("config", type=Path, help="where the cluster is: operator.toml")
    parser.add_argument("--replicas", type=int, default=3, help="servers that have each event")
    parser.add_argument(
        "--gib", type=int, default=4000, help="what events may take, before compression"
    )
    given = parser.parse_args()
    table = ClusterTable.model_validate(tomllib.loads(given.config.read_text(encoding="utf-8")))
    asyncio.run(make(table, replicas=given.replicas, gib=given.gib))


if __name__ == "__main__":
    main()
