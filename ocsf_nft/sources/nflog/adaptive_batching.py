"""Choice of the NFLOG batching: how the kernel collects log records into datagrams.

With few records, a low latency is preferred. In a flood of records, a high throughput is preferred.
"""

from __future__ import annotations

from typing import Final

from ocsf_nft.sources.nflog.group_binding import CALM, FLOOD, Batching

#: A flood begins at 400 records within 0.1 s (4,000/s). It ends below 1,000 within a second.
_RISE_RECORDS: Final = 400
_RISE_NS: Final = 100_000_000
_FALL_RECORDS: Final = 1_000
_FALL_NS: Final = 1_000_000_000


class AdaptiveBatching:
    """Choice between two kernel settings for NFLOG batching, by the rate of log records.

    ``batching`` is the present setting: CALM at the start and for few records, otherwise FLOOD.
    """

    __slots__ = ("_count", "_since_ns", "batching")

    def __init__(self, now_ns: int) -> None:
        self.batching: Batching = CALM
        self._since_ns = now_ns
        self._count = 0

    def observe(self, records: int, now_ns: int) -> bool:
        """Count new log records, and update ``batching``; return true if ``batching`` has changed.

        ``records`` is the number of log records since the last call. ``now_ns`` is the current time
        of a monotonic clock.
        """
        elapsed = now_ns - self._since_ns
        if self.batching is FLOOD:
            self._count += records
            if elapsed < _FALL_NS:
                return False
            ended = self._count < _FALL_RECORDS
            self._begin(FLOOD if not ended else CALM, now_ns)
            return ended
        if elapsed > _RISE_NS:
            self._begin(CALM, now_ns)
        self._count += records
        if self._count < _RISE_RECORDS:
            return False
        self._begin(FLOOD, now_ns)
        return True

    def _begin(self, batching: Batching, now_ns: int) -> None:
        self.batching = batching
        self._since_ns = now_ns
        self._count = 0
