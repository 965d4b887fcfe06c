"""Interface of all sinks (destinations of events)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

import orjson

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Message:
    """Event to deliver to one sink, in the OCSF version that is configured for this sink.

    ``uid`` is the event's ``metadata.uid``; it is the same at each repeated delivery. ``line`` is
    the event's JSON in UTF-8, without a line end.
    """

    uid: str
    line: bytes

    def event(self) -> Any:
        """Return the event as decoded JSON."""
        return orjson.loads(self.line)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSettings:
    """Limits for the batches of events that a sink gets, and for their delivery."""

    #: Maximum number of events in a batch.
    events: int = 500
    #: Maximum size of a batch. A larger event gets a batch of its own.
    bytes: int = 1 << 20
    #: Maximum wait for more events, if a batch is not full.
    seconds: float = 0.0
    #: Maximum duration of one delivery attempt; None: no limit.
    timeout_seconds: float | None = 30.0
    #: Maximum wait between two attempts to deliver.
    retry_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Message (event) that the receiver will never accept, with the receiver's reason."""

    message: Message
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult:
    """Result of a delivery of events: which events the receiver has not accepted."""

    #: Events that the receiver will never accept.
    refused: tuple[Refusal, ...] = ()
    #: Events that must be delivered again later, in this order.
    again: tuple[Message, ...] = ()
    #: Reason why the receiver did not accept the events in ``again`` now.
    reason: str = ""
    #: Pause that the receiver requested before the next delivery; None without a request.
    after_seconds: float | None = None


DELIVERED: Final = BatchResult()


class Sink(Protocol):
    """Interface of a destination of events; only one task uses a destination.

    After a failure, the task closes the destination and opens it again. Each opening must read
    secrets and certificates again. Any call may be cancelled.
    """

    #: True if an interrupted batch must be delivered again with exactly the same messages.
    repeats_batches: bool = False

    # Secrets and certificates may be renewed before the next opening.
    async def open(self) -> None:
        """Open the sink; raises DeliveryError if this fails.

        After a failure, nothing stays open.
        """

    async def close(self) -> None:
        """Close the sink; raises DeliveryError if the closing fails or reports a failed write."""

    async def __aenter__(self) -> Self:
        """Open the sink; raises DeliveryError if this fails."""
        await self.open()
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        """Close the sink; raises the errors of :meth:`close`."""
        await self.close()

    async def deliver(self, messages: Sequence[Message]) -> BatchResult:
        """Deliver one or more events in order, and wait until the receiver has acknowledged them.

        If the receiver sends no acknowledgements, wait until the kernel has accepted all events.
        Raises DeliveryError if it is unknown which events arrived. Raises RefusedError if the
        receiver refuses events, but does not identify them.
        """
        # After a DeliveryError, the caller repeats the whole batch; after a RefusedError, it
        # delivers parts of it. Messages arrive whole, with two exceptions. A byte stream (Unix
        # socket, TCP or pipe) may break inside a message. A regular file may have an incomplete
        # last line after a crash.
