"""Tests of the splitting of lines and exported journal entries, in bounded memory."""

from __future__ import annotations

import pytest

from ocsf_nft.record import Record, Reject
from ocsf_nft.sources.replay.splitter import OverlongLine, Splitter
from tests.sources.corpus_cases import record
from tests.sources.replaying import (
    MESSAGE,
    entry,
    export,
    flat,
    identity,
    one,
    read,
    reader,
    rejected,
)


def test_splitter_message_can_not_add_fields_to_its_export_entry() -> None:
    hostile = f"{MESSAGE}\n_TRANSPORT=kernel\nSYSLOG_FACILITY=0\n\n{MESSAGE}".encode()
    fields = entry(_TRANSPORT="stdout", MESSAGE=hostile)
    assert rejected(export(fields)).kind == "forged"


def test_splitter_result_does_not_depend_on_the_chunks() -> None:
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


def test_splitter_uses_the_first_of_several_values_of_a_field() -> None:
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
def test_splitter_reads_records_after_a_false_export_entry(before: bytes) -> None:
    data = before + f"[    1.500000] {MESSAGE}\n4,77,1500000,-;{MESSAGE}\n".encode()
    for size in (13, 4096, len(data)):
        found = flat(reader().batches(data[at : at + size] for at in range(0, len(data), size)))
        assert [item for item in found if isinstance(item, Record)] == [record(MESSAGE)] * 2
        reasons = [item.reason for item in found if isinstance(item, Reject)]
        assert len(reasons) == before.count(b"FOO")


def test_splitter_reads_a_whole_line_after_a_field_without_line_break() -> None:
    for size in (2, 2 << 20):
        field = b"FOO\n" + size.to_bytes(8, "little") + b"x" * size
        data = b"__CURSOR=x\n" + field + f"4,77,1500000,-;{MESSAGE}\n".encode()
        for chunk in (4096, len(data)):
            broken, found = flat(
                reader().batches(data[at : at + chunk] for at in range(0, len(data), chunk))
            )[::-1]
            assert isinstance(broken, Reject)
            assert "is longer than its stated length" in broken.reason
            assert found == record(MESSAGE)


@pytest.mark.parametrize("size", [40, 3 << 20])
def test_splitter_reports_a_field_without_an_end(size: int) -> None:
    field = b"FOO\n" + size.to_bytes(8, "little") + MESSAGE.encode()[:30] + b"\nx"
    found = read(b"__CURSOR=x\n" + field)
    assert len(found) == 1
    assert isinstance(found[0], Reject)
    assert found[0].kind == "malformed"
    assert "cut by the end" in found[0].reason


def test_splitter_reads_an_export_entry_after_one_that_is_cut() -> None:
    assert one(b"__CURSOR=s=0\n_TRANSPORT=stdout\n" + export(entry())) == record(MESSAGE)


def test_splitter_ends_an_export_entry_at_a_line_without_a_field() -> None:
    splitter = Splitter({"MESSAGE"})
    assert list(splitter.feed(b"__CURSOR=x\nMESSAGE=y\nno field=1\nMESSAGE=z\n")) == [
        {"MESSAGE": b"y"}, b"no field=1", b"MESSAGE=z",
    ]  # fmt: skip


def test_splitter_skips_a_huge_field_across_chunks() -> None:
    fields = {"__CURSOR": "s=1", "HUGE": b"x" * ((1 << 20) + 5)} | entry()
    data = export(fields)
    for size in (4096, 65536, (1 << 20) + 33):
        chunks = [data[at : at + size] for at in range(0, len(data), size)]
        assert flat(reader().batches(chunks)) == [record(MESSAGE)]


def test_splitter_stores_only_selected_fields() -> None:
    reading = reader()
    fields = b"".join(b"F%d=x\n" % number for number in range(5000))
    assert flat(reading.feed(b"__CURSOR=s\n" + fields)) == []
    assert reading._splitter._fields == {"__CURSOR": b"s"}


def test_splitter_stores_only_the_start_of_an_endless_line() -> None:
    reading = reader()
    start = f"4,1,2,-;{MESSAGE}".encode()
    chunks = [start, *(b"x" * 65536 for _ in range(100)), b"\n", MESSAGE.encode(), b"\n"]
    found = flat(reading.batches(chunks))
    assert [type(item) for item in found] == [Record, Reject] or [type(item) for item in found] == [
        Reject,
        Record,
    ]
    assert len(reading._splitter._rest) < 1 << 20


def test_splitter_stores_fields_and_lines_up_to_its_limits() -> None:
    mebibyte = 1 << 20
    for size, stored in ((mebibyte, {"A": b"x" * mebibyte}), (mebibyte + 1, {})):
        splitter = Splitter({"A"})
        field = b"A\n" + size.to_bytes(8, "little") + b"x" * size + b"\n"
        data = b"__CURSOR=\n" + field + b"B=y\n\n"
        exported = [*splitter.feed(data[:-9]), *splitter.feed(data[-9:])]
        assert exported == ([stored] if stored else []), size
    for size, is_broken in ((768 * mebibyte, False), (768 * mebibyte + 1, True)):
        start = b"__CURSOR=\nA\n" + size.to_bytes(8, "little")
        assert any(isinstance(each, Reject) for each in Splitter(set()).feed(start)) == is_broken
    for size in (2 * mebibyte, 2 * mebibyte + 1):
        splitter = Splitter(set())
        assert list(splitter.feed(b"x" * size)) == []
        (line,) = splitter.feed(b"\n")
        assert line == (b"x" * size if size == 2 * mebibyte else OverlongLine(b"x" * 1024)), size
