"""Command ``watch``: a live view of one sandbox of a running service."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Final

import click

from ocsf_nft.cli import options, output
from ocsf_nft.cli.documented_command import DocumentedCommand

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ocsf_nft.cli.sandbox_follow import Item

#: Minimum time between two drawings of the view.
_DRAW_SECONDS: Final = 0.25


@click.command("watch", cls=DocumentedCommand)
@options.sandbox_name
@click.option(
    "--lines",
    "-n",
    type=click.IntRange(0, 10_000),
    default=20,
    metavar="N",
    help="Begin with the last N events.",
)
@options.control
def watch(*, name: str, lines: int, control: Path) -> None:
    """Watch a sandbox live: its attempts, processes, counts and fence.

    On a terminal, it is a live view. Processes are counted by the shown events. Elsewhere, or with
    TERM=dumb, it writes each event as one line, as `ocsf-nft tail` does.

    Ends with the sandbox: it was released, or its network namespace has ended. Ctrl-C or SIGTERM
    ends it too, exit 0. If the service stops, it waits until the service runs again.

    Exit 2: there is no such sandbox, or no service listens.

    Needs no capability, but permission to connect to the service's socket: root or its group.

    Example: ocsf-nft watch agent
    """
    from ocsf_nft.cli.sandbox_follow import items

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    found = items(control, name, lines, _DRAW_SECONDS)
    is_live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    with contextlib.suppress(KeyboardInterrupt):  # a normal end
        has_ended = _draw(name, found) if is_live else _write(found)
        if has_ended:
            output.show(f"sandbox {name} has ended")


def _write(found: Iterator[Item | None]) -> bool:
    """Write each event as one line; return True if the sandbox has ended."""
    import orjson

    from ocsf_nft.cli.formats import painter
    from ocsf_nft.cli.sandbox_follow import Ended
    from ocsf_nft.cli.stored_events import Line, Started, Stopped

    paint, reader = painter(), output.reader_of_pipe()
    for item in found:
        match item:
            case None:
                if reader.poll(0):  # it has closed the pipe
                    return False
            case Line(event):
                output.write(paint(orjson.loads(event)))
            case Stopped():
                output.show("the service has stopped: waiting until it runs again")
            case Started():
                output.show("the service runs again")
            case Ended():
                return True
            case _:
                pass
    return False


def _draw(name: str, found: Iterator[Item | None]) -> bool:
    """Show the live view; return True if the sandbox has ended."""
    import orjson

    from ocsf_nft.cli.sandbox_activity import Activity
    from ocsf_nft.cli.sandbox_follow import Ended, State
    from ocsf_nft.cli.stored_events import Line, Started, Stopped
    from ocsf_nft.cli.watch_screen import Screen, Shown

    shown = Shown(name=name, view=None, is_stopped=False, activity=Activity())
    first = next(found)  # an error is shown without the alternate screen
    drawn_at = 0.0
    with Screen() as screen:
        for item in chain((first,), found):
            match item:
                case Line(event):
                    shown.activity.add(orjson.loads(event))
                case State(view):
                    shown = replace(shown, view=view)
                case Stopped() | Started():
                    shown = replace(shown, is_stopped=isinstance(item, Stopped))
                case Ended():
                    return True
                case None:
                    pass
            if time.monotonic() - drawn_at >= _DRAW_SECONDS:
                screen.show(shown)
                drawn_at = time.monotonic()
    return False
