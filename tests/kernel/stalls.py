"""How long this machine does nothing for a program that wants a moment of it, and of its disk."""

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
    """When each look at the clock was to be made (ms since the epoch), and how late it was."""

    looks: list[tuple[float, float]] = field(default_factory=list)

    def worst_ms(self, from_ms: float, to_ms: float) -> float:
        """The longest of those that were on at a time."""
        return max(
            (late for at, late in self.looks if at <= to_ms and at + late >= from_ms), default=0
        )


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[Stalls]:
    """Look in a thread, which writes a byte to the disk of the folder each time it wakes up."""
    stalls, ended = Stalls(), threading.Event()

    def look() -> None:
        with (folder / "stalls").open("wb", buffering=0) as file:
            while not ended.is_set():
                due_ms = time.time() * 1000 + _PERIOD_MS
                ended.wait(_PERIOD_MS / 1000)
                file.write(b".")
                os.fsync(file.fileno())
                stalls.looks.append((due_ms, max(0.0, time.time() * 1000 - due_ms)))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield stalls
    finally:
        ended.set()
        looking.join()
