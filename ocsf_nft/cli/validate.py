"""Command ``validate``: check events against the OCSF schema."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING

import click

from ocsf_nft.cli import options, output
from ocsf_nft.cli.documented_command import DocumentedCommand
from ocsf_nft.errors import UsageError
from ocsf_nft.ocsf.safe_text import visible

if TYPE_CHECKING:
    from pathlib import Path

    from ocsf_nft.validation import Fault


@click.command("validate", cls=DocumentedCommand)
@options.input_paths(
    "Files of events, one JSON object a line, or JSON documents over several lines"
)
@click.option(
    "--ocsf-version",
    metavar="V",
    help="OCSF version to check against; default: metadata.version of each event.",
)
@click.option(
    "--schema",
    type=options.PATH,
    metavar="FILE",
    help="A compiled OCSF schema to check against, as a schema server exports it: JSON, "
    "also compressed by gzip; in place of the published schemas.",
)
@click.option("--recommended", is_flag=True, help="Warn about missing recommended attributes.")
@click.option(
    "--json", "as_json", is_flag=True, help="Write one JSON object a fault to standard output."
)
def validate(
    *,
    paths: list[str],
    ocsf_version: str | None,
    schema: Path | None,
    recommended: bool,
    as_json: bool,
) -> None:
    """Check events of any product against the published OCSF schema.

    Writes one line for each fault to standard error, for example PATH:LINE: error:
    dst_endpoint.port: 70000 is more than 65535. An error violates the schema. A warning (a
    deprecated attribute, an unused profile) does not affect the exit code. Files may be compressed
    by gzip, xz or zstd.

    Exit 0: no errors. 1: errors, or a file without events, which proves nothing. 2: a file can't be
    read, the schema is wrong, or the version is unknown. 3: a compressed file is damaged, or the
    extra is missing (pip install 'ocsf-nft[validate]'); --schema does not need it. Needs no
    privilege.

    Example: ocsf-nft validate --ocsf-version 1.8.0 events.jsonl
    """
    from ocsf_nft.conversion.compressed import decompressed
    from ocsf_nft.validation import EventValidator, validate_events

    if schema is not None and ocsf_version is not None:
        raise UsageError("--schema has a version of its own: leave out --ocsf-version")
    compiled = None
    if schema is not None:
        from ocsf_nft.validation.schema_file import read_schema

        compiled = read_schema(schema)
    validator = EventValidator(ocsf_version, compiled=compiled, recommended=recommended)
    numbers: Counter[str] = Counter()
    is_empty = False
    for path in paths or ["-"]:
        events = 0
        name = "standard input" if path == "-" else path
        with options.input_file(path) as file:
            for event in validate_events(decompressed(file, name), validator):
                events += 1
                for fault in event.faults:
                    numbers[fault.severity] += 1
                    _write(visible(path), event.line, fault, as_json=as_json)
        numbers["event"] += events
        if not events:
            is_empty = True
            output.show(f"{visible(path)}: no events")
    output.show(
        f"{_counted(numbers, 'event')}: {_counted(numbers, 'error')}, "
        f"{_counted(numbers, 'warning')}"
    )
    if numbers["error"] or is_empty:
        raise SystemExit(1)


def _counted(numbers: Counter[str], noun: str) -> str:
    return f"{numbers[noun]} {noun}{'' if numbers[noun] == 1 else 's'}"


def _write(path: str, line: int, fault: Fault, *, as_json: bool) -> None:
    if as_json:
        output.write_json({"file": path, "line": line} | dataclasses.asdict(fault))
    else:
        output.show(f"{path}:{line}: {fault}")
