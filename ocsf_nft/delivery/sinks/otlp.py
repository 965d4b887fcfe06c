"""Sink for log records of OpenTelemetry: OTLP over HTTP, encoded as JSON.

The "OpenTelemetry Protocol Specification" (OTLP/HTTP) and its logs data model define the format.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

import orjson

from ocsf_nft.delivery.sinks.base import DELIVERED, BatchResult, Message, Refusal, Sink
from ocsf_nft.delivery.sinks.http_client import HttpSession
from ocsf_nft.delivery.sinks.json_access import integer, milliseconds, text, value_at
from ocsf_nft.errors import DeliveryError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Sequence


_LOGS: Final = "/v1/logs"
_SERVICE: Final = "ocsf-nft"
_NS_PER_MS: Final = 1_000_000
_INT64_MAX: Final = (1 << 63) - 1
#: Keys of simple values, by the type that a value has in decoded JSON.
_KEYS: Final = {str: "stringValue", bool: "boolValue", float: "doubleValue"}

#: Severity numbers by ``severity_id``: INFO, INFO2, WARN, ERROR, ERROR2, FATAL. The logs data model
#: maps syslog's severities to these, and we map ours to syslog's. Others get 0, unspecified.
_SEVERITIES: Final = {1: 9, 2: 10, 3: 13, 4: 17, 5: 18, 6: 21}


class Otlp(HttpSession, Sink):
    """Sink that sends events as OpenTelemetry log records, many in one request.

    If a receiver rejects only some of the records, all records are sent again. So accepted records
    may arrive twice.
    """

    async def deliver(self, messages: Sequence[Message]) -> BatchResult:
        """Send events as OpenTelemetry log records in one request.

        If the receiver rejects all records, the result lists all events as refused. Raises
        RefusedError if a smaller request may succeed, DeliveryError for other failures.
        """
        body = await asyncio.to_thread(_request, messages)
        answer = await self.request("POST", _LOGS, body=body)
        if not answer.is_success:
            # A RefusedError for the status codes 400, 413 and 422.
            raise self.error(answer)
        reply = answer.json() if answer.body else {}
        if not isinstance(reply, dict):
            raise DeliveryError(self.describe(answer, "its answer is not OTLP"))
        rejected = _rejected_records(reply)
        if rejected <= 0:
            return DELIVERED
        error = self.printable(text(reply, "partialSuccess", "errorMessage"))
        reason = f"the receiver rejected {rejected} of {len(messages)} log records: {error}"
        # The answer does not name the rejected records. The caller sends smaller parts, again with
        # the accepted records.
        if rejected < len(messages):
            raise RefusedError(reason)
        return BatchResult(refused=tuple(Refusal(message, reason) for message in messages))


def _rejected_records(reply: Any) -> int:
    found = value_at(reply, "partialSuccess", "rejectedLogRecords")
    # protobuf's JSON form writes 64-bit numbers as text.
    if isinstance(found, str) and found.isascii() and found.isdigit():
        return int(found[:20])
    return integer(reply, "partialSuccess", "rejectedLogRecords") or 0


def _request(messages: Sequence[Message]) -> bytes:
    records: defaultdict[tuple[str, str], list[Any]] = defaultdict(list)
    for message in messages:
        event = message.event()
        origin = text(event, "device", "hostname"), text(event, "metadata", "product", "version")
        # Encoded at once: many small live objects would slow the garbage collector.
        records[origin].append(orjson.Fragment(orjson.dumps(_record(event, message.uid))))
    return orjson.dumps(
        {"resourceLogs": [_resource(*origin, group) for origin, group in records.items()]}
    )


def _resource(host: str, version: str, records: list[Any]) -> Any:
    known = {"service.name": _SERVICE, "service.version": version, "host.name": host}
    return {
        "resource": {"attributes": _pairs({name: value for name, value in known.items() if value})},
        "scopeLogs": [{"scope": {"name": _SERVICE, "version": version}, "logRecords": records}],
    }


def _record(event: Any, uid: str) -> Any:
    time = milliseconds(event, "time")
    observed = milliseconds(event, "metadata", "logged_time") or time
    name = "ocsf." + text(event, "class_name").lower().replace(" ", "_")
    attributes = {
        # The attribute had the event's name before the field eventName existed (OTLP 1.5).
        "event.name": name,
        "ocsf.class_uid": integer(event, "class_uid"),
        # The same if the record is sent again.
        "log.record.uid": uid,
    }
    return {
        "timeUnixNano": str(time * _NS_PER_MS),
        "observedTimeUnixNano": str(observed * _NS_PER_MS),
        "severityNumber": _SEVERITIES.get(integer(event, "severity_id") or 0, 0),
        "severityText": text(event, "severity"),
        "eventName": name,
        # Nested: a collector can read body["dst_endpoint"]["ip"] without parsing.
        "body": _value(event),
        "attributes": _pairs(attributes),
    }


def _pairs(values: dict[str, Any]) -> list[Any]:
    # Without null values, because receivers fail on them.
    return [
        {"key": key, "value": _value(value)} for key, value in values.items() if value is not None
    ]


def _value(value: Any) -> Any:
    if (key := _KEYS.get(type(value))) is not None:
        return {key: value}
    if isinstance(value, int):
        # ``intValue`` has 64 bits.
        return {"intValue" if abs(value) <= _INT64_MAX else "stringValue": str(value)}
    if isinstance(value, dict):
        return {"kvlistValue": {"values": _pairs(value)}}
    if isinstance(value, list):
        return {"arrayValue": {"values": [_value(each) for each in value]}}
    return {}
