"""Count of records that the kernel dropped, from their sequence numbers."""

from __future__ import annotations

from typing import Final

_MODULUS: Final = 1 << 32


class Sequence32:
    """State of a 32-bit counter that the kernel increases by one per record, from 0.

    The number of dropped records is known modulo 2**32: a gap of 2**32 records counts as none.
    """

    __slots__ = ("_next",)

    def __init__(self) -> None:
        self._next = 0

    def extended(self, number: int) -> int:
        """Return the full number of the next record, whose low 32 bits are ``number``."""
        return self._next + (number - self._next) % _MODULUS

    def dropped_before(self, number: int) -> int:
        """Return how many records were dropped before record ``number``; advance past it."""
        dropped = (number - self._next) % _MODULUS
        self._next += dropped + 1
        return dropped
