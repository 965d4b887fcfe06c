"""Settings for the batches of events that a sink gets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSettings:
    """Limits of the size and time of the batches that a sink gets.

    A batch has at most ``events`` events and ``bytes`` bytes. There is one exception: an event with
    more than ``bytes`` bytes gets a batch of its own. If a batch is not full, its delivery waits at
    most ``seconds`` for more events. One delivery attempt takes at most ``timeout_seconds`` (None:
    no limit). The wait between two attempts is at most ``retry_seconds``.
    """

    events: int = 500
    bytes: int = 1 << 20
    seconds: float = 0.0
    timeout_seconds: float | None = 30.0
    retry_seconds: float = 30.0
