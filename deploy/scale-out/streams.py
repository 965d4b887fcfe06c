"""Create the streams of the cluster: `streams.py operator.toml`.

Existing streams get the settings of this file, as far as NATS can change them; no event is removed.
The program `nats stream add` does the same.
"""

# ruff: noqa: INP001, T201 - a program, not a package, that prints its results

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog
from cluster import BLOCKS, EVENTS, REFUSED, ClusterTable, connected
from nats.js.api import DiscardPolicy, StorageType, StoreCompression, StreamConfig
from nats.js.errors import BadRequestError, NotFoundError, ServiceUnavailableError

if TYPE_CHECKING:
    from nats.js import JetStreamContext

#: A full stream accepts no more: then hosts wait, and store their events themselves.
_EVENTS: Final = StreamConfig(
    name=EVENTS,
    subjects=[f"{EVENTS}.>"],
    max_age=3 * 86_400,
    duplicate_window=10 * 60,
    discard=DiscardPolicy.NEW,
    deny_delete=True,
    compression=StoreCompression.S2,
    allow_direct=True,  # each server answers readers of a block
)
#: A group's last block determines the start of its next one: it must not be deleted.
_BLOCKS: Final = StreamConfig(
    name=BLOCKS, subjects=[f"{BLOCKS}.*"], max_msgs_per_subject=1_000_000, deny_delete=True
)
_REFUSED: Final = StreamConfig(
    name=REFUSED, subjects=[REFUSED], max_bytes=10 << 30, max_age=30 * 86_400
)

#: The server's error code if too few servers can store a stream (``JSClusterNoPeersErrF``).
_TOO_FEW_SERVERS: Final = 10005
_TRIES: Final = 60
_PAUSE_SECONDS: Final = 1.0


async def make(table: ClusterTable, *, replicas: int, gib: int) -> None:
    """Create the streams, each on ``replicas`` servers, with ``gib`` GiB of uncompressed events."""
    async with connected(table) as stream:
        await _wait_for_leader(stream)
        for config in (_EVENTS.evolve(max_bytes=gib << 30), _BLOCKS, _REFUSED):
            await _make_one(stream, config.evolve(num_replicas=replicas, storage=StorageType.FILE))
            print(f"{config.name}: on {replicas} servers")


async def _wait_for_leader(stream: JetStreamContext) -> None:
    """Wait until the cluster has a leader: a new cluster does not answer for some seconds."""
    while True:
        with contextlib.suppress(TimeoutError, ServiceUnavailableError):
            async with asyncio.timeout(1):
                await stream.account_info()
                return


async def _make_one(stream: JetStreamContext, config: StreamConfig) -> None:
    """Create or change a stream, once enough servers are there: new ones join one by one."""
    tries = 0
    while True:
        try:
            await _make_now(stream, config)
        except (BadRequestError, ServiceUnavailableError, TimeoutError) as error:
            if tries == _TRIES or not _is_for_now(error):
                raise
            if not tries:
                print(f"{config.name}: wait for {config.num_replicas} servers", file=sys.stderr)
        else:
            return
        tries += 1
        await asyncio.sleep(_PAUSE_SECONDS)


async def _make_now(stream: JetStreamContext, config: StreamConfig) -> None:
    try:
        await stream.stream_info(config.name or "")
    except NotFoundError:
        await stream.add_stream(config)
    else:
        await stream.update_stream(config)


def _is_for_now(error: Exception) -> bool:
    """Return True if servers that join may end an error: too few of them, or no leader yet."""
    return not isinstance(error, BadRequestError) or error.err_code == _TOO_FEW_SERVERS


def main() -> None:
    """Create the streams with the options of the command line."""
    # Standard output has only the streams; faults of a connection go to standard error.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    parser = argparse.ArgumentParser(description="Create the streams of the cluster.")
    parser.add_argument("config", type=Path, help="the cluster and its login: operator.toml")
    parser.add_argument("--replicas", type=int, default=3, help="servers that store each event")
    parser.add_argument(
        "--gib", type=int, default=4000, help="maximum GiB of events, before compression"
    )
    options = parser.parse_args()
    table = ClusterTable.model_validate(tomllib.loads(options.config.read_text(encoding="utf-8")))
    try:
        asyncio.run(make(table, replicas=options.replicas, gib=options.gib))
    except (ServiceUnavailableError, TimeoutError) as error:
        sys.exit(f"The cluster has no leader: {error}. Start the missing servers.")
    except BadRequestError as error:
        remedy = "Start the missing servers, or choose a smaller --replicas or --gib."
        if error.err_code != _TOO_FEW_SERVERS:
            remedy = "Compare the stream with this file: `nats stream info`."
        sys.exit(f"The cluster refuses the streams: {error.description}. {remedy}")


if __name__ == "__main__":
    main()
