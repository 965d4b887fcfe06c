"""Checksums of stored values, since SQLite does not notice a changed byte on the disk."""

from __future__ import annotations

import struct
from typing import Final
from zlib import crc32

_SUM: Final = struct.Struct("<I")


def seal(value: bytes, *keys: bytes) -> bytes:
    """Return a value with a checksum of it, and of the keys under which it is stored."""
    return _SUM.pack(_sum(value, keys)) + value


def unseal(sealed: bytes, *keys: bytes) -> bytes:
    """Return the value that was sealed with these keys; raises ValueError if it is damaged."""
    value = sealed[_SUM.size :]
    if sealed[: _SUM.size] != _SUM.pack(_sum(value, keys)):
        raise ValueError("wrong checksum")
    return value


def _sum(value: bytes, keys: tuple[bytes, ...]) -> int:
    found = 0
    for each in (*keys, value):
        found = crc32(each, found)
    return found
