"""Sink for syslog messages of RFC 5424 over UDP, TCP or TLS.

Over UDP, a dropped datagram is not noticed. Over TCP and TLS, an event counts as delivered when the
receiver's kernel has it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from ocsf_nft.delivery.rfc5424 import frame
from ocsf_nft.delivery.sinks.base import BatchResult, Message, Refusal, Sink
from ocsf_nft.delivery.sinks.syslog_transport import Connection, Datagrams
from ocsf_nft.delivery.tls import Tls

if TYPE_CHECKING:
    from collections.abc import Sequence


#: RFC 5426, RFC 6587 and RFC 5425.
Transport: TypeAlias = Literal["udp", "tcp", "tls"]

#: Default limit of rsyslog: its maxMessageSize of "8k" means this number (8.2504).
MAX_BYTES: Final = 8096
#: Number of events framed before other tasks can run: about a millisecond of work.
_EVENTS_PER_SLICE: Final = 32


class Syslog(Sink):
    """Sink for the syslog receiver at ``host`` and ``port``.

    ``tls`` is used only if ``transport`` is "tls". If ``tls`` is None, the system's certificate
    authorities are trusted. An event becomes a dead letter if its syslog message has more than
    ``max_bytes`` bytes.
    """

    def __init__(
        self,
        *,
        transport: Transport,
        host: str,
        port: int,
        tls: Tls | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._max_bytes = max_bytes
        self._transport = (
            Datagrams(host, port)
            if transport == "udp"
            else Connection(host, port, tls or Tls() if transport == "tls" else None)
        )

    async def open(self) -> None:
        """Connect to the receiver; raises DeliveryError. Over UDP no datagram is sent yet."""
        await self._transport.open()

    async def close(self) -> None:
        """Close the connection to the receiver."""
        self._transport.close()

    async def deliver(self, messages: Sequence[Message]) -> BatchResult:
        """Send each event as a syslog message; omit messages of more than ``max_bytes`` bytes.

        The result lists the omitted events as refused. Raises DeliveryError if sending fails. Over
        UDP, raises RefusedError if a datagram is too long for the kernel; later events are then not
        sent.
        """
        frames: list[bytes] = []
        refused: list[Refusal] = []
        for number, message in enumerate(messages, 1):
            framed = frame(message.event(), message.line)
            if len(framed) > self._max_bytes:
                refused.append(Refusal(message, self._too_long_reason(len(framed))))
            else:
                frames.append(framed)
            if number % _EVENTS_PER_SLICE == 0:
                await asyncio.sleep(0)
        # Syslog has no acknowledgement.
        await self._transport.send(frames)
        return BatchResult(refused=tuple(refused))

    def _too_long_reason(self, size: int) -> str:
        return (
            f"its syslog message of {size} bytes is longer than max_bytes, which is "
            f"{self._max_bytes}: raise the limit of the receiver, and then max_bytes"
        )
