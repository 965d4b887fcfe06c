"""Events as syslog messages of RFC 5424, by UDP, TCP or TLS.

Syslog has no acknowledgement. By UDP (RFC 5426) an event is one datagram: what the network or the
receiver has no room for is lost, and nobody knows. By TCP (RFC 6587, 3.4.1: octet counting) and TLS
(RFC 5425) an event counts as delivered when the receiver's system has it: what a receiver that dies
had not read is sent again when it is back, most often. What it had read and not kept is lost. After
a connection broke, all of a batch is sent again.

Most receivers cut what is longer than they take, and half an event is no JSON. So one that is
longer than ``max_bytes`` is refused here instead.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from ocsf_nft.delivery.rfc5424 import frame
from ocsf_nft.delivery.sinks.base import Outcome, Refusal, Sink
from ocsf_nft.delivery.sinks.syslog_transport import Connection, Datagrams
from ocsf_nft.delivery.tls import Tls

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.delivery.envelope import Message

Transport: TypeAlias = Literal["udp", "tcp", "tls"]

#: What rsyslog takes whole by default: its maxMessageSize of "8k" is this (8.2504).
MAX_BYTES: Final = 8096
#: Events framed before other tasks get a turn: about a millisecond of work.
_SLICE: Final = 32


class Syslog(Sink):
    """Sends events to the syslog receiver at ``host`` and ``port``.

    For the transport ``tls``, ``tls`` says whom to trust if not the system's authorities.
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
        self._carrier = (
            Datagrams(host, port)
            if transport == "udp"
            else Connection(host, port, tls or Tls() if transport == "tls" else None)
        )

    async def open(self) -> None:
        """Connect; raises DeliveryError. By UDP nobody answers to that."""
        await self._carrier.open()

    async def close(self) -> None:
        """Close the connection."""
        self._carrier.close()

    async def deliver(self, messages: Sequence[Message]) -> Outcome:
        """Send events, and refuse those that are too long."""
        frames: list[bytes] = []
        refused: list[Refusal] = []
        for number, message in enumerate(messages, 1):
            made = frame(message.event(), message.line)
            if len(made) > self._max_bytes:
                refused.append(Refusal(message, self._too_long(len(made))))
            else:
                frames.append(made)
            if number % _SLICE == 0:
                await asyncio.sleep(0)
        await self._carrier.carry(frames)
        return Outcome(refused=tuple(refused))

    def _too_long(self, size: int) -> str:
        return (
            f"its syslog message of {size} bytes is longer than max_bytes, which is "
            f"{self._max_bytes}: let the receiver take more, and raise it"
        )
