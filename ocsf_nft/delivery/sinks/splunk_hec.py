"""Sink for Splunk's HTTP Event Collector (HEC).

The protocol is described in Splunk's "Getting Data In": "Format events for HTTP Event Collector",
"About HTTP Event Collector Indexer Acknowledgment" and "Troubleshoot HTTP Event Collector".
"""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Final

import orjson

from ocsf_nft.delivery.line_fields import LineFields
from ocsf_nft.delivery.sinks.base import BatchResult, Message, Refusal, Sink
from ocsf_nft.delivery.sinks.http_client import HttpSession
from ocsf_nft.delivery.sinks.json_access import integer, value_at
from ocsf_nft.errors import DeliveryError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.delivery.receiver_settings import Receiver
    from ocsf_nft.delivery.sinks.http_client import HttpAnswer

_EVENT: Final = "/services/collector/event"
_ACK: Final = "/services/collector/ack"
_HEALTH: Final = "/services/collector/health"

#: Codes of an accepted batch, also while a queue of events (24) or acknowledgements (25) fills.
_ACCEPTED: Final = frozenset({0, 24, 25})
#: Codes of an invalid event: its format, a missing or blank key "event", or its indexed fields.
_INVALID_EVENT: Final = frozenset({6, 12, 13, 15})
_REMEDIES: Final = {
    7: "let the token write to the index, or give another index",
    10: "the token has indexer acknowledgement, so give ack_seconds",
    14: "the token has no indexer acknowledgement, so leave ack_seconds out",
}
#: Status of a healthy collector. Collectors of other vendors may have no health endpoint.
_HEALTHY: Final = frozenset({200, 404, 405})

#: An acknowledgement comes after an indexer's write to its disk, seconds later at best.
_FIRST_POLL_SECONDS: Final = 0.25
_MAX_POLL_SECONDS: Final = 5.0


class SplunkHec(HttpSession, Sink):
    """Sink that sends events to Splunk's HTTP Event Collector, many in one request.

    ``ack_seconds`` is the time within which an indexer must have the events on disk. If
    ``ack_seconds`` is None, events count as delivered when the collector has accepted them.
    """

    def __init__(
        self,
        *,
        receiver: Receiver,
        index: str | None = None,
        source: str = "ocsf-nft",
        sourcetype: str = "ocsf:ocsf-nft",
        ack_seconds: float | None = None,
    ) -> None:
        super().__init__(receiver)
        self._metadata = {"source": source, "sourcetype": sourcetype}
        if index is not None:
            self._metadata["index"] = index
        # Requires a token with indexer acknowledgement.
        self._ack_seconds = ack_seconds
        self._channel: dict[str, str] = {}

    async def open(self) -> None:
        """Connect to the collector and check its health; raises DeliveryError if either fails."""
        await super().open()
        try:
            await self._check_health()
        except BaseException:
            await self.close()
            raise
        if self._ack_seconds is not None:
            self._channel = {"X-Splunk-Request-Channel": str(uuid.uuid4())}

    async def deliver(self, messages: Sequence[Message]) -> BatchResult:
        """Send events; the result's ``refused`` lists the events that the collector finds invalid.

        Raises RefusedError if the collector refuses events, and it is unknown which event is the
        cause. Raises DeliveryError for any other failure.
        """
        refused: list[Refusal] = []
        rest = list(messages)
        while rest and (invalid := await self._send(rest)) is not None:
            position, reason = invalid
            # Splunk does not document whether the events before the invalid one were indexed, so
            # all others are sent again. Some may be indexed twice. The suspect is sent alone, to
            # check the position.
            suspect = rest.pop(position)
            if rest and await self._send([suspect]) is None:
                # The collector accepts the event alone, so it had named the wrong one.
                raise RefusedError(reason)
            refused.append(Refusal(suspect, reason))
        return BatchResult(refused=tuple(refused))

    async def _check_health(self) -> None:
        answer = await self.request("GET", _HEALTH)
        if answer.status not in _HEALTHY:
            raise DeliveryError(self.describe(answer), after_seconds=answer.after_seconds)

    async def _send(self, messages: Sequence[Message]) -> tuple[int, str] | None:
        """Send events; return the position and fault of an invalid event, None if there is none."""
        # Not a JSON array: "Format events for HTTP Event Collector", section "Batch data".
        body = await asyncio.to_thread(lambda: b"\n".join(map(self._envelope, messages)))
        answer = await self.request("POST", _EVENT, body=body, headers=self._channel)
        reply = answer.json()
        code = integer(reply, "code")
        if answer.is_success:
            if code not in _ACCEPTED:
                raise DeliveryError(self.describe(answer, "its answer is not that of a collector"))
            await self._wait_until_indexed(integer(reply, "ackId"))
            return None
        if answer.status != 400:
            raise self.error(answer)
        if code is not None and code not in _INVALID_EVENT:
            raise DeliveryError(self.describe(answer, _REMEDIES.get(code, "")))
        return self._invalid_event(answer, integer(reply, "invalid-event-number"), len(messages))

    def _invalid_event(
        self, answer: HttpAnswer, position: int | None, length: int
    ) -> tuple[int, str]:
        sentence = self.describe(answer)
        if length == 1:
            return 0, sentence
        if position is not None and 0 <= position < length:
            return position, sentence
        raise RefusedError(sentence)

    async def _wait_until_indexed(self, ack_id: int | None) -> None:
        if self._ack_seconds is None:
            return
        if ack_id is None:
            raise DeliveryError(f"the collector sends no acknowledgement: {_REMEDIES[14]}")
        seconds = _FIRST_POLL_SECONDS
        try:
            async with asyncio.timeout(self._ack_seconds):
                while not await self._is_indexed(ack_id):
                    await asyncio.sleep(seconds)
                    seconds = min(2 * seconds, _MAX_POLL_SECONDS)
        except TimeoutError:
            raise DeliveryError(
                f"no indexer had the events within {self._ack_seconds:g} s: "
                "check Splunk's indexers, or raise ack_seconds"
            ) from None

    async def _is_indexed(self, ack_id: int) -> bool:
        answer = await self.request(
            "POST", _ACK, body=orjson.dumps({"acks": [ack_id]}), headers=self._channel
        )
        if not answer.is_success:
            raise DeliveryError(self.describe(answer), after_seconds=answer.after_seconds)
        return value_at(answer.json(), "acks", str(ack_id)) is True

    def _envelope(self, message: Message) -> bytes:
        fields = LineFields(message.line)
        head = self._head(fields.hostname())
        time = fields.milliseconds("time")
        # Seconds with three decimals, exact without a float.
        time_field = b',"time":%d.%03d' % divmod(time, 1000) if time else b""
        return b"".join((head, time_field, b',"event":', message.line, b"}"))

    def _head(self, host: str) -> bytes:
        metadata = {**self._metadata, "host": host}
        return orjson.dumps({name: value for name, value in metadata.items() if value})[:-1]
