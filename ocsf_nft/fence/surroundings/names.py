"""Texts of untrusted names from netlink messages."""

from __future__ import annotations

import re
import struct
from typing import Final

_U32: Final = struct.Struct("=I")
_MOST_SHOWN: Final = 64
#: Names as nft(8) accepts them. By netlink, a process may give any other one.
_PLAIN: Final = re.compile(r"[\w/.\\-]{1,64}", re.ASCII)


def text(value: bytes | memoryview) -> str:
    """Return a name, with an escape for each byte that is not UTF-8."""
    return raw(value).decode("utf-8", "backslashreplace")


def shown(name: str) -> str:
    """Return a name for a sentence: cut if it is long, and in quotes unless it is a plain word.

    Otherwise a name could be taken for a part of the sentence.
    """
    if _PLAIN.fullmatch(name):
        return name
    cut = name if len(name) <= _MOST_SHOWN else f"{name[: _MOST_SHOWN - 1]}…"
    return '"' + cut.replace('"', "'") + '"'


def raw(value: bytes | memoryview) -> bytes:
    """Return the bytes of a name, which need not be UTF-8."""
    return bytes(value).split(b"\0", 1)[0]


def number(value: bytes | memoryview | None) -> int:
    """Return a number of 32 bits in the byte order of the machine; 0 if it is missing."""
    return 0 if value is None or len(value) != _U32.size else int(_U32.unpack(value)[0])
