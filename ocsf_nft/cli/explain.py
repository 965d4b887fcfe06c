"""``explain``."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from ocsf_nft.cli import output

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.record import Record


def explain(
    line: Annotated[str, typer.Argument(help="A line of a kernel log, quoted.", metavar="LINE")],
) -> None:
    """Read one line, field by field, and print the event that it becomes.

    Exit 1: the line is not a record, and why. Needs no privilege.

    Example: ocsf-nft explain "$(dmesg | grep -m1 ocsf-nft:)"
    """
    from ocsf_nft.attempt import Attempt
    from ocsf_nft.ocsf.context import Context
    from ocsf_nft.ocsf.mapper import Mapper
    from ocsf_nft.sources.replay import Reader

    batches = list(Reader().batches([line.encode("utf-8", "surrogateescape")]))
    for reject in (reject for batch in batches for reject in batch.rejects):
        output.say(f"{reject.kind}: {reject.reason}")
    records = [record for batch in batches for record in batch.records]
    if not records:
        output.say("this line is not a record of a refused packet")
        raise typer.Exit(1)
    mapper = Mapper(Context())
    for record in records:
        _table(record)
        event = mapper.network_activity(Attempt.of(record), processed_ns=time.time_ns())
        output.write(event.to_json() + b"\n")


def _table(record: Record) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("field", "value", title="What the line says")
    for name, value in _fields(record):
        table.add_row(name, Text(value))  # Text: a hostile name is no markup
    Console(stderr=True).print(table)


def _fields(record: Record) -> Iterator[tuple[str, str]]:
    import dataclasses

    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if field.name in {"origin", "details"} or value is None:
            continue
        yield field.name, repr(value) if isinstance(value, str) else str(value)
    for key, value in record.details.items():
        yield f"details.{key}", repr(value)
    yield "origin.log_source", repr(record.origin.log_source)
    yield "origin.identity", repr(record.origin.identity)
