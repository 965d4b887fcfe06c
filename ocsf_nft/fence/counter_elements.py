"""Decoder for the elements of an nftables set with counters, as the kernel sends them.

Each element has a flow as its key, and counts the packets and bytes of that flow.
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

# include/uapi/linux/netfilter/nf_tables.h
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
    """Start and end offset of a netlink attribute's value in a payload."""

    start: int
    end: int


class _Offsets(NamedTuple):
    """Byte offsets of one set element's values in a netlink payload.

    ``expiration`` is None if the element does not expire. ``timeout_ms`` is not an offset, but the
    timeout itself.
    """

    key: int
    packets: int
    bytes: int
    expiration: int | None
    timeout_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """Byte layout that elements of an nftables set have in common, in a netlink message.

    Such elements differ only in four values: key, packets, bytes and expiration. The bytes around
    these values are constant.
    """

    #: Splits an element into the columns 0 to 8. Columns 1, 3, 5 and 7 are the values.
    form: struct.Struct
    #: Number and constant bytes of each even column.
    same: tuple[tuple[int, bytes], ...]
    #: Column numbers of the values.
    key: int
    packets: int
    bytes: int
    expiration: int
    #: Timeout of each element.
    timeout_ms: int


class ElementParser:
    """Parser for the elements of one nftables set that counts packets by flow.

    Elements without a counter, or with a key of another length than ``key_bytes``, are ignored.
    ``timeout_ms`` is the timeout of each element for which the kernel sends no timeout.
    """

    def __init__(self, key_bytes: int, timeout_ms: int) -> None:
        #: Number of all parsed elements, including the ignored ones.
        self.seen = 0
        self._key_bytes = key_bytes
        self._timeout_ms = timeout_ms
        self._layout: _Layout | None = None

    def parse(self, payload: memoryview) -> list[Element]:
        """Return the elements in ``payload``, the value of NFTA_SET_ELEM_LIST_ELEMENTS.

        If an element has an invalid length, only the elements before it are returned.
        """
        # A set may have tens of thousands of elements: those of the same layout are decoded
        # together.
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
        """Return the elements of an nftables set in a netlink payload, decoded one at a time.

        :meth:`parse` has the same result, and is faster if all elements have the same byte layout.
        """
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
        """Return the offsets of an element's values; None if this parser ignores the element."""
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
        """Return the byte layout of the first set element in the payload.

        Return None if this element does not expire, is truncated, or is ignored by this parser.
        """
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
    """Decode all elements of a payload at once, with the given layout.

    Return None if the payload is empty, or if an element has another layout.
    """
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
    """Yield the type and the value span of each netlink attribute in a part of a payload.

    ``within`` is the span of this part. A malformed attribute ends the iteration.
    """
    start, end = within
    while start + _ATTRIBUTE.size <= end:
        length, kind = _ATTRIBUTE.unpack_from(payload, start)
        if length < _ATTRIBUTE.size or start + length > end:
            return
        yield kind & _TYPE_MASK, _Span(start + _ATTRIBUTE.size, start + length)
        start += length + (-length % 4)


def _nested(payload: memoryview, nest: _Span | None, kind: int) -> _Span | None:
    """Return the span of the attribute ``kind`` inside ``nest``; None without this attribute."""
    # The last one, if there are several.
    return None if nest is None else dict(_spans(payload, nest)).get(kind)


def _offset64(value: _Span | None) -> int | None:
    return None if value is None or value.end - value.start != _NUMBER.size else value.start


def _number(payload: memoryview, start: int) -> int:
    (number,) = _NUMBER.unpack_from(payload, start)
    return int(number)


def _counter(payload: memoryview, parts: dict[int, _Span]) -> _Span | None:
    """Return the span of an element's counter data (NFTA_EXPR_DATA); None if it has no counter.

    ``parts`` are the attributes of the element, by type. If there are several counters, the first
    is used.
    """
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
