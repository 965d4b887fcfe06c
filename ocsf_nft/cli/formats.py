"""Formats of events on standard output: JSON, syslog, or short lines, coloured on a terminal."""

# ruff: noqa: PLC0415 - only the form that is used is imported, so that a command starts fast

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import orjson

from ocsf_nft.errors import UsageError
from ocsf_nft.quoted import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from ocsf_nft.ocsf.oneline import Segment, Style

#: Converts events as JSON to the bytes that are written for them.
Writer: TypeAlias = "Callable[[Iterable[bytes]], Iterator[bytes]]"
#: Parameters of the control sequence that sets a colour (ECMA-48, SGR).
_COLOURS: Final[dict[Style, str]] = {
    "time": "2",
    "informational": "2",
    "low": "36",
    "medium": "33",
    "high": "1;31",
    "critical": "1;97;41",
    "what": "1",
    "rule": "2",
}


def writer(name: str) -> Writer:
    """Return the function that converts JSON events to the format ``name``, such as ``jsonl``.

    Raises UsageError if the format is unknown.
    """
    if name not in _WRITERS:
        raise UsageError(f"--format {quoted(name)} is not known: give one of {', '.join(_WRITERS)}")
    return _WRITERS[name]


def painter() -> Callable[[Mapping[str, Any]], bytes]:
    """Return a function that formats an OCSF event as one line of text with its line end.

    The line is coloured on a terminal with colours, unless NO_COLOR is set (https://no-color.org).
    """
    from ocsf_nft.ocsf.oneline import plain, shorthand

    has_colours = os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")
    line = _painted if sys.stdout.isatty() and has_colours else plain
    return lambda event: f"{line(shorthand(event))}\n".encode()


def _painted(segments: tuple[Segment, ...]) -> str:
    from ocsf_nft.ocsf.oneline import GAP

    return GAP.join(map(_paint, segments))


def _paint(segment: Segment) -> str:
    colour = _COLOURS.get(segment.style)
    return segment.text if colour is None else f"\x1b[{colour}m{segment.text}\x1b[0m"


def _jsonl(events: Iterable[bytes]) -> Iterator[bytes]:
    for event in events:
        yield event
        yield b"\n"


def _shorthand(events: Iterable[bytes]) -> Iterator[bytes]:
    paint = painter()
    return (paint(orjson.loads(event)) for event in events)


def _syslog(events: Iterable[bytes]) -> Iterator[bytes]:
    from ocsf_nft.delivery import rfc5424

    return (rfc5424.frame(event) + b"\n" for event in events)


_WRITERS: Final[dict[str, Writer]] = {"jsonl": _jsonl, "shorthand": _shorthand, "syslog": _syslog}
