"""Events as log records of OpenTelemetry, by OTLP over HTTP, encoded as JSON.

Facts are from the "OpenTelemetry Protocol Specification" (OTLP/HTTP) and the logs data model.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

import orjson

from ocsf_nft.delivery.sinks.base import DELIVERED, Outcome, Refusal, Sink
from ocsf_nft.delivery.sinks.http_client import Web
from ocsf_nft.delivery.sinks.json_access import at, milliseconds, text, whole
from ocsf_nft.errors import DeliveryError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.delivery.envelope import Message
    from ocsf_nft.delivery.sinks.http_endpoint import Receiver

_LOGS: Final = "/v1/logs"
_SERVICE: Final = "ocsf-nft"
_NS_PER_MS: Final = 1_000_000
_INT64_MAX: Final = (1 << 63) - 1

#: From ``severity_id``, as the logs data model maps syslog's severities, and we map to those: INFO,
#: INFO2, WARN, ERROR, ERROR2, FATAL. 0, unspecified, for what is unknown.
_SEVERITIES: Final = {1: 9, 2: 10, 3: 13, 4: 17, 5: 18, 6: 21}


class Otlp(Sink):
    """Sends each batch as one request.

    A record's body is the event as nested values, not its JSON as text: so a collector's rules
    reach each attribute without parsing (``body["dst_endpoint"]["ip"]`` in its transformation
    language), and exporters write JSON of their own that is again an OCSF event. The attributes
    are what is routed by, and ``log.record.uid``, by which a receiver knows a record again.

    A receiver that rejects some records does not say which. The specification would have them
    given up; they are looked for instead, and what was accepted is sent again for it.
    """

    def __init__(self, *, receiver: Receiver) -> None:
        self._web = Web(receiver)

    async def open(self) -> None:
        """Connect; raises DeliveryError."""
        await self._web.open()

    async def close(self) -> None:
        """Close the connection."""
        await self._web.close()

    async def deliver(self, messages: Sequence[Message]) -> Outcome:
        """Send a batch; raises DeliveryError, or RefusedError when records of it are rejected."""
        body = await asyncio.to_thread(_request, messages)
        answer = await self._web.ask("POST", _LOGS, body=body)
        if not answer.is_success:
            raise self._web.fault(answer)
        reply = answer.json() if answer.body else {}
        if not isinstance(reply, dict):
            raise DeliveryError(self._web.sentence(answer, "that is no answer of OTLP"))
        rejected = _rejected(reply)
        if rejected <= 0:
            return DELIVERED
        said = self._web.printable(text(reply, "partialSuccess", "errorMessage"))
        reason = f"the receiver rejects {rejected} of {len(messages)} log records: {said}"
        if rejected < len(messages):
            raise RefusedError(reason)
        return Outcome(refused=tuple(Refusal(message, reason) for message in messages))


def _rejected(reply: Any) -> int:
    """How many records were not taken: protobuf's JSON writes 64 bits as a text."""
    found = at(reply, "partialSuccess", "rejectedLogRecords")
    if isinstance(found, str) and found.isascii() and found.isdigit():
        return int(found[:20])
    return whole(reply, "partialSuccess", "rejectedLogRecords") or 0


def _request(messages: Sequence[Message]) -> bytes:
    """The records of each host and version of ours, of which there is but one as a rule."""
    records: defaultdict[tuple[str, str], list[Any]] = defaultdict(list)
    for message in messages:
        event = message.event()
        origin = text(event, "device", "hostname"), text(event, "metadata", "product", "version")
        # Written at once: so many small objects alive would keep the garbage collector busy.
        records[origin].append(orjson.Fragment(orjson.dumps(_record(event, message.uid))))
    return orjson.dumps(
        {"resourceLogs": [_resource(*origin, told) for origin, told in records.items()]}
    )


def _resource(host: str, version: str, records: list[Any]) -> Any:
    facts = {"service.name": _SERVICE, "service.version": version, "host.name": host}
    return {
        "resource": {"attributes": _pairs({name: told for name, told in facts.items() if told})},
        "scopeLogs": [{"scope": {"name": _SERVICE, "version": version}, "logRecords": records}],
    }


def _record(event: Any, uid: str) -> Any:
    time = milliseconds(event, "time")
    observed = milliseconds(event, "metadata", "logged_time") or time
    name = "ocsf." + text(event, "class_name").lower().replace(" ", "_")
    attributes = {
        # Where a record's name was before it had a field of its own (OTLP 1.5).
        "event.name": name,
        "ocsf.class_uid": whole(event, "class_uid"),
        "log.record.uid": uid,
    }
    return {
        "timeUnixNano": str(time * _NS_PER_MS),
        "observedTimeUnixNano": str(observed * _NS_PER_MS),
        "severityNumber": _SEVERITIES.get(whole(event, "severity_id") or 0, 0),
        "severityText": text(event, "severity"),
        "eventName": name,
        "body": _value(event),
        "attributes": _pairs(attributes),
    }


def _pairs(values: dict[str, Any]) -> list[Any]:
    """A map; what is null in it is left out, since receivers stumble over an empty value."""
    return [
        {"key": key, "value": _value(value)} for key, value in values.items() if value is not None
    ]


def _value(value: Any) -> Any:
    """The same value as an AnyValue of OTLP."""
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return _number(value)
    if isinstance(value, dict):
        return {"kvlistValue": {"values": _pairs(value)}}
    if isinstance(value, list):
        return {"arrayValue": {"values": [_value(each) for each in value]}}
    if isinstance(value, float):
        return {"doubleValue": value}
    return {}


def _number(value: int) -> Any:
    """A whole number, as text where its type of 64 bits with a sign has no room for it."""
    if abs(value) <= _INT64_MAX:
        return {"intValue": str(value)}
    return {"stringValue": str(value)}
