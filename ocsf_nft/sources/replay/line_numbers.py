"""Numbers of equal lines in a log file: the first one has number 1, the second one number 2."""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict, deque
from typing import Final, Protocol

from ocsf_nft.sources.replay.splitter import ENTRY_START

#: Maximum number of different lines that are counted.
MAX_COUNTED_LINES: Final = 65_536
_NFLOG: Final = b"NFLOG group="
#: Index of a repeated line among the counted lines of a block, and its number.
_REPEATED: Final = struct.Struct("=QQ")


class LineCounter(Protocol):
    """Counter of equal lines."""

    def count_line(self, line: bytes) -> int:
        """Count a line without its end; return its number among equal ones, from 1."""

    def count_lines(self, lines: bytes) -> bytes:
        """Count complete lines; return the numbers for :meth:`use_counted`."""

    def use_counted(self, numbers: bytes) -> None:
        """Use the numbers that another process counted for the next lines."""


def is_counted(line: bytes) -> bool:
    """Return True if the identity of a line's record may be made of its text and its number."""
    if line.startswith(ENTRY_START):  # it is no line
        return False
    return b"IN=" in line or line.startswith((b"{", _NFLOG))


class LineNumbers:
    """Counter of equal lines.

    It counts at most MAX_COUNTED_LINES different lines, and evicts the one that has not occurred
    for longest.
    """

    def __init__(self) -> None:
        self._seen: OrderedDict[bytes, int] = OrderedDict()
        #: After :meth:`use_counted`: the lines that occurred before, and the index of the next one.
        self._repeated: deque[tuple[int, int]] | None = None
        self._index = 0

    def count_line(self, line: bytes) -> int:
        """Count a line without its end; return its number among equal ones, from 1."""
        if self._repeated is not None:
            index, self._index = self._index, self._index + 1
            if self._repeated and self._repeated[0][0] == index:
                return self._repeated.popleft()[1]
            return 1
        digest = hashlib.blake2b(line, digest_size=12).digest()
        number = self._seen.pop(digest, 0) + 1
        self._seen[digest] = number
        if len(self._seen) > MAX_COUNTED_LINES:
            self._seen.popitem(last=False)
        return number

    def count_lines(self, lines: bytes) -> bytes:
        """Count complete lines; return the numbers for :meth:`use_counted`."""
        stripped = (line.rstrip(b"\r") for line in lines.split(b"\n"))
        counted = (
            line for line in stripped if is_counted(line) and not line.startswith(ENTRY_START)
        )
        numbers = enumerate(map(self.count_line, counted))
        return b"".join(_REPEATED.pack(*pair) for pair in numbers if pair[1] > 1)

    def use_counted(self, numbers: bytes) -> None:
        """Use the numbers that another process counted for the next lines."""
        self._repeated = deque(_REPEATED.iter_unpack(numbers))
        self._index = 0
