from __future__ import annotations

from typing import Any

import orjson
import pytest

from ocsf_nft.delivery.receiver_settings import Receiver
from ocsf_nft.delivery.sinks.base import Message
from ocsf_nft.delivery.sinks.opensearch import OpenSearch
from ocsf_nft.errors import DeliveryError, RefusedError
from tests.delivery.sinks.attempts import attempts
from tests.delivery.sinks.servers import Bulk, answering, serving


def _sink(url: str, **facts: Any) -> OpenSearch:
    return OpenSearch(receiver=Receiver(url=url), **facts)


async def test_bulk_request_creates_a_document_by_each_events_identifier() -> None:
    server, batch = Bulk(), attempts(3)
    async with serving(server) as url, _sink(url, index="ocsf") as sink:
        await sink.deliver(batch)
    (seen,) = server.seen
    assert (seen.method, seen.path) == ("POST", "/_bulk")
    assert seen.headers["Content-Type"] == "application/x-ndjson"
    assert seen.body == b"".join(
        b'{"create":{"_index":"ocsf","_id":"%s"}}\n%s\n' % (each.uid.encode(), each.line)
        for each in batch
    )


async def test_an_event_goes_to_the_index_of_its_own_day() -> None:
    server = Bulk()
    last_of_the_day = Message("a", b'{"time":1767225599999}')
    async with serving(server) as url, _sink(url, index="ocsf-{date}-v1") as sink:
        await sink.deliver([last_of_the_day, *attempts(1), Message("b", b"{}")])
    indices = [index for index, _ in server.documents]
    assert indices == ["ocsf-2025.12.31-v1", "ocsf-2026.01.01-v1", "ocsf-1970.01.01-v1"]


async def test_a_data_stream_gets_its_timestamp() -> None:
    server, batch = Bulk(), attempts(2)
    async with serving(server) as url, _sink(url, is_data_stream=True) as sink:
        await sink.deliver(batch)
    for message, line in zip(batch, server.lines, strict=True):
        event = message.event()
        assert orjson.loads(line) == {"@timestamp": event["time"]} | event


async def test_document_that_exists_already_is_delivered() -> None:
    server, batch = Bulk(), attempts(3)
    async with serving(server) as url, _sink(url) as sink:
        await sink.deliver(batch[:2])
        outcome = await sink.deliver(batch)
    assert (outcome.refused, outcome.again) == ((), ())
    assert server.lines == [message.line for message in batch]


async def test_a_document_that_does_not_fit_is_refused_alone() -> None:
    server = Bulk()
    batch = attempts(4, poison=frozenset({2}))
    async with serving(server) as url, _sink(url) as sink:
        outcome = await sink.deliver(batch)
    (refusal,) = outcome.refused
    assert refusal.message == batch[2]
    assert "mapper_parsing_exception: failed to parse" in refusal.reason
    assert refusal.reason.isprintable()
    assert outcome.again == ()
    assert server.lines == [batch[number].line for number in (0, 1, 3)]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (429, "es_rejected_execution_exception"),
        (503, "unavailable_shards_exception"),
        (500, "anything"),
        (403, "cluster_block_exception"),
        (404, "index_not_found_exception"),
        (400, "validation_exception"),
        (400, "index_closed_exception"),
    ],
)
async def test_only_documents_that_failed_temporarily_are_sent_again(
    status: int, kind: str
) -> None:
    batch = attempts(4, poison=frozenset({0}))
    server = Bulk(statuses={batch[1].uid: (status, kind), batch[3].uid: (status, kind)})
    async with serving(server) as url, _sink(url) as sink:
        outcome = await sink.deliver(batch)
        assert [each.message for each in outcome.refused] == [batch[0]]
        assert outcome.again == (batch[1], batch[3])
        assert f"({status}): {kind}: failed to parse" in outcome.reason
        assert outcome.reason.isprintable()
        server.statuses.clear()
        outcome = await sink.deliver(outcome.again)
    assert (outcome.refused, outcome.again) == ((), ())
    assert sorted(server.lines) == sorted(message.line for message in batch[1:])


@pytest.mark.parametrize("kind", ["strict_dynamic_mapping_exception", "illegal_argument_exception"])
async def test_document_that_the_mapping_forbids_is_refused(kind: str) -> None:
    batch = attempts(2)
    server = Bulk(statuses={batch[1].uid: (400, kind)})
    async with serving(server) as url, _sink(url) as sink:
        outcome = await sink.deliver(batch)
    assert [each.message for each in outcome.refused] == [batch[1]]


async def test_bulk_request_that_is_too_large_is_refused() -> None:
    server = Bulk()
    server.then(answering(413))
    async with serving(server) as url, _sink(url) as sink:
        with pytest.raises(RefusedError, match="413"):
            await sink.deliver(attempts(2))


@pytest.mark.parametrize(
    "items",
    [
        '[{"create":{"status":201}}]',
        '[{"create":{"status":201}},{"create":{"status":201}},{"create":{"status":201}}]',
        '[{"create":{"status":201}},{"create":{}}]',
        '[{"create":{"status":201}},{"create":{"status":"201"}}]',
        '[{"create":{"status":201}},{"create":{"status":true}}]',
        '[{"create":{"status":201}},{"index":{"status":201}}]',
        '[{"create":{"status":201}},null]',
        '{"create":{"status":201}}',
        "null",
    ],
)
async def test_bulk_answer_without_a_result_for_each_document_is_an_error(items: str) -> None:
    server = Bulk()
    server.then(answering(200, f'{{"took":1,"errors":false,"items":{items}}}'))
    async with serving(server) as url, _sink(url) as sink:
        with pytest.raises(DeliveryError, match="has no result for each document"):
            await sink.deliver(attempts(2))


async def test_error_of_a_document_may_have_any_form() -> None:
    server = Bulk()
    items = '{"create":{"status":400,"error":"x"}},{"create":{"status":400,"error":{"type":[]}}}'
    server.then(answering(200, f'{{"items":[{items}]}}'))
    batch = attempts(2)
    async with serving(server) as url, _sink(url) as sink:
        outcome = await sink.deliver(batch)
    assert outcome.again == tuple(batch)


async def test_answer_to_a_large_batch_is_read_completely() -> None:
    batch = attempts(1000)
    server = Bulk(statuses={message.uid: (429, "k" * 1000) for message in batch})
    async with serving(server) as url, _sink(url) as sink:
        outcome = await sink.deliver(batch)
    assert outcome.again == tuple(batch)
