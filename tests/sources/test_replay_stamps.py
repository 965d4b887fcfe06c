"""Tests of time and author of a log line, in all usual formats."""

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
    NOW,
    STAMP_NS,
    UNSTAMPED_NS,
    flat,
    nanoseconds,
    one,
    reader,
    rejected,
)

SINCE = BOOT_NS + 1_500_000_000


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ("4,77,1500000,-;", None),
        ("[    1.500000] ", None),
        ("Nov 24 15:05:55 host-1 kernel: ", "host-1"),
        ("Nov 24 15:05:55 host-1 kernel:[12.345678] ", "host-1"),
        ("Nov 24 15:05:55 kernel: ", None),
        ("Nov 24 15:05:55 host kern.warn kernel: ", "host"),
        ("Nov 24 15:05:55 kern.warn kernel: ", None),
        ("Nov 24 15:05:55 kern.lan kernel: ", "kern.lan"),
        ("Nov 24 15:05:55 2001:db8::1 kernel: ", "2001:db8::1"),
        ("2026-11-24T15:05:55+00:00 gw.example kernel: ", "gw.example"),
        ("<4>1 2026-11-24T15:05:55Z host kernel - - - ", "host"),
        ("<4>1 2026-11-24T15:05:55Z - kernel - - - ", None),
        (f"<4>1 2026-11-24T15:05:55Z {'h' * 300} kernel - - - ", "h" * 255),
    ],
)
def test_log_header_names_the_host(header: str, host: str | None) -> None:
    found = one(header + MESSAGE).origin.host
    assert (None if found is None else found.name) == host


@pytest.mark.parametrize(
    ("header", "time_ns", "log_source"),
    [
        ("4,77,{1500000},-;", SINCE, "kmsg"),
        ("4,77,{1500000},-,caller=T1;", SINCE, "kmsg"),
        ("{[    1.500000]} ", SINCE, "dmesg"),
        ("{[    1.500000]}[   T12] ", SINCE, "dmesg"),
        ("<4>{[    1.500000]} ", SINCE, "dmesg"),
        ("kern  :warn  : {[    1.500000]} ", SINCE, "dmesg"),
        ("{[Tue Nov 24 15:05:55 2026]} ", STAMP_NS, "dmesg"),
        ("{2026-11-24T15:05:55,000042+00:00} ", STAMP_NS + 42_000, "dmesg"),
        ("{2026-11-24T16:05:55,000042+01:00} ", STAMP_NS + 42_000, "dmesg"),
        ("", UNSTAMPED_NS, "dmesg"),
        ("<4>", UNSTAMPED_NS, "dmesg"),
        ("{Nov 24 15:05:55} host kernel: ", STAMP_NS, "syslog"),
        ("{Nov 24 15:05:55} host kernel: [12.345678] ", STAMP_NS, "syslog"),
        ("{Nov 24 15:05:55} host kernel:[12.345678] ", STAMP_NS, "syslog"),
        ("{Nov 24 15:05:55.000042} host kernel: ", STAMP_NS + 42_000, "syslog"),
        ("{Nov 24 15:05:55} kernel: ", STAMP_NS, "syslog"),
        ("{Nov 24 15:05:55} host kern.warn kernel: ", STAMP_NS, "syslog"),
        ("<4>{Nov 24 15:05:55} host kernel: ", STAMP_NS, "syslog"),
        ("{2026-11-24T15:05:55.000042+00:00} host kernel: ", STAMP_NS + 42_000, "syslog"),
        ("{2026-11-24T15:05:55+0000} host kernel: ", STAMP_NS, "syslog"),
        ("<4>1 {2026-11-24T15:05:55Z} host kernel - - - ", STAMP_NS, "syslog"),
        ('<4>1 {2026-11-24T15:05:55Z} h kernel - - [a b="\\]\\"" c="d"][e] ', STAMP_NS, "syslog"),
    ],
)
def test_log_stamp_in_each_format_gives_the_time(
    header: str, time_ns: int, log_source: str
) -> None:
    """Read a line whose stamp is in braces."""
    line = header.replace("{", "").replace("}", "") + MESSAGE
    stamp = header.partition("{")[2].partition("}")[0] or None
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
        (f"Nov 24 15:05:55 user.warn kernel: {MESSAGE}", "facility user"),
        (f"<12>Nov 24 15:05:55 host kernel: {MESSAGE}", "facility 1"),
        (f"Nov 24 15:05:55 {MESSAGE}", "an unknown program"),
        (f"2026-11-24T15:05:55Z host evil: {MESSAGE}", "evil"),
        (f"<4>1 2026-11-24T15:05:55Z host evil - - - {MESSAGE}", "evil"),
        (f"<14>1 2026-11-24T15:05:55Z host kernel - - - {MESSAGE}", "facility 1"),
        (f"Nov 24 15:05:55 host ulogd[9]: {MESSAGES[0]}", "ulogd"),
    ],
)
def test_log_line_of_user_space_is_forged(line: str, author: str) -> None:
    found = rejected(line)
    assert found.kind == "forged"
    assert author in found.reason
    assert found.line == line


def test_log_stamp_with_a_date_that_no_year_has_is_rejected() -> None:
    found = rejected(f"Feb 30 15:05:55 host kernel: {MESSAGES[0]}")
    assert "the stamp Feb 30 15:05:55 is not a valid time" in found.reason


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
def test_log_lines_without_a_record_are_skipped_and_counted(line: str) -> None:
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
def test_log_stamp_without_a_year_has_the_latest_past_year(stamp: str, year: int) -> None:
    found = one(f"{stamp} host kernel: {MESSAGE}")
    assert dt.datetime.fromtimestamp(found.time_ns / 1e9, dt.UTC).year == year


def test_log_stamp_of_a_clock_ahead_at_new_year_is_in_the_new_year() -> None:
    now = dt.datetime(2026, 12, 31, 23, 59, 0, tzinfo=dt.UTC)
    reading = Reader(now_ns=lambda: nanoseconds(now), zone=dt.UTC)
    (found,) = flat(reading.batches([f"Jan  1 00:00:30 host kernel: {MESSAGE}".encode()]))
    assert isinstance(found, Record)
    assert found.time_ns == nanoseconds(now) + 90 * 10**9


@pytest.mark.parametrize("header", ["4,77,{}000000,-;", "[{}.000000] ", "<4>[ {}.000000] "])
def test_log_stamp_later_than_this_boot_is_rejected(header: str) -> None:
    uptime_s = time.monotonic_ns() // 10**9
    for ahead_s, kind in ((30, Record), (120, Reject)):
        line = header.format(uptime_s + ahead_s) + MESSAGE
        (found,) = flat(Reader().batches([line.encode()]))
        assert isinstance(found, kind)
        if isinstance(found, Reject):
            assert found.kind == "malformed"
            assert "--boot" in found.reason
    (found,) = flat(Reader(boot_ns=BOOT_NS).batches([line.encode()]))
    assert isinstance(found, Record)
    assert found.time_ns == BOOT_NS + (uptime_s + 120) * 10**9


def test_log_stamp_from_boot_gives_a_stable_time() -> None:
    line = f"4,1,0,-;{MESSAGE}".encode()
    found = [item for _ in range(20) for item in flat(Reader().batches([line]))]
    times = {item.time_ns for item in found if isinstance(item, Record)}
    assert all(time_ns % 10_000_000 == 0 for time_ns in times)
    assert len(times) <= 2  # it may be between two rounded values


def test_log_stamp_without_a_valid_time_is_rejected() -> None:
    for stamp in (
        "Feb 30 00:00:00 host kernel:", "[Tue Nov 31 15:05:55 2026]",
        "2026-13-01T00:00:00Z h kernel:", "[Tue Nov 24 25:05:55 0000]",
    ):  # fmt: skip
        found = rejected(f"{stamp} {MESSAGE}")
        assert (found.kind, found.reason[-19:]) == ("malformed", "is not a valid time"), stamp
    last = one(f"9999-12-31T23:59:59-23:00 host kernel: {MESSAGE}")
    assert last.time_ns == 253_402_383_599 * 10**9


def test_log_stamp_without_a_zone_has_the_machines_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        reading = Reader(now_ns=lambda: nanoseconds(NOW))
        found = flat(reading.batches([f"[Tue Nov 24 15:05:55 2026] {MESSAGE}".encode()]))[0]
    finally:
        monkeypatch.undo()
        time.tzset()
    assert isinstance(found, Record)
    assert found.time_ns == STAMP_NS - 9 * 3600 * 10**9


@pytest.mark.kernel
@pytest.mark.parametrize("options", [[], ["-T"], ["-x"], ["-r"], ["--time-format=iso"]])
def test_program_can_not_forge_a_kernel_record_with_a_line_break(
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
def test_dmesg_output_is_read_in_each_format(options: list[str]) -> None:
    """Write a line from user space: it is forged only if dmesg prints the facility."""
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
