from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.sources.wait_readable import until_readable

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


async def test_wait_ends_when_the_descriptor_is_readable(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    waiting = asyncio.ensure_future(until_readable(ours.fileno()))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    theirs.send(b"x")
    assert await waiting


async def test_wait_ends_after_the_timeout(pair: tuple[socket.socket, socket.socket]) -> None:
    assert not await until_readable(pair[0].fileno(), 0.01)


async def test_wait_for_a_regular_file_ends_at_once_and_lets_other_tasks_run() -> None:
    other_task_ran = asyncio.Event()
    asyncio.get_running_loop().call_soon(other_task_ran.set)
    with tempfile.TemporaryFile() as file:
        assert await until_readable(file.fileno(), 10)
    assert other_task_ran.is_set()


@pytest.mark.parametrize("ending", ["read", "time", "cancel"])
async def test_wait_leaves_no_watched_descriptor(
    pair: tuple[socket.socket, socket.socket], ending: str
) -> None:
    ours, theirs = pair
    if ending == "read":
        theirs.send(b"x")
    waiting = asyncio.ensure_future(until_readable(ours.fileno(), 0.02))
    await asyncio.sleep(0)
    if ending == "cancel":
        waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    assert not asyncio.get_running_loop().remove_reader(ours.fileno())
