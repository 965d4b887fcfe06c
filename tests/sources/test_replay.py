"""Tests that log files in all usual formats give the kernel's records and no others."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocsf_nft.errors import AbsentError, SourceError
from ocsf_nft.record import Record, Reject
from ocsf_nft.sources.replay import Replay
from tests.descriptors import open_descriptors
from tests.sources.corpus_cases import MESSAGES, cases, nflog, record
from tests.sources.replaying import (
    MESSAGE,
    STAMP_NS,
    entry,
    export,
    flat,
    identity,
    one,
    read,
    reader,
    rejected,
)


def test_replay_reads_the_corpus_and_decodes_escapes() -> None:
    lines = [line for case in cases() for line in case.lines]
    found = read(*lines)
    assert found == [record(message) for message in MESSAGES]
    odd = MESSAGE.replace("OUT=eth0", "OUT=\u00fc\\x")
    escaped = odd.replace("\\", "\\x5c").replace("\u00fc", "\\xc3\\xbc")
    assert one(f"4,1,2,-;{escaped}").out_interface == "\u00fc\\x"


def test_replay_skips_the_dictionary_of_a_kmsg_record() -> None:
    assert one(f"4,1,2,-;{MESSAGE}", " SUBSYSTEM=net", " DEVICE=IN=a OUT=b", "4,2,3,-;x")
    assert rejected(" SUBSYSTEM=IN=a OUT=b").kind == "malformed"


@pytest.mark.parametrize("blank", [" ", "               ", "\t"])
def test_replay_refuses_an_indented_line(blank: str) -> None:
    """Read the second line of a message as dmesg and journalctl print it."""
    found = rejected("[    1.500000] hello", blank + MESSAGE)
    assert found.kind == "malformed"
    assert "indented" in found.reason
    assert rejected(blank + f"[    1.500000] {MESSAGE}").line == f"{blank}[    1.500000] {MESSAGE}"


def test_replay_reads_nflog_lines_as_equal_records() -> None:
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


def test_replay_log_format_does_not_depend_on_the_log_prefix() -> None:
    foreign = one(MESSAGE.replace("ocsf-nft:sb:egress:", "NFLOG "))
    assert (foreign.prefix, foreign.origin.log_format) == ("NFLOG ", "nf_log_syslog")
    (payload, *_) = (payload for case in cases() for payload in case.payloads)
    live = nflog(payload)
    assert live.origin.log_format == one(live.origin.raw).origin.log_format == "nfnetlink_log"


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
def test_replay_reads_a_journal_entry_with_the_kernels_time(line: str | bytes) -> None:
    found = one(line)
    assert found == record(MESSAGE)
    assert found.time_ns == STAMP_NS - 1_000_000
    assert found.origin.identity == "journal:s=1;i=2"
    assert found.origin.original_time == str(STAMP_NS // 1000)


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
def test_replay_refuses_a_journal_entry_of_user_space_as_forged(change: dict[str, object]) -> None:
    assert rejected(json.dumps(entry(**change))).kind == "forged"
    if all(isinstance(value, str) for value in change.values()):
        assert rejected(export(entry(**change))).kind == "forged"


def test_replay_gives_equal_lines_different_and_repeatable_identities() -> None:
    line = f"Nov 24 15:05:55 host kernel: {MESSAGE}"
    first, second = (identity(found) for found in read(line, line))
    assert first != second
    assert [identity(found) for found in read("other", line, "x", line)] == [first, second]


def test_replay_gives_lines_with_equal_texts_and_other_bytes_different_identities() -> None:
    form = b"%b IN= OUT=eth0 SRC=10.0.0.2 DST=10.0.0.3 LEN=20 PROTO=2 \n"
    lines = (form % prefix for prefix in (b"\xff", rb"\xff", b"\xff", rb"\xff"))
    found = read(*lines)
    assert len({each.prefix for each in found if isinstance(each, Record)}) == 1
    assert len({identity(each) for each in found}) == 4


def test_replay_gives_a_repeated_kmsg_record_one_identity() -> None:
    line = f"4,77,1500000,-;{MESSAGE}"
    assert len({identity(found) for found in read(line, line)}) == 1
    assert identity(one(line)) != identity(one(line.replace("77", "78")))


def test_replay_counts_lines_by_result() -> None:
    reading = reader()
    lines = ["x", MESSAGE, f"12,1,2,-;{MESSAGE}", "ocsf-nft:x", MESSAGE]
    flat(reading.batches(["\n".join(lines).encode()]))
    tally = reading.tally
    assert (tally.lines, tally.records, tally.skipped) == (5, 2, 1)
    assert tally.rejected == {"forged": 1, "malformed": 1}


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
def test_replay_never_raises_on_any_bytes(chunks: list[bytes]) -> None:
    reading = reader()
    flat(reading.batches(chunks))
    tally = reading.tally
    assert tally.lines == tally.records + tally.skipped + sum(tally.rejected.values())


async def collect(source: Replay) -> list[Record | Reject]:
    async with source:
        return flat([batch async for batch in source.batches()])


async def test_replay_reads_files_one_after_the_other(tmp_path: Path) -> None:
    first, second = tmp_path / "a.log", tmp_path / "b.log"
    first.write_text(f"{MESSAGE}\n{MESSAGE}")
    second.write_text(f"{MESSAGE}\n")
    os.utime(first, ns=(0, 123_000_000_000))
    source = Replay([first, second])
    before = open_descriptors(collect=True)
    found = await collect(source)
    assert open_descriptors() == before
    assert len(found) == 3
    assert isinstance(found[0], Record)
    assert found[0].time_ns == 123_000_000_000
    assert identity(found[0]) == identity(found[2]) != identity(found[1])


async def test_replay_reads_a_pipe_without_blocking_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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


async def test_replay_waits_again_if_a_read_would_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.log"
    file.write_text(MESSAGE)
    answers = [BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))] * 2
    actual = os.read

    def read(descriptor: int, size: int) -> bytes:
        if answers and os.path.samestat(os.fstat(descriptor), file.stat()):
            raise answers.pop()
        return actual(descriptor, size)

    monkeypatch.setattr(os, "read", read)
    assert len(await collect(Replay([file]))) == 1
    assert answers == []


async def test_replay_line_without_stamp_has_the_time_of_its_file_or_of_reading_a_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, pipe = tmp_path / "a.log", tmp_path / "pipe"
    file.write_text(MESSAGE)
    os.mkfifo(pipe)
    for path in (file, pipe):
        os.utime(path, ns=(0, 123_000_000_000))
    with file.open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        (from_stdin,) = await collect(Replay([Path("-")]))
    writer = asyncio.to_thread(pipe.write_text, MESSAGE)
    (from_pipe,), _ = await asyncio.gather(collect(Replay([pipe])), writer)
    assert isinstance(from_stdin, Record)
    assert isinstance(from_pipe, Record)
    assert from_stdin.time_ns == 123_000_000_000
    assert from_pipe.is_timed_when_read


async def test_replay_raises_for_an_absent_file_and_for_a_folder(tmp_path: Path) -> None:
    with pytest.raises(AbsentError, match="there is no file"):
        await collect(Replay([tmp_path / "absent"]))
    with pytest.raises(SourceError, match="can't be read"):
        await collect(Replay([tmp_path]))
