"""Sink for the bulk API of OpenSearch or Elasticsearch.

OpenSearch documents this API on the page "Bulk", in the part "Document APIs".
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from ocsf_nft.delivery.line_fields import LineFields
from ocsf_nft.delivery.sinks.base import BatchResult, Message, Refusal, Sink
from ocsf_nft.delivery.sinks.http_client import HttpSession
from ocsf_nft.delivery.sinks.json_access import integer, text, value_at
from ocsf_nft.errors import DeliveryError
from ocsf_nft.utc_text import utc_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.delivery.receiver_settings import Receiver

_BULK: Final = "/_bulk"
_CONTENT_TYPE: Final = "application/x-ndjson"
#: Maximum size of an answer: an item has about 300 bytes, one with an error some more.
_ANSWER_BYTES: Final = 1 << 16
_ITEM_BYTES: Final = 2048
#: Placeholder of the day in an index's name.
DATE: Final = "{date}"
_DAY_LENGTH: Final = len("2026-11-25")

#: Status of a created document, or of one whose identifier exists already.
_DELIVERED: Final = frozenset({200, 201, 409})
#: Errors with status 400 that the document itself causes. The index or the cluster causes the
#: others, such as too many shards or a closed index.
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


class _Item(NamedTuple):
    """Result for one document in the answer to a bulk request."""

    status: int
    kind: str
    reason: str


class OpenSearch(HttpSession, Sink):
    """Sink that sends events to OpenSearch or Elasticsearch, many in one bulk request.

    ``{date}`` in ``index`` is replaced by the event's day in UTC, such as 2026.11.25. If
    ``is_data_stream`` is true, ``index`` is a data stream.
    """

    def __init__(
        self, *, receiver: Receiver, index: str = "ocsf", is_data_stream: bool = False
    ) -> None:
        super().__init__(receiver)
        self._index = index
        self._is_data_stream = is_data_stream

    async def deliver(self, messages: Sequence[Message]) -> BatchResult:
        """Send a batch; return which events to send again, and which events are refused.

        Raises RefusedError if the receiver refuses the whole batch. Raises DeliveryError if the
        whole batch fails for another reason.
        """
        answer = await self.request(
            "POST",
            _BULK,
            body=await asyncio.to_thread(self._body, messages),
            content_type=_CONTENT_TYPE,
            answer_bytes=_ANSWER_BYTES + _ITEM_BYTES * len(messages),
        )
        if not answer.is_success:
            raise self.error(answer)
        items = await asyncio.to_thread(lambda: _items(answer.json()))
        if len(items) != len(messages) or not all(item.status for item in items):
            raise DeliveryError(self.describe(answer, "its answer has no result for each document"))
        refused: list[Refusal] = []
        again: list[Message] = []
        reason = ""
        for message, item in zip(messages, items, strict=True):
            if item.status in _DELIVERED:
                continue
            if item.status == 400 and item.kind in _DOCUMENT_FAULTS:
                refused.append(Refusal(message, self._reason(item)))
            else:
                again.append(message)
                reason = reason or self._reason(item)
        return BatchResult(
            refused=tuple(refused),
            again=tuple(again),
            reason=reason,
            after_seconds=answer.after_seconds if again else None,
        )

    def _reason(self, item: _Item) -> str:
        error = self.printable(f"{item.kind}: {item.reason}")
        return f"a document was not indexed ({item.status}): {error}"

    def _body(self, messages: Sequence[Message]) -> bytes:
        return b"".join(part for message in messages for part in self._document(message))

    def _document(self, message: Message) -> tuple[bytes, ...]:
        time = LineFields(message.line).milliseconds("time")
        day = (utc_text(time) or "")[:_DAY_LENGTH].replace("-", ".")
        # An event that is sent twice is stored once, because its uid is the identifier. In a data
        # stream, the identifier is unique only within one index: the event is stored twice if the
        # stream has begun a new index in between.
        target = {"_index": self._index.replace(DATE, day), "_id": message.uid}
        action = orjson.dumps({"create": target})
        if self._is_data_stream:
            return action, b'\n{"@timestamp":%d,' % time, message.line[1:], b"\n"
        return action, b"\n", message.line, b"\n"


def _items(reply: Any) -> list[_Item]:
    results = value_at(reply, "items")
    return [_item(result) for result in results] if isinstance(results, list) else []


def _item(result: Any) -> _Item:
    created = value_at(result, "create")
    status, error = integer(created, "status") or 0, value_at(created, "error")
    if error is None:
        return _Item(status, "", "")
    return _Item(status, text(error, "type"), text(error, "reason"))
