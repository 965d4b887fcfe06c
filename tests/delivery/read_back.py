"""Conversion of Parquet files back to events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from ocsf_nft.delivery.parquet_columns import ListOf, Scalar, Struct

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from ocsf_nft.delivery.parquet_columns import Column


def events(contents: Iterable[bytes], columns: Struct) -> list[Any]:
    """Return the events of files, file by file."""
    return [
        event_of(row, columns)
        for content in contents
        for row in pq.ParquetFile(pa.BufferReader(content)).read().to_pylist()
    ]


def event_of(value: Any, column: Column) -> Any:
    """Return a row, or a value of it, as JSON has it: without null values."""
    if isinstance(column, Struct):
        return {
            name: event_of(inner, column.columns[name])
            for name, inner in value.items()
            if inner is not None
        }
    if isinstance(column, ListOf):
        return [event_of(each, column.item) for each in value]
    return orjson.loads(value) if column is Scalar.JSON else value


def files(folder: Path) -> list[Path]:
    """Return every file below a directory, hidden or not."""
    return sorted(path for path in folder.rglob("*") if path.is_file())
