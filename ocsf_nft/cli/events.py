"""Command ``events``: list stored events, events that a sink refused, or each sink's backlog."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from __future__ import annotations

import contextlib
import heapq
import signal
import time
from itertools import islice
from pathlib import Path  # noqa: TC003 - typer reads it
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ocsf_nft.cli import options, output
from ocsf_nft.errors import AbsentError, UsageError
from ocsf_nft.quoted import quoted
from ocsf_nft.time_text import since_ms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ocsf_nft.state.archive import Archive

_PAUSE_SECONDS: Final = 0.2


def events(  # noqa: PLR0913, PLR0917 - each is an option
    sandbox: Annotated[
        str | None, typer.Option("--sandbox", help="Only events of this sandbox.", metavar="NAME")
    ] = None,
    kind: Annotated[
        list[str],
        typer.Option(
            "--class",
            help="Only events of this class, by name (network_activity) or uid; repeatable.",
            metavar="CLASS",
        ),
    ] = [],  # noqa: B006 - typer copies it
    severity: Annotated[
        str | None,
        typer.Option(
            "--severity",
            help="Only events of this severity or a higher one.",
            metavar="informational|low|medium|high|critical",
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            help="Only events since this time (ISO 8601, local time by default), or since this "
            "long ago: 90s, 15m, 12h, 7d.",
            metavar="TIME",
        ),
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", help="Only events before this time.", metavar="TIME")
    ] = None,
    uid: Annotated[
        str | None,
        typer.Option("--uid", help="Only the event with this metadata.uid.", metavar="UID"),
    ] = None,
    lines: Annotated[
        int,
        typer.Option(
            "--lines",
            "-n",
            help="Only the last N events. 0: all events, or with --follow only new ones.",
            min=0,
            metavar="N",
        ),
    ] = 20,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Continue with new events as they are stored.")
    ] = False,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="Form of an event: a short line for people, JSON, or an RFC 5424 message.",
            metavar="shorthand|jsonl|syslog",
        ),
    ] = "shorthand",
    ocsf_version: options.OcsfVersion = options.DEFAULT_OCSF_VERSION,
    dead: Annotated[
        bool, typer.Option("--dead", help="Show the events that sinks refused, and the reasons.")
    ] = False,
    sink: Annotated[
        str | None, typer.Option("--sink", help="With --dead: only this sink.", metavar="NAME")
    ] = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="With --dead: send them once more.")
    ] = False,
    sinks: Annotated[
        bool, typer.Option("--sinks", help="Show the backlog of each sink in place of events.")
    ] = False,
    state_dir: options.StateDir = None,
    config: Annotated[
        Path | None,
        options.config_option(
            "The TOML file of a run: its store is read. Other keys are not used here."
        ),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            "--store",
            help="Read this store in place of all stores below the state directory.",
            metavar="FILE",
            readable=False,
        ),
    ] = None,
) -> None:
    """List stored events: the last 20 that match the filters.

    Without filters, all events match. --lines shows another number than 20. --follow ends with
    Ctrl-C or SIGTERM, exit 0. Exit 2: there is no store. The command also works while a run is
    active.

    A run deletes stored events and dead letters (events that a sink refused) after 30 days. If the
    store reaches 1 GiB, the run deletes the oldest events that every sink has acknowledged. Dead
    letters use at most an eighth of that: then the run deletes the oldest ones. The configuration
    can change these rules.

    --dead lists the dead letters. When the sink is repaired, --dead --retry lets the run, or the
    next run, send them again.

    By default, only root may read the store. Only --retry changes the store. Needs no capability.

    Example: ocsf-nft events --severity high --since 24h --lines 0 --format jsonl
    """
    from ocsf_nft.cli.formats import writer
    from ocsf_nft.ocsf.versions import full_version
    from ocsf_nft.state.archive import Archive

    if (sink is not None or retry) and not dead:
        raise UsageError("--sink and --retry need --dead: give --dead as well")
    if retry and (sandbox, kind, severity, since, until) != (None, [], None, None, None):
        raise UsageError(
            "--retry selects dead letters by --sink and --uid only: leave out the other filters"
        )
    if dead and sinks:
        raise UsageError("--dead and --sinks can't be combined: give one of them")
    version, write = full_version(ocsf_version), writer(form)
    is_selected = _filter(sandbox, kind, severity, since, until, uid)
    paths = _stores(store, state_dir, config)
    if retry:
        _retry(paths, sink, uid)
        return
    with contextlib.ExitStack() as stack:
        archives = [stack.enter_context(Archive(path)) for path in paths]
        if sinks:
            _show_sinks(archives)
        elif dead:
            _show_dead(paths, sink, form, is_selected)
        else:
            shown = _Selection(archives, is_selected, lambda found: _write(found, version, write))
            _show(shown, lines, follow=follow)


def _show(shown: _Selection, lines: int, *, follow: bool) -> None:
    if not follow:
        if not shown.last(lines or None):
            output.show("no stored event matches")
        return
    # Before the first line: the reader may send SIGTERM as soon as it has a line.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):  # the normal end of --follow
        if lines:
            shown.last(lines)
        shown.follow()


def _stores(store: Path | None, state_dir: Path | None, config: Path | None) -> Sequence[Path]:
    from ocsf_nft.state.archive import stores

    if store is None and state_dir is None and config is not None:
        from ocsf_nft.config import read

        store = read(config).store.path
    if store is None:
        return stores(options.state_directory(state_dir, config))
    if not store.is_file():
        raise AbsentError(f"{store} does not exist: `--state-dir DIR` finds the stores of a run")
    return [store]


class _Selection:
    """Reader of several event stores; ``write`` shows the events that ``is_selected`` selects."""

    def __init__(
        self,
        archives: Sequence[Archive],
        is_selected: Callable[[bytes], bool],
        write: Callable[[Iterable[bytes]], bool],
    ) -> None:
        self._archives = archives
        self._is_selected = is_selected
        self._write = write
        #: The last event of each store that was read.
        self._last = [next(each.newest(), None) for each in archives]

    def last(self, number: int | None) -> bool:
        """Show the newest selected events, in the order in which they were stored.

        ``number`` is the maximum number of events; None shows all selected events. Events that were
        stored after this object was created are omitted; :meth:`follow` shows them. Return True if
        at least one event was shown.
        """
        if number is None:
            stored = heapq.merge(
                *(each.beyond(0, until) for each, until in self._read_until()),
                key=lambda event: event.stored_ms,
            )
            return self._write(event.line for event in stored if self._is_selected(event.line))
        newest = heapq.merge(
            *(each.newest(until) for each, until in self._read_until()),
            key=lambda event: -event.stored_ms,
        )
        found = list(
            islice((event.line for event in newest if self._is_selected(event.line)), number)
        )
        return self._write(reversed(found))

    def follow(self) -> None:
        """Show each new selected event when it is stored; never returns."""
        while True:
            for index, archive in enumerate(self._archives):
                last = self._last[index]
                for event in archive.beyond(last.number if last else 0):
                    last = event
                    if self._is_selected(event.line):
                        self._write([event.line])
                # Only now: a store that was removed has been read to its end.
                self._last[index] = archive.follow(last)
            time.sleep(_PAUSE_SECONDS)

    def _read_until(self) -> Iterator[tuple[Archive, int]]:
        for archive, last in zip(self._archives, self._last, strict=True):
            yield archive, last.number if last else 0


def _write(
    found: Iterable[bytes], version: str, write: Callable[[Iterable[bytes]], Iterator[bytes]]
) -> bool:
    from ocsf_nft.ocsf.versions import LATEST, line_at

    lines = found if version == LATEST else (line_at(line, version) for line in found)
    is_any = False
    for part in write(lines):
        output.write(part)
        is_any = True
    return is_any


def _filter(  # noqa: PLR0913, PLR0917 - each is an option
    sandbox: str | None,
    kinds: Sequence[str],
    severity: str | None,
    since: str | None,
    until: str | None,
    uid: str | None,
) -> Callable[[bytes], bool]:
    """Return a function that takes an event's JSON line, and returns True if all filters match."""
    from ocsf_nft.ocsf.event_filter import EventFilter, severity_id

    return EventFilter(
        sandbox=sandbox,
        classes=frozenset(map(_class_uid, kinds)),
        min_severity=None if severity is None else severity_id("--severity", severity),
        from_ms=None if since is None else since_ms("--since", since),
        until_ms=None if until is None else since_ms("--until", until),
        uid=uid,
    )


def _class_uid(name: str) -> int:
    from ocsf_nft.ocsf.events import CLASS_UIDS

    known = CLASS_UIDS | {str(number): number for number in CLASS_UIDS.values()}
    if name not in known:
        raise UsageError(f"--class {quoted(name)} is not known: give one of {', '.join(known)}")
    return known[name]


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

    for path in paths:
        with SinkArchive(path) as archive:
            for letter in archive.dead_letters(sink):
                if not is_selected(letter.line):
                    continue
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


def _show_sinks(archives: Sequence[Archive]) -> None:
    from ocsf_nft.delivery.sink_db import SinkArchive

    for archive in archives:
        with SinkArchive(archive.path) as sinks:
            backlogs = sinks.backlogs(archive)
        for backlog in backlogs:
            dead = f", {backlog.dead} refused (--dead)" if backlog.dead else ""
            line = f"{backlog.sink}: {backlog.waiting} events wait{dead}  [{archive.path}]\n"
            output.write(line.encode())
