"""Three-valued answers, and the values that a packet may have.

A packet of a flow is known in part: its destination's port, say, and of its own only that it is
high. So a rule matches it, doesn't, or that can't be told.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable


class Truth(enum.IntEnum):
    """Whether something is so; ``min`` is *and*, ``max`` is *or*."""

    NO = 0
    MAYBE = 1
    YES = 2

    def inverted(self) -> Truth:
        """Whether it is not so."""
        return Truth(2 - self)


def any_of(answers: Iterable[Truth]) -> Truth:
    """Whether one of them is so; stops at the first that is."""
    found = Truth.NO
    for answer in answers:
        found = max(found, answer)
        if found is Truth.YES:
            break
    return found


class Span(NamedTuple):
    """A number that is somewhere between two, both included."""

    low: int
    high: int

    def within(self, other: Span) -> Truth:
        """Whether the number is also in another span."""
        if self.high < other.low or other.high < self.low:
            return Truth.NO
        return Truth.YES if other.low <= self.low and self.high <= other.high else Truth.MAYBE

    @property
    def single(self) -> int | None:
        """The number, where there is no doubt."""
        return self.low if self.low == self.high else None


def exactly(number: int) -> Span:
    """A number that is known."""
    return Span(number, number)


PORTS: Final = Span(0, 0xFFFF)
MARKS: Final = Span(0, 0xFFFFFFFF)


class Name(NamedTuple):
    """An interface's name: known, or only how it starts, or only how it doesn't.

    An interface that isn't there has the empty name, as the kernel gives it.
    """

    text: str
    is_start: bool = False
    unlike: tuple[str, ...] = ()

    def equals(self, other: str) -> Truth:
        """Whether it is that one."""
        if not self.is_start:
            return Truth.YES if self.text == other else Truth.NO
        if not other.startswith(self.text) or any(map(other.startswith, self.unlike)):
            return Truth.NO
        return Truth.MAYBE

    def starts_with(self, start: str) -> Truth:
        """Whether it starts so."""
        if self.text.startswith(start):
            return Truth.YES
        if not self.is_start or not start.startswith(self.text):
            return Truth.NO
        return Truth.NO if any(map(start.startswith, self.unlike)) else Truth.MAYBE


NOWHERE: Final = Name("")


def interface(pattern: str) -> Name:
    """The interface of a name, or of a pattern that ends with ``*``."""
    return Name(pattern[:-1], is_start=True) if pattern.endswith("*") else Name(pattern)


class Bits(NamedTuple):
    """Flags of which some are set: all the ways in which they may be."""

    alternatives: frozenset[frozenset[str]]

    def equal(self, flags: frozenset[str]) -> Truth:
        """Whether these are set, and no others."""
        return self._all(alternative == flags for alternative in self.alternatives)

    def meet(self, flags: frozenset[str]) -> Truth:
        """Whether one of these is set."""
        return self._all(bool(alternative & flags) for alternative in self.alternatives)

    def masked(self, flags: frozenset[str]) -> Bits:
        """What is left of them under a mask."""
        return Bits(frozenset(alternative & flags for alternative in self.alternatives))

    @staticmethod
    def _all(answers: Iterable[bool]) -> Truth:
        found = set(answers)
        if len(found) > 1:
            return Truth.MAYBE
        return Truth.YES if found == {True} else Truth.NO


def bits(*alternatives: str) -> Bits:
    """Flags that are set one at a time: the one or the other; the empty one is none."""
    return Bits(frozenset(frozenset({flag} if flag else ()) for flag in alternatives))
