"""Configuration tables of sinks (``[[sink]]``): one module for each type."""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeAlias, get_args

from pydantic import BeforeValidator, Field

from ocsf_nft.config.sinks.base import SinkTable
from ocsf_nft.config.sinks.file import FileSink
from ocsf_nft.config.sinks.http import HttpSink
from ocsf_nft.config.sinks.kafka import KafkaSink
from ocsf_nft.config.sinks.nats import NatsSink
from ocsf_nft.config.sinks.opensearch import OpenSearchSink
from ocsf_nft.config.sinks.otlp import OtlpSink
from ocsf_nft.config.sinks.parquet import ParquetSink
from ocsf_nft.config.sinks.splunk_hec import SplunkHecSink
from ocsf_nft.config.sinks.stdout import StdoutSink
from ocsf_nft.config.sinks.syslog import SyslogSink
from ocsf_nft.config.sinks.unix import UnixSink

__all__ = ["KINDS", "SinkConfig", "SinkTable"]

#: Standard output, in place of a file's path.
_STDOUT: Final = "-"


def _with_type(table: Any) -> Any:
    """Return a sink's table with its type; a table without a type gets the type ``file``.

    If the type is ``file`` and the path is ``-``, the type becomes ``stdout``.
    """
    if not isinstance(table, dict):
        return table
    typed = {"type": "file"} | table
    if typed["type"] == "file" and table.get("path") == _STDOUT:
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
