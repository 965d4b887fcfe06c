"""Command ``tail``: show the last events of a JSON Lines file."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ocsf_nft.cli import options, output
from ocsf_nft.cli.documented_command import DocumentedArgument, DocumentedCommand
from ocsf_nft.cli.events import events
from ocsf_nft.cli.explain import event_of
from ocsf_nft.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_PAUSE_MS: Final = 200


@click.command("tail", cls=DocumentedCommand)
@click.argument(
    "path",
    cls=DocumentedArgument,
    required=False,
    type=options.INPUT,
    metavar="[PATH | -]",
    text="A file of events, or a pipe; - is standard input. Default: standard input, or "
    "the stored events if that is a terminal.",
)
@click.option(
    "--lines",
    "-n",
    type=click.IntRange(0, 1_000_000),
    default=20,
    metavar="N",
    help="Show the last N lines.",
)
@click.option(
    "--follow",
    "-f",
    is_flag=True,
    help="Continue as the file grows, also over its rotation.",
)
@options.service_or_files
@options.state_dir
@options.source_config
@click.pass_context
def tail(  # noqa: PLR0913 - each is an option
    context: click.Context,
    *,
    path: str | None,
    lines: int,
    follow: bool,
    control: Path | None,
    state_dir: Path | None,
    config: Path | None,
) -> None:
    """Show the last events of a file, or the last stored ones.

    Writes to standard output, in colour on a terminal unless NO_COLOR is set. With --follow, all
    events of a pipe are shown, until the pipe ends. Ctrl-C or SIGTERM ends --follow with exit 0.
    Needs no privilege to read a file.

    Without PATH, it shows the stored events, as `ocsf-nft events` does: with --control, --state-dir
    or --config, or if standard input is a terminal.

    Example: ocsf-nft tail -f /var/log/ocsf-nft/events.jsonl
    """
    names_source = (control, state_dir, config) != (None, None, None)
    if path is not None and names_source:
        raise UsageError(
            "PATH can't be combined with --control, --state-dir or --config: give one of them"
        )
    if path is None and (names_source or sys.stdin.isatty()):
        if lines or follow:
            context.invoke(
                events,
                lines=lines,
                follow=follow,
                control=control,
                state_dir=state_dir,
                config=config,
            )
        return
    if path is None:
        path = "-"
    elif path == "-" and sys.stdin.isatty():
        raise UsageError("pipe events into it, or name a file of events: ocsf-nft tail PATH")
    from ocsf_nft.cli.formats import painter

    screen = _Screen(painter())
    if not follow:
        _show_last(path, lines, screen)
    else:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt):  # the normal end of --follow
            _follow(path, lines, screen)
    screen.report_others()


class _Screen:
    """Writer of events as short lines on standard output; counts the lines that are no events."""

    def __init__(self, paint: Callable[[Mapping[str, Any]], bytes]) -> None:
        self._paint = paint
        self._others = 0

    def show(self, lines: Iterable[bytes]) -> None:
        self.write(self.read(line) for line in lines)

    def read(self, line: bytes) -> bytes | None:
        """Return the text to show for an event; None if ``line`` is not the JSON of an event."""
        event = event_of(line)
        return None if event is None else self._paint(event)

    def write(self, read: Iterable[bytes | None]) -> None:
        """Write the texts of events, and count the lines that are no events.

        ``read`` has one item for each line: the text of an event, or None if the line is no event.
        """
        found = list(read)
        shown = [line for line in found if line is not None]
        self._others += len(found) - len(shown)
        if shown:
            output.write(b"".join(shown))

    def report_others(self) -> None:
        if self._others:
            were = "1 line was" if self._others == 1 else f"{self._others} lines were"
            output.show(f"{were} no OCSF event and not shown")


def _descriptor_of(path: str) -> int:
    from ocsf_nft.cli.follow_file import opened

    return sys.stdin.fileno() if path == "-" else opened(Path(path))


def _is_pipe(descriptor: int) -> bool:
    """Return true if the input is no regular file, for example a pipe or a terminal."""
    return not stat.S_ISREG(os.fstat(descriptor).st_mode)


def _show_last(path: str, number: int, screen: _Screen) -> None:
    from ocsf_nft.cli.follow_file import GrowingFile, lines_of_pipe

    descriptor = _descriptor_of(path)
    if not _is_pipe(descriptor):
        for lines in GrowingFile(descriptor, None).last_lines(number, growing=False):
            screen.show(lines)
        return
    # Stores the text to show, which is short, in place of the line, which may be long.
    last: deque[bytes | None] = deque(maxlen=number)
    for lines in lines_of_pipe(descriptor):
        last.extend(map(screen.read, lines))
    screen.write(last)


def _follow(path: str, number: int, screen: _Screen) -> None:
    from ocsf_nft.cli.follow_file import GrowingFile, lines_of_pipe

    descriptor = _descriptor_of(path)
    if _is_pipe(descriptor):
        for lines in lines_of_pipe(descriptor):
            screen.show(lines)
        return
    file = GrowingFile(descriptor, None if path == "-" else Path(path))
    for lines in file.last_lines(number, growing=True):
        screen.show(lines)
    reader = output.reader_of_pipe()
    while not reader.poll(_PAUSE_MS):
        for lines in file.new_lines():
            screen.show(lines)
    raise SystemExit(0)
