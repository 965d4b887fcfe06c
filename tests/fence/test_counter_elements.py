from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft import netlink
from ocsf_nft.errors import FenceError
from ocsf_nft.fence import rule_counters
from ocsf_nft.fence.counter_elements import ElementParser
from ocsf_nft.flow import Count, Element
from ocsf_nft.nfnetlink import InterruptedDumpError, Query

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_TIMEOUT_MS = 600_000
_KEYS = st.binary(min_size=16, max_size=16)
_UINT64 = st.integers(0, (1 << 64) - 1)

attribute = netlink.attribute


def number(value: int) -> bytes:
    return struct.pack("!Q", value)


def counter(packets: int, octets: int) -> bytes:
    data = attribute(1, number(octets)) + attribute(2, number(packets))
    return attribute(1, b"counter\0") + attribute(2, data)


def element(
    key: bytes,
    packets: int = 1,
    octets: int = 60,
    left_ms: int | None = _TIMEOUT_MS,
    timeout_ms: int | None = None,
) -> bytes:
    """Return an element as Linux 6.18 sends it."""
    parts = attribute(1, attribute(1, key)) + attribute(7, counter(packets, octets))
    if timeout_ms is not None:
        parts += attribute(4, number(timeout_ms))
    if left_ms is not None:
        parts += attribute(5, number(left_ms))
    return attribute(1, parts)


def parse(*elements: bytes) -> list[Element]:
    return ElementParser(16, _TIMEOUT_MS).parse(memoryview(b"".join(elements)))


_ELEMENTS = st.builds(element, _KEYS, _UINT64, _UINT64, _UINT64)
#: Elements that only another process adds to a set: other keys, no counters, no timeouts.
_STRANGE = st.builds(
    element,
    _KEYS | st.binary(max_size=40),
    _UINT64,
    _UINT64,
    st.none() | _UINT64,
    st.none() | _UINT64,
) | st.builds(attribute, st.sampled_from([0, 1, 2, 0x8001]), st.binary(max_size=90))


@given(
    st.lists(_ELEMENTS, min_size=1, max_size=8),
    st.lists(st.lists(_ELEMENTS | _STRANGE, max_size=6), max_size=3),
    st.data(),
)
def test_parser_returns_the_same_elements_at_once_and_one_by_one(
    first: list[bytes], others: list[list[bytes]], data: st.DataObject
) -> None:
    quick, thorough = ElementParser(16, _TIMEOUT_MS), ElementParser(16, _TIMEOUT_MS)
    for elements in (first, *others):
        payload = bytearray(b"".join(elements))
        for _ in range(data.draw(st.integers(0, 3)) if payload else 0):
            payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
        payload = payload[: data.draw(st.integers(0, len(payload)) | st.just(len(payload)))]
        assert quick.parse(memoryview(payload)) == thorough.parse_one_by_one(memoryview(payload))
        assert quick.seen == thorough.seen


@given(st.lists(st.tuples(_KEYS, _UINT64, _UINT64, _UINT64), max_size=8))
def test_elements_have_the_values_of_the_kernel(
    expected: list[tuple[bytes, int, int, int]],
) -> None:
    assert parse(*(element(*values) for values in expected)) == [
        Element(key, packets, octets, max(0, _TIMEOUT_MS - left))
        for key, packets, octets, left in expected
    ]


@given(st.binary(max_size=300))
def test_parser_accepts_any_bytes(payload: bytes) -> None:
    parse(payload)


@pytest.mark.parametrize("number", [1, 2, 400])
def test_elements_that_are_alike_are_parsed_at_once(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(ElementParser, "parse_one_by_one")
    elements = [element(b"%016d" % each, each) for each in range(number)]
    assert [one.packets for one in parse(*elements)] == list(range(number))


@pytest.mark.parametrize("length", range(4, 9))
def test_element_with_a_comment_is_parsed_beside_its_padding(length: int) -> None:
    parts = attribute(1, attribute(1, b"k" * 16)) + attribute(6, bytes(length))
    parts += attribute(7, counter(7, 420)) + attribute(5, number(_TIMEOUT_MS))
    assert parse(attribute(1, parts)) == [Element(b"k" * 16, 7, 420, 0)]


def test_timeout_of_an_element_overrides_that_of_its_set() -> None:
    found = parse(
        element(b"a" * 16, left_ms=590_000),
        element(b"b" * 16, left_ms=50_000, timeout_ms=60_000),
        element(b"c" * 16, left_ms=599_999),
    )
    assert [one.idle_ms for one in found] == [10_000, 10_000, 1]


def test_element_without_a_timeout_is_not_idle() -> None:
    assert [one.idle_ms for one in parse(element(b"a" * 16, left_ms=None))] == [0]


def test_counter_among_several_expressions_is_found() -> None:
    limit = attribute(1, attribute(1, b"limit\0") + attribute(2, bytes(16)))
    several = attribute(11, limit + attribute(1, counter(7, 420)))
    parts = attribute(1, attribute(1, b"k" * 16)) + several + attribute(5, number(_TIMEOUT_MS))
    assert parse(attribute(1, parts)) == [Element(b"k" * 16, 7, 420, 0)]


@pytest.mark.parametrize(
    "strange",
    [
        element(b"short"),
        element(b"long" * 7),
        attribute(1, attribute(1, attribute(1, b"k" * 16))),
        attribute(1, attribute(7, counter(1, 2))),
        attribute(
            1, attribute(1, attribute(1, b"k" * 16)) + attribute(7, attribute(1, b"quota\0"))
        ),
    ],
    ids=["short key", "long key", "no expression", "no key", "no counter"],
)
def test_foreign_element_is_ignored_but_counted_as_seen(strange: bytes) -> None:
    elements = ElementParser(16, _TIMEOUT_MS)
    found = elements.parse(memoryview(strange + element(b"a" * 16) + strange))
    assert [one.data for one in found] == [b"a" * 16]
    assert elements.seen == 3


class Kernel:
    """Stub of nf_tables' answers, with counters that the test chooses.

    ``lists`` are the dumps of ``flows4``, one list of messages for each request; a list that ends
    in None was interrupted.
    """

    cookie = 5
    deadline = 0.0

    def __init__(
        self, *lists: Sequence[Sequence[bytes] | None], handles: Sequence[int] = (1,)
    ) -> None:
        self._lists = list(lists)
        self._handles = list(handles)
        self._refused = 0
        self.dumps = 0

    def queries(self, wanted: Sequence[Query]) -> list[dict[int, bytes]]:
        return [self._query(each.kind, each.attributes) for each in wanted]

    def _query(self, kind: int, attributes: bytes) -> dict[int, bytes]:
        if kind == 1:
            handle = self._handles.pop(0) if len(self._handles) > 1 else self._handles[0]
            return {4: number(handle)}
        if kind == 10:
            return {11: number(_TIMEOUT_MS), 16: number(2)}
        self._refused += b"refused_egress" in attributes
        data = attribute(1, number(100)) + attribute(2, number(self._refused))
        return {4: data, 6: number(3)}

    def dump(self, _kind: int, _family: int, attributes: bytes) -> Iterator[memoryview]:
        if b"flows4_egress" not in attributes:
            return
        self.dumps += 1
        for message in self._lists.pop(0) if len(self._lists) > 1 else self._lists[0]:
            if message is None:
                raise InterruptedDumpError
            yield memoryview(attribute(3, b"".join(message)))


def flows4(kernel: Kernel) -> list[tuple[bytes, int]]:
    found = rule_counters.RuleReader(kernel, "inet", "ocsf_nft", "egress").read()  # type: ignore[arg-type]
    assert found is not None
    assert found.reading.elements is not None
    return [(one.data[:1], one.packets) for one in found.reading.elements["flows4"]]


_A, _B, _C = (name * 16 for name in (b"a", b"b", b"c"))


def test_repeated_element_counts_once_with_its_last_value() -> None:
    kernel = Kernel([[element(_A, 1), element(_B, 1)], [element(_B, 2), element(_C, 1)]])
    assert flows4(kernel) == [(b"a", 1), (b"b", 2), (b"c", 1)]


def test_interrupted_list_is_requested_again() -> None:
    kernel = Kernel([[element(_A, 1)], None], [[element(_A, 2), element(_B, 1)]])
    assert flows4(kernel) == [(b"a", 2), (b"b", 1)]
    assert kernel.dumps == 2


def test_list_that_is_always_interrupted_is_used_as_it_is() -> None:
    kernel = Kernel([[element(_A, 1)], None])
    assert flows4(kernel) == [(b"a", 1)]
    assert kernel.dumps == 3


def test_list_without_an_end_is_an_error() -> None:
    kernel = Kernel([[element(b"%016d" % number) for number in range(500)]] * 140)
    with pytest.raises(FenceError, match="flows4_egress has more than 65536 elements"):
        flows4(kernel)


def test_foreign_elements_count_towards_the_limit() -> None:
    kernel = Kernel([[element(b"short")] * 500] * 140)
    with pytest.raises(FenceError, match="more than 65536 elements"):
        flows4(kernel)


def test_table_that_is_replaced_during_a_reading_is_not_mixed_with_the_previous_one() -> None:
    with pytest.raises(rule_counters.ReplacedError):
        flows4(Kernel([[element(_A, 1)]], handles=(1, 2)))


def test_total_is_read_before_and_after_the_elements() -> None:
    found = rule_counters.RuleReader(
        Kernel([[element(_A, 1)]]),  # type: ignore[arg-type]
        "inet",
        "ocsf_nft",
        "egress",
    ).read()
    assert found is not None
    totals = (found.reading.refused_before, found.reading.refused)
    assert totals == (Count(1, 100), Count(2, 100))
