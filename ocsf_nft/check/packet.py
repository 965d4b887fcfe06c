"""Model of a packet at one netfilter hook, with the fields that firewall rules can match.

Some fields are known only in part, for example a source port only as a range. So tests of a field
have the answers yes, no and maybe.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable


class Truth(enum.IntEnum):
    """Truth value of three-valued logic: no, maybe or yes.

    The values are ordered, so ``min`` is the logical *and*, and ``max`` is the logical *or*.
    """

    NO = 0
    MAYBE = 1
    YES = 2

    def inverted(self) -> Truth:
        """Return the logical negation; the negation of MAYBE is MAYBE."""
        return Truth(2 - self)


def any_of(answers: Iterable[Truth]) -> Truth:
    """Return the logical *or* of the answers; answers after the first ``YES`` are not read."""
    found = Truth.NO
    for answer in answers:
        found = max(found, answer)
        if found is Truth.YES:
            break
    return found


class Span(NamedTuple):
    """Number that is known to be between ``low`` and ``high``, both included."""

    low: int
    high: int

    def within(self, other: Span) -> Truth:
        """Return YES if the number is certainly in ``other``, NO if it can't be, else MAYBE."""
        if self.high < other.low or other.high < self.low:
            return Truth.NO
        return Truth.YES if other.low <= self.low and self.high <= other.high else Truth.MAYBE

    @property
    def single(self) -> int | None:
        """Return the number if it is known exactly, otherwise None."""
        return self.low if self.low == self.high else None


def exactly(number: int) -> Span:
    """Return the span that contains only ``number``."""
    return Span(number, number)


PORTS: Final = Span(0, 0xFFFF)
MARKS: Final = Span(0, 0xFFFFFFFF)


class InterfaceName(NamedTuple):
    """Name of a packet's network interface, known completely or in part."""

    #: The name, or only its start if ``is_prefix`` is true; empty if there is no interface.
    text: str
    is_prefix: bool = False
    #: If ``is_prefix`` is true, the name starts with none of these texts.
    excluded_prefixes: tuple[str, ...] = ()

    def equals(self, other: str) -> Truth:
        """Return YES if the interface's name is ``other``, and NO if it is not.

        Return MAYBE if only the start of the name is known, and ``other`` has the same start.
        """
        if not self.is_prefix:
            return Truth.YES if self.text == other else Truth.NO
        if not other.startswith(self.text) or any(map(other.startswith, self.excluded_prefixes)):
            return Truth.NO
        return Truth.MAYBE

    def starts_with(self, start: str) -> Truth:
        """Return YES if the interface's name starts with the text ``start``, and NO if it does not.

        Return MAYBE if the known part of the name is too short to decide.
        """
        if self.text.startswith(start):
            return Truth.YES
        if not self.is_prefix or not start.startswith(self.text):
            return Truth.NO
        return Truth.NO if any(map(start.startswith, self.excluded_prefixes)) else Truth.MAYBE


#: For example, a packet that the host sends has no input interface.
NO_INTERFACE: Final = InterfaceName("")
ANY_INTERFACE: Final = InterfaceName("", is_prefix=True)


def interface(pattern: str) -> InterfaceName:
    """Return the InterfaceName for a name, or for a pattern such as ``vmtap-*``.

    Of a pattern with ``*`` at the end only the start of the name is known.
    """
    return InterfaceName(pattern.removesuffix("*"), is_prefix=pattern.endswith("*"))


class Bits(NamedTuple):
    """Flags of a packet, such as its TCP flags, that are known exactly or only in part.

    ``alternatives`` are all possible sets of flags. If there is only one set, the flags are known
    exactly.
    """

    alternatives: frozenset[frozenset[str]]

    def equals(self, flags: frozenset[str]) -> Truth:
        """Return YES if the packet's flags are ``flags``, NO if they are not, MAYBE if unknown."""
        return self._all(alternative == flags for alternative in self.alternatives)

    def intersects(self, flags: frozenset[str]) -> Truth:
        """Return YES if the packet has at least one of ``flags``, NO if none, MAYBE if unknown."""
        return self._all(bool(alternative & flags) for alternative in self.alternatives)

    def masked(self, flags: frozenset[str]) -> Bits:
        """Return a copy with only those flags that are in ``flags`` (a bitwise *and*)."""
        return Bits(frozenset(alternative & flags for alternative in self.alternatives))

    @staticmethod
    def _all(answers: Iterable[bool]) -> Truth:
        found = set(answers)
        if len(found) > 1:
            return Truth.MAYBE
        return Truth.YES if found == {True} else Truth.NO


def bits(*alternatives: str) -> Bits:
    """Return the flags of a packet that has one flag of ``alternatives``: it is unknown which.

    An empty text in ``alternatives`` means that the packet may have no flag.
    """
    return Bits(frozenset(frozenset({flag} if flag else ()) for flag in alternatives))


TCP: Final = 6
UDP: Final = 17
ICMPV6: Final = 58
#: EtherType of ARP: larger than the number of any protocol of IP.
ARP: Final = 0x0806
ADDRESSES: Final = {4: Span(0, (1 << 32) - 1), 6: Span(0, (1 << 128) - 1)}
NEW: Final = bits("new")
ESTABLISHED: Final = bits("established")
#: State of a packet that connection tracking has not seen yet (nft_ct.c).
UNSEEN: Final = bits("invalid")
UNTRACKED: Final = bits("untracked")
ANY_STATE: Final = bits("new", "established", "invalid", "untracked")
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

    @property
    def is_resolution(self) -> bool:
        """Return true for ARP and IPv6 neighbor discovery, which find link addresses."""
        return self.protocol in {ARP, ICMPV6}

    def joined(self, other: Packet) -> Packet:
        """Return a packet model that covers all packets of this model and of ``other``.

        Use it if a rule may have changed a packet. IP version, protocol, interfaces, direction and
        ``is_first`` must be equal in both.
        """
        if self == other:
            return self
        return replace(
            self,
            source=_span(self.source, other.source),
            destination=_span(self.destination, other.destination),
            source_port=_span(self.source_port, other.source_port),
            destination_port=_span(self.destination_port, other.destination_port),
            mark=self.mark if self.mark == other.mark else MARKS,
            state=Bits(self.state.alternatives | other.state.alternatives),
            is_destination_local=_truth(self.is_destination_local, other.is_destination_local),
            is_source_local=_truth(self.is_source_local, other.is_source_local),
            has_reverse_route=_truth(self.has_reverse_route, other.has_reverse_route),
        )

    def with_any_source(self) -> Packet:
        """Return a copy with unknown source address and port, as after source NAT."""
        return replace(self, source=ADDRESSES[self.version], source_port=PORTS)

    def with_any_addresses(self) -> Packet:
        """Return a copy with unknown addresses and ports: they may have any value."""
        anywhere = ADDRESSES[self.version]
        return replace(self.with_any_source(), destination=anywhere, destination_port=PORTS)

    def untracked(self) -> Packet:
        """Return a copy after the statement ``notrack``.

        If connection tracking has not processed the packet yet, its state becomes ``untracked``.
        Otherwise the statement has no effect.
        """
        states = self.state.alternatives
        if not states & UNSEEN.alternatives:
            return self
        return replace(self, state=Bits(states - UNSEEN.alternatives | UNTRACKED.alternatives))

    def tracked(self) -> Packet:
        """Return a copy after connection tracking has processed the packet.

        Its state becomes ``new`` for the first packet of a flow, and ``established`` for a later
        packet. The state ``untracked`` (after ``notrack``) does not change. Neighbor discovery is
        never tracked (nf_conntrack_proto_icmpv6.c).
        """
        if self.protocol == ICMPV6:
            return replace(self, state=UNTRACKED)
        states = self.state.alternatives & UNTRACKED.alternatives
        if self.state.alternatives != states:
            states |= (NEW if self.is_first else ESTABLISHED).alternatives
        return replace(self, state=Bits(states))


def _span(one: Span, other: Span) -> Span:
    return Span(min(one.low, other.low), max(one.high, other.high))


def _truth(one: Truth, other: Truth) -> Truth:
    return one if one is other else Truth.MAYBE
