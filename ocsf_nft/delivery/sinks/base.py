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

    The receiver will never accept the messages in ``refused``. The messages in ``again`` must
    be delivered again later, in this order. ``reason`` states why the receiver did not accept
    them now. ``after_seconds`` is the pause that the receiver requested before the next
    delivery; None without a request.
    """

    refused: tuple[Refusal, ...] = ()
    again: tuple[Message, ...] = ()
    reason: str = ""
    after_seconds: float | None = None


DELIVERED: Final = BatchResult()


class Sink(Protocol):
    """Interface of a destination of events, with the methods open, deliver and close.

    Only one task uses a sink. After a failure, the task closes the sink and opens it again.
    Each opening must read secrets and certificates again, because they may be renewed. Any call
    of a method may be cancelled.
    """

    #: True if an interrupted batch must be delivered again with exactly the same messages.
    repeats_batches: bool = False

    async def open(self) -> None:
        """Open the sink; raises DeliveryError if this fails.

        After a failure, nothing stays open.
        """

    async def close(self) -> None:
        """Close the sink; raises DeliveryError if an earlier write turns out to have failed."""

    async def __aenter__(self) -> Self:
        """Open the sink; raises DeliveryError if this fails."""
        await self.open()
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        """Close the sink; raises the errors of :meth:`close`."""
        await self.close()

    async def deliver(self, messages: Sequence[Message]) -> BatchResult:
        """Deliver one or more messages in order, and wait until the receiver has acknowledged them.

        If the transport has no acknowledgements, wait until the kernel has accepted the
        whole batch. Raises DeliveryError if it is unknown which messages have arrived: the
        caller then repeats the whole batch. Raises RefusedError if the receiver refuses the
        batch without naming the message at fault. The caller then delivers parts of the
        batch.

        Messages arrive whole, with two exceptions. A byte stream (Unix socket, TCP or pipe)
        may break inside a message. A regular file may have an incomplete last line after a
        crash.
        """
