from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.errors import AbsentError
from ocsf_nft.record import Gap, Record, Reject
from ocsf_nft.sources import kmsg_line
from ocsf_nft.sources.boot import boottime_ns
from ocsf_nft.sources.journal import Journal
from ocsf_nft.sources.journal import library as journal_library
from ocsf_nft.sources.journal.command import _entry as entry_of_json
from ocsf_nft.sources.journal.kernel import Chunk, KernelEntry, KernelEntryParser, message_filter
from ocsf_nft.sources.kernel_message import PrefixFilter
from ocsf_nft.sources.nflog.group_binding import CALM, FLOOD, AdaptiveBatching

if TYPE_CHECKING:
    from pathlib import Path

MILLISECOND = 1_000_000
LINE = (
    b"ocsf-nft:sb1:egress:IN= OUT=sb0 SRC=10.200.0.2 DST=203.0.113.7 LEN=29 TOS=0x00 PREC=0x00 "
    b"TTL=64 ID=48411 DF PROTO=UDP SPT=54301 DPT=53 LEN=9 UID=0 GID=0 "
)


def entry(**changes: object) -> KernelEntry:
    fields: dict[str, object] = {
        "cursor": "s=1;i=1",
        "boot": "b",
        "realtime_us": 1_700_000_000_000_000,
        "monotonic_us": 5_000_000,
        "message": LINE,
        "transport": b"kernel",
        "facility": b"0",
        "source_us": b"4990000",
    }
    return KernelEntry(**{**fields, **changes})  # type: ignore[arg-type] # values of a test


def test_batching_changes_once_with_a_flood_and_back_after_it() -> None:
    adaptive = AdaptiveBatching(0)
    changes = [adaptive.observe(100, step * 10 * MILLISECOND) for step in range(100)]
    assert changes.count(True) == 1
    assert adaptive.batching is FLOOD
    assert not adaptive.observe(0, 1_030 * MILLISECOND)
    assert adaptive.observe(0, 2_040 * MILLISECOND)
    assert adaptive.batching is CALM


def test_batching_does_not_change_at_a_rate_between_the_thresholds() -> None:
    # 2,000 a second are too few to begin a flood, and too many to end one.
    adaptive = AdaptiveBatching(0)
    assert not any(adaptive.observe(20, step * 10 * MILLISECOND) for step in range(1000))
    adaptive.observe(400, 10_000 * MILLISECOND)
    assert adaptive.batching is FLOOD
    assert not any(adaptive.observe(20, step * 10 * MILLISECOND) for step in range(1001, 2000))


def test_batching_counts_records_after_a_long_pause_from_their_arrival() -> None:
    adaptive = AdaptiveBatching(0)
    assert adaptive.observe(400, 3_600_000 * MILLISECOND)


@given(st.binary(max_size=300))
def test_kmsg_parser_never_raises_on_other_bytes(raw: bytes) -> None:
    found = kmsg_line.parse(raw)
    assert found is None or found.facility >= 0


def test_kmsg_parser_splits_a_record() -> None:
    raw = b"12,5,67,-,caller=T1;one\\x0a\\x5cx41 two\n SUBSYSTEM=net\n DEVICE=n2\n"
    assert kmsg_line.parse(raw) == kmsg_line.KmsgLine(1, 5, 67, b"one\n\\x41 two")


@given(st.binary(max_size=100))
def test_kmsg_parser_decodes_escapes_exactly(message: bytes) -> None:
    escaped = b"".join(
        b"\\x%02x" % byte if byte < 32 or byte >= 127 or byte == 0x5C else bytes([byte])
        for byte in message
    )
    found = kmsg_line.parse(b"4,1,2,-;" + escaped + b"\n")
    assert found is not None
    assert found.message == message


def test_prefix_filter_does_not_match_a_sandbox_with_a_longer_name() -> None:
    chosen = PrefixFilter({"sb", "a"})
    assert chosen.matches("ocsf-nft:sb:egress:IN=")
    assert not chosen.matches("ocsf-nft:sb1:egress:IN=")
    assert PrefixFilter().matches("ocsf-nft:sb1:egress:IN=")


def test_journal_entry_has_the_kernels_time() -> None:
    found = KernelEntryParser(PrefixFilter()).parse(entry(), received_ns=1)
    assert isinstance(found, Record)
    assert found.time_ns == 1_700_000_000_000_000_000 - 10 * MILLISECOND
    assert found.origin.identity == "journal:s=1;i=1"


@pytest.mark.parametrize("stamp", [None, b"", b"soon", b"-1", "\u0665".encode()])
def test_journal_entry_without_a_kernel_stamp_has_journalds_time(stamp: bytes | None) -> None:
    found = KernelEntryParser(PrefixFilter()).parse(entry(source_us=stamp), received_ns=1)
    assert isinstance(found, Record)
    assert found.time_ns == 1_700_000_000_000_000_000


def test_journal_entry_of_another_boot_uses_that_boots_clock() -> None:
    parser = KernelEntryParser(PrefixFilter())
    for boot, monotonic_us in (("", 3_000_000), ("b", 5_000_000), ("c", 2_000_000)):
        source_us = b"%d" % (monotonic_us - 10_000)
        booted = entry(boot=boot, monotonic_us=monotonic_us, source_us=source_us)
        found = parser.parse(booted, received_ns=1)
        assert isinstance(found, Record)
        assert found.time_ns == 1_700_000_000_000_000_000 - 10 * MILLISECOND, boot


@pytest.mark.parametrize("late_ms", [10, 3_000])
def test_journal_batch_begins_before_its_records_if_journald_was_late(late_ms: int) -> None:
    """A late first record looks like a drift of the kernel's clock."""
    uptime_ms = 100_000_000
    source = Journal()
    made_ns = time.time_ns() - late_ms * MILLISECOND
    since_boot_ns = boottime_ns() - late_ms * MILLISECOND
    batch = source._batch(
        Chunk(
            entries=(
                entry(
                    realtime_us=(made_ns + late_ms * MILLISECOND) // 1000,
                    monotonic_us=uptime_ms * 1000,
                    source_us=b"%d" % ((uptime_ms - late_ms) * 1000),
                ),
            )
        )
    )
    assert since_boot_ns - 1_100 * MILLISECOND < batch.since_ns <= since_boot_ns


def test_journal_entry_times_follow_the_drift_of_the_kernels_clock() -> None:
    ten_days_us = 864_000_000_000
    parser = KernelEntryParser(PrefixFilter())
    for later_us, source_us, age_ms in (
        (0, ten_days_us - 10_000_000, 100),  # 10 s of drift, minus the slack of journald
        (1_000, ten_days_us - 9_950_000, 51),  # it arrived sooner: the drift is known more exactly
    ):
        later_entry = entry(monotonic_us=ten_days_us + later_us, source_us=b"%d" % source_us)
        found = parser.parse(later_entry, received_ns=1)
        assert isinstance(found, Record)
        assert found.time_ns == 1_700_000_000_000_000_000 - age_ms * MILLISECOND


@pytest.mark.parametrize("transport", [b"stdout", b"syslog", None])
def test_journal_entry_of_another_transport_is_skipped(transport: bytes | None) -> None:
    assert (
        KernelEntryParser(PrefixFilter()).parse(entry(transport=transport), received_ns=1) is None
    )


@pytest.mark.parametrize("facility", [b"1", b"", None, b"00", b"0 "])
def test_journal_entry_of_another_facility_is_forged(facility: bytes | None) -> None:
    found = KernelEntryParser(PrefixFilter()).parse(entry(facility=facility), received_ns=1)
    assert isinstance(found, Reject)
    assert found.kind == "forged"


def test_journal_gap_comes_only_from_journalds_own_notice() -> None:
    parser = KernelEntryParser(PrefixFilter())
    message = b"Missed 12 kernel messages"
    realtime_ns = entry().realtime_us * 1000
    gap = parser.parse(entry(transport=b"driver", message=message), received_ns=1)
    assert isinstance(gap, Gap)
    assert gap.dropped == 12
    assert (gap.since_ns, gap.until_ns) == (realtime_ns, realtime_ns)
    assert parser.parse(entry(message=message), received_ns=1) is None
    assert message_filter(PrefixFilter())(message)


def test_journal_gap_begins_with_the_entry_before_it() -> None:
    parser = KernelEntryParser(PrefixFilter())
    at_us = entry().realtime_us
    for before_us, since_us in ((at_us - 5, at_us - 5), (at_us + 5, at_us)):
        parser.parse(entry(realtime_us=before_us, message=b"usb 1-1: new device"), received_ns=1)
        gap = parser.parse(
            entry(transport=b"driver", message=b"Missed 12 kernel messages"), received_ns=1
        )
        assert isinstance(gap, Gap)
        assert (gap.since_ns, gap.until_ns) == (since_us * 1000, at_us * 1000)


@pytest.mark.parametrize(
    ("value", "message"),
    [('"text"', b"text"), ("[116, 255]", b"t\xff"), ("null", b""), ('["a", "b"]', b"")],
)
def test_journalctl_field_is_read_in_each_format(value: str, message: bytes) -> None:
    line = (
        '{"__CURSOR":"c","__REALTIME_TIMESTAMP":"1","__MONOTONIC_TIMESTAMP":"2",'
        f'"_BOOT_ID":"b","MESSAGE":{value}}}'
    )
    assert entry_of_json(line.encode()).message == message


def test_journal_folder_that_does_not_exist_is_absent(tmp_path: Path) -> None:
    assert journal_library.samples(tmp_path) == []
    with pytest.raises(AbsentError):
        journal_library.samples(tmp_path / "none")


def test_journal_samples_have_one_file_for_each_set_of_features(tmp_path: Path) -> None:
    for name, features in (("a", 4), ("b", 12), ("c", 4)):
        header = b"LPKSHHRH" + bytes(4) + bytes([features, 0, 0, 0])
        (tmp_path / f"{name}.journal").write_bytes(header)
    (tmp_path / "d.journal").write_bytes(b"short")
    found = journal_library.samples(tmp_path)
    assert [path.name for path in found] == ["a.journal", "b.journal"]
