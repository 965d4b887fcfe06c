"""How long this machine does nothing for a program that wants a moment of it, and of its disk."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PERIOD_SECONDS = 0.02


@dataclass
class Stalls:
    worst_ms: float = 0.0


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[Stalls]:
    """Look in a thread, which writes a byte to the disk of the folder each time it wakes up."""
    stalls, ended = Stalls(), threading.Event()

    def look() -> None:
        with (folder / "stalls").open("wb", buffering=0) as file:
            while not ended.is_set():
                began = time.monotonic()
                ended.wait(_PERIOD_SECONDS)
                file.write(b".")
                os.fsync(file.fileno())
                late = time.monotonic() - began - _PERIOD_SECONDS
                stalls.worst_ms = max(stalls.worst_ms, late * 1000)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield stalls
    finally:
        ended.set()
        looking.join()
