"""Progress of a conversion on a terminal: part of the file, lines, rate and time left."""

# ruff: noqa: PLC0415 - rich is imported when a conversion takes long enough to show its progress

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import BufferedReader

    from ocsf_nft.sources.replay import LineTally

#: Time until the progress is shown, and between two updates.
_FIRST_SECONDS: Final = 1.0
_INTERVAL_SECONDS: Final = 0.1


@contextlib.contextmanager
def progress(tally: LineTally) -> Iterator[Callable[[BufferedReader], None]]:
    """Yield a function to call after each read of a file, which shows the progress now and then.

    The progress is on standard error, and only if that is a terminal and standard output is not:
    events on the same terminal show the progress themselves.
    """
    if sys.stdout.isatty() or not sys.stderr.isatty():
        yield lambda _file: None
        return
    with contextlib.ExitStack() as stack:
        began = time.monotonic()
        next_at = began + _FIRST_SECONDS
        show: Callable[[int | None, int | None, int, float], None] | None = None

        def on_read(file: BufferedReader) -> None:
            nonlocal next_at, show
            now = time.monotonic()
            if now < next_at:
                return
            next_at = now + _INTERVAL_SECONDS
            if show is None:
                show = _display(stack)
            size = _size(file)
            position = None if size is None else file.tell()
            show(position, size, tally.lines, tally.lines / (now - began))

        yield on_read


def _size(file: BufferedReader) -> int | None:
    """Return the size of a file in bytes; None if it is a pipe or the like."""
    status = os.fstat(file.fileno())
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _display(
    stack: contextlib.ExitStack,
) -> Callable[[int | None, int | None, int, float], None]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    # Without a thread for the display: this process may create others by fork().
    display = stack.enter_context(
        Progress(
            BarColumn(),
            TextColumn("{task.percentage:3.0f}%"),
            TextColumn("{task.fields[lines]:,} lines, {task.fields[rate]:,.0f} lines/s,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=Console(stderr=True),
            auto_refresh=False,
            transient=True,
        )
    )
    task = display.add_task("", total=None, lines=0, rate=0.0)

    def show(position: int | None, size: int | None, lines: int, rate: float) -> None:
        display.update(task, completed=position or 0, total=size, lines=lines, rate=rate)
        display.refresh()

    return show
