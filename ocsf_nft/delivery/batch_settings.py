"""How a sink is sent to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How a sink is sent to.

    A batch has at most so many ``events`` and ``bytes`` (one event at least), and waits for
    ``seconds`` to become so large. One try takes ``timeout_seconds`` at most (None:
    as long as it wants), and ``retry_seconds`` are the longest wait between two.
    """

    events: int = 500
    bytes: int = 1 << 20
    seconds: float = 0.0
    timeout_seconds: float | None = 30.0
    retry_seconds: float = 30.0
