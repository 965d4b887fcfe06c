"""Events to OpenSearch, or Elasticsearch, by the bulk API.

Facts are from OpenSearch's "Bulk" of its document APIs; Elasticsearch's are the same.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from ocsf_nft.delivery.sinks.base import Outcome, Refusal, Sink
from ocsf_nft.delivery.sinks.http_client import Web
from ocsf_nft.delivery.sinks.json_access import at, milliseconds, text, whole
from ocsf_nft.errors import DeliveryError
from ocsf_nft.utc_text import utc_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.delivery.envelope import Message
    from ocsf_nft.delivery.sinks.http_endpoint import Receiver

_BULK: Final = "/_bulk"
_CONTENT_TYPE: Final = "application/x-ndjson"
#: What is read of an answer: an item has some 300 bytes, one that tells an error some more.
_ANSWER_BYTES: Final = 1 << 16
_ITEM_BYTES: Final = 2048
#: Where a day stands in an index's name.
DATE: Final = "{date}"
_DAY_LENGTH: Final = len("2026-11-25")

#: Made; or there already, by its identifier.
_DELIVERED: Final = frozenset({200, 201, 409})
#: What a document itself is to blame for, of all that is answered 400. The rest is about the index
#: or the cluster, such as too many shards or a closed index.
_DOCUMENT_FAULTS: Final = frozenset(
    {
        "document_parsing_exception",
        "illegal_argument_exception",
        "mapper_exception",
        "mapper_parsing_exception",
        "parse_exception",
        "parsing_exception",
        "strict_dynamic_mapping_exception",
    }
)


@dataclass(frozen=True, slots=True)
class _Item:
    """What the answer says of one document."""

    status: int
    kind: str
    reason: str

    @property
    def is_delivered(self) -> bool:
        return self.status in _DELIVERED

    @property
    def is_refused(self) -> bool:
        return self.status == 400 and self.kind in _DOCUMENT_FAULTS


class OpenSearch(Sink):
    """Sends each batch as one bulk request, which creates a document an event.

    A document's identifier is the event's: one that comes again is found to be there already. In
    the name of the ``index``, ``{date}`` is the day of the event in UTC, as 2026.11.25, so an event
    that comes again goes to the same index.

    For a ``is_data_stream`` each document has ``@timestamp`` too, which data streams want. There an
    event is found to be there already only until the stream's next rollover.
    """

    def __init__(
        self, *, receiver: Receiver, index: str = "ocsf", is_data_stream: bool = False
    ) -> None:
        self._web = Web(receiver)
        self._index = index
        self._is_data_stream = is_data_stream

    async def open(self) -> None:
        """Connect; raises DeliveryError."""
        await self._web.open()

    async def close(self) -> None:
        """Close the connection."""
        await self._web.close()

    async def deliver(self, messages: Sequence[Message]) -> Outcome:
        """Send a batch; raises DeliveryError, or RefusedError when it is wrong as a whole."""
        answer = await self._web.ask(
            "POST",
            _BULK,
            body=await asyncio.to_thread(self._body, messages),
            content_type=_CONTENT_TYPE,
            answer_bytes=_ANSWER_BYTES + _ITEM_BYTES * len(messages),
        )
        if not answer.is_success:
            raise self._web.fault(answer)
        items = await asyncio.to_thread(lambda: _items(answer.json()))
        if items is None or len(items) != len(messages):
            raise DeliveryError(
                self._web.sentence(answer, "that does not say what became of each document")
            )
        return self._outcome(list(zip(messages, items, strict=True)), answer.after_seconds)

    def _outcome(
        self, told: Sequence[tuple[Message, _Item]], after_seconds: float | None
    ) -> Outcome:
        left = [(message, item) for message, item in told if not item.is_delivered]
        refused = [
            Refusal(message, self._reason(item)) for message, item in left if item.is_refused
        ]
        again = [(message, item) for message, item in left if not item.is_refused]
        return Outcome(
            refused=tuple(refused),
            again=tuple(message for message, _ in again),
            reason=self._reason(again[0][1]) if again else "",
            after_seconds=after_seconds if again else None,
        )

    def _reason(self, item: _Item) -> str:
        said = self._web.printable(f"{item.kind}: {item.reason}")
        return f"a document was not indexed ({item.status}): {said}"

    def _body(self, messages: Sequence[Message]) -> bytes:
        """Two lines an event; the last one ends too, or the request is no bulk request."""
        return b"".join(self._document(message) for message in messages)

    def _document(self, message: Message) -> bytes:
        time = milliseconds(message.event(), "time")
        day = (utc_text(time) or "")[:_DAY_LENGTH].replace("-", ".")
        target = {"_index": self._index.replace(DATE, day), "_id": message.uid}
        line = message.line
        if self._is_data_stream:
            line = b'{"@timestamp":%d,' % time + line[1:]
        return orjson.dumps({"create": target}) + b"\n" + line + b"\n"


def _items(reply: Any) -> list[_Item] | None:
    """What is said of each document; None where that can't be made out."""
    told = at(reply, "items")
    if not isinstance(told, list):
        return None
    items = [_item(each) for each in told]
    return None if None in items else [item for item in items if item is not None]


def _item(told: Any) -> _Item | None:
    status = whole(told, "create", "status")
    if status is None:
        return None
    error = at(told, "create", "error")
    return _Item(status, text(error, "type"), text(error, "reason"))
