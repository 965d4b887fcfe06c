"""Command ``events``: list stored events, events that a sink refused, or each sink's backlog."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from __future__ import annotations

import contextlib
import signal
from functools import partial
from typing import TYPE_CHECKING

import click

from ocsf_nft.cli import options, output, service_access
from ocsf_nft.cli.event_sources import selection, store_paths
from ocsf_nft.cli.service_access import Access
from ocsf_nft.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from ocsf_nft.cli.stored_events import Selection


@click.command("events")
@options.events_of
@click.option(
    "--class",
    "kind",
    multiple=True,
    metavar="CLASS",
    help="Only events of this class, by name (network_activity) or uid; repeatable.",
)
@click.option(
    "--severity",
    metavar="informational|low|medium|high|critical",
    help="Only events of this severity or a higher one.",
)
@options.since
@options.until
@click.option("--uid", metavar="UID", help="Only the event with this metadata.uid.")
@click.option(
    "--lines",
    "-n",
    type=click.IntRange(0),
    default=20,
    metavar="N",
    help="Only the last N events. 0: all events, or with --follow only new ones.",
)
@click.option("--follow", "-f", is_flag=True, help="Continue with new events as they are stored.")
@click.option(
    "--format",
    "form",
    default="shorthand",
    metavar="shorthand|jsonl|syslog",
    help="Form of an event: a short line for people, JSON, or an RFC 5424 message.",
)
@options.ocsf_version
@click.option("--dead", is_flag=True, help="Show the events that sinks refused, and the reasons.")
@click.option("--sink", metavar="NAME", help="With --dead: only this sink.")
@click.option("--retry", is_flag=True, help="With --dead: send them once more.")
@click.option("--sinks", is_flag=True, help="Show the backlog of each sink in place of events.")
@options.service_or_files
@options.state_dir
@options.config(
    "The TOML file of a run: its control socket, or its store, is used. Other keys are not "
    "used here."
)
@click.option(
    "--store",
    type=options.PATH,
    metavar="FILE",
    help="Read this store in place of all stores below the state directory.",
)
def events(  # noqa: PLR0913 - each is an option
    *,
    sandbox: str | None,
    kind: tuple[str, ...],
    severity: str | None,
    since: str | None,
    until: str | None,
    uid: str | None,
    lines: int,
    follow: bool,
    form: str,
    ocsf_version: str,
    dead: bool,
    sink: str | None,
    retry: bool,
    sinks: bool,
    control: Path | None,
    state_dir: Path | None,
    config: Path | None,
    store: Path | None,
) -> None:
    """List stored events: the last 20 that match the filters.

    Without filters, all events match. --lines shows another number than 20. --follow ends with
    Ctrl-C or SIGTERM, exit 0. Exit 2: there is no store.

    If a service with a control socket runs, it reads the events for this command. Otherwise, also
    while another run is active, the command reads the store. If --state-dir or --config names a
    state directory, only the service with this directory is used. The output is the same. The
    options --dead, --sinks and --store always read the store. If the state directory also has
    events of other runs, and this user may read them, all stores are read.

    A run deletes stored events and dead letters (events that a sink refused) after 30 days. If the
    store reaches 1 GiB, the run deletes the oldest events that every sink has acknowledged. Dead
    letters use at most an eighth of that: then the run deletes the oldest ones. The configuration
    can change these rules.

    --dead lists the dead letters. When the sink is repaired, --dead --retry lets the run, or the
    next run, send them again.

    By default, only root may read the store; root and the socket's group may use the service. Only
    --retry changes the store. Needs no capability.

    Example: ocsf-nft events --severity high --since 24h --lines 0 --format jsonl
    """
    from ocsf_nft.cli.formats import writer
    from ocsf_nft.ocsf.event_filter import event_filter
    from ocsf_nft.ocsf.versions import full_version

    if (sink is not None or retry) and not dead:
        raise UsageError("--sink and --retry need --dead: give --dead as well")
    if retry and (sandbox, kind, severity, since, until) != (None, (), None, None, None):
        raise UsageError(
            "--retry selects dead letters by --sink and --uid only: leave out the other filters"
        )
    if dead and sinks:
        raise UsageError("--dead and --sinks can't be combined: give one of them")
    version, write = full_version(ocsf_version), writer(form)
    given = {
        "sandbox": sandbox, "severity": severity, "since": since, "until": until, "uid": uid,
    }  # fmt: skip
    query = {name: value for name, value in given.items() if value is not None}
    # Raises errors also if a service selects the events.
    select = event_filter(query, kind, prefix="--")
    if kind:
        query["class"] = ",".join(map(str, select.classes))
    source = _access(control, state_dir, config, store, needs_files=dead or sinks)
    with source.reading_files():
        if retry:
            _retry(store_paths(source.files), sink, uid)
        elif dead:
            _show_dead(store_paths(source.files), sink, form, select)
        elif sinks:
            _show_sinks(store_paths(source.files))
        else:
            with selection(source, query, select, partial(_write, version, write)) as shown:
                _show(shown, lines, follow=follow)


def _access(
    control: Path | None,
    state_dir: Path | None,
    config: Path | None,
    store: Path | None,
    *,
    needs_files: bool,
) -> Access:
    if not needs_files and store is None:
        return service_access.access(control, state_dir, config)
    if control is not None:
        raise UsageError("--control can't be combined with --dead, --sinks or --store")
    files = service_access.files(state_dir, config)
    return Access(None, files if store is None else files._replace(store=store))


def _show(shown: Selection, lines: int, *, follow: bool) -> None:
    if not follow:
        if not shown.last(lines or None):
            output.show("no stored event matches")
        return
    # Before the first line: the reader may send SIGTERM as soon as it has a line.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):  # the normal end of --follow
        shown.follow(lines)


def _write(
    version: str, write: Callable[[Iterable[bytes]], Iterator[bytes]], found: Iterable[bytes]
) -> bool:
    from ocsf_nft.ocsf.versions import STORED, line_at

    lines = found if version == STORED else (line_at(line, version) for line in found)
    is_any = False
    for part in write(lines):
        output.write(part)
        is_any = True
    return is_any


def _retry(paths: Sequence[Path], sink: str | None, uid: str | None) -> None:
    from ocsf_nft.delivery.sink_db import retry_dead_letters

    number = sum(retry_dead_letters(path, sink, uid) for path in paths)
    letters = "1 dead letter is" if number == 1 else f"{number} dead letters are"
    output.show(f"{letters} to be sent again, by the run that uses the store or by the next run")


def _show_dead(
    paths: Sequence[Path], sink: str | None, form: str, is_selected: Callable[[bytes], bool]
) -> None:
    import orjson

    from ocsf_nft.delivery.sink_db import SinkArchive
    from ocsf_nft.ocsf.safe_text import visible
    from ocsf_nft.utc_text import utc_text

    is_any = False
    for path in paths:
        with SinkArchive(path) as archive:
            for letter in archive.dead_letters(sink):
                if not is_selected(letter.line):
                    continue
                is_any = True
                facts = {
                    "sink": letter.sink,
                    "uid": letter.uid,
                    "refused": utc_text(letter.since_ms),
                    "reason": letter.reason,
                    "is_again": bool(letter.is_again),
                }
                if form == "jsonl":
                    output.write_json(facts | {"event": orjson.loads(letter.line)})
                else:
                    again = "  (to be sent again)" if letter.is_again else ""
                    words = (facts["refused"], letter.sink, letter.uid, letter.reason)
                    line = f"{'  '.join(visible(str(word)) for word in words)}{again}\n"
                    output.write(line.encode())
    if not is_any:
        output.show("no dead letter matches")


def _show_sinks(paths: Sequence[Path]) -> None:
    from ocsf_nft.delivery.sink_db import SinkArchive
    from ocsf_nft.state.archive import Archive

    for path in paths:
        with Archive(path) as archive, SinkArchive(path) as sinks:
            backlogs = sinks.backlogs(archive)
        for backlog in backlogs:
            dead = f", {backlog.dead} refused (--dead)" if backlog.dead else ""
            line = f"{backlog.sink}: {backlog.waiting} events wait{dead}  [{path}]\n"
            output.write(line.encode())
