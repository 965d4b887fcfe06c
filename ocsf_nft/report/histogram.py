"""Counts of packets over time, in a bounded number of equal intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Maximum number of intervals.
INTERVALS: Final = 96
_FIRST_WIDTH_MS: Final = 1000


@dataclass(frozen=True, slots=True)
class Histogram:
    """Numbers of blocked and of allowed packets in each interval; empty without packets."""

    start_ms: int = 0
    width_ms: int = _FIRST_WIDTH_MS
    bars: tuple[tuple[int, int], ...] = ()

    @property
    def end_ms(self) -> int:
        """Return the end of the last interval in ms since the epoch."""
        return self.start_ms + self.width_ms * len(self.bars)


class HistogramBuilder:
    """Counter of packets by time; the intervals grow so that their number stays bounded."""

    def __init__(self) -> None:
        self._width = _FIRST_WIDTH_MS
        self._bars: dict[int, tuple[int, int]] = {}
        self._first = self._last = 0

    def add(self, time_ms: int, blocked: int, allowed: int) -> None:
        """Add packets at a time in ms since the epoch."""
        index = time_ms // self._width
        if not self._bars:
            self._first = self._last = index
        self._first, self._last = min(self._first, index), max(self._last, index)
        self._put(index, (blocked, allowed))
        while self._last - self._first >= INTERVALS:
            self._double()

    def histogram(self) -> Histogram:
        """Return the counts of all intervals from the first packet to the last one."""
        if not self._bars:
            return Histogram()
        indexes = range(self._first, self._last + 1)
        bars = tuple(self._bars.get(index, (0, 0)) for index in indexes)
        return Histogram(self._first * self._width, self._width, bars)

    def _double(self) -> None:
        bars, self._bars = self._bars, {}
        self._width *= 2
        self._first, self._last = self._first // 2, self._last // 2
        for index, bar in bars.items():
            self._put(index // 2, bar)

    def _put(self, index: int, bar: tuple[int, int]) -> None:
        blocked, allowed = self._bars.get(index, (0, 0))
        self._bars[index] = blocked + bar[0], allowed + bar[1]
