from __future__ import annotations

import orjson
import pytest

from ocsf_nft.delivery.receiver_settings import Credentials, Receiver, Secret
from ocsf_nft.delivery.sinks.http import Http
from ocsf_nft.errors import DeliveryError, RefusedError
from tests.delivery.sinks.attempts import attempts
from tests.delivery.sinks.servers import AnyJson, answering, floods, serving


async def test_ndjson_has_one_complete_line_for_each_event() -> None:
    server, batch = AnyJson(), attempts(3)
    async with serving(server) as url, Http(receiver=Receiver(url=f"{url}/in")) as sink:
        await sink.deliver(batch)
    (seen,) = server.seen
    assert (seen.method, seen.path) == ("POST", "/in")
    assert seen.headers["Content-Type"] == "application/x-ndjson"
    assert seen.body == b"".join(message.line + b"\n" for message in batch)


@pytest.mark.parametrize("number", [1, 3])
async def test_json_array_has_all_events_unchanged(number: int) -> None:
    server, batch = AnyJson(), attempts(number)
    async with (
        serving(server) as url,
        Http(receiver=Receiver(url=f"{url}/in"), method="PUT", form="json_array") as sink,
    ):
        await sink.deliver(batch)
    (seen,) = server.seen
    assert (seen.method, seen.headers["Content-Type"]) == ("PUT", "application/json")
    assert seen.body == b"[" + b",".join(message.line for message in batch) + b"]"
    assert orjson.loads(seen.body) == [message.event() for message in batch]


@pytest.mark.parametrize("status", [200, 201, 202, 204])
async def test_http_sink_accepts_every_2xx_status_with_any_body(status: int) -> None:
    server = AnyJson()
    server.then(answering(status, "" if status == 204 else "<html>thanks"))
    async with serving(server) as url, Http(receiver=Receiver(url=url)) as sink:
        outcome = await sink.deliver(attempts(1))
    assert (outcome.refused, outcome.again) == ((), ())


async def test_batch_with_a_wrong_event_is_refused_and_the_sink_continues() -> None:
    server = AnyJson()
    batch = attempts(4, poison=frozenset({2}))
    async with serving(server) as url, Http(receiver=Receiver(url=url)) as sink:
        with pytest.raises(RefusedError, match=r"answers 422 .*no event of this kind"):
            await sink.deliver(batch)
        await sink.deliver(batch[:2])
        with pytest.raises(RefusedError):
            await sink.deliver(batch[2:3])
        await sink.deliver(batch[3:])
    assert server.lines == [batch[number].line for number in (0, 1, 3)]


async def test_http_sink_ignores_a_long_answer_and_sends_the_next_batch() -> None:
    server, batch = AnyJson(), attempts(2)
    server.then(floods(200, []))
    async with serving(server) as url, Http(receiver=Receiver(url=url)) as sink:
        await sink.deliver(batch)
        await sink.deliver(batch)
    assert server.lines == [message.line for message in batch]


async def test_http_sink_sends_a_password_and_masks_it_in_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PASSWORD_OF_THE_TEST", "open sesame")
    password = Secret("environment", "PASSWORD_OF_THE_TEST")
    server = AnyJson(authorization="Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==")  # RFC 7617, 2
    async with serving(server) as url:
        receiver = Receiver(url=url, credentials=Credentials("Basic", password, "Aladdin"))
        async with Http(receiver=receiver) as sink:
            await sink.deliver(attempts(1))
            server.then(answering(401, "open sesame or QWxhZGRpbjpvcGVuIHNlc2FtZQ== is wrong"))
            with pytest.raises(DeliveryError, match=r"\*\*\* or \*\*\* is wrong"):
                await sink.deliver(attempts(1))
    assert len(server.lines) == 1


async def test_closed_http_sink_delivers_nothing() -> None:
    async with serving(AnyJson()) as url:
        async with Http(receiver=Receiver(url=url)) as sink:
            pass
        with pytest.raises(DeliveryError, match="is not connected"):
            await sink.deliver(attempts(1))
