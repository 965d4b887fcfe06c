"""HTTP answers of a run to any client; a hostile client can't take resources from the run."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import socket
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from aiohttp import web_protocol

from ocsf_nft import http_server
from ocsf_nft.cli import logs
from ocsf_nft.errors import UsageError
from ocsf_nft.fence.values import Endpoint
from ocsf_nft.http_connections import Connection, Limits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ADDRESS = "127.0.0.1"
ASK = b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n"
#: In place of the seconds that the server allows a client.
SHORT_SECONDS = 0.4

#: A run without a fault.
WELL: Any = SimpleNamespace(
    sandboxes=(),
    retrier=SimpleNamespace(fault=None),
    delivery=SimpleNamespace(sinks=(), fault=None, storage_fault=None),
)


@pytest.fixture
def limits() -> Limits:
    return http_server.LIMITS


@pytest.fixture
async def port(limits: Limits) -> AsyncIterator[int]:
    with socket.create_server((ADDRESS, 0)) as server:
        number = int(server.getsockname()[1])
    at = Endpoint("tcp", ipaddress.ip_address(ADDRESS), number)
    async with http_server.serve(WELL, at, limits):
        yield number


#: A test with this mark has a server that allows clients little time.
short_timeouts = pytest.mark.parametrize(
    "limits", [http_server.LIMITS._replace(client_seconds=SHORT_SECONDS)]
)


class Client:
    """A connection to the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def answer(self) -> str:
        """Return the answer to one request; empty if the connection was closed."""
        async with asyncio.timeout(20):
            try:
                head = await self.reader.readuntil(b"\r\n\r\n")
                size = next(line for line in head.splitlines() if b"Content-Length" in line)
                body = await self.reader.readexactly(int(size.partition(b": ")[2]))
            except (asyncio.IncompleteReadError, ConnectionError):
                return ""
        return body.decode()

    async def ask(self, request: bytes = ASK) -> str:
        self.writer.write(request)
        return await self.answer()

    async def open_seconds(self) -> float:
        """Return the seconds until the connection is closed; there must be no answer."""
        begun = time.monotonic()
        assert await self.answer() == ""
        return time.monotonic() - begun


@contextlib.asynccontextmanager
async def clients(port: int, number: int) -> AsyncIterator[list[Client]]:
    found = [Client(*await asyncio.open_connection(ADDRESS, port)) for _ in range(number)]
    try:
        yield found
    finally:
        for each in found:
            each.writer.close()


async def wait_for_a_free_slot(port: int) -> None:
    async with asyncio.timeout(20):
        while True:
            async with clients(port, 1) as (client,):
                if await client.ask() == "well\n":
                    return


async def test_client_beyond_the_maximum_replaces_the_one_idle_for_longest(
    port: int,
) -> None:
    async with clients(port, 1) as (left_before,):
        assert await left_before.ask() == "well\n"
    async with clients(port, http_server.LIMITS.connections) as held:
        assert await held[0].ask() == "well\n"
        async with clients(port, 2) as beyond:
            assert [await each.ask() for each in beyond] == ["well\n"] * 2
            for ended in held[1:3]:
                assert await ended.open_seconds() < http_server.LIMITS.client_seconds / 2
            left = [await each.ask() for each in (held[0], *held[3:])]
        assert left == ["well\n"] * (http_server.LIMITS.connections - 2)


async def test_many_connections_never_take_many_descriptors(port: int) -> None:
    crowd = (
        "import socket, sys\n"
        f"held = [socket.create_connection(('{ADDRESS}', {port})) for _ in range(300)]\n"
        "print('all', flush=True)\n"
        "sys.stdin.read()\n"
    )
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", crowd, stdin=pipe, stdout=pipe
    )
    try:
        assert process.stdout is not None
        before = most = _descriptors()
        all_are_there = asyncio.create_task(process.stdout.readline())
        while not all_are_there.done():
            await asyncio.sleep(0)
            most = max(most, _descriptors())
        assert await all_are_there == b"all\n"
    finally:
        process.kill()
        await process.communicate()
    assert (
        before + http_server.LIMITS.connections
        <= most
        < before + http_server.LIMITS.connections + 10
    )


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - quick


@short_timeouts
@pytest.mark.parametrize("begun", [b"", b"GET /healthz HTTP/1.1\r\nHost: te"])
async def test_client_that_sends_an_incomplete_request_is_closed(port: int, begun: bytes) -> None:
    async with clients(port, 1) as (client,):
        client.writer.write(begun)
        assert SHORT_SECONDS / 2 < await client.open_seconds() < SHORT_SECONDS * 5


@short_timeouts
async def test_client_that_sends_a_request_too_slowly_is_closed(port: int) -> None:
    async with clients(port, 1) as (client,):

        async def drip() -> None:
            for byte in ASK:
                client.writer.write(bytes([byte]))
                await asyncio.sleep(SHORT_SECONDS / 10)

        dripping = asyncio.create_task(drip())
        try:
            assert await client.open_seconds() < SHORT_SECONDS * 5
        finally:
            dripping.cancel()


@short_timeouts
async def test_client_with_several_requests_is_answered_and_closed_when_idle(port: int) -> None:
    async with clients(port, 1) as (client,):
        begun = time.monotonic()
        while time.monotonic() - begun < SHORT_SECONDS * 3:
            assert await client.ask() == "well\n"
            await asyncio.sleep(SHORT_SECONDS / 4)
        assert await client.open_seconds() < SHORT_SECONDS * 5


@pytest.mark.parametrize("limits", [Limits(connections=1, client_seconds=60.0)])
async def test_client_that_waits_for_no_response_is_closed(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in versions of aiohttp before 3.14.
    monkeypatch.setattr(web_protocol, "MAX_MSG_QUEUE_SIZE", 1 << 30, raising=False)
    async with clients(port, 1) as (client,):
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionError):
                while True:
                    client.writer.write(ASK * 1000)
                    await client.writer.drain()
    await wait_for_a_free_slot(port)


@pytest.mark.parametrize("limits", [Limits(connections=2, client_seconds=SHORT_SECONDS)])
async def test_client_that_does_not_read_the_answer_holds_no_slot(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def much(_: object) -> bytes:
        return b"x" * (16 << 20)

    monkeypatch.setattr(http_server, "exposition_of", much)
    async with clients(port, 2) as idle:
        for each in idle:
            each.writer.transport.pause_reading()  # type: ignore[attr-defined]
            each.writer.write(ASK.replace(b"healthz", b"metrics"))
        await wait_for_a_free_slot(port)


@short_timeouts
async def test_client_is_not_closed_while_its_answer_is_made(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def late(_: object) -> bytes:
        await asyncio.sleep(SHORT_SECONDS * 3)
        return b"late\n"

    monkeypatch.setattr(http_server, "exposition_of", late)
    async with clients(port, 1) as (client,):
        assert await client.ask(ASK.replace(b"healthz", b"metrics")) == "late\n"


async def test_client_that_closes_holds_its_slot_until_the_answer_is_made(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_made, begun = asyncio.Event(), asyncio.Semaphore(0)

    async def made(_: object) -> bytes:
        begun.release()
        await is_made.wait()
        return b""

    monkeypatch.setattr(http_server, "exposition_of", made)
    async with clients(port, http_server.LIMITS.connections) as askers:
        for each in askers:
            each.writer.write(ASK.replace(b"healthz", b"metrics"))
        async with asyncio.timeout(20):
            for _ in askers:
                await begun.acquire()
    async with clients(port, 1) as (beyond,):
        assert await beyond.ask() == ""
    is_made.set()
    await wait_for_a_free_slot(port)


async def test_bad_requests_are_few_lines_of_the_log(
    port: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging, "lastResort", logging.lastResort)  # restored after the test
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # remove pytest's handlers
    logs.to_stderr_at_once(logs.LogSettings("text"))
    try:
        for _ in range(20):
            async with clients(port, 1) as (client,):
                assert await client.ask(b"GET /\x1b[31m HTTP/1.1\r\n\r\n") != ""
    finally:
        structlog.reset_defaults()
    logged = capfd.readouterr().err
    assert "\x1b" not in logged
    assert [" library=aiohttp.server " in line for line in logged.splitlines()] == [True] * 5


async def test_stop_does_not_wait_for_clients() -> None:
    with socket.create_server((ADDRESS, 0)) as server:
        at = Endpoint("tcp", ipaddress.ip_address(ADDRESS), int(server.getsockname()[1]))
        with pytest.raises(UsageError, match="nothing can listen at"):
            async with http_server.serve(WELL, at):
                pass
    async with contextlib.AsyncExitStack() as stack:
        async with http_server.serve(WELL, at):
            (idle,) = await stack.enter_async_context(clients(at.port, 1))
            assert await idle.ask() == "well\n"
            begun = time.monotonic()
        assert await idle.open_seconds() < http_server.LIMITS.client_seconds / 2
        assert time.monotonic() - begun < http_server.LIMITS.client_seconds / 2


async def test_status_codes_of_answers_show_the_health(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def metrics(_: object) -> bytes:
        return b"metric 1\n"

    async def asked(path: str) -> tuple[str, str]:
        async with clients(port, 1) as (client,):
            client.writer.write(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
            head = (await client.reader.readuntil(b"\r\n\r\n")).decode()
            kind = next(line for line in head.splitlines() if line.startswith("Content-Type: "))
            return head.split()[1], kind.removeprefix("Content-Type: ")

    monkeypatch.setattr(http_server, "exposition_of", metrics)
    text = "text/plain; charset=utf-8"
    assert await asked("/metrics") == ("200", "text/plain; version=0.0.4; charset=utf-8")
    assert (await asked("/other"))[0] == "404"
    assert [await asked(path) for path in ("/healthz", "/readyz")] == [("200", text)] * 2
    monkeypatch.setattr(WELL.retrier, "fault", "the disk is full")
    assert [await asked(path) for path in ("/healthz", "/readyz")] == [("200", text), ("503", text)]
    monkeypatch.setattr(WELL.retrier, "fault", None)
    stuck = SimpleNamespace(
        name="sb1",
        failure=None,
        watched=SimpleNamespace(
            monitor=SimpleNamespace(reports=SimpleNamespace(fault=None)),
            account=SimpleNamespace(fault=None, schedule=SimpleNamespace(late_seconds=31.0)),
            names=SimpleNamespace(failure=None, faults=tuple),
        ),
    )
    monkeypatch.setattr(WELL, "sandboxes", (stuck,))
    assert [await asked(path) for path in ("/healthz", "/readyz")] == [("503", text)] * 2


def test_connection_that_was_closing_from_the_start_is_closed_without_an_error() -> None:
    closed: list[Exception | None] = []
    handler = SimpleNamespace(connection_made=lambda _: None, connection_lost=closed.append)
    connections: Any = SimpleNamespace(
        admits=lambda _: True, handler=lambda: handler, waiting_for_client={}
    )
    connection = Connection(connections)
    closing: Any = SimpleNamespace(is_closing=lambda: True)
    connection.connection_made(closing)
    connection.connection_lost(None)
    assert closed == [None]
