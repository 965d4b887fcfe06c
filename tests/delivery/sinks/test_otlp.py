from __future__ import annotations

from typing import Any

import orjson
import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import SeverityNumber

from ocsf_nft.delivery.receiver_settings import Receiver
from ocsf_nft.delivery.sinks.base import Message
from ocsf_nft.delivery.sinks.otlp import Otlp
from ocsf_nft.errors import DeliveryError, RefusedError
from tests.delivery.sinks.attempts import attempts
from tests.delivery.sinks.servers import Collector, answering, attributes, plain, serving


def _sink(url: str) -> Otlp:
    return Otlp(receiver=Receiver(url=url))


async def test_record_has_the_event_and_attributes_for_routing() -> None:
    server, batch = Collector(), attempts(3)
    async with serving(server) as url, _sink(url) as sink:
        await sink.deliver(batch)
    (seen,) = server.seen
    assert (seen.method, seen.path) == ("POST", "/v1/logs")
    assert seen.headers["Content-Type"] == "application/json"
    (resource,) = server.taken
    assert attributes(resource.resource.attributes) == {
        "service.name": "ocsf-nft",
        "service.version": "0.2.0",
        "host.name": "host-1",
    }
    (scope,) = resource.scope_logs
    assert (scope.scope.name, scope.scope.version) == ("ocsf-nft", "0.2.0")
    record = server.records[2]
    assert plain(record.body) == batch[2].event()
    assert record.time_unix_nano == 1_767_225_600_002_000_000
    assert record.observed_time_unix_nano == 1_767_225_600_100_000_000
    assert record.severity_number == SeverityNumber.SEVERITY_NUMBER_WARN
    assert record.severity_text == batch[2].event()["severity"]
    assert record.event_name == "ocsf.network_activity"
    assert attributes(record.attributes) == {
        "event.name": "ocsf.network_activity",
        "ocsf.class_uid": 4001,
        "log.record.uid": batch[2].uid,
    }


async def test_hosts_and_versions_have_resources_of_their_own() -> None:
    server = Collector()
    lines = [
        b'{"device":{"hostname":"a"},"n":1}',
        b'{"device":{"hostname":"b"},"metadata":{"product":{"version":"2"}},"n":2}',
        b'{"device":{"hostname":"a"},"n":3}',
        b'{"n":4}',
    ]
    async with serving(server) as url, _sink(url) as sink:
        await sink.deliver([Message(str(number), line) for number, line in enumerate(lines)])
    resources = [attributes(each.resource.attributes) for each in server.taken]
    assert resources == [
        {"service.name": "ocsf-nft", "host.name": "a"},
        {"service.name": "ocsf-nft", "service.version": "2", "host.name": "b"},
        {"service.name": "ocsf-nft"},
    ]
    assert [plain(record.body)["n"] for record in server.records] == [1, 3, 2, 4]


@pytest.mark.parametrize(
    ("severity", "number"),
    [(0, 0), (1, 9), (2, 10), (3, 13), (4, 17), (5, 18), (6, 21), (99, 0), ("4", 0), ([], 0)],
)
async def test_severities_are_those_of_the_logs_data_model(severity: Any, number: int) -> None:
    record = await _record_of({"severity_id": severity})
    assert record.severity_number == number


@pytest.mark.parametrize(
    "event",
    [
        {"n": (1 << 63) - 1, "m": -(1 << 63) + 1, "zero": 0},
        {"f": 1.5, "t": True, "f2": False},
        {"empty": "", "none": {}, "list": [], "nested": [[1], {"a": [{"b": "ü\u2028"}]}]},
        {"deep": {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": 1}}}}}}}}},
    ],
)
async def test_each_kind_of_value_comes_back_as_it_was(event: dict[str, Any]) -> None:
    assert plain((await _record_of(event)).body) == event


async def test_values_that_otlp_lacks_are_converted() -> None:
    record = await _record_of({"null": None, "huge": 1 << 63, "list": [None, 1]})
    assert plain(record.body) == {"huge": "9223372036854775808", "list": [None, 1]}


async def _record_of(event: dict[str, Any]) -> Any:
    server = Collector()
    async with serving(server) as url, _sink(url) as sink:
        await sink.deliver([Message("uid", orjson.dumps(event))])
    (record,) = server.records
    return record


async def test_batch_with_rejected_records_is_refused_until_they_are_sent_alone() -> None:
    server = Collector()
    batch = attempts(4, poison=frozenset({1}))
    async with serving(server) as url, _sink(url) as sink:
        with pytest.raises(RefusedError, match=r"rejected 1 of 4 log records: no such.*record"):
            await sink.deliver(batch)
        outcome = await sink.deliver(batch[1:2])
        assert [each.message for each in outcome.refused] == [batch[1]]
        assert "rejected 1 of 1 log records: no such" in outcome.refused[0].reason
        assert outcome.refused[0].reason.isprintable()
        await sink.deliver(batch[2:])
    # Records that were accepted at first are stored twice, with the same identifier.
    uids = [attributes(record.attributes)["log.record.uid"] for record in server.records]
    assert uids == [batch[number].uid for number in (0, 2, 3, 2, 3)]


async def test_batch_with_only_rejected_records_is_not_sent_in_parts() -> None:
    server = Collector()
    batch = attempts(3, poison=frozenset({0, 1, 2}))
    async with serving(server) as url, _sink(url) as sink:
        outcome = await sink.deliver(batch)
    assert [each.message for each in outcome.refused] == batch


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "{}",
        '{"partialSuccess":null}',
        '{"partialSuccess":{}}',
        '{"partialSuccess":{"errorMessage":"mind the quota"}}',
        '{"partialSuccess":{"rejectedLogRecords":0}}',
        '{"partialSuccess":{"rejectedLogRecords":"0"}}',
        '{"partialSuccess":{"rejectedLogRecords":-1}}',
        '{"partialSuccess":{"rejectedLogRecords":[1]}}',
    ],
)
async def test_answer_without_rejected_records_accepts_the_batch(answer: str) -> None:
    server = Collector()
    server.then(answering(200, answer))
    async with serving(server) as url, _sink(url) as sink:
        outcome = await sink.deliver(attempts(2))
    assert (outcome.refused, outcome.again) == ((), ())


@pytest.mark.parametrize("number", ["1", '"1"'])
async def test_a_number_of_64_bits_may_be_text(number: str) -> None:
    server = Collector()
    server.then(answering(200, f'{{"partialSuccess":{{"rejectedLogRecords":{number}}}}}'))
    async with serving(server) as url, _sink(url) as sink:
        with pytest.raises(RefusedError, match="rejected 1 of 2"):
            await sink.deliver(attempts(2))


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_otlp_sink_retries_the_status_codes_of_the_specification(status: int) -> None:
    server = Collector()
    server.then(answering(status, '{"code":14,"message":"later"}', Retry_After="3"))
    async with serving(server) as url, _sink(url) as sink:
        with pytest.raises(DeliveryError, match="later") as caught:
            await sink.deliver(attempts(2))
    assert not isinstance(caught.value, RefusedError)
    assert caught.value.after_seconds == 3


async def test_data_that_the_collector_can_not_decode_are_refused() -> None:
    server = Collector()
    server.then(answering(400, '{"code":3,"message":"bad data"}'))
    async with serving(server) as url, _sink(url) as sink:
        with pytest.raises(RefusedError, match="bad data"):
            await sink.deliver(attempts(2))


def test_parser_of_the_test_server_is_strict() -> None:
    with pytest.raises(json_format.ParseError):
        json_format.Parse('{"resourceLogs":[{"unknown":1}]}', ExportLogsServiceRequest())
