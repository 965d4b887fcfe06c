"""Configuration tables of sinks (``[[sink]]``)."""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeAlias, get_args

from pydantic import BeforeValidator, Field

from ocsf_nft.config.sinks.base import SinkTable
from ocsf_nft.config.sinks.brokers import KafkaSink, NatsSink
from ocsf_nft.config.sinks.http import HttpSink, OpenSearchSink, OtlpSink, SplunkHecSink
from ocsf_nft.config.sinks.local import FileSink, StdoutSink, UnixSink
from ocsf_nft.config.sinks.parquet import ParquetSink
from ocsf_nft.config.sinks.syslog import SyslogSink

__all__ = ["KINDS", "STDOUT", "SinkConfig", "SinkTable"]

#: Standard output, in place of a file's path.
STDOUT: Final = "-"


def _with_type(table: Any) -> Any:
    """Return a sink's table with its type; a table without a type gets the type ``file``.

    If the type is ``file`` and the path is ``-``, the type becomes ``stdout``.
    """
    if not isinstance(table, dict):
        return table
    typed = {"type": "file"} | table
    if typed["type"] == "file" and table.get("path") == STDOUT:
        del typed["path"]
        typed["type"] = "stdout"
    return typed


_Kind: TypeAlias = (
    FileSink
    | StdoutSink
    | UnixSink
    | HttpSink
    | SplunkHecSink
    | OpenSearchSink
    | SyslogSink
    | NatsSink
    | KafkaSink
    | ParquetSink
    | OtlpSink
)

#: ``[[sink]]``: of the ``type`` that it names.
SinkConfig: TypeAlias = Annotated[_Kind, Field(discriminator="type"), BeforeValidator(_with_type)]
#: The tables by their type.
KINDS: Final[dict[str, type[SinkTable]]] = {
    get_args(table.model_fields["type"].annotation)[0]: table for table in get_args(_Kind)
}
