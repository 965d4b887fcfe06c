"""Interface of all sinks (destinations of events)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.delivery.envelope import Message


@dataclass(frozen=True, slots=True)
class Refusal:
    """Message (event) that the receiver will never accept, with the receiver's reason."""

    message: Message
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult:
    """Result of the delivery of a batch: which messages the receiver has not accepted.

    The receiver has accepted all messages that are neither in ``refused`` nor in ``again``.
    ``refused`` has the messages that it will never accept. ``again`` has the messages to deliver
    again later, in the order of the batch. ``reason`` states why the receiver did not accept the
    messages in ``again`` now. ``after_seconds`` is the pause that the receiver requested before the
    next delivery. It is None if the receiver requested no pause.
    """

    refused: tuple[Refusal, ...] = ()
    again: tuple[Message, ...] = ()
    reason: str = ""
    after_seconds: float | None = None


DELIVERED: Final = BatchResult()


class Sink(Protocol):
    """Interface of a destination of events, with the methods open, deliver and close.

    Only one task uses a sink. It calls :meth:`deliver` once for each batch. After a failure, it
    closes the sink and opens it again. Each opening reads secrets and certificates again, so that
    renewed ones are used. Any call of a method may be cancelled before it has ended.
    """

    #: True if an interrupted batch must be delivered again with exactly the same messages.
    repeats_batches: bool = False

    async def open(self) -> None:
        """Open the sink.

        If this fails, the method closes everything that it has opened, and raises DeliveryError.
        """

    async def close(self) -> None:
        """Close the sink.

        Raises DeliveryError if an earlier write turns out to have failed.
        """

    async def __aenter__(self) -> Self:
        """Open the sink; raises DeliveryError if this fails."""
        await self.open()
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        """Close the sink; raises DeliveryError in the same case as :meth:`close`."""
        await self.close()

    async def deliver(self, messages: Sequence[Message]) -> BatchResult:
        """Deliver one or more messages in order, and wait until the receiver has acknowledged them.

        If the transport has no acknowledgements, wait until the kernel has accepted the whole
        batch.

        Raises DeliveryError if it is unknown which messages have arrived. Then the forwarder, which
        calls this method, delivers the whole batch again. Raises RefusedError if the receiver
        refuses the batch because of a message that it does not name. Then the forwarder delivers
        parts of the batch.

        The receiver gets only whole messages, with two exceptions. A stream of bytes (Unix socket,
        TCP or pipe) may break inside a message. Then the last message that the receiver has read
        may be incomplete. A regular file may have an incomplete last line after a crash.
        """
