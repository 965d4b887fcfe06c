"""Streams of stored events."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.control import event_stream
from ocsf_nft.state.state_db import FILE
from tests.conformance.spoiling import GOOD
from tests.control.engine import Served, serving
from tests.control.raw_client import ask, connected, request
from tests.delivery.stores import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

_NUMBER = itertools.count()
_NOW_MS = 1_700_000_000_000


def events(number: int, *, padding: int = 0) -> list[dict[str, Any]]:
    """Return different events, in the order of their times: of all severities and sandboxes."""
    templates = itertools.islice(itertools.cycle(GOOD.values()), number)
    return [
        event
        | {"time": int(time.time() * 1000)}
        | {"metadata": event["metadata"] | {"uid": f"uid-{next(_NUMBER)}"}}
        | ({"padding": "x" * padding} if padding else {})
        for event in templates
    ]


def lines(found: Sequence[dict[str, Any]]) -> list[bytes]:
    return [json.dumps(event).encode() for event in found]


class Streaming:
    """A server of the control API, and the store of its events."""

    def __init__(self, served: Served, store: Store) -> None:
        self.served = served
        self.store = store

    @property
    def path(self) -> Path:
        return self.served.path

    async def put(self, found: Sequence[dict[str, Any]]) -> None:
        await self.store.put(lines(found))

    async def read(self, query: str = "") -> list[dict[str, Any]]:
        """Return the events of a request without ``follow``."""
        async with connected(self.path) as client:
            client.send(f"GET /v1/events{query} HTTP/1.0\r\n\r\n".encode())
            answer = await client.answer()
        assert answer.status == 200, answer.body
        assert answer.headers["content-type"] == "application/x-ndjson"
        return [json.loads(line) for line in answer.body.splitlines()]


@pytest.fixture
async def streaming(folder: Path) -> AsyncIterator[Streaming]:
    async with (
        Store(folder / FILE) as store,
        serving(folder / "c", store=folder / FILE, end=lambda: store.state.database.end) as served,
    ):
        yield Streaming(served, store)


async def test_stored_events_are_returned_in_order(streaming: Streaming) -> None:
    assert await streaming.read() == []
    # More than fit into one slice.
    stored = events(700)
    await streaming.put(stored)
    assert await streaming.read() == stored


async def test_filters_select_events_by_sandbox_severity_and_time(streaming: Streaming) -> None:
    stored = events(3 * len(GOOD))
    for number, event in enumerate(stored):
        event["time"] = _NOW_MS + 60_000 * number
    await streaming.put(stored)
    high = [event for event in stored if event["severity_id"] >= 4]
    assert 0 < len(high) < len(stored)
    assert await streaming.read("?severity=high") == high
    since = "2023-11-14T22:15:20Z"  # two minutes after the first one
    assert await streaming.read(f"?since={since}") == stored[2:]
    assert await streaming.read(f"?since={since}&severity=HIGH") == [
        event for event in high if event in stored[2:]
    ]
    (sandbox, *_) = {
        event["device"]["name"] for event in stored if "name" in event.get("device", {})
    } or {""}
    found = await streaming.read(f"?sandbox={sandbox}")
    assert await streaming.read("?sandbox=none") == []
    assert len(found) < len(stored)


async def test_filters_select_events_by_class_end_and_uid(streaming: Streaming) -> None:
    stored = events(3 * len(GOOD))
    for number, event in enumerate(stored):
        event["time"] = _NOW_MS + 60_000 * number
    await streaming.put(stored)
    for query, uids in (("network_activity", {4001}), ("2004,5019", {2004, 5019})):
        expected = [event for event in stored if event["class_uid"] in uids]
        assert await streaming.read(f"?class={query}") == expected != []
    assert await streaming.read("?until=2023-11-14T22:15:20Z") == stored[:2]
    assert await streaming.read(f"?uid={stored[5]['metadata']['uid']}") == [stored[5]]


@pytest.mark.parametrize("number", [1, 3, 100, 101, 250])
async def test_last_events_are_the_newest_that_are_selected(
    streaming: Streaming, number: int
) -> None:
    stored = events(700, padding=3000)
    await streaming.put(stored)
    assert await streaming.read(f"?last={number}") == stored[-number:]
    findings = [event for event in stored if event["class_uid"] == 2004]
    assert await streaming.read(f"?last={number}&class=2004") == findings[-number:]
    assert await streaming.read("?last=999999&class=2004&until=1h") == []
    assert await streaming.read("?last=0") == []
    assert len(await streaming.read("?last=999999999999999")) == 700


async def test_search_for_the_last_events_ends_at_the_oldest_stored_one(
    streaming: Streaming,
) -> None:
    stored = events(300)
    await streaming.put(stored)
    with streaming.store.state.database.transaction() as connection:
        connection.execute("DELETE FROM event WHERE number <= 250")
    assert await streaming.read("?last=60") == stored[250:]
    assert await streaming.read("?last=60&sandbox=none") == []


async def test_events_after_another_one_are_returned(streaming: Streaming) -> None:
    stored = events(10)
    await streaming.put(stored)
    assert await streaming.read("?after=uid-none") == stored
    uid = stored[6]["metadata"]["uid"]
    assert await streaming.read(f"?after={uid}") == stored[7:]
    others = [event for event in stored[7:] if event["class_uid"] == 4001]
    assert await streaming.read(f"?after={uid}&class=4001") == others


async def test_follow_of_no_stored_events_returns_new_ones(streaming: Streaming) -> None:
    await streaming.put(events(5))
    async with connected(streaming.path) as client:
        client.send(b"GET /v1/events?last=0&follow=1 HTTP/1.0\r\n\r\n")
        await client.reader.readuntil(b"\r\n\r\n")
        (new,) = events(1)
        await streaming.put([new])
        async with asyncio.timeout(20):
            assert await _line(client.reader) == new


async def test_old_events_are_skipped_without_reading_them(streaming: Streaming) -> None:
    await streaming.put(events(50))
    archive = streaming.store.state.database
    with archive.transaction() as connection:
        connection.execute("UPDATE event SET stored_ms = stored_ms - 90000000, line = 'no JSON'")
    new = events(3)
    await streaming.put(new)
    assert await streaming.read("?since=1h") == new


async def test_follow_continues_with_new_events_until_the_client_leaves(
    streaming: Streaming,
) -> None:
    old, new = events(3), events(4)
    await streaming.put(old)
    async with connected(streaming.path) as client:
        client.send(b"GET /v1/events?follow=1 HTTP/1.0\r\n\r\n")
        await client.reader.readuntil(b"\r\n\r\n")
        async with asyncio.timeout(20):
            assert [json.loads(await client.reader.readline()) for _ in old] == old
            for event in new:
                await streaming.put([event])
                assert json.loads(await client.reader.readline()) == event
    # Its slot is free again.
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(event_stream.MOST_STREAMS):
            await _follow(streaming.path, stack)


async def _follow(path: Path, stack: contextlib.AsyncExitStack) -> None:
    """Begin a stream as soon as there is a slot for it."""
    async with asyncio.timeout(20):
        while True:
            client = await stack.enter_async_context(connected(path))
            client.send(request("GET", "/v1/events?follow=1"))
            if b" 200 " in await client.reader.readuntil(b"\r\n"):
                return


async def test_streams_at_once_are_limited(streaming: Streaming) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(event_stream.MOST_STREAMS):
            client = await stack.enter_async_context(connected(streaming.path))
            client.send(request("GET", "/v1/events?follow=1"))
            await client.reader.readuntil(b"\r\n\r\n")
        answer = await ask(streaming.path, "GET", "/v1/events")
        assert "16 clients read events already" in answer.problem
        assert answer.status == 503
        assert (await ask(streaming.path, "GET", "/v1/status")).status == 200


async def test_client_that_does_not_read_takes_little_memory_and_gets_all_events_later(
    streaming: Streaming,
) -> None:
    async with connected(streaming.path) as client:
        client.send(b"GET /v1/events?follow=1 HTTP/1.0\r\n\r\n")
        await client.reader.readuntil(b"\r\n\r\n")
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        stored = events(50, padding=500_000)
        await streaming.put(stored[:5])
        begun = _resident_bytes()
        for start in range(5, len(stored), 5):
            await streaming.put(stored[start : start + 5])
            assert (await ask(streaming.path, "GET", "/v1/status")).status == 200
        assert _resident_bytes() - begun < 15 << 20, "of 25 MB"
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        async with asyncio.timeout(20):
            for event in stored:
                assert (await _line(client.reader)) == event


async def _line(reader: asyncio.StreamReader) -> Any:
    data = b""
    while not data.endswith(b"\n"):
        try:
            data += await reader.readuntil(b"\n")
        except asyncio.LimitOverrunError as error:
            data += await reader.readexactly(error.consumed)
    return json.loads(data)


def _resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


async def test_client_that_does_not_read_in_time_is_closed_unless_it_follows(
    streaming: Streaming, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "_SLICE_SECONDS", 0.2)
    await streaming.put(events(200, padding=50_000))
    async with connected(streaming.path) as client, connected(streaming.path) as follower:
        client.send(request("GET", "/v1/events"))
        follower.send(request("GET", "/v1/events?follow=1"))
        for each in (client, follower):
            await each.reader.readuntil(b"\r\n\r\n")
            each.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(0.5)
        for each in (client, follower):
            each.writer.transport.resume_reading()  # type: ignore[attr-defined]
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionError):
                data = await client.reader.read()
                assert not data.endswith(b"0\r\n\r\n"), "an incomplete stream has no end"
            received = 0
            while received < 200 * 50_000:
                received += len(await follower.reader.read(1 << 20))


async def test_stream_ends_when_the_server_stops(folder: Path) -> None:
    async with contextlib.AsyncExitStack() as stack, Store(folder / FILE) as store:
        end = lambda: store.state.database.end  # noqa: E731
        async with serving(folder / "c", store=folder / FILE, end=end) as served:
            client = await stack.enter_async_context(connected(served.path))
            client.send(request("GET", "/v1/events?follow=1"))
            await client.reader.readuntil(b"\r\n\r\n")
            begun = time.monotonic()
        assert time.monotonic() - begun < 1
        async with asyncio.timeout(20):
            assert await client.reader.read() == b"0\r\n\r\n"


async def test_stream_is_cut_if_the_store_can_t_be_read(
    streaming: Streaming, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(streaming.path) as client:
        client.send(request("GET", "/v1/events?follow=1"))
        await client.reader.readuntil(b"\r\n\r\n")
        path, database = streaming.store.path, streaming.store.state.database
        path.rename(path.with_name("away"))
        path.mkdir()
        monkeypatch.setattr(database, "end", database.end + 1)
        async with asyncio.timeout(20):
            assert await client.reader.read() == b"", "an incomplete stream has no end"
        path.rmdir()
        path.with_name("away").rename(path)


async def test_loop_is_not_blocked_while_many_events_are_filtered(streaming: Streaming) -> None:
    await streaming.put(events(5000))
    loop = asyncio.get_running_loop()
    reading = asyncio.create_task(streaming.read("?sandbox=none"))
    pauses, last = [], loop.time()
    while not reading.done():
        await asyncio.sleep(0)
        pauses.append(loop.time() - last)
        last = loop.time()
    assert await reading == []
    # Other processes may use the cores meanwhile.
    assert sorted(pauses)[int(0.99 * len(pauses))] < 0.02
