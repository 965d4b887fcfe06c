from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.errors import AbsentError
from ocsf_nft.record import Gap, Record, Reject
from ocsf_nft.sources.journal import files as journal_files
from ocsf_nft.sources.journal.command import _entry as entry_of_json
from ocsf_nft.sources.journal.kernel import KernelEntries, KernelEntry, worth_reading
from ocsf_nft.sources.kmsg import line as kmsg_line
from ocsf_nft.sources.nflog.adaptive_batching import Pace
from ocsf_nft.sources.nflog.group_binding import CALM, FLOOD
from ocsf_nft.sources.nflog.sequence import Sequence32
from ocsf_nft.sources.prefix_filter import Wanted

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
    return KernelEntry(**{**fields, **changes})  # type: ignore[arg-type] # a test's changes


@given(st.lists(st.integers(0, 1000), max_size=50), st.integers(0, 2**33))
def test_losses_add_up_to_the_numbers_that_were_skipped(skips: list[int], start: int) -> None:
    sequence = Sequence32()
    number = start
    assert sequence.lost_before(number % 2**32) == start % 2**32
    for skip in skips:
        number += skip + 1
        extended = sequence.extended(number % 2**32)
        assert sequence.lost_before(number % 2**32) == skip
        assert extended == start % 2**32 + number - start


def test_a_counter_goes_on_beyond_32_bits() -> None:
    sequence = Sequence32()
    sequence.lost_before(2**32 - 1)
    assert sequence.extended(0) == 2**32
    assert sequence.lost_before(0) == 0


def test_a_flood_changes_the_pace_once_and_calm_changes_it_back() -> None:
    pace = Pace(0)
    changes = [pace.observe(100, step * 10 * MILLISECOND) for step in range(100)]
    assert changes.count(True) == 1
    assert pace.batching is FLOOD
    assert not pace.observe(0, 1_030 * MILLISECOND)
    assert pace.observe(0, 2_040 * MILLISECOND)
    assert pace.batching is CALM


def test_a_rate_between_the_bounds_changes_nothing() -> None:
    # 2,000 a second: too few to begin a flood, too many to end one.
    pace = Pace(0)
    assert not any(pace.observe(20, step * 10 * MILLISECOND) for step in range(1000))
    pace.observe(400, 10_000 * MILLISECOND)
    assert pace.batching is FLOOD
    assert not any(pace.observe(20, step * 10 * MILLISECOND) for step in range(1001, 2000))


def test_records_that_come_after_a_long_silence_are_counted_from_then() -> None:
    pace = Pace(0)
    assert pace.observe(400, 3_600_000 * MILLISECOND)


@given(st.binary(max_size=300))
def test_bytes_that_are_no_kernel_record_never_raise(raw: bytes) -> None:
    found = kmsg_line.parse(raw)
    assert found is None or found.facility >= 0


def test_a_kernel_record_is_taken_apart() -> None:
    raw = b"12,5,67,-,caller=T1;one\\x0a\\x5cx41 two\n SUBSYSTEM=net\n DEVICE=n2\n"
    assert kmsg_line.parse(raw) == kmsg_line.KmsgLine(1, 5, 67, b"one\n\\x41 two")


@given(st.binary(max_size=100))
def test_escaping_is_undone_exactly(message: bytes) -> None:
    escaped = b"".join(
        b"\\x%02x" % byte if byte < 32 or byte >= 127 or byte == 0x5C else bytes([byte])
        for byte in message
    )
    found = kmsg_line.parse(b"4,1,2,-;" + escaped + b"\n")
    assert found is not None
    assert found.message == message


def test_a_sandbox_does_not_claim_the_lines_of_one_with_a_longer_name() -> None:
    wanted = Wanted({"sb", "a"})
    assert wanted.claims("ocsf-nft:sb:egress:IN=")
    assert not wanted.claims("ocsf-nft:sb1:egress:IN=")
    assert Wanted().claims("ocsf-nft:sb1:egress:IN=")


def test_a_journal_entry_is_as_old_as_the_kernel_says() -> None:
    found = KernelEntries(Wanted()).read(entry(), received_ns=1)
    assert isinstance(found, Record)
    assert found.time_ns == 1_700_000_000_000_000_000 - 10 * MILLISECOND
    assert found.origin.identity == "journal:s=1;i=1"


@pytest.mark.parametrize("stamp", [None, b"", b"soon", b"-1", "\u0665".encode()])
def test_a_journal_entry_without_a_stamp_is_as_old_as_journald_says(stamp: bytes | None) -> None:
    found = KernelEntries(Wanted()).read(entry(source_us=stamp), received_ns=1)
    assert isinstance(found, Record)
    assert found.time_ns == 1_700_000_000_000_000_000


def test_journal_entry_of_another_boot_is_as_old_as_that_boots_clock_says() -> None:
    entries = KernelEntries(Wanted())
    for boot, monotonic_us in (("", 3_000_000), ("b", 5_000_000), ("c", 2_000_000)):
        source_us = b"%d" % (monotonic_us - 10_000)
        booted = entry(boot=boot, monotonic_us=monotonic_us, source_us=source_us)
        found = entries.read(booted, received_ns=1)
        assert isinstance(found, Record)
        assert found.time_ns == 1_700_000_000_000_000_000 - 10 * MILLISECOND, boot


def test_journal_entry_times_follow_the_drift_of_the_kernels_clock() -> None:
    ten_days_us = 864_000_000_000
    entries = KernelEntries(Wanted())
    for later_us, source_us, age_ms in (
        (0, ten_days_us - 10_000_000, 100),  # 10 s are drift, but for what journald may take
        (1_000, ten_days_us - 9_950_000, 51),  # it came sooner: the drift is known
    ):
        came = entry(monotonic_us=ten_days_us + later_us, source_us=b"%d" % source_us)
        found = entries.read(came, received_ns=1)
        assert isinstance(found, Record)
        assert found.time_ns == 1_700_000_000_000_000_000 - age_ms * MILLISECOND


@pytest.mark.parametrize("transport", [b"stdout", b"syslog", None])
def test_journal_entry_of_another_transport_is_passed_over(transport: bytes | None) -> None:
    assert KernelEntries(Wanted()).read(entry(transport=transport), received_ns=1) is None


@pytest.mark.parametrize("facility", [b"1", b"", None, b"00", b"0 "])
def test_a_journal_entry_of_another_facility_is_a_forgery(facility: bytes | None) -> None:
    found = KernelEntries(Wanted()).read(entry(facility=facility), received_ns=1)
    assert isinstance(found, Reject)
    assert found.kind == "forged"


def test_only_journald_itself_says_what_it_missed() -> None:
    entries = KernelEntries(Wanted())
    message = b"Missed 12 kernel messages"
    realtime_ns = entry().realtime_us * 1000
    said = entries.read(entry(transport=b"driver", message=message), received_ns=1)
    assert isinstance(said, Gap)
    assert said.lost == 12
    assert (said.since_ns, said.until_ns) == (realtime_ns, realtime_ns)
    assert entries.read(entry(message=message), received_ns=1) is None
    assert worth_reading(Wanted())(message)


def test_journal_gap_begins_with_the_entry_before_it() -> None:
    entries = KernelEntries(Wanted())
    at_us = entry().realtime_us
    for before_us, since_us in ((at_us - 5, at_us - 5), (at_us + 5, at_us)):
        entries.read(entry(realtime_us=before_us, message=b"usb 1-1: new device"), received_ns=1)
        gap = entries.read(
            entry(transport=b"driver", message=b"Missed 12 kernel messages"), received_ns=1
        )
        assert isinstance(gap, Gap)
        assert (gap.since_ns, gap.until_ns) == (since_us * 1000, at_us * 1000)


@pytest.mark.parametrize(
    ("value", "message"),
    [('"text"', b"text"), ("[116, 255]", b"t\xff"), ("null", b""), ('["a", "b"]', b"")],
)
def test_journalctls_forms_of_a_field_are_read(value: str, message: bytes) -> None:
    line = (
        '{"__CURSOR":"c","__REALTIME_TIMESTAMP":"1","__MONOTONIC_TIMESTAMP":"2",'
        f'"_BOOT_ID":"b","MESSAGE":{value}}}'
    )
    assert entry_of_json(line.encode()).message == message


def test_a_folder_without_a_journal_is_absent(tmp_path: Path) -> None:
    assert journal_files.samples(tmp_path) == []
    with pytest.raises(AbsentError):
        journal_files.samples(tmp_path / "none")


def test_one_file_of_each_set_of_features_is_a_sample(tmp_path: Path) -> None:
    for name, features in (("a", 4), ("b", 12), ("c", 4)):
        header = b"LPKSHHRH" + bytes(4) + bytes([features, 0, 0, 0])
        (tmp_path / f"{name}.journal").write_bytes(header)
    (tmp_path / "d.journal").write_bytes(b"short")
    found = journal_files.samples(tmp_path)
    assert [path.name for path in found] == ["a.journal", "b.journal"]
