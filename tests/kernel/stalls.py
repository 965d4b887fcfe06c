"""Measurement of the delays of this machine, for a thread that writes to a disk."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PERIOD_MS = 20


@dataclass
class Stalls:
    """Delays of a thread: for each sample its due time (ms since the epoch) and its delay (ms)."""

    samples: list[tuple[float, float]] = field(default_factory=list)

    def worst_ms(self, from_ms: float, to_ms: float) -> float:
        """Return the longest delay (ms) that overlaps a period (ms since the epoch)."""
        return max(
            (late for at, late in self.samples if at <= to_ms and at + late >= from_ms), default=0
        )


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[Stalls]:
    """Measure in a thread, which writes a byte to the disk of ``folder`` at each sample."""
    stalls, ended = Stalls(), threading.Event()

    def measure() -> None:
        with (folder / "stalls").open("wb", buffering=0) as file:
            while not ended.is_set():
                due_ms = time.time() * 1000 + _PERIOD_MS
                ended.wait(_PERIOD_MS / 1000)
                file.write(b".")
                os.fsync(file.fileno())
                stalls.samples.append((due_ms, max(0.0, time.time() * 1000 - due_ms)))

    thread = threading.Thread(target=measure)
    thread.start()
    try:
        yield stalls
    finally:
        ended.set()
        thread.join()
