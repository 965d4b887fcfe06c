from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.delivery.receiver_settings import Credentials, Receiver, Secret
from ocsf_nft.delivery.sinks.base import Message
from ocsf_nft.delivery.sinks.splunk_hec import SplunkHec
from ocsf_nft.errors import DeliveryError, RefusedError
from tests.delivery.sinks.attempts import attempts
from tests.delivery.sinks.servers import Hec, answering, hangs, serving

if TYPE_CHECKING:
    from aiohttp import web

TOKEN = "Splunk 0b1c-token"  # noqa: S105 - of no real collector


@pytest.fixture(autouse=True)
def _the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEC_TOKEN", TOKEN.removeprefix("Splunk "))


def _sink(url: str, **facts: Any) -> SplunkHec:
    token = Secret("environment", "HEC_TOKEN")
    return SplunkHec(receiver=Receiver(url=url, credentials=Credentials("Splunk", token)), **facts)


def _collector(**facts: Any) -> Hec:
    return Hec(authorization=TOKEN, **facts)


async def test_envelope_has_the_keys_that_splunk_documents() -> None:
    server, batch = _collector(), attempts(4)
    async with serving(server) as url, _sink(url, index="ocsf") as sink:
        await sink.deliver(batch)
    (seen,) = server.seen
    assert (seen.method, seen.path) == ("POST", "/services/collector/event")
    assert "X-Splunk-Request-Channel" not in seen.headers
    assert server.envelopes[3] == {
        "time": 1767225600.003,
        "host": "host-1",
        "source": "ocsf-nft",
        "sourcetype": "ocsf:ocsf-nft",
        "index": "ocsf",
        "event": batch[3].event(),
    }
    # The request has the time in seconds with three decimals, and the event unchanged.
    assert b'"time":1767225600.003,"event":' + batch[3].line in seen.body


async def test_envelope_omits_unknown_values() -> None:
    server = _collector()
    async with serving(server) as url, _sink(url, source="edge", sourcetype="ocsf:x") as sink:
        await sink.deliver([Message("uid", b'{"class_uid":4001,"time":-5,"device":[]}')])
    (envelope,) = server.envelopes
    assert envelope.keys() == {"source", "sourcetype", "event"}
    assert (envelope["source"], envelope["sourcetype"]) == ("edge", "ocsf:x")


async def test_an_unhealthy_collector_is_not_opened() -> None:
    async with serving(_collector(is_healthy=False)) as url:
        with pytest.raises(DeliveryError, match=r"503 Service Unavailable: .*queues are full"):
            await _sink(url).open()


@pytest.mark.parametrize("status", [404, 405])
async def test_receiver_without_a_health_endpoint_is_opened(status: int) -> None:
    server = _collector(no_health=status)
    async with serving(server) as url, _sink(url) as sink:
        await sink.deliver(attempts(1))
    assert len(server.lines) == 1


async def test_wrong_token_is_an_error_that_refuses_no_event() -> None:
    async with serving(Hec(authorization="Splunk other")) as url:
        with pytest.raises(DeliveryError, match=r"400 Bad Request: .*Invalid token") as caught:
            await _sink(url).open()
    assert not isinstance(caught.value, RefusedError)
    assert "0b1c" not in str(caught.value)


@pytest.mark.parametrize("keeps_the_first", [False, True])
@pytest.mark.parametrize("poison", [{0}, {2}, {4}, {1, 2}, {0, 4}, {0, 1, 2, 3, 4}])
async def test_a_wrong_event_is_refused_and_all_others_are_indexed(
    poison: set[int], keeps_the_first: bool
) -> None:
    server = _collector(keeps_the_first=keeps_the_first)
    batch = attempts(5, poison=frozenset(poison))
    async with serving(server) as url, _sink(url) as sink:
        outcome = await sink.deliver(batch)
    assert [each.message for each in outcome.refused] == [batch[number] for number in poison]
    assert all("Invalid data format" in each.reason for each in outcome.refused)
    assert outcome.again == ()
    good = {message.line for number, message in enumerate(batch) if number not in poison}
    assert set(server.lines) == good
    if not keeps_the_first:
        assert len(server.lines) == len(good)


@pytest.mark.parametrize(("miscount", "number", "wrong"), [(1, 5, 2), (-1, 2, 1), (-1, 3, 2)])
async def test_event_with_a_wrong_number_in_the_answer_is_not_refused(
    miscount: int, number: int, wrong: int
) -> None:
    server = _collector(miscount=miscount)
    batch = attempts(number, poison=frozenset({wrong}))
    async with serving(server) as url, _sink(url) as sink:
        with pytest.raises(RefusedError, match="Invalid data format"):
            await sink.deliver(batch)
        outcome = await sink.deliver(batch[wrong : wrong + 1])
    assert [each.message for each in outcome.refused] == [batch[wrong]]


@pytest.mark.parametrize(
    "answer",
    [
        '{"text":"Invalid data format","code":6,"invalid-event-number":7}',
        '{"text":"Invalid data format","code":6,"invalid-event-number":-1}',
        '{"text":"Invalid data format","code":6,"invalid-event-number":true}',
        '{"text":"Invalid data format","code":6}',
        '{"text":"Bad","code":[]}',
        "<h1>Bad Request</h1>",
        "",
    ],
)
async def test_collector_that_does_not_name_the_invalid_event_gets_the_batch_in_parts(
    answer: str,
) -> None:
    server = _collector()
    server.then(answering(400, answer))
    async with serving(server) as url, _sink(url) as sink:
        with pytest.raises(RefusedError, match="answers 400 Bad Request"):
            await sink.deliver(attempts(2))


@pytest.mark.parametrize(
    ("status", "code", "cause"),
    [
        (503, 9, "Server is busy"),
        (429, 26, "Server is busy"),
        (429, 27, "Server is busy"),
        (500, 8, "Server is busy"),
        (403, 4, "give credentials that it accepts"),
        (400, 7, "let the token write to the index, or give another index"),
        (400, 10, "so give ack_seconds"),
        (400, 11, "Server is busy"),
        (400, 99, "Server is busy"),
        (200, 9, "its answer is not that of a collector"),
    ],
)
async def test_error_that_no_event_causes_is_temporary(status: int, code: int, cause: str) -> None:
    server = _collector()
    number = ',"invalid-event-number":1' if code == 9 else ""
    server.then(answering(status, f'{{"text":"Server is busy","code":{code}{number}}}'))
    async with serving(server) as url, _sink(url) as sink:
        with pytest.raises(DeliveryError, match=cause) as caught:
            await sink.deliver(attempts(2))
    assert not isinstance(caught.value, RefusedError)


@pytest.mark.parametrize("code", [0, 24, 25])
async def test_collector_with_a_filling_queue_has_accepted_the_events(code: int) -> None:
    server = _collector()
    server.then(answering(200, f'{{"text":"Approaching capacity","code":{code}}}'))
    async with serving(server) as url, _sink(url) as sink:
        outcome = await sink.deliver(attempts(2))
    assert (outcome.refused, outcome.again) == ((), ())


async def test_an_index_that_the_token_may_not_write_to_is_named() -> None:
    async with serving(_collector()) as url, _sink(url, index="secret") as sink:
        with pytest.raises(DeliveryError, match=r"Incorrect index.*: let the token write to"):
            await sink.deliver(attempts(2))


async def test_event_is_delivered_when_an_indexer_acknowledges_it() -> None:
    server, batch = _collector(with_ack=True, polls=2), attempts(3)
    async with serving(server) as url:
        sink = _sink(url, ack_seconds=20)
        for _ in range(2):
            async with sink:
                await sink.deliver(batch)
                await sink.deliver(batch[:1])
    paths = [seen.path for seen in server.seen[:4]]
    assert paths == ["/services/collector/event", *["/services/collector/ack"] * 3]
    assert server.seen[1].body == b'{"acks":[0]}'
    assert len(server.lines) == 8
    # Each opened sink has its own channel, since channels may have the same numbers.
    assert len(server.channels) == 2


async def test_missing_acknowledgement_of_an_indexer_is_a_temporary_error() -> None:
    server = _collector(with_ack=True, polls=1000)
    async with serving(server) as url, _sink(url, ack_seconds=0.3) as sink:
        with pytest.raises(DeliveryError, match=r"no indexer had the events within 0\.3 s"):
            await sink.deliver(attempts(2))


async def test_request_for_an_acknowledgement_without_answer_is_limited_too() -> None:
    server = _collector(with_ack=True)
    server.then(answering(200, '{"text":"Success","code":0,"ackId":0}'), hangs)
    async with serving(server) as url, _sink(url, ack_seconds=0.3) as sink:
        with pytest.raises(DeliveryError, match="no indexer had the events"):
            await sink.deliver(attempts(2))


async def test_wait_for_an_indexer_can_be_cancelled() -> None:
    server = _collector(with_ack=True)
    is_asked = asyncio.Event()

    async def never(request: web.Request) -> web.StreamResponse:
        is_asked.set()
        return await hangs(request)

    server.then(answering(200, '{"text":"Success","code":0,"ackId":0}'), never)
    async with serving(server) as url, _sink(url, ack_seconds=600) as sink:
        delivery = asyncio.create_task(sink.deliver(attempts(2)))
        await is_asked.wait()
        delivery.cancel()
        with pytest.raises(asyncio.CancelledError):
            await delivery


async def test_error_for_a_token_without_acknowledgement_names_the_setting() -> None:
    async with serving(_collector()) as url, _sink(url, ack_seconds=20) as sink:
        with pytest.raises(DeliveryError, match=r"no acknowledgement: .*leave ack_seconds out"):
            await sink.deliver(attempts(2))


async def test_error_for_a_token_with_unexpected_acknowledgement_names_the_setting() -> None:
    async with serving(_collector(with_ack=True)) as url, _sink(url) as sink:
        with pytest.raises(DeliveryError, match="so give ack_seconds"):
            await sink.deliver(attempts(2))


@pytest.mark.parametrize(
    ("status", "answer"), [(400, '{"text":"ACK is disabled","code":14}'), (503, "busy")]
)
async def test_failed_acknowledgement_request_is_a_temporary_error(
    status: int, answer: str
) -> None:
    server = _collector(with_ack=True)
    server.then(answering(200, '{"text":"Success","code":0,"ackId":0}'), answering(status, answer))
    async with serving(server) as url, _sink(url, ack_seconds=20) as sink:
        with pytest.raises(DeliveryError, match=str(status)) as caught:
            await sink.deliver(attempts(2))
    assert not isinstance(caught.value, RefusedError)


@pytest.mark.parametrize("answer", ["", "[]", '{"acks":7}', '{"acks":{"0":"true"}}'])
async def test_invalid_acknowledgement_is_ignored(answer: str) -> None:
    server = _collector(with_ack=True, polls=0)
    server.then(answering(200, '{"text":"Success","code":0,"ackId":0}'), answering(200, answer))
    async with serving(server) as url, _sink(url, ack_seconds=0.1) as sink:
        with pytest.raises(DeliveryError, match="no indexer had the events"):
            await sink.deliver(attempts(2))
