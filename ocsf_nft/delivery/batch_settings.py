"""Settings for the batches of events that a sink gets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSettings:
    """Limits for the batches of events that a sink gets.

    They limit a batch's size, the wait for more events, the duration of a delivery, and the wait
    before a retry.
    """

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
