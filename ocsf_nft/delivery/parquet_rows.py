"""Conversion of events to rows of a Parquet table by Arrow's own reader of JSON.

The reader is strict: it fails if an attribute has no column, or a value not the type of its column.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import orjson
from pyarrow import json as arrow_json

from ocsf_nft.delivery.line_fields import free_spans

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa


def read_rows(lines: Sequence[bytes], schema: pa.Schema) -> pa.Table:
    """Convert events, as lines of JSON in our form, to a table with one row for each line.

    The values of ``data`` and ``unmapped`` are JSON texts in the table. Raises ValueError if the
    columns of ``schema`` can't hold all values as they are.
    """
    data = b"\n".join(map(_with_free_values_as_texts, lines))
    data.decode()  # Arrow does not check that a text is UTF-8; raises a ValueError
    table = arrow_json.read_json(
        io.BytesIO(data),
        # One block for all lines, in this thread.
        read_options=arrow_json.ReadOptions(use_threads=False, block_size=len(data) + 1),
        parse_options=arrow_json.ParseOptions(
            explicit_schema=schema, unexpected_field_behavior="error"
        ),
    )
    # A line begins an object, so it has at least one row. It may have several objects.
    if table.num_rows != len(lines):
        raise ValueError("a line is not one JSON object")
    return table


def _with_free_values_as_texts(line: bytes) -> bytes:
    spans = free_spans(line)
    if spans is None or not line.startswith(b"{") or b"\n" in line:
        raise ValueError("the line has another form than ours")
    parts: list[bytes] = []
    written = 0
    for start, end in spans:
        value = orjson.loads(line[start:end])
        if value is not None:
            parts += line[written:start], orjson.dumps(orjson.dumps(value).decode())
            written = end
    parts.append(line[written:])
    return b"".join(parts)
