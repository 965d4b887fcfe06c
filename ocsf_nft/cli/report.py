"""Command ``report``: a page of HTML about an incident, or about a time span."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ocsf_nft.cli import options, output
from ocsf_nft.errors import AbsentError, DeliveryError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocsf_nft.cli.event_sources import EventReader
    from ocsf_nft.report.selection import Incident, Span
    from ocsf_nft.report.view import View


@click.command("report")
@options.event_files
@click.option(
    "--incident",
    metavar="ID",
    help="Only this incident: the beginning of a finding's finding_info.uid, or of a "
    "metadata.correlation_uid.",
)
@options.events_of
@options.since
@options.until
@click.option(
    "--output",
    "-o",
    "target",
    type=options.PATH,
    metavar="FILE",
    help="The file to write, with mode 0600. Default: standard output, which must not be "
    "a terminal.",
)
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@options.service_or_files
@options.state_dir
@options.source_config
def report(  # noqa: PLR0913 - each is an option
    *,
    paths: tuple[str, ...],
    incident: str | None,
    sandbox: str | None,
    since: str | None,
    until: str | None,
    target: Path | None,
    force: bool,
    control: Path | None,
    state_dir: Path | None,
    config: Path | None,
) -> None:
    """Write a report about an incident or a time span as HTML.

    The page is one file. It answers who did what, when, how much, what to do, and what is not
    known. It has a timeline, the processes with their ancestors, the destinations, and the
    findings. It needs no network, and has no scripts. Browsers show it on phones, on screens and on
    paper.

    Without --input, the stored events are read, as by `ocsf-nft events`. Files of events may have
    any OCSF version from 1.1.0 on, also without captions, and may be compressed by gzip, xz or
    zstd.

    Exit 2: no such incident, no events, or the file exists. Exit 3: the file can't be written, or a
    compressed file is damaged. To read files needs no privilege. By default, only root may read the
    stored events; root and the socket's group may use the service.

    Example: ocsf-nft report --sandbox agent --since 24h --output report.html
    """
    from ocsf_nft.cli.event_sources import event_reader
    from ocsf_nft.report.page import page
    from ocsf_nft.report.selection import Span
    from ocsf_nft.time_text import since_ms

    if incident is not None and (sandbox, since, until) != (None, None, None):
        raise UsageError(
            "--incident can't be combined with --sandbox, --since or --until: an incident has "
            "its own time"
        )
    _check_target(target, paths, force=force)
    span = Span(
        from_ms=None if since is None else since_ms("--since", since),
        until_ms=None if until is None else since_ms("--until", until),
        sandbox=sandbox,
    )
    with event_reader(paths, control, state_dir, config) as read:
        selected = span if incident is None else found_incident(read, incident)
        view = view_of(read, selected)
        if sandbox is not None and sandbox not in dict(view.identity):
            _warn_of_unknown_sandbox(read, sandbox)
    html = page(
        view,
        subject=_subject(selected, view),
        made_ms=time.time_ns() // 1_000_000,
        since_ms=span.from_ms,
    )
    if target is None:
        output.write(html)
    else:
        write_file(target, html, force=force)
        output.show(f"{target}: {view.totals.events} events, {len(view.findings)} findings")


def _warn_of_unknown_sandbox(read: EventReader, sandbox: str) -> None:
    # A quiet sandbox may have no event, but a misspelt name must not look like one.
    from ocsf_nft.report.selection import SandboxFinder

    finder = SandboxFinder(sandbox)
    read(finder.read)
    if (warning := finder.warning()) is not None:
        output.show(f"ocsf-nft: {warning}")


def found_incident(read: EventReader, prefix: str) -> Incident:
    """Return the incident with a uid that begins with ``prefix``.

    Raises AbsentError if there is none, UsageError if there are several.
    """
    from ocsf_nft.report.selection import IncidentFinder

    finder = IncidentFinder(prefix)
    read(finder.read)
    return finder.incident()


def view_of(read: EventReader, selected: Incident | Span) -> View:
    """Return the facts of the selected events; raises AbsentError if the input has no event."""
    from ocsf_nft.report.aggregator import Aggregator

    aggregator = Aggregator(selected)
    read(aggregator.read)
    view = aggregator.view()
    if view.read.first_ms is None:
        raise AbsentError(
            "the input has no OCSF event: name a file with one event as JSON in each line "
            "(--input), or the state directory of a run (--state-dir)"
        )
    return view


def _subject(selected: Incident | Span, view: View) -> str:
    from ocsf_nft.report import wording
    from ocsf_nft.report.selection import Incident

    if isinstance(selected, Incident):
        title = view.findings[0].title if view.findings else "Attempts"
        return f"Incident {selected.uid[:8]}: {title}"
    if selected.sandbox is not None:
        return f"Sandbox {selected.sandbox}"
    names = [name for name, _ in view.identity]
    if len(names) == 1:
        return f"Sandbox {names[0]}"
    found = wording.sandboxes(view)
    return found[0].upper() + found[1:]


def _check_target(target: Path | None, inputs: Iterable[str], *, force: bool) -> None:
    """Raise UsageError if the page can't be written; before the events are read."""
    if target is None:
        if sys.stdout.isatty():
            raise UsageError("a terminal can't show a page: give --output FILE, or a pipe")
    elif not os.path.lexists(target):
        return
    elif not force:
        raise UsageError(f"{target} exists: give --force to replace it, or another --output")
    elif not stat.S_ISREG(target.lstat().st_mode):  # such as /dev/null, or the link /dev/stdout
        raise UsageError(f"{target} is no regular file: give another --output, or a pipe")
    elif any(options.is_same_file(target, name) for name in inputs):
        raise UsageError(f"--output {target} would replace an input of that name: give another")


def write_file(target: Path, content: bytes, *, force: bool) -> None:
    """Write a file at once; raises UsageError if it exists, DeliveryError if that fails."""
    try:
        # mkstemp makes files of mode 0600.
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            if force:
                Path(temporary).replace(target)
            else:
                os.link(temporary, target)
        finally:
            with contextlib.suppress(FileNotFoundError):  # it was renamed
                Path(temporary).unlink()
    except FileExistsError as error:
        raise UsageError(f"{target} exists: give --force to replace it") from error
    except OSError as error:
        raise DeliveryError(f"{target} can't be written: {error.strerror}") from error
