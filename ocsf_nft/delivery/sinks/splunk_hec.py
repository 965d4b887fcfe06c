"""Events to Splunk's HTTP Event Collector (HEC).

Facts are from Splunk's "Getting Data In": "Format events for HTTP Event Collector", "About HTTP
Event Collector Indexer Acknowledgment", and the codes of "Troubleshoot HTTP Event Collector".
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import orjson

from ocsf_nft.delivery.sinks.base import Outcome, Refusal, Sink
from ocsf_nft.delivery.sinks.http_client import Web
from ocsf_nft.delivery.sinks.json_access import at, milliseconds, text, whole
from ocsf_nft.errors import DeliveryError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.delivery.envelope import Message
    from ocsf_nft.delivery.sinks.http_client import Answer
    from ocsf_nft.delivery.sinks.http_endpoint import Receiver

_EVENT: Final = "/services/collector/event"
_ACK: Final = "/services/collector/ack"
_HEALTH: Final = "/services/collector/health"

#: Taken; and taken while a queue fills up, of events (24) or of acknowledgements (25).
_TAKEN: Final = frozenset({0, 24, 25})
#: An event is wrong: its format, its key "event" is missing or blank, its indexed fields.
_WRONG_EVENT: Final = frozenset({6, 12, 13, 15})
_MENDS: Final = {
    7: "let the token write to the index, or give another index",
    10: "the token has indexer acknowledgement, so give ack_seconds",
    14: "the token has no indexer acknowledgement, so leave ack_seconds out",
}
#: Receivers that speak HEC and are not Splunk's may have no health to ask for.
_HEALTHY: Final = frozenset({200, 404, 405})

#: Acknowledgements come when an indexer has written to its disk, at best within seconds.
_FIRST_POLL_SECONDS: Final = 0.25
_MOST_POLL_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class _Blame:
    """The place in a batch of an event that the collector won't have, and what it says of it."""

    number: int
    reason: str


class SplunkHec(Sink):
    """Sends each batch as one request, an envelope for every event.

    Without ``ack_seconds`` it is delivered when the collector has it in memory. With it, it is
    when an indexer says that it is on disk, which it is asked for so long; the token must have
    indexer acknowledgement then.

    A collector that finds an event wrong names the first such one. That one is sent again alone,
    to be sure that it is the one, and then is refused. Splunk's documentation doesn't say whether
    those before it were indexed, so all others are sent again: some may be there twice.
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
        self._web = Web(receiver)
        self._facts = {"source": source, "sourcetype": sourcetype}
        if index is not None:
            self._facts["index"] = index
        self._ack_seconds = ack_seconds
        self._channel: dict[str, str] = {}

    async def open(self) -> None:
        """Connect, and see that the collector is well; raises DeliveryError."""
        await self._web.open()
        try:
            await self._see_health()
        except BaseException:
            await self._web.close()
            raise
        if self._ack_seconds is not None:
            self._channel = {"X-Splunk-Request-Channel": str(uuid.uuid4())}

    async def close(self) -> None:
        """Close the connection."""
        await self._web.close()

    async def deliver(self, messages: Sequence[Message]) -> Outcome:
        """Send a batch; raises DeliveryError, or RefusedError when it isn't said what is wrong."""
        refused: list[Refusal] = []
        rest = list(messages)
        while rest and (blame := await self._blame(rest)) is not None:
            suspect = rest.pop(blame.number)
            if rest and await self._blame([suspect]) is None:
                raise RefusedError(blame.reason)
            refused.append(Refusal(suspect, blame.reason))
        return Outcome(refused=tuple(refused))

    async def _see_health(self) -> None:
        answer = await self._web.ask("GET", _HEALTH)
        if answer.status not in _HEALTHY:
            raise DeliveryError(self._web.sentence(answer), after_seconds=answer.after_seconds)

    async def _blame(self, messages: Sequence[Message]) -> _Blame | None:
        """Send events; None when the collector has them all, or which one of them is wrong.

        Raises DeliveryError, or RefusedError when it doesn't say which.
        """
        body = await asyncio.to_thread(self._body, messages)
        answer = await self._web.ask("POST", _EVENT, body=body, headers=self._channel)
        reply = answer.json()
        code = whole(reply, "code")
        if answer.is_success:
            if code not in _TAKEN:
                raise DeliveryError(self._web.sentence(answer, "that is no answer of a collector"))
            await self._acknowledged(whole(reply, "ackId"))
            return None
        if answer.status != 400 or (code is not None and code not in _WRONG_EVENT):
            raise self._fault(answer, code)
        return self._blamed(answer, whole(reply, "invalid-event-number"), len(messages))

    def _fault(self, answer: Answer, code: int | None) -> DeliveryError:
        if answer.status != 400:
            return self._web.fault(answer)
        return DeliveryError(self._web.sentence(answer, _MENDS.get(code or 0, "")))

    def _blamed(self, answer: Answer, number: int | None, length: int) -> _Blame:
        sentence = self._web.sentence(answer)
        if length == 1:
            return _Blame(0, sentence)
        if number is not None and 0 <= number < length:
            return _Blame(number, sentence)
        raise RefusedError(sentence)

    async def _acknowledged(self, ack_id: int | None) -> None:
        """Wait until an indexer has the events; raises DeliveryError when it takes too long."""
        if self._ack_seconds is None:
            return
        if ack_id is None:
            raise DeliveryError(f"the collector acknowledges nothing: {_MENDS[14]}")
        seconds = _FIRST_POLL_SECONDS
        try:
            async with asyncio.timeout(self._ack_seconds):
                while not await self._is_indexed(ack_id):
                    await asyncio.sleep(seconds)
                    seconds = min(2 * seconds, _MOST_POLL_SECONDS)
        except TimeoutError:
            raise DeliveryError(
                f"no indexer had the events within {self._ack_seconds:g} s: "
                "look at Splunk's indexers, or give more ack_seconds"
            ) from None

    async def _is_indexed(self, ack_id: int) -> bool:
        answer = await self._web.ask(
            "POST", _ACK, body=orjson.dumps({"acks": [ack_id]}), headers=self._channel
        )
        if not answer.is_success:
            raise DeliveryError(self._web.sentence(answer), after_seconds=answer.after_seconds)
        return at(answer.json(), "acks", str(ack_id)) is True

    def _body(self, messages: Sequence[Message]) -> bytes:
        """Envelopes one after another, in no array ("Batch data" of "Format events")."""
        return b"\n".join(self._envelope(message) for message in messages)

    def _envelope(self, message: Message) -> bytes:
        event = message.event()
        facts = {**self._facts, "host": text(event, "device", "hostname")}
        head = orjson.dumps({name: value for name, value in facts.items() if value})
        time = milliseconds(event, "time")
        # Seconds with three digits of a fraction, which no float is needed for.
        moment = b',"time":%d.%03d' % divmod(time, 1000) if time else b""
        return head[:-1] + moment + b',"event":' + message.line + b"}"
