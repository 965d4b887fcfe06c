"""Splitters of seeds into parts, such as netlink attributes: a mutation changes a whole part."""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Length and type of a netlink attribute; length of a netlink message.
_ATTRIBUTE: Final = struct.Struct("=HH")
_MESSAGE: Final = struct.Struct("=I")
_MESSAGE_HEADER: Final = 16
_DEPTH: Final = 8

_JSON_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}:,]|[^\s\[\]{}:,"]+', re.DOTALL)
_WORD: Final = re.compile(rb"[A-Za-z0-9_.:/@%+-]+|\S")
_FIELD: Final = re.compile(rb"\S+[ \t]?")
_LINE: Final = re.compile(rb"[^\n]+\n?|\n")
_MOST_PARTS: Final = 512


class LengthField(NamedTuple):
    """Field with a length in native byte order, of ``size`` bytes, at an offset."""

    at: int
    size: int


class Part(NamedTuple):
    """Part of a seed, from ``start`` to ``end``, and the length fields that count its bytes.

    ``is_item`` is True for a member or an item of JSON with its comma: a value in its place would
    be no JSON.
    """

    start: int
    end: int
    lengths: tuple[LengthField, ...] = ()
    is_item: bool = False


def none(_data: bytes) -> list[Part]:
    """Return no parts: for input without a structure."""
    return []


def words(data: bytes) -> list[Part]:
    """Return the words of a text, and its fields with the space after each."""
    found = [Part(*match.span()) for match in _WORD.finditer(data)]
    found += [Part(*match.span()) for match in _FIELD.finditer(data)]
    return found[:_MOST_PARTS]


def lines(data: bytes) -> list[Part]:
    """Return the lines of a text, and the words in them."""
    found = [Part(*match.span()) for match in _LINE.finditer(data)]
    return (found + words(data))[:_MOST_PARTS]


def json_values(data: bytes) -> list[Part]:
    """Return the values of a JSON text, and each member or item with the comma after it."""
    found: list[Part] = []
    #: Start of each open object or array, and of the member or item in it.
    opened: list[int] = []
    items: list[int] = [-1]
    for match in _JSON_TOKEN.finditer(data):
        token = match[0]
        start, end = match.span()
        if token in {b",", b"]", b"}"} and items[-1] >= 0:
            stop = end if token == b"," else start
            found.append(Part(items[-1], stop, is_item=True))
            items[-1] = -1
        if token in {b"{", b"["}:
            if items[-1] < 0:
                items[-1] = start
            opened.append(start)
            items.append(-1)
        elif token in {b"}", b"]"}:
            if opened:
                found.append(Part(opened.pop(), end))
                items.pop()
        elif token not in {b":", b","}:
            if items[-1] < 0:
                items[-1] = start
            found.append(Part(start, end))
    return found[:_MOST_PARTS]


def netlink_messages(data: bytes, fixed: int = 4, at: int = 0) -> list[Part]:
    """Return the messages of a datagram and their attributes, at any depth.

    ``fixed`` is the size of the header after that of netlink. The datagram begins at ``at``.
    """
    found: list[Part] = []
    start = at
    while start + _MESSAGE_HEADER <= len(data):
        (length,) = _MESSAGE.unpack_from(data, start)
        if length < _MESSAGE_HEADER or start + length > len(data):
            break
        end = start + length
        found.append(Part(start, end + -length % 4))
        lengths = (LengthField(start, 4),)
        found += _attributes(data, start + _MESSAGE_HEADER + fixed, end, lengths, _DEPTH)
        start = end + -length % 4
    return found[:_MOST_PARTS]


def netlink_attributes(data: bytes, fixed: int = 0) -> list[Part]:
    """Return the netlink attributes after a header of ``fixed`` bytes, at any depth."""
    return list(_attributes(data, fixed, len(data), (), _DEPTH))[:_MOST_PARTS]


def _attributes(
    data: bytes, start: int, end: int, lengths: tuple[LengthField, ...], depth: int
) -> Iterator[Part]:
    while start + _ATTRIBUTE.size <= end:
        length, _ = _ATTRIBUTE.unpack_from(data, start)
        if length < _ATTRIBUTE.size or start + length > end:
            return
        stop = start + length
        padded = min(stop + -length % 4, end)
        inner = (*lengths, LengthField(start, 2))
        yield Part(start, padded, lengths)
        yield Part(start + _ATTRIBUTE.size, stop, inner)
        if depth:
            yield from _attributes(data, start + _ATTRIBUTE.size, stop, inner, depth - 1)
        start = stop + -length % 4


def dns_labels(data: bytes, at: int = 12) -> list[Part]:
    """Return the labels of the name at an offset of a DNS message, each with its length."""
    found = []
    while at < len(data) and data[at]:
        end = min(len(data), at + 1 + data[at])
        found.append(Part(at, end))
        at = end
    return found[:_MOST_PARTS]
