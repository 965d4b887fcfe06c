"""Three-valued logic, and models of values that a packet's field may have.

A packet is known only in part. For example, its destination port is known, but its source port is
only known to be an ephemeral one. So the answer to "does a rule match it" is yes, no, or maybe.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable


class Truth(enum.IntEnum):
    """Truth value of three-valued logic: no, maybe or yes; ``min`` is *and*, ``max`` is *or*."""

    NO = 0
    MAYBE = 1
    YES = 2

    def inverted(self) -> Truth:
        """Return the logical negation; that of MAYBE is MAYBE."""
        return Truth(2 - self)


def any_of(answers: Iterable[Truth]) -> Truth:
    """Return the logical *or* of the answers; stop at the first ``YES``."""
    found = Truth.NO
    for answer in answers:
        found = max(found, answer)
        if found is Truth.YES:
            break
    return found


class Span(NamedTuple):
    """Number that is known only to lie between two bounds, both included."""

    low: int
    high: int

    def within(self, other: Span) -> Truth:
        """Return YES, NO or MAYBE: whether the number also lies in another span."""
        if self.high < other.low or other.high < self.low:
            return Truth.NO
        return Truth.YES if other.low <= self.low and self.high <= other.high else Truth.MAYBE

    @property
    def single(self) -> int | None:
        """Return the number, if only one is possible; otherwise None."""
        return self.low if self.low == self.high else None


def exactly(number: int) -> Span:
    """Return the span that contains only one known number."""
    return Span(number, number)


PORTS: Final = Span(0, 0xFFFF)
MARKS: Final = Span(0, 0xFFFFFFFF)


class InterfaceName(NamedTuple):
    """Name of an interface, known completely or in part.

    ``text`` is the whole name, or its first characters if ``is_prefix``. The name then starts with
    none of ``excluded_prefixes``. The empty name means that the packet has no such interface, as in
    the kernel.
    """

    text: str
    is_prefix: bool = False
    excluded_prefixes: tuple[str, ...] = ()

    def equals(self, other: str) -> Truth:
        """Return YES, NO or MAYBE: whether the interface's name is ``other``."""
        if not self.is_prefix:
            return Truth.YES if self.text == other else Truth.NO
        if not other.startswith(self.text) or any(map(other.startswith, self.excluded_prefixes)):
            return Truth.NO
        return Truth.MAYBE

    def starts_with(self, start: str) -> Truth:
        """Return YES, NO or MAYBE: whether the interface's name starts with these characters."""
        if self.text.startswith(start):
            return Truth.YES
        if not self.is_prefix or not start.startswith(self.text):
            return Truth.NO
        return Truth.NO if any(map(start.startswith, self.excluded_prefixes)) else Truth.MAYBE


NO_INTERFACE: Final = InterfaceName("")


def interface(pattern: str) -> InterfaceName:
    """Return the model of an interface's name; ``pattern`` is the name, or its start and ``*``."""
    return (
        InterfaceName(pattern[:-1], is_prefix=True)
        if pattern.endswith("*")
        else InterfaceName(pattern)
    )


class Bits(NamedTuple):
    """Flags of a packet, such as its TCP flags, as all combinations that are possible."""

    alternatives: frozenset[frozenset[str]]

    def equals(self, flags: frozenset[str]) -> Truth:
        """Return YES, NO or MAYBE: whether exactly the given flags are set."""
        return self._all(alternative == flags for alternative in self.alternatives)

    def intersects(self, flags: frozenset[str]) -> Truth:
        """Return YES, NO or MAYBE: whether at least one of the given flags is set."""
        return self._all(bool(alternative & flags) for alternative in self.alternatives)

    def masked(self, flags: frozenset[str]) -> Bits:
        """Return the flags after a bitwise *and* with the given flags."""
        return Bits(frozenset(alternative & flags for alternative in self.alternatives))

    @staticmethod
    def _all(answers: Iterable[bool]) -> Truth:
        found = set(answers)
        if len(found) > 1:
            return Truth.MAYBE
        return Truth.YES if found == {True} else Truth.NO


def bits(*alternatives: str) -> Bits:
    """Return flags of which exactly one is set, but it may be any of ``alternatives``.

    An empty name means that none is set.
    """
    return Bits(frozenset(frozenset({flag} if flag else ()) for flag in alternatives))
