"""Three-valued logic, and models of a packet's fields that are known only in part.

For example, a source port may be known only as a range. So tests have the answers yes, no and
maybe.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, NamedTuple

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
        """Return YES if this span, the range of an unknown number, is completely inside ``other``.

        Return NO if the two spans have no number in common. Otherwise return MAYBE: the unknown
        number may be in ``other``.
        """
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


def interface(pattern: str) -> InterfaceName:
    """Convert an interface's name, or a pattern such as ``vmtap-*``, to an InterfaceName.

    The pattern ``vmtap-*`` means that only the start of the name, ``vmtap-``, is known. A pattern
    without ``*`` at the end is the whole name.
    """
    return (
        InterfaceName(pattern[:-1], is_prefix=True)
        if pattern.endswith("*")
        else InterfaceName(pattern)
    )


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
    """Return a Bits object for a packet that has at most one flag.

    ``alternatives`` are the flags that the packet may have. For example, ``bits("new",
    "established")`` means that the packet has one of these two flags, but it is unknown which. An
    empty text in ``alternatives`` means that the packet may have no flag.
    """
    return Bits(frozenset(frozenset({flag} if flag else ()) for flag in alternatives))
