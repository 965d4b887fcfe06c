"""Counting what a numbered transport lost."""

from __future__ import annotations

from typing import Final

_MODULUS: Final = 1 << 32


class Sequence32:
    """Follows a 32-bit counter that the kernel increases by one per record, from 0.

    Losses are taken modulo 2**32: four thousand million records lost in one go count as none.
    """

    __slots__ = ("_next",)

    def __init__(self) -> None:
        self._next = 0

    def extended(self, number: int) -> int:
        """The record's number counted on beyond 32 bits, were it the next one."""
        return self._next + (number - self._next) % _MODULUS

    def lost_before(self, number: int) -> int:
        """How many records were skipped just before the record ``number``; moves past it."""
        lost = (number - self._next) % _MODULUS
        self._next += lost + 1
        return lost
