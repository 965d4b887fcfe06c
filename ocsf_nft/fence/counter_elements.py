"""Decoding of the elements of a counting set, as nf_tables sends them.

Layouts and numbers: ``include/uapi/linux/netfilter/nf_tables.h``. There may be tens of thousands of
elements. Nearly always all elements of a set have their attributes at the same offsets. So one
element is decoded in full to find the offsets. All are decoded at once if every byte that is not a
value equals that of this element.
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
    """Start and end of an attribute's value in a payload."""

    start: int
    end: int


class _Offsets(NamedTuple):
    """Offsets of an element's values, and its timeout; ``expiration`` may be missing."""

    key: int
    packets: int
    bytes: int
    expiration: int | None
    timeout_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """Layout of elements that have the same form as a decoded one.

    ``form`` unpacks one element: constant bytes and values in turn. ``same`` are the constant bytes
    by their column; the other attributes are the columns of the values.
    """

    form: struct.Struct
    same: tuple[tuple[int, bytes], ...]
    key: int
    packets: int
    bytes: int
    expiration: int
    timeout_ms: int


class ElementParser:
    """Parser of a set's elements.

    ``key_bytes`` is the length of its keys: elements with another length, or without a counter, are
    ignored. ``timeout_ms`` is the timeout of the set, which the kernel doesn't repeat in each
    element. ``seen`` counts all elements, including the ignored ones.
    """

    def __init__(self, key_bytes: int, timeout_ms: int) -> None:
        self.seen = 0
        self._key_bytes = key_bytes
        self._timeout_ms = timeout_ms
        self._layout: _Layout | None = None

    def parse(self, payload: memoryview) -> list[Element]:
        """Return the elements in an NFTA_SET_ELEM_LIST_ELEMENTS; stops at a malformed one."""
        if self._layout is None:
            self._layout = self._find_layout(payload)
        if self._layout is not None:
            found = _parse_uniform(payload, self._layout)
            if found is not None:
                self.seen += len(found)
                return found
            self._layout = None
        return self.parse_one_by_one(payload)

    def parse_one_by_one(self, payload: memoryview) -> list[Element]:
        """Return the same elements, decoded one by one."""
        found = []
        for kind, element in _spans(payload, _Span(0, len(payload))):
            if kind != _NFTA_LIST_ELEM:
                continue
            self.seen += 1
            offsets = self._locate(payload, element)
            if offsets is not None:
                left = None if offsets.expiration is None else _number(payload, offsets.expiration)
                found.append(
                    Element(
                        bytes(payload[offsets.key : offsets.key + self._key_bytes]),
                        _number(payload, offsets.packets),
                        _number(payload, offsets.bytes),
                        0 if left is None else max(0, offsets.timeout_ms - left),
                    )
                )
        return found

    def _locate(self, payload: memoryview, element: _Span) -> _Offsets | None:
        """Return the offsets of the values; None without a counter or a key of the right length."""
        parts = dict(_spans(payload, element))
        key = _nested(payload, parts.get(_NFTA_SET_ELEM_KEY), _NFTA_DATA_VALUE)
        if key is None or key.end - key.start != self._key_bytes:
            return None
        counter = _counter(payload, parts)
        packets = _offset64(_nested(payload, counter, _NFTA_COUNTER_PACKETS))
        octets = _offset64(_nested(payload, counter, _NFTA_COUNTER_BYTES))
        if packets is None or octets is None:
            return None
        timeout = _offset64(parts.get(_NFTA_SET_ELEM_TIMEOUT))
        return _Offsets(
            key=key.start,
            packets=packets,
            bytes=octets,
            expiration=_offset64(parts.get(_NFTA_SET_ELEM_EXPIRATION)),
            timeout_ms=self._timeout_ms if timeout is None else _number(payload, timeout),
        )

    def _find_layout(self, payload: memoryview) -> _Layout | None:
        """Return the layout of the first element; None if it is incomplete or has no counter."""
        kind, element = next(_spans(payload, _Span(0, len(payload))), (None, _Span(0, 0)))
        offsets = self._locate(payload, element) if kind == _NFTA_LIST_ELEM else None
        stride = element.end + (-element.end % 4)
        if offsets is None or offsets.expiration is None or stride > len(payload):
            return None
        values = sorted((offsets.key, offsets.packets, offsets.bytes, offsets.expiration))
        form, end = "!", 0
        for offset in values:
            size = self._key_bytes if offset == offsets.key else _NUMBER.size
            form += f"{offset - end}s" + (f"{size}s" if offset == offsets.key else "Q")
            end = offset + size
        unpack = struct.Struct(f"{form}{stride - end}s")
        columns = {offset: 2 * number + 1 for number, offset in enumerate(values)}
        return _Layout(
            form=unpack,
            same=tuple(enumerate(unpack.unpack(payload[:stride])))[::2],
            key=columns[offsets.key],
            packets=columns[offsets.packets],
            bytes=columns[offsets.bytes],
            expiration=columns[offsets.expiration],
            timeout_ms=offsets.timeout_ms,
        )


def _parse_uniform(payload: memoryview, layout: _Layout) -> list[Element] | None:
    """Return the elements if all have the given layout; None otherwise."""
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
    """Yield the attributes in a part of a payload, by type; stops at a malformed one."""
    start, end = within
    while start + _ATTRIBUTE.size <= end:
        length, kind = _ATTRIBUTE.unpack_from(payload, start)
        if length < _ATTRIBUTE.size or start + length > end:
            return
        yield kind & _TYPE_MASK, _Span(start + _ATTRIBUTE.size, start + length)
        start += length + (-length % 4)


def _nested(payload: memoryview, nest: _Span | None, kind: int) -> _Span | None:
    """Return an attribute inside another; if its type occurs several times, the last."""
    return None if nest is None else dict(_spans(payload, nest)).get(kind)


def _offset64(value: _Span | None) -> int | None:
    """Return the offset of a 64-bit number; None if it is missing or has another length."""
    return None if value is None or value.end - value.start != _NUMBER.size else value.start


def _number(payload: memoryview, start: int) -> int:
    (number,) = _NUMBER.unpack_from(payload, start)
    return int(number)


def _counter(payload: memoryview, parts: dict[int, _Span]) -> _Span | None:
    """Return the data of an element's counter: its only expression, or the first of several."""
    expression_list = parts.get(_NFTA_SET_ELEM_EXPRESSIONS)
    expressions = (
        [] if expression_list is None else [span for _, span in _spans(payload, expression_list)]
    )
    if _NFTA_SET_ELEM_EXPR in parts:
        expressions.insert(0, parts[_NFTA_SET_ELEM_EXPR])
    for expression in expressions:
        attributes = dict(_spans(payload, expression))
        name = attributes.get(_NFTA_EXPR_NAME)
        if name is not None and bytes(payload[name.start : name.end]) == _COUNTER:
            return attributes.get(_NFTA_EXPR_DATA)
    return None
