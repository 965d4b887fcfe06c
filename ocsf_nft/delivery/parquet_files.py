"""Conversion of events to Apache Parquet files, for a custom source of Amazon Security Lake.

Each file has the events of one OCSF class and one day, in order of time.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from ocsf_nft.delivery.parquet_columns import ListOf, Scalar, Struct, row_of
from ocsf_nft.delivery.sinks.base import Message, Refusal
from ocsf_nft.utc_text import utc_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ocsf_nft.delivery.parquet_columns import Column

# Format: "Collecting data from custom sources", Amazon Security Lake User Guide.

#: Rows that pyarrow converts at a time, during which it holds the interpreter lock: a few
#: milliseconds.
_SLICE: Final = 32
#: Security Lake accepts at most 1 MB before compression.
_PAGE_BYTES: Final = 512 << 10
#: Number of values after which pyarrow checks again whether a page is full.
_PAGE_STEP: Final = 8
_DIGEST_LENGTH: Final = 32

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
        parts: dict[tuple[int, str], _Part] = {}
        refused: list[Refusal] = []
        for message in messages:
            try:
                event, class_uid, timestamp = self._read(message)
            except ValueError as error:
                refused.append(Refusal(message, str(error)))
                continue
            key = class_uid, timestamp[:10].replace("-", "")
            part = parts.setdefault(key, _Part(self._schemas[class_uid]))
            part.add(message.uid, timestamp, row_of(event, self._columns[class_uid]))
        files = [
            File(class_uid, day, part.name(), part.content())
            for (class_uid, day), part in parts.items()
        ]
        return files, refused

    def _read(self, message: Message) -> tuple[Mapping[str, Any], int, str]:
        """Return a message's event, ``class_uid``, and time as text; raises ValueError."""
        try:
            event = message.event()
        except orjson.JSONDecodeError as error:
            raise ValueError("the event is not JSON") from error
        if not isinstance(event, dict):
            raise ValueError("the event is not a JSON object")  # noqa: TRY004 - a value
        class_uid = event.get("class_uid")
        if not isinstance(class_uid, int) or class_uid not in self._columns:
            raise ValueError("the event has no class_uid that there are columns for")
        timestamp = utc_text(event.get("time"))
        if timestamp is None:
            raise ValueError("the event has no time with a valid date")
        return event, class_uid, timestamp


@dataclass(slots=True)
class _Part:
    """Rows of a Parquet file that is not complete yet.

    New rows are added to ``rows`` as Python objects. When ``rows`` has 32 rows, these rows are
    converted to one pyarrow batch, which is added to ``batches``.
    """

    schema: pa.Schema
    uids: list[str] = field(default_factory=list)
    first: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)
    batches: list[pa.RecordBatch] = field(default_factory=list)

    def add(self, uid: str, timestamp: str, row: dict[str, Any]) -> None:
        self.uids.append(uid)
        self.first = min(self.first or timestamp, timestamp)
        self.rows.append(row)
        if len(self.rows) == _SLICE:
            self._pack()

    def _pack(self) -> None:
        self.batches.append(pa.RecordBatch.from_pylist(self.rows, self.schema))
        self.rows.clear()

    def name(self) -> str:
        # The same batch has the same name: its repeated delivery overwrites the earlier files.
        digest = hashlib.sha256(orjson.dumps(self.uids)).hexdigest()[:_DIGEST_LENGTH]
        second = self.first[:19].replace("-", "").replace(":", "")
        return f"{second}Z-{digest}.parquet"

    def content(self) -> bytes:
        if self.rows:
            self._pack()
        table = pa.Table.from_batches(self.batches, self.schema).sort_by("time")
        sink = pa.BufferOutputStream()
        pq.write_table(
            table,
            sink,
            # One row group: a batch is below Security Lake's maximum of 256 MB.
            row_group_size=table.num_rows,
            compression="zstd",
            data_page_size=_PAGE_BYTES,
            dictionary_pagesize_limit=_PAGE_BYTES,
            write_batch_size=_PAGE_STEP,
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
