"""Sink that sends events as JSON to an HTTP server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from ocsf_nft.delivery.sinks.base import DELIVERED, BatchResult, Message, Sink
from ocsf_nft.delivery.sinks.http_client import HttpSession
from ocsf_nft.delivery.sinks.line_writer import lines_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.delivery.receiver_settings import Receiver

_CONTENT_TYPES: Final = {"json_array": "application/json", "ndjson": "application/x-ndjson"}


class Http(HttpSession, Sink):
    """Sink that sends each batch of events as one HTTP request."""

    def __init__(
        self,
        *,
        receiver: Receiver,
        method: Literal["POST", "PUT"] = "POST",
        form: Literal["json_array", "ndjson"] = "ndjson",
    ) -> None:
        super().__init__(receiver)
        self._method = method
        self._form = form

    async def deliver(self, messages: Sequence[Message]) -> BatchResult:
        """Send a batch as one HTTP request.

        Raises RefusedError for the status 400, 413 or 422: the receiver refuses the batch's
        content or size. Raises DeliveryError for any other failure; the batch is then sent
        again later.
        """
        body = lines_of(messages)
        if self._form == "json_array":
            body = b"[" + b",".join(message.line for message in messages) + b"]"
        answer = await self.request(
            self._method, body=body, content_type=_CONTENT_TYPES[self._form]
        )
        if not answer.is_success:
            raise self.error(answer)
        return DELIVERED
