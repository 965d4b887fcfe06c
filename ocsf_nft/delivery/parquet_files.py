"""Conversion of events to Apache Parquet files, for a custom source of Amazon Security Lake.

Each file has the events of one OCSF class and one day, in order of time.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from ocsf_nft.delivery.line_fields import LineFields
from ocsf_nft.delivery.parquet_columns import ListOf, Scalar, Struct, row_of
from ocsf_nft.delivery.parquet_rows import read_rows
from ocsf_nft.delivery.sinks.base import Message, Refusal
from ocsf_nft.utc_text import utc_text

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    from ocsf_nft.delivery.parquet_columns import Column

# Format: "Collecting data from custom sources", Amazon Security Lake User Guide.

#: Rows that are converted at a time. If the lines of one row do not fit the columns, all these rows
#: are converted by hand.
_SLICE: Final = 1024
#: Rows converted by hand at a time, during which pyarrow holds the interpreter lock: a few
#: milliseconds.
_SLICE_BY_HAND: Final = 32
#: Security Lake accepts at most 1 MB before compression.
_PAGE_BYTES: Final = 512 << 10
#: Minimum and maximum number of values after which pyarrow checks again whether a page is full.
_PAGE_STEPS: Final = (8, 1024)
_DIGEST_LENGTH: Final = 32
_NOT_JSON: Final = "the event is not JSON"

_TYPES: Final[Mapping[Scalar, pa.DataType]] = {
    Scalar.TEXT: pa.string(),
    Scalar.FLAG: pa.bool_(),
    Scalar.INT32: pa.int32(),
    Scalar.INT64: pa.int64(),
    Scalar.JSON: pa.string(),
}


class File(NamedTuple):
    """Parquet file with the events of one class and one day; ``day`` is YYYYMMDD in UTC."""

    class_uid: int
    day: str
    name: str
    content: bytes


class Maker:
    """Converter of events to Parquet files.

    ``columns`` maps the ``class_uid`` of each event class to its columns. Each class must have the
    columns ``time`` (ms since the epoch) and ``unmapped`` (values that fit no other column).
    """

    def __init__(self, columns: Mapping[int, Struct]) -> None:
        self._columns = columns
        self._schemas = {uid: pa.schema(_fields(struct)) for uid, struct in columns.items()}

    def make(self, messages: Sequence[Message]) -> tuple[list[File], list[Refusal]]:
        """Convert the events of ``messages`` to Parquet files, one for each class and day.

        A message without a known class or a valid time is not converted, but returned as a refusal.
        """
        parts: dict[tuple[int, str], list[_Event]] = {}
        refused: list[Refusal] = []
        for message in messages:
            fields = LineFields(message.line)
            class_uid, timestamp = fields.integer("class_uid"), utc_text(fields.integer("time"))
            if class_uid is None or class_uid not in self._columns or timestamp is None:
                refused.append(Refusal(message, _fault(message, class_uid, self._columns)))
                continue
            key = class_uid, timestamp[:10].replace("-", "")
            parts.setdefault(key, []).append(_Event(message, timestamp))
        files: list[File] = []
        for (class_uid, day), events in parts.items():
            table, accepted, invalid = self._table(class_uid, events)
            refused += invalid
            if accepted:
                files.append(File(class_uid, day, _name(accepted), _content(table, accepted)))
        return files, refused

    def _table(
        self, class_uid: int, events: Sequence[_Event]
    ) -> tuple[pa.Table, list[_Event], list[Refusal]]:
        """Return the rows of events, the events with a row, and the refusals of the others."""
        schema = self._schemas[class_uid]
        tables: list[pa.Table] = []
        accepted: list[_Event] = []
        refused: list[Refusal] = []
        for at in range(0, len(events), _SLICE):
            part = events[at : at + _SLICE]
            try:
                tables.append(read_rows([event.message.line for event in part], schema))
            except ValueError:
                part, invalid = self._add_by_hand(class_uid, part, tables)
                refused += invalid
            accepted += part
        return pa.concat_tables(tables), accepted, refused

    def _add_by_hand(
        self, class_uid: int, events: Sequence[_Event], tables: list[pa.Table]
    ) -> tuple[list[_Event], list[Refusal]]:
        rows: list[dict[str, Any]] = []
        accepted: list[_Event] = []
        refused: list[Refusal] = []
        for event in events:
            try:
                rows.append(row_of(event.message.event(), self._columns[class_uid]))
            except orjson.JSONDecodeError:
                refused.append(Refusal(event.message, _NOT_JSON))
            else:
                accepted.append(event)
        schema = self._schemas[class_uid]
        tables += (
            pa.Table.from_pylist(rows[at : at + _SLICE_BY_HAND], schema)
            for at in range(0, len(rows) or 1, _SLICE_BY_HAND)
        )
        return accepted, refused


class _Event(NamedTuple):
    """Event of a file, and its time as text."""

    message: Message
    timestamp: str


def _fault(message: Message, class_uid: int | None, known: Container[int | None]) -> str:
    try:
        event = message.event()
    except orjson.JSONDecodeError:
        return _NOT_JSON
    if not isinstance(event, dict):
        return "the event is not a JSON object"
    if class_uid not in known:
        return "the event has no class_uid that there are columns for"
    return "the event has no time with a valid date"


def _name(events: Sequence[_Event]) -> str:
    # The same batch has the same name: its repeated delivery overwrites the earlier files.
    uids = orjson.dumps([event.message.uid for event in events])
    digest = hashlib.sha256(uids).hexdigest()[:_DIGEST_LENGTH]
    first = min(event.timestamp for event in events)
    second = first[:19].replace("-", "").replace(":", "")
    return f"{second}Z-{digest}.parquet"


def _content(table: pa.Table, events: Sequence[_Event]) -> bytes:
    # No value is longer than its event, so no page has twice the size at which it is full.
    longest = max(len(event.message.line) for event in events)
    fewest, most = _PAGE_STEPS
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.sort_by("time"),
        sink,
        # One row group: a batch is below Security Lake's maximum of 256 MB.
        row_group_size=table.num_rows,
        compression="zstd",
        data_page_size=_PAGE_BYTES,
        dictionary_pagesize_limit=_PAGE_BYTES,
        write_batch_size=min(max(_PAGE_BYTES // longest, fewest), most),
    )
    return sink.getvalue().to_pybytes()


def _fields(struct: Struct) -> list[pa.Field[Any]]:
    return [pa.field(name, _type(column)) for name, column in struct.columns.items()]


def _type(column: Column) -> pa.DataType:
    if isinstance(column, Struct):
        return pa.struct(_fields(column))
    if isinstance(column, ListOf):
        return pa.list_(_type(column.item))
    return _TYPES[column]
