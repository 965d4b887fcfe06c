"""What every sink is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.delivery.envelope import Message


@dataclass(frozen=True, slots=True)
class Refusal:
    """A message that the receiver will never take, and what it says of it."""

    message: Message
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a batch: what is neither ``refused`` nor to be sent ``again`` is delivered.

    ``again`` is what the receiver could not take now, in the batch's order, with the ``reason``;
    ``after_seconds`` how long it asked to be left alone first, if it did.
    """

    refused: tuple[Refusal, ...] = ()
    again: tuple[Message, ...] = ()
    reason: str = ""
    after_seconds: float | None = None


DELIVERED: Final = Outcome()


class Sink(Protocol):
    """A place that events are delivered to: opened, one call per batch, closed.

    It is used by one task, which closes it after a failure and opens it again: opening reads
    secrets and certificates anew. A cancelled call may be cut at any point.
    """

    #: Whether what was cut short is to be delivered again as the very same batch.
    repeats_batches: bool = False

    async def open(self) -> None:
        """Open it; raises DeliveryError when it can't be, and nothing is left open then."""

    async def close(self) -> None:
        """Close it; raises DeliveryError for what shows only now."""

    async def __aenter__(self) -> Self:
        """Open it; raises DeliveryError."""
        await self.open()
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        """Close it; raises DeliveryError."""
        await self.close()

    async def deliver(self, messages: Sequence[Message]) -> Outcome:
        """Deliver a batch of one or more, in order; returns when the receiver has acknowledged it.

        Where the transport knows no acknowledgement, it returns when the batch is handed over.
        Raises DeliveryError when it can't be said what has arrived: all of it is delivered again;
        RefusedError when the receiver won't have the batch as it is, and doesn't say which message
        of it is wrong: it is delivered in parts. No part of a message stays behind.
        """
