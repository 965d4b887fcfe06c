"""Clients of the control API that are hostile, broken, slow or too many."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
import os
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.cli import logs
from ocsf_nft.control import server
from ocsf_nft.http_connections import Limits
from tests.control.engine import serving, wait_until
from tests.control.raw_client import RawClient, ask, connected, request

if TYPE_CHECKING:
    from pathlib import Path

    from tests.control.engine import Served

BODY = b'{"proxy": ["10.0.0.1:3128"]}'
#: In place of the seconds that the server allows a client.
SHORT_SECONDS = 0.4
short_timeouts = pytest.mark.parametrize(
    "limits", [server.LIMITS._replace(client_seconds=SHORT_SECONDS)]
)


def write_log_as_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "lastResort", logging.lastResort)  # restored after the test
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # remove pytest's handlers
    logs.to_stderr_at_once(logs.LogSettings("text"))


async def test_large_body_is_refused_while_it_is_sent(served: Served) -> None:
    body = b" " * (10 << 20)
    async with connected(served.path) as client:
        begun = time.monotonic()
        answer = await client.ask("PUT", "/v1/sandboxes/a", body)
        assert "send at most 64 KiB" in answer.problem
        assert answer.status == 413
        await client.writer.drain()  # the server reads the rest, so that no client is reset
        assert time.monotonic() - begun < 5
    assert served.sandboxes.calls == []


async def test_large_body_in_chunks_is_refused(served: Served) -> None:
    head = b"PUT /v1/sandboxes/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with connected(served.path) as client:
        client.send(head + b"8000\r\n" + b" " * 0x8000 + b"\r\n")
        for _ in range(8):
            client.send(b"8000\r\n" + b" " * 0x8000 + b"\r\n")
        assert (await client.answer()).status == 413


async def test_body_of_exactly_the_limit_is_accepted(served: Served) -> None:
    body = BODY + b" " * (server.MAX_BODY_BYTES - len(BODY))
    assert (await ask(served.path, "PUT", "/v1/sandboxes/a", body)).status == 201
    answer = await ask(served.path, "PUT", "/v1/sandboxes/a", body + b" ")
    assert answer.status == 413


async def test_compressed_body_is_not_expanded(served: Served) -> None:
    body = gzip.compress(b" " * (10 << 20) + BODY)
    head = f"PUT /v1/sandboxes/a HTTP/1.1\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}"
    async with connected(served.path) as client:
        client.send(f"{head}\r\nHost: x\r\n\r\n".encode() + body)
        answer = await client.answer()
    assert "the body is not JSON" in answer.problem


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 10,
        b"GET /\x1b[31m HTTP/1.1\r\n\r\n",
        b"GET /v1/status HTTP/9.9\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PUT /v1/sandboxes/a HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"PUT /v1/sandboxes/a HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X%d: 1\r\n" % n for n in range(999))
        + b"\r\n",
    ],
    ids=lambda data: str(data[:30]),
)  # fmt: skip
async def test_data_that_is_no_http_is_answered_and_closed(served: Served, data: bytes) -> None:
    async with connected(served.path) as client:
        client.send(data)
        answer = await client.answer()
        assert "the request is no valid HTTP/1.1" in answer.problem
        assert answer.status == 400
        assert await client.is_closed()


async def test_pipelined_requests_are_answered_in_order(served: Served) -> None:
    async with connected(served.path) as client:
        client.send(
            request("PUT", "/v1/sandboxes/a", BODY) + request("GET", "/v1/sandboxes/a")
            + request("DELETE", "/v1/sandboxes/a") + request("GET", "/v1/sandboxes/a")
        )  # fmt: skip
        assert [(await client.answer()).status for _ in range(4)] == [201, 200, 200, 404]


async def test_garbage_behind_a_request_is_answered_and_closed(served: Served) -> None:
    async with connected(served.path) as client:
        assert (await client.ask("GET", "/v1/status")).status == 200
        client.send(b"\0garbage\r\n\r\n" + request("PUT", "/v1/sandboxes/b", BODY))
        answer = await client.answer()
        assert answer.problem
        assert answer.status == 400
        assert await client.is_closed()
    assert served.sandboxes.calls == []


async def test_http_1_0_is_answered_and_closed(served: Served) -> None:
    async with connected(served.path) as client:
        client.send(b"GET /v1/sandboxes HTTP/1.0\r\n\r\n")
        assert (await client.answer()).json == {"sandboxes": []}
        assert await client.is_closed()


async def test_unknown_expectation_is_a_problem(served: Served) -> None:
    async with connected(served.path) as client:
        client.send(b"GET /v1/status HTTP/1.1\r\nHost: x\r\nExpect: the-unexpected\r\n\r\n")
        answer = await client.answer()
    assert "leave out the header Expect" in answer.problem
    assert answer.status == 417


@short_timeouts
@pytest.mark.parametrize(
    "begun",
    [
        b"GET /v1/status HTTP/1.1\r\nHost: te",
        b"PUT /v1/sandboxes/a HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
    ],
)
async def test_client_that_sends_an_incomplete_request_is_answered_and_closed(
    served: Served, begun: bytes
) -> None:
    async with connected(served.path) as client:
        client.send(begun)
        answer = await client.answer()
        assert "the request did not arrive in time" in answer.problem
        assert answer.status == 408
        assert await client.is_closed()
    assert served.sandboxes.calls == []


@short_timeouts
async def test_idle_client_is_closed_without_an_answer(served: Served) -> None:
    async with connected(served.path) as client:
        assert (await client.ask("GET", "/v1/status")).status == 200
        assert await client.is_closed()


@short_timeouts
async def test_client_is_not_closed_while_its_sandbox_is_fenced(served: Served) -> None:
    served.sandboxes.may_end.clear()
    async with connected(served.path) as client:
        client.send(request("PUT", "/v1/sandboxes/a", BODY))
        await served.sandboxes.begun.wait()
        await asyncio.sleep(3 * SHORT_SECONDS)
        served.sandboxes.may_end.set()
        assert (await client.answer()).status == 201


#: Process that opens many connections, sends a part of a request on each, and prints their number.
_CROWD = """
import socket, sys
held = []
for _ in range(1000):
    each = socket.socket(socket.AF_UNIX)
    each.connect(sys.argv[1])
    each.send(b"GET /v1/sta")
    held.append(each)
print(len(held), flush=True)
sys.stdin.read()
"""


async def test_1000_connections_do_not_keep_others_from_their_answers(served: Served) -> None:
    pipe = asyncio.subprocess.PIPE
    crowd = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _CROWD, served.path, stdin=pipe, stdout=pipe
    )
    assert crowd.stdout is not None
    all_are_there = asyncio.create_task(crowd.stdout.readline())
    seconds: list[float] = []
    try:
        while not all_are_there.done() or len(seconds) < 20:
            begun = time.monotonic()
            answer = await ask(served.path, "GET", "/v1/sandboxes")
            assert answer.status == 200
            seconds.append(time.monotonic() - begun)
        assert await all_are_there == b"1000\n"
    finally:
        with contextlib.suppress(ProcessLookupError):
            crowd.kill()
        await crowd.communicate()
    assert sorted(seconds)[len(seconds) // 2] < 0.5


@pytest.mark.parametrize("limits", [Limits(connections=3, client_seconds=5.0)])
async def test_new_client_is_refused_with_a_problem_if_all_others_wait_for_the_engine(
    served: Served,
) -> None:
    served.sandboxes.may_end.clear()
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(served.path)) for _ in range(3)]
        for number, client in enumerate(clients):
            client.send(request("PUT", f"/v1/sandboxes/s{number}", BODY))
        await wait_until(lambda: len(served.sandboxes.calls) == 3)
        async with connected(served.path) as beyond:
            answer = await beyond.answer()
            assert "too many clients are connected" in answer.problem
            assert answer.status == 503
            assert await beyond.is_closed()
        served.sandboxes.may_end.set()
        assert [(await client.answer()).status for client in clients] == [201] * 3
    assert (await ask(served.path, "GET", "/v1/sandboxes")).status == 200


async def test_delivery_process_is_refused_with_a_problem(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[dict[str, Any]] = []
    monkeypatch.setattr(
        server, "_log", SimpleNamespace(critical=lambda _, **more: log.append(more))
    )
    path = folder / "c"
    async with serving(path, delivery=[os.getpid()]) as served:
        for _ in range(3):
            async with connected(path) as client:
                client.send(request("PUT", "/v1/sandboxes/a", BODY))
                answer = await client.answer()
                assert answer.status == 403
                assert "may not use the control API" in answer.problem
                assert await client.is_closed()
        assert served.sandboxes.calls == []
        assert log == [{"pid": os.getpid()}]
        other = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "ocsf_nft", "list", "--control", str(path),
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        await other.communicate()
        assert other.returncode == 0


async def test_call_is_completed_if_its_client_leaves_meanwhile(served: Served) -> None:
    served.sandboxes.may_end.clear()
    async with connected(served.path) as client:
        client.send(request("PUT", "/v1/sandboxes/a", BODY))
        await served.sandboxes.begun.wait()
        client.writer.transport.abort()
    assert (await ask(served.path, "GET", "/v1/sandboxes")).json == {"sandboxes": []}
    served.sandboxes.may_end.set()
    await wait_until(lambda: served.sandboxes.completed)
    assert (await ask(served.path, "GET", "/v1/sandboxes/a")).status == 200
    assert served.sandboxes.cancelled == 0


async def test_call_is_completed_if_the_server_stops_meanwhile(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_SHUTDOWN_SECONDS", 0.1)
    async with contextlib.AsyncExitStack() as stack:
        async with serving(folder / "c") as served:
            served.sandboxes.may_end.clear()
            client = await stack.enter_async_context(connected(served.path))
            client.send(request("PUT", "/v1/sandboxes/a", BODY))
            await served.sandboxes.begun.wait()
            # Later than the server cancels its handlers, which is after twice that time.
            asyncio.get_running_loop().call_later(1.0, served.sandboxes.may_end.set)
        assert (served.sandboxes.completed, served.sandboxes.cancelled) == (1, 0)
        assert "a" in served.sandboxes.found
        assert not served.path.exists()


async def test_call_that_does_not_end_is_cancelled_when_the_server_stops(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ocsf_nft.control.server._FINISH_SECONDS", 0.1)
    async with contextlib.AsyncExitStack() as stack:
        async with serving(folder / "c") as served:
            served.sandboxes.may_end.clear()
            client = await stack.enter_async_context(connected(served.path))
            client.send(request("PUT", "/v1/sandboxes/a", BODY))
            await served.sandboxes.begun.wait()
        assert served.sandboxes.cancelled == 1
        assert served.sandboxes.found == {}


async def test_bad_requests_are_few_lines_of_the_log(
    served: Served, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_log_as_a_run(monkeypatch)
    for _ in range(20):
        async with connected(served.path) as client:
            client.send(b"GET /\x1b[31m HTTP/1.1\r\n\r\n")
            assert (await client.answer()).status == 400
    logged = capfd.readouterr().err
    assert "\x1b" not in logged
    assert len(logged.splitlines()) == 5


async def test_clients_that_leave_at_any_byte_are_not_in_the_log(
    served: Served, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_log_as_a_run(monkeypatch)
    data = request("PUT", "/v1/sandboxes/a", BODY)
    for number in range(len(data)):
        client = RawClient(*await asyncio.open_unix_connection(served.path))
        client.send(data[:number])
        client.writer.transport.abort()
    assert (await ask(served.path, "GET", "/v1/sandboxes")).json == {"sandboxes": []}
    assert capfd.readouterr().err == ""
