"""Count of the NFLOG records that the kernel dropped, from gaps in the sequence numbers."""

from __future__ import annotations

from typing import Final

_MODULUS: Final = 1 << 32


class Sequence32:
    """Tracker of the kernel's 32-bit sequence number, which grows by one for each record, from 0.

    A gap of exactly 2**32 records is not detected.
    """

    __slots__ = ("_next",)

    def __init__(self) -> None:
        self._next = 0

    def extended(self, number: int) -> int:
        """Return the sequence number of a new record without the limit of 32 bits.

        ``number`` is the record's 32-bit sequence number, which starts again from 0 after 2**32
        records. Call this method before :meth:`dropped_before` for the same record.
        """
        return self._next + (number - self._next) % _MODULUS

    def dropped_before(self, number: int) -> int:
        """Return how many records were dropped between the previous record and this record.

        ``number`` is the 32-bit sequence number of this record. Call this once for each record, in
        order.
        """
        dropped = (number - self._next) % _MODULUS
        self._next += dropped + 1
        return dropped
