"""A packet of a flow, at one hook: all that is known about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from ocsf_nft.check.ternary import MARKS, NOWHERE, Bits, Name, Span, Truth, bits, exactly

TCP: Final = 6
UDP: Final = 17
ADDRESSES: Final = {4: Span(0, (1 << 32) - 1), 6: Span(0, (1 << 128) - 1)}
NEW: Final = bits("new")
ESTABLISHED: Final = bits("established")
#: What a packet's state is before connection tracking has seen it (nft_ct.c).
UNSEEN: Final = bits("invalid")
UNTRACKED: Final = bits("untracked")
_UNMARKED: Final = exactly(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """What a rule can see of a packet; a whole span is what isn't known.

    ``is_local`` tells whether the destination is the host's own address, ``comes_from_here``
    whether the source is. ``has_way_back`` tells whether a route leads to its source by the
    interface that it came in by. ``is_first``: it begins a flow; what follows is ``ESTABLISHED``.
    """

    version: Literal[4, 6]
    protocol: int
    source: Span
    destination: Span
    source_port: Span
    destination_port: Span
    came_by: Name = NOWHERE
    leaves_by: Name = NOWHERE
    mark: Span = _UNMARKED
    state: Bits = NEW
    direction: str = "original"
    is_first: bool = True
    is_local: Truth = Truth.NO
    comes_from_here: Truth = Truth.NO
    has_way_back: Truth = Truth.YES

    def joined(self, other: Packet) -> Packet:
        """What is known when it is the one or the other of two that rules may have altered."""
        if self == other:
            return self
        return Packet(
            version=self.version,
            protocol=self.protocol,
            source=_span(self.source, other.source),
            destination=_span(self.destination, other.destination),
            source_port=_span(self.source_port, other.source_port),
            destination_port=_span(self.destination_port, other.destination_port),
            came_by=self.came_by,
            leaves_by=self.leaves_by,
            mark=self.mark if self.mark == other.mark else MARKS,
            state=Bits(self.state.alternatives | other.state.alternatives),
            direction=self.direction,
            is_first=self.is_first,
            is_local=_truth(self.is_local, other.is_local),
            comes_from_here=_truth(self.comes_from_here, other.comes_from_here),
            has_way_back=_truth(self.has_way_back, other.has_way_back),
        )


def _span(one: Span, other: Span) -> Span:
    return Span(min(one.low, other.low), max(one.high, other.high))


def _truth(one: Truth, other: Truth) -> Truth:
    return one if one is other else Truth.MAYBE
