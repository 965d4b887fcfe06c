"""The streams of the cluster, and the blocks in which collectors read their events.

A block is a range of sequence numbers in the stream of events. One collector of a group cuts it,
once for the group. It is a message in the stream of blocks, which accepts it only after the block
that it continues. So each reader of a block finds the same events in the same order.
"""

# ruff: noqa: INP001 - beside programs, not a package

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from typing import TYPE_CHECKING, Annotated, Final

import nats
import orjson
import structlog
from nats.js.errors import APIError, NotFoundError
from pydantic import Field

from ocsf_nft.config.base_table import Table
from ocsf_nft.config.sinks.base import SecretTable, Text, TlsTable
from ocsf_nft.delivery.sinks.base import Message

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nats.js import JetStreamContext
    from nats.js.api import RawStreamMsg

#: The streams, and the prefixes of their subjects; a group's blocks are below ``ocsf-blocks.``.
EVENTS: Final = "ocsf"
BLOCKS: Final = "ocsf-blocks"
REFUSED: Final = "ocsf-refused"

UID: Final = "Nats-Msg-Id"
_EXPECTED_LAST_SEQUENCE: Final = "Nats-Expected-Last-Subject-Sequence"
#: The server's error code for a message that is not after the one that it names.
_WRONG_LAST_SEQUENCE: Final = 10071
#: Events that are requested at once.
_WINDOW: Final = 256
_TIMEOUT_SECONDS: Final = 5

_log = structlog.get_logger()


class ClusterTable(Table):
    """Addresses of the cluster, and the user's login."""

    servers: Annotated[tuple[str, ...], Field(min_length=1)]
    user: Text
    password: SecretTable
    tls: TlsTable = TlsTable()


class GroupTable(ClusterTable):
    """A group of collectors.

    A block has ``block_events`` events, or fewer if its first event is ``block_seconds`` old.
    """

    group: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,32}$")]
    block_events: Annotated[int, Field(ge=1, le=100_000)] = 10_000
    block_seconds: Annotated[float, Field(ge=0)] = 300.0

    @property
    def subject(self) -> str:
        """Return the subject of the group's blocks."""
        return f"{BLOCKS}.{self.group}"


@contextlib.asynccontextmanager
async def connected(table: ClusterTable) -> AsyncIterator[JetStreamContext]:
    """Yield the streams, over TLS from the first byte on; a closed connection is opened again."""
    client = await nats.connect(
        list(table.servers),
        user=table.user,
        password=table.password.secret().read(),
        tls=table.tls.tls().context(),
        tls_handshake_first=True,
        inbox_prefix=b"_INBOX_collector",  # no host may subscribe to it
        max_reconnect_attempts=-1,
        error_cb=_log_error,
    )
    try:
        yield client.jetstream(timeout=_TIMEOUT_SECONDS)
    finally:
        await client.close()


async def _log_error(error: Exception) -> None:
    _log.warning("the connection to NATS", reason=str(error) or type(error).__name__)


async def cut(stream: JetStreamContext, group: GroupTable) -> None:
    """Cut all blocks that are complete; raises an error of NATS."""
    state = (await stream.stream_info(EVENTS)).state
    number, first = await _last_block(stream, group)
    if number and first < state.first_seq:
        _log.error("too old, and removed before they were cut", events=state.first_seq - first)
    first = max(first, state.first_seq)
    while first <= state.last_seq:
        last = first + group.block_events - 1
        if last > state.last_seq:
            begun = (await stream.get_msg(EVENTS, first)).time
            if begun is None or _age_seconds(begun) < group.block_seconds:
                return
            last = state.last_seq
        try:
            block, headers = orjson.dumps([first, last]), {_EXPECTED_LAST_SEQUENCE: str(number)}
            number = (await stream.publish(group.subject, block, headers=headers)).seq
        except APIError as error:
            if error.err_code != _WRONG_LAST_SEQUENCE:
                raise
            return  # another collector has cut this block
        first = last + 1


async def _last_block(stream: JetStreamContext, group: GroupTable) -> tuple[int, int]:
    """Return the number of the last block, and the number of the first event after it."""
    try:
        last = await stream.get_last_msg(BLOCKS, group.subject)
    except NotFoundError:
        return 0, 1
    return last.seq or 0, orjson.loads(last.data or b"")[1] + 1


def _age_seconds(time: dt.datetime) -> float:
    return (dt.datetime.now(dt.UTC) - time).total_seconds()


async def read(stream: JetStreamContext, first: int, last: int) -> list[Message]:
    """Return the events of a block, in order, and each once; raises an error of NATS."""
    oldest = (await stream.stream_info(EVENTS)).state.first_seq
    if first < oldest:
        _log.error("too old, and removed before delivery", events=min(oldest, last + 1) - first)
    found: dict[str, Message] = {}
    for start in range(max(first, oldest), last + 1, _WINDOW):
        window = range(start, min(start + _WINDOW, last + 1))
        for each in await asyncio.gather(*(_event(stream, number) for number in window)):
            uid = (each.headers or {}).get(UID, f"{EVENTS}-{each.seq}")
            # A host sends an event again if it gets no acknowledgement within the duplicate window.
            found.setdefault(uid, Message(uid, each.data or b""))
    return list(found.values())


async def _event(stream: JetStreamContext, number: int) -> RawStreamMsg:
    try:
        return await stream.get_msg(EVENTS, number, direct=True)  # from any server
    except NotFoundError:  # that server does not have it yet
        return await stream.get_msg(EVENTS, number)
