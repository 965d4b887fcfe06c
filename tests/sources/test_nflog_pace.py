"""Tests of the batching of NFLOG records in the kernel, by the rate of records."""

from __future__ import annotations

from ocsf_nft.sources.nflog.group_binding import CALM, FLOOD, AdaptiveBatching

_BEGIN_NS = 5


def test_nflog_flood_begins_with_400_records_in_a_tenth_of_a_second() -> None:
    for records, later_ns, is_flood in (
        (400, 100_000_000, True),
        (399, 100_000_000, False),
        (400, 100_000_001, False),
    ):
        adaptive = AdaptiveBatching(_BEGIN_NS)
        assert not adaptive.observe(1, _BEGIN_NS)
        assert adaptive.observe(records - 1, _BEGIN_NS + later_ns) == is_flood
        assert adaptive.batching is (FLOOD if is_flood else CALM), (records, later_ns)
    # Records after the tenth of a second count for the next one.
    assert not adaptive.observe(0, _BEGIN_NS + 200_000_001)
    assert adaptive.observe(1, _BEGIN_NS + 200_000_001)


def test_nflog_flood_ends_after_a_second_with_fewer_than_1000_records() -> None:
    for records, later_ns, is_over in (
        (999, 1_000_000_000, True),
        (1000, 1_000_000_000, False),
        (999, 999_999_999, False),
    ):
        adaptive = AdaptiveBatching(_BEGIN_NS)
        assert adaptive.observe(400, _BEGIN_NS)
        assert not adaptive.observe(1, _BEGIN_NS + 1)
        assert adaptive.observe(records - 1, _BEGIN_NS + later_ns) == is_over
        assert adaptive.batching is (CALM if is_over else FLOOD), (records, later_ns)


def test_nflog_datagram_is_sent_at_once_or_when_it_fills_its_slab() -> None:
    assert CALM.threshold == 1
    # The socket buffer takes 320 bytes of a slab of 16 KiB; the timer is one of 10 ms.
    assert (FLOOD.buffer_bytes + 320, FLOOD.timeout_cs) == (16 << 10, 1)
