"""Tables of Amazon Athena over the files of the sink ``parquet``, one for each event class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocsf_nft.delivery.parquet_columns import ListOf, Scalar
from ocsf_nft.ocsf.events import CLASS_UIDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ocsf_nft.delivery.parquet_columns import Column, Struct

_TYPES: Final = {
    Scalar.TEXT: "string",
    Scalar.FLAG: "boolean",
    Scalar.INT32: "int",
    Scalar.INT64: "bigint",
    Scalar.JSON: "string",
}
#: Names that Athena's DDL reserves and OCSF has ("Escape reserved keywords", Amazon Athena Guide).
_RESERVED: Final = frozenset({"date", "end", "group", "interval", "timestamp", "user", "values"})
_TABLE: Final = """\
CREATE EXTERNAL TABLE IF NOT EXISTS ocsf_nft.{name} (
{columns}
)
PARTITIONED BY (region string, accountid string, eventday string)
STORED AS PARQUET
LOCATION '{folder}/'
TBLPROPERTIES (
  'projection.enabled' = 'true',
  'projection.region.type' = 'enum',
  'projection.region.values' = 'eu-central-1',
  'projection.accountid.type' = 'enum',
  'projection.accountid.values' = '123456789012',
  'projection.eventday.type' = 'date',
  'projection.eventday.format' = 'yyyyMMdd',
  'projection.eventday.range' = '20260101,NOW',
  'storage.location.template' = '{folder}/region=${{region}}/accountId=${{accountid}}/eventDay=${{eventday}}/'
);
"""  # noqa: E501 - Athena joins no strings
_FOLDER: Final = "s3://example/ext/ocsf-nft-{uid}/1.8.0"
_HEAD: Final = """\
-- Made by `make detections`. Change the bucket, the source, its version, the regions and accounts.
-- Athena runs one statement at a time.
CREATE DATABASE IF NOT EXISTS ocsf_nft;
"""


def statements(columns: Mapping[int, Struct]) -> str:
    """Return the statements that create the tables; ``columns`` are those of each class."""
    tables = (
        _TABLE.format(
            name=name,
            folder=_FOLDER.format(uid=uid),
            columns=",\n".join(
                f"  `{each}` {type_of(column)}" for each, column in columns[uid].columns.items()
            ),
        )
        for name, uid in CLASS_UIDS.items()
    )
    return "\n".join((_HEAD, *tables))


def type_of(column: Column) -> str:
    """Return the type of a column in Athena, which is Hive's."""
    if isinstance(column, Scalar):
        return _TYPES[column]
    if isinstance(column, ListOf):
        return f"array<{type_of(column.item)}>"
    inner = (f"{_quoted(name)}:{type_of(each)}" for name, each in column.columns.items())
    return f"struct<{','.join(inner)}>"


def _quoted(name: str) -> str:
    return f"`{name}`" if name in _RESERVED else name
