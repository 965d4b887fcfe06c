from __future__ import annotations

import json
from functools import cache
from typing import Any, Final

import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.config.sinks.columns import columns
from ocsf_nft.delivery import parquet_files
from ocsf_nft.delivery.parquet_columns import row_of
from ocsf_nft.delivery.parquet_rows import read_rows
from ocsf_nft.delivery.sinks.base import Message
from ocsf_nft.delivery.sinks.json_access import decoded
from ocsf_nft.ocsf.safe_text import encodable
from ocsf_nft.ocsf.versions import STORED, VERSIONS
from tests.delivery import sample_events as samples
from tests.hostile_events import EVENTS
from tests.strategies import HOSTILE_TEXT


@cache
def _schemas(version: str) -> dict[int, pa.Schema]:
    return {
        uid: pa.schema(parquet_files._fields(struct)) for uid, struct in columns(version).items()
    }


def _by_hand(lines: list[bytes], class_uid: int, version: str) -> pa.Table:
    struct = columns(version)[class_uid]
    rows = [row_of(orjson.loads(line), struct) for line in lines]
    return pa.Table.from_pylist(rows, _schemas(version)[class_uid])


@pytest.mark.parametrize("version", VERSIONS)
def test_arrow_reads_every_event_as_the_conversion_by_hand(version: str) -> None:
    for class_uid, schema in _schemas(version).items():
        messages = samples.messages(version)
        lines = [each.line for each in messages if each.event()["class_uid"] == class_uid]
        assert lines
        assert read_rows(lines, schema).equals(_by_hand(lines, class_uid, version))


def _assert_read_as_by_hand_or_not_at_all(line: bytes, class_uid: int) -> None:
    try:
        read = read_rows([line], _schemas(STORED)[class_uid])
    except ValueError:
        return
    assert read.equals(_by_hand([line], class_uid, STORED))


@given(EVENTS)
def test_arrow_reads_a_hostile_event_as_the_conversion_by_hand_or_not_at_all(
    event: dict[str, Any],
) -> None:
    line = json.dumps(event).encode()
    if isinstance(decoded(line), dict):  # no line of ours has a lone surrogate
        _assert_read_as_by_hand_or_not_at_all(line, samples.REFUSED)
        _assert_read_as_by_hand_or_not_at_all(orjson.dumps(orjson.loads(line)), samples.REFUSED)


_JSON: Final[st.SearchStrategy[Any]] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | HOSTILE_TEXT.map(encodable),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "ip", "port", "data", "unmapped", "metadata", "uid", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@given(
    st.dictionaries(
        st.sampled_from(
            ["time", "message", "is_alert", "count", "src_endpoint", "observables", "attacks",
             "actor", "enrichments", "unmapped", "metadata", "x"]
        ),
        _JSON,
    )
)  # fmt: skip
def test_arrow_reads_any_object_as_the_conversion_by_hand_or_not_at_all(
    event: dict[str, Any],
) -> None:
    _assert_read_as_by_hand_or_not_at_all(orjson.dumps(event), samples.REFUSED)


@pytest.mark.parametrize(
    "line",
    [
        b"", b" ", b"{", b"[]", b"5", b"null", b'{"count":1}{"count":2}',
        b'{"count":1}\n{"count":2}',
        b'{"count":1}\n', b'{"message":"\xff"}', b'{"count":1.0}', b'{"count":true}', b'{"x":1}',
        b'{"src_endpoint":{"x":1}}', b'{"count":1,"count":1}', b'{"severity_id":2147483648}',
        b'{"message":5}', b'{"is_alert":1}', b'{"unmapped":{"a":1}}', b'\xef\xbb\xbf{"count":1}',
        b'{"enrichments":[{"data":[1]}]}', b'{"enrichments":[{"data":"text"}]}',
        b'{"enrichments":[{"data":{"a":{"b":{"c":{"d":{}}}}}}]}',
    ],
)  # fmt: skip
def test_line_that_does_not_fit_the_columns_is_not_read(line: bytes) -> None:
    schema = _schemas(STORED)[samples.REFUSED]
    good = samples.packets(1)[0].line
    for lines in ([line], [good, line], [line, good]):
        with pytest.raises(ValueError, match=r"."):
            read_rows(lines, schema)


@pytest.mark.parametrize(
    "line",
    [
        b'{"count":1,"unmapped":null,"metadata":{}}', b'{"unmapped":{"a":[1.50]},"metadata":{}}',
        b'{"unmapped":"text","metadata":{}}', b'{"unmapped":{"a":"\\u0061\\u0085"},"metadata":{}}',
        b'{"enrichments":[{"data":{"a":[{"b":"}"}]}},{"data":{}}],"unmapped":{},"metadata":{}}',
    ],
)  # fmt: skip
def test_value_of_any_content_is_its_json(line: bytes) -> None:
    read = read_rows([line], _schemas(STORED)[samples.REFUSED])
    assert read.equals(_by_hand([line], samples.REFUSED, STORED))


def test_one_event_that_arrow_refuses_changes_no_other_event() -> None:
    messages = list(samples.packets(70))
    expected, _ = parquet_files.Maker(columns(STORED)).make(messages)
    on_several_lines = json.dumps(messages[40].event(), indent=1).encode()
    messages[40] = Message(messages[40].uid, on_several_lines)
    found, refused = parquet_files.Maker(columns(STORED)).make(messages)
    assert not refused
    assert found == expected
