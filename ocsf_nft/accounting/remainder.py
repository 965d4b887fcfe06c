"""What the kernel refused and is in none of its counters: what it forgot before it was read."""

from __future__ import annotations

from collections import deque
from typing import Final

from ocsf_nft.flow import Count

#: Readings that lack the same packets before they are taken for forgotten: one may leave out some
#: elements, and the next one others. At the end, when nothing is refused any more, two.
READINGS: Final = 8
LAST_READINGS: Final = 2


class Remainder:
    """What each of the last readings lacked."""

    def __init__(self) -> None:
        self._lacked: deque[Count] = deque(maxlen=READINGS)

    def add(self, lacked: Count) -> None:
        """Take in what one more reading lacked."""
        self._lacked.append(lacked)

    def beyond(self, packets: int, octets: int, readings: int) -> Count:
        """What so many readings lacked, beyond what is known to be forgotten."""
        if len(self._lacked) < readings:
            return Count()
        least = min(list(self._lacked)[-readings:])
        return Count(max(0, least.packets - packets), least.bytes - octets)
