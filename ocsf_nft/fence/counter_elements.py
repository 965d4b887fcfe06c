"""The elements of a set of counters, as nf_tables tells them.

Layouts and numbers: ``include/uapi/linux/netfilter/nf_tables.h``. There may be tens of thousands of
elements, and nearly always all of a set have their attributes at the same places. So where they are
is found out of one element, and all are taken apart at once when every byte of theirs that is not a
value is the same as in that one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.flow import Element

if TYPE_CHECKING:
    from collections.abc import Iterator

_ATTRIBUTE: Final = struct.Struct("=HH")
_NUMBER: Final = struct.Struct("!Q")
_TYPE_MASK: Final = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER

_NFTA_LIST_ELEM: Final = 1
_NFTA_DATA_VALUE: Final = 1
_NFTA_SET_ELEM_KEY: Final = 1
_NFTA_SET_ELEM_TIMEOUT: Final = 4
_NFTA_SET_ELEM_EXPIRATION: Final = 5
_NFTA_SET_ELEM_EXPR: Final = 7
_NFTA_SET_ELEM_EXPRESSIONS: Final = 11
_NFTA_EXPR_NAME: Final = 1
_NFTA_EXPR_DATA: Final = 2
_NFTA_COUNTER_BYTES: Final = 1
_NFTA_COUNTER_PACKETS: Final = 2
_COUNTER: Final = b"counter\0"


class _Span(NamedTuple):
    """From where to where in a payload an attribute's value is."""

    start: int
    end: int


class _Places(NamedTuple):
    """Where the values of an element begin, and its timeout; ``expiration`` may be missing."""

    key: int
    packets: int
    bytes: int
    expiration: int | None
    timeout_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """How elements look that look like one that was seen.

    ``form`` unpacks one: by turns what is the same in all of them, and a value. ``same`` are the
    former by their column, the others are the columns of the values.
    """

    form: struct.Struct
    same: tuple[tuple[int, bytes], ...]
    key: int
    packets: int
    bytes: int
    expiration: int
    timeout_ms: int


class Elements:
    """Takes a set's elements apart.

    ``key_bytes`` is the length of its keys: what has another, or no counter, is left out.
    ``timeout_ms`` is the set's own timeout, which the kernel doesn't repeat in each element.
    ``seen`` counts all elements, also those that are left out.
    """

    def __init__(self, key_bytes: int, timeout_ms: int) -> None:
        self.seen = 0
        self._key_bytes = key_bytes
        self._timeout_ms = timeout_ms
        self._layout: _Layout | None = None

    def parse(self, payload: memoryview) -> list[Element]:
        """The elements in an NFTA_SET_ELEM_LIST_ELEMENTS; stops at a malformed one."""
        if self._layout is None:
            self._layout = self._learn(payload)
        if self._layout is not None:
            found = _alike(payload, self._layout)
            if found is not None:
                self.seen += len(found)
                return found
            self._layout = None
        return self.parse_each(payload)

    def parse_each(self, payload: memoryview) -> list[Element]:
        """The same, one element after the other."""
        found = []
        for kind, element in _spans(payload, _Span(0, len(payload))):
            if kind != _NFTA_LIST_ELEM:
                continue
            self.seen += 1
            places = self._locate(payload, element)
            if places is not None:
                left = None if places.expiration is None else _number(payload, places.expiration)
                found.append(
                    Element(
                        bytes(payload[places.key : places.key + self._key_bytes]),
                        _number(payload, places.packets),
                        _number(payload, places.bytes),
                        0 if left is None else max(0, places.timeout_ms - left),
                    )
                )
        return found

    def _locate(self, payload: memoryview, element: _Span) -> _Places | None:
        """Where the values are; None without a counter or a key of the right length."""
        parts = dict(_spans(payload, element))
        key = _within(payload, parts.get(_NFTA_SET_ELEM_KEY), _NFTA_DATA_VALUE)
        if key is None or key.end - key.start != self._key_bytes:
            return None
        counter = _counter(payload, parts)
        packets = _wide(_within(payload, counter, _NFTA_COUNTER_PACKETS))
        octets = _wide(_within(payload, counter, _NFTA_COUNTER_BYTES))
        if packets is None or octets is None:
            return None
        timeout = _wide(parts.get(_NFTA_SET_ELEM_TIMEOUT))
        return _Places(
            key=key.start,
            packets=packets,
            bytes=octets,
            expiration=_wide(parts.get(_NFTA_SET_ELEM_EXPIRATION)),
            timeout_ms=self._timeout_ms if timeout is None else _number(payload, timeout),
        )

    def _learn(self, payload: memoryview) -> _Layout | None:
        """The layout of the first element; None when it is not one that is counted and ends."""
        kind, element = next(_spans(payload, _Span(0, len(payload))), (None, _Span(0, 0)))
        places = self._locate(payload, element) if kind == _NFTA_LIST_ELEM else None
        stride = element.end + (-element.end % 4)
        if places is None or places.expiration is None or stride > len(payload):
            return None
        values = sorted((places.key, places.packets, places.bytes, places.expiration))
        form, end = "!", 0
        for place in values:
            size = self._key_bytes if place == places.key else _NUMBER.size
            form += f"{place - end}s" + (f"{size}s" if place == places.key else "Q")
            end = place + size
        unpack = struct.Struct(f"{form}{stride - end}s")
        columns = {place: 2 * number + 1 for number, place in enumerate(values)}
        return _Layout(
            form=unpack,
            same=tuple(enumerate(unpack.unpack(payload[:stride])))[::2],
            key=columns[places.key],
            packets=columns[places.packets],
            bytes=columns[places.bytes],
            expiration=columns[places.expiration],
            timeout_ms=places.timeout_ms,
        )


def _alike(payload: memoryview, layout: _Layout) -> list[Element] | None:
    """The elements when all look like the layout's; None otherwise."""
    number, rest = divmod(len(payload), layout.form.size)
    if rest or not number:
        return None
    columns = list(zip(*layout.form.iter_unpack(payload), strict=True))
    if any(columns[column].count(value) != number for column, value in layout.same):
        return None
    timeout = layout.timeout_ms
    idle = [timeout - left if left < timeout else 0 for left in columns[layout.expiration]]
    counts = columns[layout.packets], columns[layout.bytes]
    return list(map(Element, columns[layout.key], *counts, idle))


def _spans(payload: memoryview, within: _Span) -> Iterator[tuple[int, _Span]]:
    """The attributes in a part of a payload, by type; stops at a malformed one."""
    start, end = within
    while start + _ATTRIBUTE.size <= end:
        length, kind = _ATTRIBUTE.unpack_from(payload, start)
        if length < _ATTRIBUTE.size or start + length > end:
            return
        yield kind & _TYPE_MASK, _Span(start + _ATTRIBUTE.size, start + length)
        start += length + (-length % 4)


def _within(payload: memoryview, nest: _Span | None, wanted: int) -> _Span | None:
    """An attribute inside another: the last of its type."""
    return None if nest is None else dict(_spans(payload, nest)).get(wanted)


def _wide(value: _Span | None) -> int | None:
    """Where a 64-bit number begins; None when it is missing or something else."""
    return None if value is None or value.end - value.start != _NUMBER.size else value.start


def _number(payload: memoryview, start: int) -> int:
    (number,) = _NUMBER.unpack_from(payload, start)
    return int(number)


def _counter(payload: memoryview, parts: dict[int, _Span]) -> _Span | None:
    """The data of an element's counter: its one expression, or the first one of several."""
    several = parts.get(_NFTA_SET_ELEM_EXPRESSIONS)
    expressions = [] if several is None else [span for _, span in _spans(payload, several)]
    if _NFTA_SET_ELEM_EXPR in parts:
        expressions.insert(0, parts[_NFTA_SET_ELEM_EXPR])
    for expression in expressions:
        said = dict(_spans(payload, expression))
        name = said.get(_NFTA_EXPR_NAME)
        if name is not None and bytes(payload[name.start : name.end]) == _COUNTER:
            return said.get(_NFTA_EXPR_DATA)
    return None
