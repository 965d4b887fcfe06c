"""Tables of Athena, parsed by sqlglot and compared with the files of the sink ``parquet``."""

from __future__ import annotations

from io import BytesIO
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlglot
from sqlglot import exp

from ocsf_nft.config.sinks.columns import columns
from ocsf_nft.delivery.parquet_files import Maker
from ocsf_nft.ocsf.events import CLASS_UIDS
from ocsf_nft.ocsf.versions import STORED, VERSIONS
from tests.delivery import sample_events
from tests.detections import conversion

_STATEMENTS: Final = [
    each
    for each in sqlglot.parse((conversion.FOLDER / "athena/tables.sql").read_text(), read="athena")
    if each is not None
]
_TABLES: Final = {
    each.this.this.name: {column.name: column.args["kind"] for column in each.this.expressions}
    for each in _STATEMENTS
    if each.args["kind"] == "TABLE"
}
_SCALARS: Final = {
    pa.string(): exp.DataType.Type.TEXT,
    pa.bool_(): exp.DataType.Type.BOOLEAN,
    pa.int32(): exp.DataType.Type.INT,
    pa.int64(): exp.DataType.Type.BIGINT,
}


def _is_read_as(stored: pa.DataType, declared: exp.DataType) -> bool:
    """Return whether a column of a file has the declared type, or a part of its attributes."""
    if pa.types.is_list(stored):
        (item,) = declared.expressions
        return declared.is_type("array") and _is_read_as(stored.value_type, item)
    if pa.types.is_struct(stored):
        inner = {each.name: each.args["kind"] for each in declared.expressions}
        return declared.is_type("struct") and all(
            field.name in inner and _is_read_as(field.type, inner[field.name]) for field in stored
        )
    return declared.this is _SCALARS[stored]


def test_each_class_has_a_table() -> None:
    assert _TABLES.keys() == CLASS_UIDS.keys()


@pytest.mark.parametrize("version", [VERSIONS[0], STORED])
def test_tables_have_the_columns_of_the_files(version: str) -> None:
    maker = Maker(columns(version))
    files, _ = maker.make(sample_events.messages(version))
    names = {uid: name for name, uid in CLASS_UIDS.items()}
    seen = set()
    for file in files:
        table = _TABLES[names[file.class_uid]]
        for field in pq.read_schema(BytesIO(file.content)):
            assert _is_read_as(field.type, table[field.name]), field
        seen.add(file.class_uid)
    assert seen == set(names)
