"""Command ``incident``: the open findings, or all facts about one of them."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

import click

from ocsf_nft.cli import options, output
from ocsf_nft.cli.documented_command import DocumentedArgument, DocumentedCommand
from ocsf_nft.cli.report import found_incident, view_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from ocsf_nft.cli.event_sources import EventReader
    from ocsf_nft.report.findings import Finding
    from ocsf_nft.report.view import View

#: Text in the JSON of each finding.
_DETECTION_FINDING: Final = b"2004"
_BOLD: Final = "\x1b[1m{}\x1b[0m"


@click.command("incident", cls=DocumentedCommand)
@click.argument(
    "uid",
    cls=DocumentedArgument,
    required=False,
    metavar="[ID]",
    text="The beginning of a finding's finding_info.uid, or of a metadata.correlation_uid. "
    "Default: a list of the open findings.",
)
@options.event_files
@click.option(
    "--json", "as_json", is_flag=True, help="Write the merged facts as JSON to standard output."
)
@options.service_or_files
@options.state_dir
@options.source_config
def incident(  # noqa: PLR0913 - each is an option
    *,
    uid: str | None,
    paths: tuple[str, ...],
    as_json: bool,
    control: Path | None,
    state_dir: Path | None,
    config: Path | None,
) -> None:
    """Show all facts about an incident, or list the open findings.

    The list has the latest update first. Shows who did what, when, how much, what to do, and what
    is not known; a timeline, the processes with their ancestors, and the destinations. --json
    writes one object, or one for each finding of the list.

    Without --input, the stored events are read, as by `ocsf-nft events`. Files of events may be
    compressed by gzip, xz or zstd.

    Exit 2: no such incident, or no events. To read files needs no privilege. By default, only root
    may read the stored events; root and the socket's group may use the service.

    Example: ocsf-nft incident ba3d6bc5
    """
    from ocsf_nft.cli.event_sources import event_reader

    with event_reader(paths, control, state_dir, config) as read:
        if uid is None:
            _list(read, as_json=as_json)
            return
        view = view_of(read, found_incident(read, uid))
    if as_json:
        _write_json(view)
    else:
        _show(view)


def _list(read: EventReader, *, as_json: bool) -> None:
    from ocsf_nft.cli.table import write_table
    from ocsf_nft.report import text
    from ocsf_nft.report.selection import Span

    view = view_of(lambda consume: read(lambda lines: consume(_possible(lines))), Span())
    rows = text.open_findings(view)
    if as_json:
        for finding in rows:
            _write_json(finding)
    elif rows:
        write_table(text.HEADINGS, [text.row(each) for each in rows])
    if not rows:
        output.show("no finding is open")
    if view.more_findings:
        output.show(f"at least {view.more_findings} findings are not listed")


def _possible(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines that may be findings; decoding all lines would take much longer.

    The first line is always one of them: it shows if the input has events.
    """
    for number, line in enumerate(lines):
        if number == 0 or _DETECTION_FINDING in line:
            yield line


def _write_json(found: Finding | View) -> None:
    """Write facts as one line of JSON; dataclasses and named tuples become objects."""
    import orjson

    output.write(orjson.dumps(found, default=lambda each: each._asdict()) + b"\n")


def _show(view: View) -> None:
    from ocsf_nft.report import text

    is_styled = (
        sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")
    )
    for line in text.incident(view):
        shown = _BOLD.format(line) if is_styled and not line.startswith(" ") else line
        output.write(f"{shown}\n".encode(errors="backslashreplace"))
