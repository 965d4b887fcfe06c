"""Interface of all sinks (destinations of events)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.delivery.envelope import Message


@dataclass(frozen=True, slots=True)
class Refusal:
    """Message that the receiver will never accept, and the reason."""

    message: Message
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult:
    """Result of the delivery of a batch.

    All messages have arrived, except those in ``refused`` and ``again``. ``refused`` has the
    messages that the receiver will never accept. ``again`` has the messages to send again later, in
    the order of the batch. ``reason`` is the reason why the receiver did not accept them now.
    ``after_seconds`` is the pause before the next try that the receiver requested, or None.
    """

    refused: tuple[Refusal, ...] = ()
    again: tuple[Message, ...] = ()
    reason: str = ""
    after_seconds: float | None = None


DELIVERED: Final = BatchResult()


class Sink(Protocol):
    """Interface of a destination of events: it is opened, gets one call per batch, and is closed.

    Only one task uses a sink. After a failure, that task closes the sink and opens it again. Each
    opening reads secrets and certificates again. A call may be cancelled at any point of its work.
    """

    #: True if an interrupted batch must be delivered again with exactly the same messages.
    repeats_batches: bool = False

    async def open(self) -> None:
        """Open the sink.

        Raises DeliveryError if that fails, and closes what it has opened.
        """

    async def close(self) -> None:
        """Close the sink; raises DeliveryError for a delivery error that appears only now."""

    async def __aenter__(self) -> Self:
        """Open the sink; raises DeliveryError."""
        await self.open()
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        """Close the sink; raises DeliveryError."""
        await self.close()

    async def deliver(self, messages: Sequence[Message]) -> BatchResult:
        """Deliver one or more messages in order; return when the receiver has acknowledged them.

        If the transport has no acknowledgement, return when the kernel has the whole batch.

        Raises DeliveryError if it is unknown which messages have arrived; the forwarder then
        delivers the whole batch again. Raises RefusedError if the receiver refuses the batch
        without naming the wrong message; the forwarder then delivers the batch in parts.

        Messages arrive whole, with two exceptions. A stream of bytes (Unix socket, TCP or pipe) may
        break inside a message. Then the last message that the receiver has read may be incomplete.
        A regular file may have an incomplete last line after a crash.
        """
