"""Events to any receiver that takes JSON over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from ocsf_nft.delivery.sinks.base import DELIVERED, Outcome, Sink
from ocsf_nft.delivery.sinks.http_client import Web

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.delivery.envelope import Message
    from ocsf_nft.delivery.sinks.http_endpoint import Receiver

_CONTENT_TYPES: Final = {"json_array": "application/json", "ndjson": "application/x-ndjson"}


class Http(Sink):
    """Sends each batch as one request.

    An answer of 2xx says that the receiver has all of it; 400, 413 and 422 that it won't have it as
    it is. Everything else is taken for a passing trouble, or one that a person will mend.
    """

    def __init__(
        self,
        *,
        receiver: Receiver,
        method: Literal["POST", "PUT"] = "POST",
        form: Literal["json_array", "ndjson"] = "ndjson",
    ) -> None:
        self._web = Web(receiver)
        self._method = method
        self._form = form

    async def open(self) -> None:
        """Connect; raises DeliveryError."""
        await self._web.open()

    async def close(self) -> None:
        """Close the connection."""
        await self._web.close()

    async def deliver(self, messages: Sequence[Message]) -> Outcome:
        """Send a batch; raises DeliveryError, or RefusedError when its data are wrong."""
        answer = await self._web.ask(
            self._method, body=self._body(messages), content_type=_CONTENT_TYPES[self._form]
        )
        if not answer.is_success:
            raise self._web.fault(answer)
        return DELIVERED

    def _body(self, messages: Sequence[Message]) -> bytes:
        lines = (message.line for message in messages)
        if self._form == "json_array":
            return b"[" + b",".join(lines) + b"]"
        return b"".join(line + b"\n" for line in lines)
