"""Comparison of the frames that interfaces have sent with those that the fence has let through.

A frame can leave a network namespace by a way that passes no hook of the fence, such as an AF_XDP
socket. The kernel counts it with the frames that the interface has sent.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from ocsf_nft.flow import Count

#: Frames that the driver may hold before it counts them as sent: the ring of a veth pair with NAPI
#: (VETH_RING_SIZE in drivers/net/veth.c).
_IN_FLIGHT: Final = Count(256, 256 * 65_536)


class FrameReading(NamedTuple):
    """Reading of the counters of one fence's uplinks.

    The kernel counts a frame as passed first, and then as sent. ``sent`` is read between the two
    readings of passed frames. While frames are sent, it is not exact how many passed until then.
    """

    #: Changes if a counter or an interface was created again.
    epoch: tuple[int, ...]
    #: At most so many frames had passed the fence when ``sent`` was read.
    passed_before: Count
    sent: Count
    #: At least so many had passed.
    passed_after: Count


class FrameBalance:
    """Balance of the frames that the uplinks of one fence have sent without it.

    A frame that has passed may be dropped before it is sent, for example by a queue. So the balance
    can fall, and only its increase shows a frame that the fence has not seen.
    """

    def __init__(self) -> None:
        self._last: FrameReading | None = None
        #: What was sent more than passed so far, at most.
        self._known = Count()
        #: True if a reading without traffic has shown what was sent before the first call.
        self.is_exact = False
        #: True if another process set the counters to zero before the last call.
        self.was_reset = False

    def observe(self, reading: FrameReading) -> Count | None:
        """Return frames that have bypassed the fence since the last call, and their bytes.

        Return None if there are none. No frame of ordinary traffic is returned. A frame that has
        bypassed the fence is returned at the latest after a call without traffic since the call
        before. The pause between two calls has to be long enough for a frame that has passed to be
        sent or dropped. The first call, and a call after a change of the epoch, returns None.
        """
        last, self._last = self._last, reading
        self.was_reset = last is not None and _was_reset(reading, last)
        if last is None or not _follows(reading, last):
            self._known = _sum(_difference(reading.sent, reading.passed_before), _IN_FLIGHT)
            self.is_exact = False
            return None
        unseen = _difference(_difference(reading.sent, reading.passed_after), self._known)
        if unseen.packets > 0:
            self._known = _sum(self._known, unseen)
            return Count(unseen.packets, max(0, unseen.bytes))
        if reading == last:  # nothing is in flight
            self._known = _difference(reading.sent, reading.passed_after)
            self.is_exact = True
        return None


def _follows(reading: FrameReading, last: FrameReading) -> bool:
    """Return True if no counter was created again or reset since ``last``."""
    return (
        reading.epoch == last.epoch
        and reading.sent.packets >= last.sent.packets
        and not _was_reset(reading, last)
    )


def _was_reset(reading: FrameReading, last: FrameReading) -> bool:
    is_smaller = reading.passed_before.packets < last.passed_before.packets
    return is_smaller and reading.epoch == last.epoch


def _sum(one: Count, other: Count) -> Count:
    return Count(one.packets + other.packets, one.bytes + other.bytes)


def _difference(one: Count, other: Count) -> Count:
    return Count(one.packets - other.packets, one.bytes - other.bytes)
