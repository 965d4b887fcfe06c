"""Events as files of Apache Parquet: each of one class, of one day, and in order of time.

What Amazon Security Lake asks of a custom source ("Collecting data from custom sources", Amazon
Security Lake User Guide): Parquet 1.x or 2.x, zstandard, data pages of 1 MB at most before and row
groups of 256 MB at most after compression, one class of OCSF a file, records in order of time. A
file is a row group here: a batch is smaller than one may be.

A batch always makes the same files, byte for byte, and a file's name is made of the uids of its
events: who delivers a batch again writes over what it delivered before.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from ocsf_nft.delivery.parquet_columns import ListOf, Scalar, Struct, row_of
from ocsf_nft.delivery.sinks.base import Refusal
from ocsf_nft.utc_text import utc_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ocsf_nft.delivery.envelope import Message
    from ocsf_nft.delivery.parquet_columns import Column

#: What pyarrow makes columns of while it holds the interpreter: a few milliseconds.
_SLICE: Final = 32
_PAGE_BYTES: Final = 512 << 10
#: After how many values pyarrow looks whether a page is full.
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
    """A file: what its events are, ``day`` as YYYYMMDD in UTC, and its content."""

    class_uid: int
    day: str
    name: str
    content: bytes


class Made(NamedTuple):
    """What became of messages."""

    files: tuple[File, ...]
    refused: tuple[Refusal, ...]


class Maker:
    """Makes files of messages, with the ``columns`` of each class, by ``class_uid``.

    Such columns have ``time``, in ms since the epoch, and ``unmapped``.
    """

    def __init__(self, columns: Mapping[int, Struct]) -> None:
        self._columns = columns
        self._schemas = {uid: pa.schema(_fields(struct)) for uid, struct in columns.items()}

    def make(self, messages: Sequence[Message]) -> Made:
        """The files of messages, and which of these are no events of such a class."""
        parts: dict[tuple[int, str], _Part] = {}
        refused: list[Refusal] = []
        for message in messages:
            try:
                event, class_uid, moment = self._read(message)
            except ValueError as error:
                refused.append(Refusal(message, str(error)))
                continue
            key = class_uid, moment[:10].replace("-", "")
            part = parts.setdefault(key, _Part(self._schemas[class_uid]))
            part.add(message.uid, moment, row_of(event, self._columns[class_uid]))
        files = tuple(
            File(class_uid, day, part.name(), part.content())
            for (class_uid, day), part in parts.items()
        )
        return Made(files, tuple(refused))

    def _read(self, message: Message) -> tuple[Mapping[str, Any], int, str]:
        """An event, its class and its moment; raises ValueError with what is wrong with it."""
        try:
            event = message.event()
        except orjson.JSONDecodeError as error:
            raise ValueError("the event is no JSON") from error
        if not isinstance(event, dict):
            raise ValueError("the event is no object of JSON")  # noqa: TRY004 - it is a value
        class_uid = event.get("class_uid")
        if not isinstance(class_uid, int) or class_uid not in self._columns:
            raise ValueError("the event has no class_uid that there are columns for")
        moment = utc_text(event.get("time"))
        if moment is None:
            raise ValueError("the event has no time that is of a day")
        return event, class_uid, moment


@dataclass(slots=True)
class _Part:
    """What becomes a file; of events themselves it holds a slice at most."""

    schema: pa.Schema
    uids: list[str] = field(default_factory=list)
    first: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)
    batches: list[pa.RecordBatch] = field(default_factory=list)

    def add(self, uid: str, moment: str, row: dict[str, Any]) -> None:
        self.uids.append(uid)
        self.first = min(self.first or moment, moment)
        self.rows.append(row)
        if len(self.rows) == _SLICE:
            self._pack()

    def _pack(self) -> None:
        self.batches.append(pa.RecordBatch.from_pylist(self.rows, self.schema))
        self.rows.clear()

    def name(self) -> str:
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
