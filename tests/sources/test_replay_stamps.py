"""Each usual form of a log line tells when it was written, and whether the kernel wrote it."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import time
from pathlib import Path

import pytest

from ocsf_nft.record import Record, Reject
from ocsf_nft.sources.replay import Reader
from tests.sources.corpus_cases import MESSAGES, record
from tests.sources.replaying import (
    BOOT_NS,
    MESSAGE,
    MOMENT,
    NOW,
    UNSTAMPED_NS,
    flat,
    nanoseconds,
    one,
    reader,
    rejected,
)

SINCE = BOOT_NS + 1_500_000_000


@pytest.mark.parametrize(
    ("form", "time_ns", "log_source"),
    [
        ("4,77,{1500000},-;", SINCE, "kmsg"),
        ("4,77,{1500000},-,caller=T1;", SINCE, "kmsg"),
        ("{[    1.500000]} ", SINCE, "dmesg"),
        ("{[    1.500000]}[   T12] ", SINCE, "dmesg"),
        ("<4>{[    1.500000]} ", SINCE, "dmesg"),
        ("kern  :warn  : {[    1.500000]} ", SINCE, "dmesg"),
        ("{[Tue Nov 24 15:05:55 2026]} ", MOMENT, "dmesg"),
        ("{2026-11-24T15:05:55,000042+00:00} ", MOMENT + 42_000, "dmesg"),
        ("{2026-11-24T16:05:55,000042+01:00} ", MOMENT + 42_000, "dmesg"),
        ("", UNSTAMPED_NS, "dmesg"),
        ("<4>", UNSTAMPED_NS, "dmesg"),
        ("{Nov 24 15:05:55} host kernel: ", MOMENT, "syslog"),
        ("{Nov 24 15:05:55} host kernel: [12.345678] ", MOMENT, "syslog"),
        ("{Nov 24 15:05:55} host kernel:[12.345678] ", MOMENT, "syslog"),
        ("{Nov 24 15:05:55.000042} host kernel: ", MOMENT + 42_000, "syslog"),
        ("{Nov 24 15:05:55} kernel: ", MOMENT, "syslog"),
        ("{Nov 24 15:05:55} host kern.warn kernel: ", MOMENT, "syslog"),
        ("<4>{Nov 24 15:05:55} host kernel: ", MOMENT, "syslog"),
        ("{2026-11-24T15:05:55.000042+00:00} host kernel: ", MOMENT + 42_000, "syslog"),
        ("{2026-11-24T15:05:55+0000} host kernel: ", MOMENT, "syslog"),
        ("<4>1 {2026-11-24T15:05:55Z} host kernel - - - ", MOMENT, "syslog"),
        ('<4>1 {2026-11-24T15:05:55Z} h kernel - - [a b="\\]\\"" c="d"][e] ', MOMENT, "syslog"),
    ],
)
def test_a_stamp_of_each_form_is_the_time(form: str, time_ns: int, log_source: str) -> None:
    """The stamp stands in braces."""
    line = form.replace("{", "").replace("}", "") + MESSAGE
    stamp = form.partition("{")[2].partition("}")[0] or None
    found = one(line)
    assert found == record(MESSAGE)
    assert (found.time_ns, found.origin.original_time) == (time_ns, stamp)
    assert (found.origin.log_source, found.origin.transport) == (log_source, "replay")
    assert found.origin.raw == line
    assert found.received_ns == nanoseconds(NOW)


@pytest.mark.parametrize(
    ("line", "author"),
    [
        (f"12,77,1500000,-;{MESSAGE}", "facility 1"),
        (f"<12>[    1.500000] {MESSAGE}", "facility 1"),
        (f"user  :warn  : [    1.500000] {MESSAGE}", "facility user"),
        (f"Nov 24 15:05:55 host evil[12]: {MESSAGE}", "evil"),
        (f"Nov 24 15:05:55 kernel evil: {MESSAGE}", "evil"),
        (f"Nov 24 15:05:55 host kern.warn evil: {MESSAGE}", "evil"),
        (f"Nov 24 15:05:55 host user.warn kernel: {MESSAGE}", "facility user"),
        (f"<12>Nov 24 15:05:55 host kernel: {MESSAGE}", "facility 1"),
        (f"Nov 24 15:05:55 {MESSAGE}", "nobody"),
        (f"2026-11-24T15:05:55Z host evil: {MESSAGE}", "evil"),
        (f"<4>1 2026-11-24T15:05:55Z host evil - - - {MESSAGE}", "evil"),
        (f"<14>1 2026-11-24T15:05:55Z host kernel - - - {MESSAGE}", "facility 1"),
        (f"Nov 24 15:05:55 host ulogd[9]: {MESSAGES[0]}", "ulogd"),
    ],
)
def test_what_userland_wrote_is_forged(line: str, author: str) -> None:
    found = rejected(line)
    assert found.kind == "forged"
    assert author in found.reason
    assert found.line == line


def test_date_that_no_year_has_is_rejected() -> None:
    found = rejected(f"Feb 30 15:05:55 host kernel: {MESSAGES[0]}")
    assert "the stamp Feb 30 15:05:55 is no time" in found.reason


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[    0.000000] Linux version 6.18",
        "Nov 24 15:05:55 host sshd[1]: Accepted publickey",
        "Nov 24 15:05:55 last message repeated 2 times",
        "-- Boot 1234 --",
        "Feb 30 00:00:00 host kernel: IN=",
        '{"log": "IN= OUT="}',
        "{not json",
        '{"MESSAGE": null}',
    ],
)
def test_other_lines_are_skipped_and_counted(line: str) -> None:
    reading = reader()
    assert flat(reading.batches([line.encode() + b"\n"])) == []
    assert (reading.tally.lines, reading.tally.skipped) == (1, 1)


@pytest.mark.parametrize(
    ("stamp", "year"),
    [
        ("Nov 24 15:59:59", 2026),
        ("Nov 25 16:00:00", 2026),
        ("Nov 25 16:00:00.000000001", 2025),
        ("Nov 25 16:00:01", 2025),
        ("Jan  1 00:00:00", 2026),
        ("Feb 29 12:00:00", 2024),
    ],
)  # fmt: skip
def test_a_stamp_without_a_year_is_of_the_latest_one_that_is_past(stamp: str, year: int) -> None:
    found = one(f"{stamp} host kernel: {MESSAGE}")
    assert dt.datetime.fromtimestamp(found.time_ns / 1e9, dt.UTC).year == year


def test_at_the_end_of_the_year_a_clock_ahead_is_not_a_year_behind() -> None:
    now = dt.datetime(2026, 12, 31, 23, 59, 0, tzinfo=dt.UTC)
    reading = Reader(now_ns=lambda: nanoseconds(now), zone=dt.UTC)
    (found,) = flat(reading.batches([f"Jan  1 00:00:30 host kernel: {MESSAGE}".encode()]))
    assert isinstance(found, Record)
    assert found.time_ns == nanoseconds(now) + 90 * 10**9


@pytest.mark.parametrize("form", ["4,77,{}000000,-;", "[{}.000000] ", "<4>[ {}.000000] "])
def test_a_stamp_that_this_boot_can_not_have_made_is_rejected(form: str) -> None:
    uptime_s = time.monotonic_ns() // 10**9
    for ahead_s, kind in ((30, Record), (120, Reject)):
        line = form.format(uptime_s + ahead_s) + MESSAGE
        (found,) = flat(Reader().batches([line.encode()]))
        assert isinstance(found, kind)
        if isinstance(found, Reject):
            assert found.kind == "malformed"
            assert "--boot" in found.reason
    (found,) = flat(Reader(boot_ns=BOOT_NS).batches([line.encode()]))
    assert isinstance(found, Record)
    assert found.time_ns == BOOT_NS + (uptime_s + 120) * 10**9


def test_the_time_of_this_boot_does_not_jitter() -> None:
    line = f"4,1,0,-;{MESSAGE}".encode()
    found = [item for _ in range(20) for item in flat(Reader().batches([line]))]
    times = {item.time_ns for item in found if isinstance(item, Record)}
    assert all(moment % 10_000_000 == 0 for moment in times)
    assert len(times) <= 2  # it may stand on an edge


def test_stamp_that_is_no_time_is_rejected() -> None:
    for stamp in (
        "Feb 30 00:00:00 host kernel:", "[Tue Nov 31 15:05:55 2026]",
        "2026-13-01T00:00:00Z h kernel:", "[Tue Nov 24 25:05:55 0000]",
    ):  # fmt: skip
        found = rejected(f"{stamp} {MESSAGE}")
        assert (found.kind, found.reason[-10:]) == ("malformed", "is no time"), stamp
    last = one(f"9999-12-31T23:59:59-23:00 host kernel: {MESSAGE}")
    assert last.time_ns == 253_402_383_599 * 10**9


def test_local_stamps_are_of_the_machines_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        reading = Reader(now_ns=lambda: nanoseconds(NOW))
        found = flat(reading.batches([f"[Tue Nov 24 15:05:55 2026] {MESSAGE}".encode()]))[0]
    finally:
        monkeypatch.undo()
        time.tzset()
    assert isinstance(found, Record)
    assert found.time_ns == MOMENT - 9 * 3600 * 10**9


@pytest.mark.kernel
@pytest.mark.parametrize("options", [[], ["-T"], ["-x"], ["-r"], ["--time-format=iso"]])
def test_a_program_can_not_write_a_record_of_the_kernels_by_a_line_break(
    options: list[str],
) -> None:
    token = f"ocsf-nft:break-{os.getpid()}-{time.monotonic_ns()}:egress:"
    with Path("/dev/kmsg").open("w") as kmsg:
        kmsg.write("hello\n" + MESSAGE.replace("ocsf-nft:sb:egress:", token) + "\n")
    done = subprocess.run(["dmesg", *options], capture_output=True, check=True)
    found = [item for item in flat(Reader().batches([done.stdout])) if token in repr(item)]
    assert [type(item) for item in found] == [Reject]


@pytest.mark.kernel
@pytest.mark.parametrize(
    "options",
    [[], ["-T"], ["-x"], ["-r"], ["-t"], ["--time-format=iso"], ["-x", "--time-format=iso"]],
)
def test_dmesg_prints_what_is_read(options: list[str]) -> None:
    """A line written by userland shows each form: forged where dmesg tells, else the kernel's."""
    token = f"ocsf-nft:replay-{os.getpid()}-{time.monotonic_ns()}:egress:"
    with Path("/dev/kmsg").open("w") as kmsg:
        kmsg.write(MESSAGE.replace("ocsf-nft:sb:egress:", token) + "\n")
    before = time.time_ns()
    done = subprocess.run(["dmesg", *options], capture_output=True, check=True)
    found = [item for item in flat(Reader().batches([done.stdout])) if token in repr(item)]
    assert len(found) == 1
    if "-x" in options or "-r" in options:
        assert isinstance(found[0], Reject)
        assert found[0].kind == "forged"
    else:
        assert isinstance(found[0], Record)
        assert found[0].destination_port == 53
        if options != ["-t"]:
            assert abs(found[0].time_ns - before) < 60 * 10**9
