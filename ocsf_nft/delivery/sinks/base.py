"""What every sink is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from ocsf_nft.delivery.message import Message


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
    """A place that events are delivered to: one asynchronous context, one call per batch.

    It is used by one task, which leaves the context after a failure and enters it again: entering
    reads secrets and certificates anew. A cancelled call may be cut at any point.
    """

    async def __aenter__(self) -> Self:
        """Open it; raises DeliveryError when it can't be."""

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""

    async def deliver(self, messages: Sequence[Message]) -> Outcome:
        """Deliver a batch of one or more, in order; returns when the receiver has acknowledged it.

        Where the transport knows no acknowledgement, it returns when the batch is handed over.
        Raises DeliveryError when it can't be said what has arrived: all of it is delivered again;
        RefusedError when the receiver won't have the batch as it is, and doesn't say which message
        of it is wrong: it is delivered in parts. No part of a message stays behind.
        """
