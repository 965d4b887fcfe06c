from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import duckdb
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ocsf_nft.config.sinks.columns import columns
from ocsf_nft.delivery.parquet_files import Maker
from ocsf_nft.delivery.sinks.base import Message
from ocsf_nft.ocsf.versions import STORED, VERSIONS
from tests.conformance.corpus import TIME_NS
from tests.delivery import read_back
from tests.delivery import sample_events as samples

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ocsf_nft.delivery.parquet_files import File

TIME_MS = TIME_NS // 1_000_000
DAY_MS = 86_400_000


def _files(messages: Sequence[Message], version: str = STORED) -> list[File]:
    files, refused = Maker(columns(version)).make(messages)
    assert refused == []
    return files


def _in_order(messages: Sequence[Message], class_uid: int) -> list[Any]:
    events = [message.event() for message in messages]
    return sorted(
        (event for event in events if event["class_uid"] == class_uid),
        key=lambda event: int(event["time"]),
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_arrow_reads_every_event_unchanged(version: str) -> None:
    of_class, messages = columns(version), samples.messages(version)
    read: dict[int, list[Any]] = {uid: [] for uid in of_class}
    for file in sorted(_files(messages, version), key=lambda file: file.day):
        read[file.class_uid] += read_back.events([file.content], of_class[file.class_uid])
    for uid, events in read.items():
        assert events
        assert events == _in_order(messages, uid)


@pytest.mark.parametrize("version", ["1.1.0", "1.3.0", STORED])
def test_duckdb_reads_every_event_unchanged(version: str, tmp_path: Path) -> None:
    of_class, messages = columns(version), samples.messages(version)
    for file in _files(messages, version):
        (tmp_path / f"{file.class_uid}-{file.day}.parquet").write_bytes(file.content)
    for uid, struct in of_class.items():
        with duckdb.connect() as connection:
            found = connection.execute(f"FROM read_parquet('{tmp_path}/{uid}-*.parquet')")
            names = [column[0] for column in found.description or ()]
            rows = [dict(zip(names, row, strict=True)) for row in found.fetchall()]
        assert [read_back.event_of(row, struct) for row in rows] == _in_order(messages, uid)


def test_duckdb_reads_nested_columns_and_sums_counts() -> None:
    (file,) = _files(samples.packets(100))
    table = pq.ParquetFile(pa.BufferReader(file.content)).read()
    with duckdb.connect() as connection:
        connection.register("activity", table)
        assert connection.execute(
            "SELECT actor.process.parent_process.name, actor.process.ancestry[2].pid, "
            "dst_endpoint.port, json_extract_string(unmapped, '$.sandbox'), count(*), sum(count) "
            "FROM activity GROUP BY ALL"
        ).fetchall() == [("bash", 4100, 443, "sb1", 100, sum(range(100)))]
        types = connection.execute("SELECT typeof(time), typeof(severity_id) FROM activity LIMIT 1")
        assert types.fetchall() == [("BIGINT", "INTEGER")]


@pytest.mark.parametrize("version", VERSIONS)
def test_files_of_a_class_have_one_schema(version: str) -> None:
    of_class: dict[int, list[Message]] = {}
    for message in samples.messages(version):
        of_class.setdefault(message.event()["class_uid"], []).append(message)
    for messages in of_class.values():
        assert len(messages) > 1
        # The longest event has nearly every attribute. The shortest has those of every event.
        ordered = sorted(messages, key=lambda message: len(message.line))
        files = [*_files(ordered[:1], version), *_files(ordered[-1:], version)]
        one, other = (pq.read_schema(pa.BufferReader(file.content)) for file in files)
        assert one.to_string() == other.to_string()


def test_file_has_the_format_that_security_lake_requires() -> None:
    (file,) = _files(samples.packets(300))
    metadata = pq.ParquetFile(pa.BufferReader(file.content)).metadata
    assert metadata.format_version.startswith("2.")
    assert metadata.num_row_groups == 1
    group = metadata.row_group(0)
    assert {group.column(at).compression for at in range(group.num_columns)} == {"ZSTD"}


def test_pages_of_a_file_have_less_than_1_mb(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(pq, "write_table", lambda *_, **options: given.update(options))
    (message,) = samples.packets(1)
    _files([message])
    assert 8 < given["write_batch_size"] <= given["data_page_size"] / len(message.line)
    long = message.event() | {"message": "x" * 60_000}
    _files([message, Message(message.uid, orjson.dumps(long))])
    # A page that is nearly full gets at most as many values more.
    assert given["write_batch_size"] * 60_000 < (1 << 20) - given["data_page_size"]
    _files([message])
    assert 100_000 < given["data_page_size"] <= 900_000
    assert 100_000 < given["dictionary_pagesize_limit"] <= 900_000
    assert given["row_group_size"] == 1


def test_file_has_one_class_and_one_day_in_utc() -> None:
    midnight = (TIME_MS // DAY_MS + 1) * DAY_MS
    finding = next(each for each in samples.messages(STORED) if b'"class_uid":2004' in each.line)
    files = _files([*samples.packets(4, since_ms=midnight - 2000), finding])
    assert [(file.class_uid, file.day) for file in files] == [
        (4001, "20260101"),
        (4001, "20260102"),
        (2004, "20260101"),
    ]
    struct = columns(STORED)[4001]
    for file, counts in zip(files, ([0, 1], [2, 3]), strict=False):
        events = read_back.events([file.content], struct)
        assert [event["count"] for event in events] == counts


def test_records_are_in_order_of_time() -> None:
    messages = samples.packets(500)
    random.Random(1).shuffle(messages)
    (file,) = _files(messages)
    events = read_back.events([file.content], columns(STORED)[4001])
    assert [event["count"] for event in events] == list(range(500))


def test_same_batch_produces_the_same_files() -> None:
    messages = samples.messages(STORED)
    assert _files(messages) == _files(list(messages))


def test_file_name_depends_on_the_batch_and_begins_with_the_time() -> None:
    messages = samples.packets(5)
    batches = (messages, messages[1:], messages[:-1], messages[::-1], [messages[0]])
    names = [file.name for batch in batches for file in _files(batch)]
    assert len(set(names)) == len(batches)
    assert [name[:17] for name in names] == [
        "20260101T000000Z-", "20260101T000001Z-", *["20260101T000000Z-"] * 3,
    ]  # fmt: skip
    assert {len(name[17:].removesuffix(".parquet")) for name in names} == {32}


@pytest.mark.parametrize("between", ["", ",", "\0", '","'])
def test_uids_that_are_equal_when_joined_have_different_names(between: str) -> None:
    line = samples.packets(1)[0].line
    (one,), (other,) = (
        _files([Message(uid, line) for uid in uids])
        for uids in (("a", f"b{between}c"), (f"a{between}b", "c"))
    )
    assert one.name != other.name


def test_file_name_has_no_text_of_an_event() -> None:
    line = samples.packets(1)[0].line
    (file,) = _files([Message("../../etc/passwd\x00", line)])
    assert file.name.replace("-", "").replace(".parquet", "").isalnum()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "is not JSON"),
        (b"[]", "is not a JSON object"),
        (b'{"time":1}', "has no class_uid"),
        (b'{"time":1,"class_uid":1}', "has no class_uid"),
        (b'{"time":1,"class_uid":[4001]}', "has no class_uid"),
        (b'{"class_uid":4001}', "has no time"),
        (b'{"class_uid":4001,"time":"now"}', "has no time"),
        (b'{"class_uid":4001,"time":9223372036854775807}', "has no time"),
    ],
)
def test_invalid_event_is_refused_and_the_others_are_not(line: bytes, reason: str) -> None:
    messages = samples.packets(2)
    bad = Message("bad", line)
    files, refused = Maker(columns(STORED)).make([messages[0], bad, messages[1]])
    assert [refusal.message for refusal in refused] == [bad]
    assert reason in refused[0].reason
    assert files == _files(messages)


def test_event_with_unknown_attributes_is_stored_whole() -> None:
    event = samples.packets(1)[0].event()
    event["from_tomorrow"] = {"x": [1, 2]}
    event["severity_id"] = "high"
    (file,) = _files([Message("uid", orjson.dumps(event))])
    (read,) = read_back.events([file.content], columns(STORED)[4001])
    assert read["unmapped"].pop("from_tomorrow") == {"x": [1, 2]}
    assert read["unmapped"].pop("severity_id") == "high"
    del event["from_tomorrow"], event["severity_id"]
    assert read == event


def test_batch_of_refused_messages_produces_no_file() -> None:
    assert Maker(columns(STORED)).make([Message("bad", b"{")])[0] == []
