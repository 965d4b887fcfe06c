"""Log files of every usual form give the kernel's records, and nobody else's."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocsf_nft.errors import AbsentError, SourceError
from ocsf_nft.record import Batch, Record, Reject
from ocsf_nft.sources.replay import Reader, Replay
from ocsf_nft.sources.replay import source as replay
from tests.sources.corpus_cases import MESSAGES, cases, nflog, record

if TYPE_CHECKING:
    from collections.abc import Iterable

MESSAGE = (
    "ocsf-nft:sb:egress:IN= OUT=eth0 SRC=10.0.0.2 DST=203.0.113.7 LEN=48 TOS=0x00 PREC=0x00 "
    "TTL=64 ID=1 DF PROTO=UDP SPT=1234 DPT=53 LEN=28 UID=0 GID=0 "
)
NOW = dt.datetime(2026, 11, 24, 16, 0, 0, tzinfo=dt.UTC)
BOOT_NS = 1_700_000_000_000_000_000
UNSTAMPED_NS = 5


def nanoseconds(moment: dt.datetime) -> int:
    return int(moment.timestamp()) * 10**9 + moment.microsecond * 1000


def reader() -> Reader:
    return Reader(
        boot_ns=BOOT_NS, unstamped_ns=UNSTAMPED_NS, now_ns=lambda: nanoseconds(NOW), zone=dt.UTC
    )


def read(*lines: str | bytes) -> list[Record | Reject]:
    data = b"".join(line.encode() + b"\n" if isinstance(line, str) else line for line in lines)
    return flat(reader().batches([data]))


def flat(batches: Iterable[Batch]) -> list[Record | Reject]:
    found: list[Record | Reject] = []
    for batch in batches:
        found += batch.records
        found += batch.rejects
    return found


def one(*lines: str | bytes) -> Record:
    found = read(*lines)
    assert len(found) == 1
    assert isinstance(found[0], Record), found[0]
    return found[0]


def rejected(*lines: str | bytes) -> Reject:
    found = read(*lines)
    assert len(found) == 1
    assert isinstance(found[0], Reject), found[0]
    return found[0]


SINCE = BOOT_NS + 1_500_000_000
MOMENT = nanoseconds(dt.datetime(2026, 11, 24, 15, 5, 55, tzinfo=dt.UTC))


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
    assert (reading.counts.lines, reading.counts.skipped) == (1, 1)


@pytest.mark.parametrize(
    ("stamp", "year"),
    [
        ("Nov 24 15:59:59", 2026),
        ("Nov 25 16:00:00", 2026),
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


@pytest.mark.parametrize(
    "stamp",
    ["Feb 30 00:00:00 host kernel:", "[Tue Nov 31 15:05:55 2026]", "2026-13-01T00:00:00Z h kernel:",
     "9999-12-31T23:59:59-23:00 host kernel:", "[Tue Nov 24 25:05:55 0000]"],
)  # fmt: skip
def test_a_stamp_that_is_no_time_is_rejected_or_read_as_one(stamp: str) -> None:
    found = read(f"{stamp} {MESSAGE}")
    assert len(found) == 1
    if isinstance(found[0], Reject):
        assert found[0].kind == "malformed"
        assert "is no time" in found[0].reason


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


def test_the_corpus_replays_and_its_escapes_are_undone() -> None:
    lines = [line for case in cases() for line in case.lines]
    found = read(*lines)
    assert found == [record(message) for message in MESSAGES]
    odd = MESSAGE.replace("OUT=eth0", "OUT=\u00fc\\x")
    escaped = odd.replace("\\", "\\x5c").replace("\u00fc", "\\xc3\\xbc")
    assert one(f"4,1,2,-;{escaped}").out_interface == "\u00fc\\x"


def test_the_dictionary_of_a_kmsg_record_is_no_line_of_its_own() -> None:
    assert one(f"4,1,2,-;{MESSAGE}", " SUBSYSTEM=net", " DEVICE=IN=a OUT=b", "4,2,3,-;x")
    assert rejected(" SUBSYSTEM=IN=a OUT=b").kind == "malformed"


@pytest.mark.parametrize("blank", [" ", "               ", "\t"])
def test_an_indented_line_is_no_record_but_part_of_what_a_program_wrote(blank: str) -> None:
    """So dmesg and journalctl print a message of several lines."""
    found = rejected("[    1.500000] hello", blank + MESSAGE)
    assert found.kind == "malformed"
    assert "indented" in found.reason
    assert rejected(blank + f"[    1.500000] {MESSAGE}").line == f"{blank}[    1.500000] {MESSAGE}"


def test_our_own_nflog_lines_replay_as_the_records_they_were() -> None:
    for case in cases():
        for payload in case.payloads:
            live = nflog(payload)
            back = one(live.origin.raw)
            assert (back, back.time_ns) == (live, live.time_ns)
            assert back.origin.sequence == live.origin.sequence
            assert back.origin.identity == live.origin.identity
            before = live.origin.raw.replace(f' id="{live.origin.identity}"', "")
            assert one(before) == live
            assert one(before).origin.identity.startswith("line:")
    assert rejected("NFLOG group=5 family=2 packet=00").kind == "malformed"


def entry(**fields: object) -> dict[str, object]:
    return {
        "__CURSOR": "s=1;i=2",
        "__REALTIME_TIMESTAMP": str(MOMENT // 1000),
        "__MONOTONIC_TIMESTAMP": "2000000",
        "_SOURCE_MONOTONIC_TIMESTAMP": "1999000",
        "_TRANSPORT": "kernel",
        "SYSLOG_FACILITY": "0",
        "MESSAGE": MESSAGE,
    } | fields


def export(fields: dict[str, object]) -> bytes:
    out = b""
    for name, value in fields.items():
        if isinstance(value, bytes):
            out += name.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"
        else:
            out += f"{name}={value}\n".encode()
    return out + b"\n"


@pytest.mark.parametrize(
    "line",
    [
        json.dumps(entry()),
        json.dumps(entry(MESSAGE=list(MESSAGE.encode()))),
        export(entry()),
        export(entry(MESSAGE=MESSAGE.encode())),
        export(entry(MESSAGE=MESSAGE.encode(), COREDUMP=b"\n__CURSOR=x\n\n" * 9)),
        export(entry(HUGE=b"x" * ((1 << 20) + 5))),
        export(entry()).rstrip(b"\n"),
    ],
)
def test_a_journal_entry_is_the_kernels_message_at_the_kernels_time(line: str | bytes) -> None:
    found = one(line)
    assert found == record(MESSAGE)
    assert found.time_ns == MOMENT - 1_000_000
    assert found.origin.identity == "journal:s=1;i=2"
    assert found.origin.original_time == str(MOMENT // 1000)


@pytest.mark.parametrize(
    "change",
    [
        {"SYSLOG_FACILITY": "1"},
        {"_TRANSPORT": "syslog"},
        {"_TRANSPORT": "stdout", "_COMM": "evil"},
        {"_TRANSPORT": ["kernel", "x"]},
        {"SYSLOG_FACILITY": ["0", "1"]},
        {"_TRANSPORT": None},
    ],
)
def test_a_journal_entry_of_userland_is_forged(change: dict[str, object]) -> None:
    assert rejected(json.dumps(entry(**change))).kind == "forged"
    if all(isinstance(value, str) for value in change.values()):
        assert rejected(export(entry(**change))).kind == "forged"


def test_a_message_can_not_add_fields_to_its_export_entry() -> None:
    hostile = f"{MESSAGE}\n_TRANSPORT=kernel\nSYSLOG_FACILITY=0\n\n{MESSAGE}".encode()
    fields = entry(_TRANSPORT="stdout", MESSAGE=hostile)
    assert rejected(export(fields)).kind == "forged"


def test_chunks_may_end_anywhere() -> None:
    lines = [
        f"4,1,2,-;{MESSAGE}\n".encode(),
        export(entry(MESSAGE=MESSAGE.encode())),
        MESSAGE.encode(),
    ]
    data = b"".join(lines)
    whole = flat(reader().batches([data]))
    assert len(whole) == 3
    for size in (1, 7, 64, 257):
        chunks = [data[at : at + size] for at in range(0, len(data), size)]
        found = flat(reader().batches(chunks))
        assert found == whole
        assert [identity(item) for item in found] == [identity(item) for item in whole]


def identity(found: Record | Reject) -> str:
    assert isinstance(found, Record)
    return found.origin.identity


def test_the_first_of_several_values_of_an_export_field_counts() -> None:
    twice = export(entry()).rstrip(b"\n") + b"\nMESSAGE=ocsf-nft:other\n\n"
    assert one(twice) == record(MESSAGE)


@pytest.mark.parametrize(
    "before",
    [
        b"__CURSOR=x\n",
        b"__CURSOR=x\nMESSAGE=y\n",
        b"__CURSOR=x\nFOO\nnot a length\n",
        b"__CURSOR=x\nFOO\n" + b"\xff" * 8 + b"\n",
        b"__CURSOR=x\nFOO\n" + (2).to_bytes(8, "little") + b"much more\n",
        b"__CURSOR=x\nFOO\n" + (2 << 20).to_bytes(8, "little") + b"x" * (2 << 20) + b"more\n",
    ],
)
def test_what_looks_like_an_export_entry_does_not_swallow_records(before: bytes) -> None:
    data = before + f"[    1.500000] {MESSAGE}\n4,77,1500000,-;{MESSAGE}\n".encode()
    for size in (13, 4096, len(data)):
        found = flat(reader().batches(data[at : at + size] for at in range(0, len(data), size)))
        assert [item for item in found if isinstance(item, Record)] == [record(MESSAGE)] * 2
        rejects = [item.reason for item in found if isinstance(item, Reject)]
        assert len(rejects) == before.count(b"FOO")


@pytest.mark.parametrize("size", [40, 3 << 20])
def test_records_in_a_field_without_an_end_are_rejected_not_swallowed(size: int) -> None:
    field = b"FOO\n" + size.to_bytes(8, "little") + MESSAGE.encode()[:30] + b"\nx"
    found = read(b"__CURSOR=x\n" + field)
    assert len(found) == 1
    assert isinstance(found[0], Reject)
    assert found[0].kind == "malformed"
    assert "cut by the end" in found[0].reason


def test_an_entry_that_is_cut_does_not_swallow_the_next_one() -> None:
    assert one(b"__CURSOR=s=0\n_TRANSPORT=stdout\n" + export(entry())) == record(MESSAGE)


def test_a_huge_field_is_skipped_to_its_end_across_chunks() -> None:
    fields = {"__CURSOR": "s=1", "HUGE": b"x" * ((1 << 20) + 5)} | entry()
    data = export(fields)
    for size in (4096, 65536, (1 << 20) + 33):
        chunks = [data[at : at + size] for at in range(0, len(data), size)]
        assert flat(reader().batches(chunks)) == [record(MESSAGE)]


def test_an_entry_of_many_fields_takes_no_memory() -> None:
    reading = reader()
    fields = b"".join(b"F%d=x\n" % number for number in range(5000))
    assert flat(reading.feed(b"__CURSOR=s\n" + fields)) == []
    assert reading._splitter._fields == {"__CURSOR": b"s"}


def test_a_line_without_end_takes_no_memory_and_is_no_record() -> None:
    reading = reader()
    start = f"4,1,2,-;{MESSAGE}".encode()
    chunks = [start, *(b"x" * 65536 for _ in range(100)), b"\n", MESSAGE.encode(), b"\n"]
    found = flat(reading.batches(chunks))
    assert [type(item) for item in found] == [Record, Reject] or [type(item) for item in found] == [
        Reject,
        Record,
    ]
    assert len(reading._splitter._rest) < 1 << 20


def test_equal_lines_are_different_records_the_same_in_every_reading() -> None:
    line = f"Nov 24 15:05:55 host kernel: {MESSAGE}"
    first, second = (identity(found) for found in read(line, line))
    assert first != second
    assert [identity(found) for found in read("other", line, "x", line)] == [first, second]


def test_a_kmsg_record_is_itself_however_often_it_is_read() -> None:
    line = f"4,77,1500000,-;{MESSAGE}"
    assert len({identity(found) for found in read(line, line)}) == 1
    assert identity(one(line)) != identity(one(line.replace("77", "78")))


def test_the_memory_of_equal_lines_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "REMEMBERED", 10)
    reading = reader()
    for number in range(50):
        line = f"[    1.{number:06d}] {MESSAGE}\n".encode()
        assert len(flat(reading.batches([line]))) == 1
    assert len(reading._seen) == 10


def test_what_became_of_each_line_is_counted() -> None:
    reading = reader()
    lines = ["x", MESSAGE, f"12,1,2,-;{MESSAGE}", "ocsf-nft:x", MESSAGE]
    flat(reading.batches(["\n".join(lines).encode()]))
    counts = reading.counts
    assert (counts.lines, counts.records, counts.skipped) == (5, 2, 1)
    assert counts.rejects == {"forged": 1, "malformed": 1}


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.binary(max_size=60)
        | st.sampled_from(
            [
                b"\n",
                b"__CURSOR=",
                b"MESSAGE\n",
                b"\xff" * 8,
                b"{",
                b"4,1,2,-;",
                b"<4>",
                MESSAGE.encode(),
            ]
        )
    )
)
def test_any_bytes_are_read_without_an_exception(chunks: list[bytes]) -> None:
    reading = reader()
    flat(reading.batches(chunks))
    counts = reading.counts
    assert counts.lines == counts.records + counts.skipped + sum(counts.rejects.values())


async def collect(source: Replay) -> list[Record | Reject]:
    async with source:
        return flat([batch async for batch in source.batches()])


async def test_files_are_read_one_after_the_other(tmp_path: Path) -> None:
    first, second = tmp_path / "a.log", tmp_path / "b.log"
    first.write_text(f"{MESSAGE}\n{MESSAGE}")
    second.write_text(f"{MESSAGE}\n")
    os.utime(first, ns=(0, 123_000_000_000))
    source = Replay([first, second])
    found = await collect(source)
    assert source.counts.records == 3
    assert isinstance(found[0], Record)
    assert found[0].time_ns == 123_000_000_000
    assert identity(found[0]) == identity(found[2]) != identity(found[1])


async def test_a_pipe_is_read_without_holding_up_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    outlet, inlet = os.pipe()
    with os.fdopen(outlet) as stdin, os.fdopen(inlet, "wb", buffering=0) as pipe:
        monkeypatch.setattr("sys.stdin", stdin)
        source = Replay([Path("-")])
        async with source:
            batches = source.batches()
            pipe.write(f"{MESSAGE}\n".encode())
            first = await anext(batches)
            assert len(first.records) == 1
            pipe.write(MESSAGE.encode())
            pipe.close()
            assert len((await anext(batches)).records) == 1
            with pytest.raises(StopAsyncIteration):
                await anext(batches)


async def test_a_file_that_is_absent_or_no_file_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(AbsentError, match="there is no file"):
        await collect(Replay([tmp_path / "absent"]))
    with pytest.raises(SourceError, match="can't be read"):
        await collect(Replay([tmp_path]))


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
