"""Command ``explain``: show each field of a log line or of an event."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from ocsf_nft.cli import options, output
from ocsf_nft.cli.documented_command import DocumentedArgument, DocumentedCommand
from ocsf_nft.ocsf.safe_text import plain, visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from ocsf_nft.log_prefixes import Prefixes
    from ocsf_nft.record import Record


@click.command("explain", cls=DocumentedCommand)
@click.argument(
    "line",
    cls=DocumentedArgument,
    metavar="LINE",
    text="A line of a kernel log, or an event as JSON, quoted.",
)
@options.mapping_config
def explain(*, line: str, config: Path | None) -> None:
    """Show each field of a log line or of an event.

    For a line of a kernel log, shows a table of the log record's fields. A second table shows the
    fields of the event made from this record, and the source of each value. A source is a text such
    as "time when ocsf-nft read the record". Also prints the event as JSON on standard output. For
    an event, shows only the second table. Tables go to standard error.

    Exit 1: the line is neither a log record nor an event; a message gives the reason. Needs no
    privilege.

    Example: ocsf-nft explain "$(dmesg | grep -m1 ocsf-nft:)"
    """
    event = event_of(line)
    if event is not None:
        _show_event(event)
        return
    from ocsf_nft.attempt import Attempt
    from ocsf_nft.ocsf.mapper import Mapper

    prefixes, context = options.prefixes_and_context(config)
    records = list(_records(line, prefixes))
    if not records:
        output.show("this line is neither a record of a packet nor an event")
        raise SystemExit(1)
    mapper = Mapper(context)
    for record in records:
        _table("Fields of the record", ("field", "value"), _facts(record))
        made = mapper.line(Attempt.of(record), processed_ns=time.time_ns())
        found = event_of(made)
        if found is not None:
            _show_event(found)
        output.write(made + b"\n")


def event_of(text: str | bytes) -> dict[str, Any] | None:
    """Parse the JSON of an event; return None if ``text`` is anything else."""
    import orjson

    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:  # also raised for lone surrogates: bytes that are not UTF-8
        return None
    return found if isinstance(found, dict) and "class_uid" in found else None


def _records(line: str, prefixes: Prefixes) -> Iterator[Record]:
    from ocsf_nft.sources.replay import Reader

    for batch in Reader().batches([line.encode("utf-8", "surrogateescape")]):
        for reject in batch.rejected:
            output.show(f"{reject.kind}: {reject.reason}")
        yield from map(prefixes.named, batch.records)


def _show_event(event: Mapping[str, Any]) -> None:
    from ocsf_nft.ocsf.explain_fields import fields

    _table("Fields of the event", ("field", "value", "source"), fields(event))


def _table(title: str, heads: Iterable[str], rows: Iterable[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title)
    for head in heads:
        table.add_column(head, overflow="fold")  # so that each value can be searched
    for row in rows:
        table.add_row(*map(Text, row))  # Text: a hostile name is no markup
    Console(stderr=True).print(table)


def _facts(record: Record) -> Iterator[tuple[str, str]]:
    import dataclasses

    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if field.name in {"origin", "details"} or value is None:
            continue
        yield field.name, visible(str(value))
    for key, detail in plain(record.details).items():
        yield f"details.{key}", _shown(detail)
    yield "origin.log_source", visible(str(record.origin.log_source))
    yield "origin.identity", visible(str(record.origin.identity))


def _shown(detail: Any) -> str:
    import orjson

    return detail if isinstance(detail, str) else orjson.dumps(detail).decode()
