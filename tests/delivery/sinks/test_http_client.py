"""Common behaviour of all HTTP sinks, against a strict server for each kind."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import sys
import time
from email.utils import formatdate
from typing import Any

import aiohttp
import pytest

from ocsf_nft.delivery.receiver_settings import Secret
from ocsf_nft.delivery.sinks.http_client import _cause, _gzip
from ocsf_nft.errors import DeliveryError, RefusedError
from tests.delivery.sinks.attempts import attempts
from tests.delivery.sinks.kinds import KINDS, SECRET, Kind, fault
from tests.delivery.sinks.servers import (
    AnyJson,
    answering,
    cuts,
    dies,
    floods,
    hangs,
    port_of,
    serving,
)
from tests.ports import free_port

#: Shorter than the minute that asyncio waits for a TLS handshake.
TIMEOUT_SECONDS = 40


#: Sinks that read the body of a success.
READERS_OF_A_SUCCESS = ["splunk_hec", "opensearch", "otlp"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> Secret:
    monkeypatch.setenv("TOKEN_OF_THE_TEST", SECRET)
    return Secret("environment", "TOKEN_OF_THE_TEST")


async def test_the_receiver_has_exactly_the_events_that_were_sent(
    kind: Kind, token: Secret
) -> None:
    server = kind.server(authorization=f"{kind.scheme} {SECRET}")
    batch = attempts(5)
    async with serving(server) as url, kind.sink(url, token) as sink:
        outcome = await sink.deliver(batch)
        assert (outcome.refused, outcome.again) == ((), ())
        assert server.lines == [message.line for message in batch]
        await sink.deliver(batch[:1])
    assert len(server.seen) == 2


async def test_web_sink_compresses_a_large_batch_unless_disabled(kind: Kind, token: Secret) -> None:
    server = kind.server()
    batch = attempts(100)
    async with serving(server) as url:
        async with kind.sink(url, token) as sink:
            await sink.deliver(batch)
        assert server.seen[-1].headers["Content-Encoding"] == "gzip"
        assert int(server.seen[-1].headers["Content-Length"]) < len(server.seen[-1].body) / 5
        async with kind.sink(url, token, is_compressed=False) as sink:
            await sink.deliver(batch)
        assert "Content-Encoding" not in server.seen[-1].headers
    assert server.seen[0].body == server.seen[1].body


async def test_web_sink_sends_the_configured_headers(kind: Kind, token: Secret) -> None:
    server = kind.server()
    headers = {"X-Tenant": "blue", "X-Key": token}
    async with serving(server) as url, kind.sink(url, token, headers=headers) as sink:
        await sink.deliver(attempts(1))
    assert server.seen[0].headers["X-Tenant"] == "blue"
    assert server.seen[0].headers["X-Key"] == SECRET
    assert server.seen[0].headers["User-Agent"] == "ocsf-nft"


async def test_opening_a_web_sink_reports_a_receiver_that_is_down(
    kind: Kind, token: Secret
) -> None:
    async with serving(kind.server(), port=free_port()) as url:
        pass
    with pytest.raises(
        DeliveryError, match=r"http://127.0.0.1:\d+ can't be reached: Connection refused$"
    ):
        await kind.sink(url, token).open()


async def test_a_host_without_an_address_is_an_error(kind: Kind, token: Secret) -> None:
    sink = kind.sink("http://no-such-host.invalid", token)
    with pytest.raises(DeliveryError, match=r"^http://no-such-host\.invalid can't be reached: "):
        await sink.open()


@pytest.mark.parametrize("death", [dies, cuts])
async def test_receiver_that_dies_gets_the_batch_again_after_its_restart(
    kind: Kind, token: Secret, death: Any
) -> None:
    server = kind.server()
    batch = attempts(3)
    async with serving(server, port=free_port()) as url:
        sink = kind.sink(url, token)
        server.then(death)
        async with sink:
            with pytest.raises(DeliveryError, match="it closed the connection before the end"):
                await sink.deliver(batch)
    with pytest.raises(DeliveryError, match="can't be reached"):
        await sink.open()
    async with serving(server, port=port_of(url)), sink:
        await sink.deliver(batch)
    assert server.lines == [message.line for message in batch]


async def test_web_sink_can_be_cancelled_during_a_delivery(kind: Kind, token: Secret) -> None:
    server = kind.server()
    server.then(hangs)
    async with (
        serving(server) as url,
        asyncio.timeout(TIMEOUT_SECONDS),
        kind.sink(url, token) as sink,
    ):
        delivery = asyncio.create_task(sink.deliver(attempts(2)))
        await server.asked.wait()
        delivery.cancel()
        with pytest.raises(asyncio.CancelledError):
            await delivery
        assert _client_tasks() == {asyncio.current_task()}
        # The same sink, not opened again: the cancelled delivery does not disturb the next one.
        await sink.deliver(attempts(2))
    assert len(server.seen) == 2


async def test_web_sink_can_be_cancelled_while_a_server_is_silent(
    kind: Kind, token: Secret
) -> None:
    # Connections wait in the backlog, and no handshake is ever answered.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sink = kind.sink(f"https://127.0.0.1:{listener.getsockname()[1]}", token)
        entering = asyncio.create_task(sink.open())
        connection, _ = await asyncio.get_running_loop().run_in_executor(None, listener.accept)
        with connection:
            entering.cancel()
            with pytest.raises(asyncio.CancelledError):
                await entering
            connection.settimeout(TIMEOUT_SECONDS)
            while connection.recv(1 << 16):
                pass
    assert asyncio.all_tasks() == {asyncio.current_task()}


def _client_tasks() -> set[asyncio.Task[Any]]:
    """Return all tasks but those of the server."""
    return {task for task in asyncio.all_tasks() if "aiohttp/web_" not in repr(task)}


async def test_delivery_error_of_web_sink_is_temporary(
    kind: Kind, token: Secret, subtests: pytest.Subtests
) -> None:
    server = kind.server()
    async with serving(server) as url:
        for status, cause in (
            (302, "redirects are not followed"),
            (401, "give credentials that it accepts"),
            (403, "give credentials that it accepts"),
            (404, "give the URL at which it accepts events"),
            (429, "429 Too Many Requests"),
            (500, "500 Internal Server Error"),
            (503, "503 Service Unavailable"),
            (799, "answers 799: "),
        ):
            with subtests.test(status=status):
                server.then(answering(status, f"see\x1b[2J\n{SECRET} \u202e" + "x" * 900))
                error = await fault(kind.sink(url, token))
                assert not isinstance(error, RefusedError)
                assert cause in str(error)
                assert "see?[2J *** ?xxx" in str(error)
                assert len(str(error)) < 400
                assert error.after_seconds is None


async def test_web_sink_follows_no_redirect(kind: Kind, token: Secret) -> None:
    server, other = kind.server(), kind.server()
    async with serving(other) as elsewhere, serving(server) as url:
        server.then(answering(307, Location=elsewhere + "/services/collector/event"))
        await fault(kind.sink(url, token))
    assert other.seen == []


async def test_web_sink_refuses_a_batch_that_the_receiver_refuses(
    kind: Kind, token: Secret, subtests: pytest.Subtests
) -> None:
    server = kind.server()
    async with serving(server) as url:
        for status in (413, 422):
            with subtests.test(status=status):
                server.then(answering(status, "too much"))
                error = await fault(kind.sink(url, token))
                assert isinstance(error, RefusedError)
                assert "too much" in str(error)


async def test_web_sink_reads_retry_after(
    kind: Kind, token: Secret, subtests: pytest.Subtests
) -> None:
    server = kind.server()
    in_100_s = formatdate(time.time() + 100, usegmt=True)
    async with serving(server) as url:
        for asked, least, most in (
            ("17", 17, 17),
            ("0", 0, 0),
            (in_100_s, 10, 101),
            (formatdate(1, usegmt=True), 0, 0),
            ("9" * 400, 9e19, 1e20),
        ):
            with subtests.test(asked=asked):
                server.then(answering(429, Retry_After=asked))
                error = await fault(kind.sink(url, token))
                assert error.after_seconds is not None
                assert least <= error.after_seconds <= most


async def test_web_sink_ignores_invalid_retry_after(
    kind: Kind, token: Secret, subtests: pytest.Subtests
) -> None:
    server = kind.server()
    async with serving(server) as url:
        for asked in ("soon", "-5", "", "1.5", "٣", "Tue, 99 Foo 2026 00:00:00 GMT"):
            with subtests.test(asked=asked):
                server.then(answering(503, Retry_After=asked))
                assert (await fault(kind.sink(url, token))).after_seconds is None


@pytest.mark.parametrize("status", [200, 500])
async def test_web_sink_reads_an_endless_answer_up_to_a_limit(
    kind: Kind, token: Secret, status: int
) -> None:
    server = kind.server()
    sent: list[int] = []
    server.then(floods(status, sent))
    async with serving(server) as url, asyncio.timeout(TIMEOUT_SECONDS):
        if status == 200 and kind is KINDS["http"]:
            async with kind.sink(url, token) as sink:
                await sink.deliver(attempts(2))
        else:
            error = await fault(kind.sink(url, token))
            assert len(str(error)) < 400
    # The buffers of the sockets hold some of the 100 chunks.
    assert len(sent) < 30


@pytest.mark.parametrize("name", READERS_OF_A_SUCCESS)
async def test_web_sink_refuses_an_invalid_success(
    name: str, token: Secret, subtests: pytest.Subtests
) -> None:
    kind = KINDS[name]
    server = kind.server()
    async with serving(server) as url:
        for answer in ("<html>Log in</html>", '{"text":', "[]", "null", "7", '"x"'):
            with subtests.test(answer=answer):
                server.then(answering(200, answer))
                error = await fault(kind.sink(url, token))
                assert not isinstance(error, RefusedError)
                assert "answers 200 OK" in str(error)


async def test_web_sink_reports_an_answer_that_is_not_http(kind: Kind, token: Secret) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"220 mail.example ESMTP\x1b[2J\r\n")
            await writer.drain()
        writer.close()

    listener = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with listener:
        url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        query = f"?code={SECRET}" if kind is KINDS["http"] else ""
        error = await fault(kind.sink(url + query, token))
    assert "its answer is not HTTP" in str(error)


async def test_web_sink_does_not_repeat_secret_that_no_header_holds(
    kind: Kind, token: Secret, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    async with serving(kind.server()) as url:
        for secret in ("caf\x07e", "a\u2028b"):
            monkeypatch.setenv(token.location, secret)
            with subtests.test(secret=secret):
                with pytest.raises(DeliveryError, match="header Authorization has char") as caught:
                    await kind.sink(url, token).open()
                assert secret not in str(caught.value)


async def test_repr_of_a_web_sink_shows_no_secret(kind: Kind, token: Secret) -> None:
    async with serving(kind.server()) as url, kind.sink(url, token) as sink:
        await sink.deliver(attempts(1))
        assert SECRET not in repr(sink)


async def test_http_sink_sends_a_query_and_does_not_show_it_in_errors(token: Secret) -> None:
    server = AnyJson()
    async with serving(server) as url:
        sink = KINDS["http"].sink(f"{url}/in?code={SECRET}", token)
        async with sink:
            await sink.deliver(attempts(1))
        server.then(answering(503))
        assert f"{url}/in answers 503" in str(await fault(sink))
        server.then(dies)
        assert f"{url}/in can't be reached" in str(await fault(sink))
    assert server.seen[0].path == f"/in?code={SECRET}"


@pytest.mark.parametrize("reads_headers", [False, True])
async def test_error_for_a_request_that_the_receiver_aborts_has_no_query(
    token: Secret, reads_headers: bool
) -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if reads_headers:
            with contextlib.suppress(asyncio.IncompleteReadError):
                await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()

    listener = await asyncio.start_server(cut, "127.0.0.1", 0)
    async with listener:
        url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/?code={SECRET}"
        async with KINDS["http"].sink(url, token, is_compressed=False) as sink:
            with pytest.raises(DeliveryError, match="can't be reached: ") as caught:
                await sink.deliver(attempts(1000))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        aiohttp.ClientOSError(None, f"Can not write request body for http://x/?code={SECRET}"),
        aiohttp.ClientOSError(32, f"Can not write request body for http://x/?code={SECRET}"),
    ],
)
def test_http_error_does_not_repeat_the_url_of_aiohttp(error: Exception) -> None:
    assert _cause(error) == "it closed the connection before the end of its answer"


async def test_web_sink_masks_a_secret_that_the_receiver_repeats(
    kind: Kind, token: Secret, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY_OF_THE_TEST", "k3y-value")
    server = kind.server()
    server.then(answering(403, "the key k3y-value is unknown"))
    headers = {"X-Key": Secret("environment", "KEY_OF_THE_TEST")}
    async with serving(server) as url:
        error = await fault(kind.sink(url, token, headers=headers))
    assert "the key *** is unknown" in str(error)


@pytest.mark.parametrize("has_isal", [True, False])
def test_compressed_body_is_always_the_same(
    monkeypatch: pytest.MonkeyPatch, *, has_isal: bool
) -> None:
    if not has_isal:
        monkeypatch.setitem(sys.modules, "isal", None)
    body = b"".join(message.line for message in attempts(10))
    assert gzip.decompress(_gzip(body)) == body
    assert _gzip(body) == _gzip(body)
    assert len(_gzip(body)) < len(body) / 5


async def test_web_sink_masks_secrets_of_plain_headers_and_of_answers(
    kind: Kind, token: Secret
) -> None:
    server = kind.server()
    server.then(answering(403, "the key k3y-value is unknown; use ?token=s3cr3t-Value or 42"))
    async with serving(server) as url:
        error = await fault(kind.sink(url, token, headers={"X-Api-Key": "k3y-value", "X-A": "42"}))
    assert "the key *** is unknown; use ?token=[redacted:" in str(error)
    assert "s3cr3t-Value" not in str(error)
    assert "or 42" in str(error)
