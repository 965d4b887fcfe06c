from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.sources.waiting import readable

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


async def test_what_can_be_read_ends_the_wait(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    waiting = asyncio.ensure_future(readable(ours.fileno()))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    theirs.send(b"x")
    assert await waiting


async def test_time_ends_the_wait(pair: tuple[socket.socket, socket.socket]) -> None:
    assert not await readable(pair[0].fileno(), 0.01)


@pytest.mark.parametrize("ending", ["read", "time", "cancel"])
async def test_nothing_is_watched_after_the_wait(
    pair: tuple[socket.socket, socket.socket], ending: str
) -> None:
    ours, theirs = pair
    if ending == "read":
        theirs.send(b"x")
    waiting = asyncio.ensure_future(readable(ours.fileno(), 0.02))
    await asyncio.sleep(0)
    if ending == "cancel":
        waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    assert not asyncio.get_running_loop().remove_reader(ours.fileno())
