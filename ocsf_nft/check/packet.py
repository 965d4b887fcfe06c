"""Model of a packet at one netfilter hook, with the fields that firewall rules can match."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from ocsf_nft.check.ternary import (
    MARKS,
    NO_INTERFACE,
    Bits,
    InterfaceName,
    Span,
    Truth,
    bits,
    exactly,
)

TCP: Final = 6
UDP: Final = 17
ADDRESSES: Final = {4: Span(0, (1 << 32) - 1), 6: Span(0, (1 << 128) - 1)}
NEW: Final = bits("new")
ESTABLISHED: Final = bits("established")
#: State of a packet that connection tracking has not seen yet (nft_ct.c).
UNSEEN: Final = bits("invalid")
UNTRACKED: Final = bits("untracked")
_UNMARKED: Final = exactly(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """Model of a packet at one netfilter hook, with the fields that firewall rules can match.

    If the exact value of a field is unknown, the field covers all possible values.
    """

    version: Literal[4, 6]
    protocol: int
    source: Span
    destination: Span
    source_port: Span
    destination_port: Span
    input_interface: InterfaceName = NO_INTERFACE
    output_interface: InterfaceName = NO_INTERFACE
    mark: Span = _UNMARKED
    state: Bits = NEW
    direction: str = "original"
    #: True for the first packet of a flow.
    is_first: bool = True
    #: YES if the address belongs to the host, MAYBE if unknown.
    is_destination_local: Truth = Truth.NO
    #: YES if the address belongs to the host, MAYBE if unknown.
    is_source_local: Truth = Truth.NO
    #: YES if a route to the source leads through the input interface, MAYBE if unknown.
    has_reverse_route: Truth = Truth.YES

    def joined(self, other: Packet) -> Packet:
        """Return a packet model that covers all packets of this model and of ``other``.

        Use it if a rule may have changed a packet. IP version, protocol, interfaces, direction and
        ``is_first`` must be equal in both.
        """
        if self == other:
            return self
        return Packet(
            version=self.version,
            protocol=self.protocol,
            source=_span(self.source, other.source),
            destination=_span(self.destination, other.destination),
            source_port=_span(self.source_port, other.source_port),
            destination_port=_span(self.destination_port, other.destination_port),
            input_interface=self.input_interface,
            output_interface=self.output_interface,
            mark=self.mark if self.mark == other.mark else MARKS,
            state=Bits(self.state.alternatives | other.state.alternatives),
            direction=self.direction,
            is_first=self.is_first,
            is_destination_local=_truth(self.is_destination_local, other.is_destination_local),
            is_source_local=_truth(self.is_source_local, other.is_source_local),
            has_reverse_route=_truth(self.has_reverse_route, other.has_reverse_route),
        )


def _span(one: Span, other: Span) -> Span:
    return Span(min(one.low, other.low), max(one.high, other.high))


def _truth(one: Truth, other: Truth) -> Truth:
    return one if one is other else Truth.MAYBE
