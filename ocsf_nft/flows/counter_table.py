"""Counters of the flows in one nftables set. Those that are at rest share memory.

A set has up to 16,384 flows, and a host has hundreds of sandboxes. In a burst of new flows, the
kernel logs only some packets. The counters of all other flows become equal: one packet each, in the
same kernel tick, which an event has reported.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.flows.flow_counter import ELEMENT_TIMEOUT_MS, FlowCounter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.flow import Element, Reading

#: Two readings differ by less in the time of one packet, unless they take very long.
_SAME_MS: Final = 1_000


class _AtRest(NamedTuple):
    """Immutable state of a counter without unreported packets; see :class:`FlowCounter`."""

    since_ns: int
    last_ns: int
    seen_packets: int
    seen_bytes: int
    last_ms: int | None
    expires_ms: int | None
    missed: int
    is_shown: bool
    is_aggregated: bool


_STATE: Final = operator.attrgetter(*_AtRest._fields)


class CounterTable:
    """Counters of the flows in one nftables set, by the keys of its elements."""

    def __init__(self) -> None:
        self._counters: dict[bytes, FlowCounter | _AtRest] = {}
        #: Each state of counters that came to rest since :meth:`tidy`, with itself.
        self._shared: dict[_AtRest, _AtRest] = {}

    def __len__(self) -> int:
        """Return the number of counters."""
        return len(self._counters)

    def __iter__(self) -> Iterator[bytes]:
        """Iterate over the keys."""
        return iter(self._counters)

    def __setitem__(self, data: bytes, counter: FlowCounter) -> None:
        """Add a counter."""
        self._counters[data] = counter

    def __delitem__(self, data: bytes) -> None:
        """Remove a counter."""
        del self._counters[data]

    def get(self, data: bytes) -> FlowCounter | None:
        """Return a counter, which may be changed until it may rest; None if there is none."""
        found = self._counters.get(data)
        if isinstance(found, _AtRest):
            found = self._counters[data] = FlowCounter(**found._asdict())
        return found

    def active(self) -> Iterator[FlowCounter]:
        """Iterate over the counters that are not at rest."""
        return (each for each in self._counters.values() if isinstance(each, FlowCounter))

    def tidy(self) -> None:
        """Free memory: counters that rest later share none with those that rest now."""
        self._shared = {}
        if not self._counters:
            self._counters = {}  # an empty dict has the size of its largest content

    def rest(self, data: bytes, read_ns: int) -> None:
        """Let a counter share memory with equal ones, if all its packets are reported.

        Later changes of an object that :meth:`get` has returned before are lost. A reading that
        began at ``read_ns`` or later had the counter, if the counter is shown.
        """
        counter = self._counters.get(data)
        if not isinstance(counter, FlowCounter) or counter.unreported_packets:
            return
        if counter.unreported_bytes or counter.is_unread:
            return
        # A packet that the reading lacked came after the last one, and after the reading began.
        if counter.is_shown:
            counter.since_ns = max(counter.since_ns, min(counter.last_ns, read_ns))
        state = _AtRest._make(_STATE(counter))
        self._counters[data] = self._shared.setdefault(state, state)

    def rests(self, element: Element, reading: Reading) -> bool:
        """Return True if ``reading`` shows nothing new of a counter at rest: the usual case."""
        found = self._counters.get(element.data)
        if not isinstance(found, _AtRest) or not found.is_shown or found.last_ms is None:
            return False
        last_ms = reading.ended_ms - min(element.idle_ms, ELEMENT_TIMEOUT_MS)
        is_same = element.packets == found.seen_packets and element.bytes == found.seen_bytes
        return is_same and last_ms - found.last_ms < _SAME_MS
