"""Format of OCSF events as short lines for people, coloured on a terminal."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.ocsf.oneline import GAP, plain, shorthand

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ocsf_nft.ocsf.oneline import Segment, Style

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


def painter() -> Callable[[Mapping[str, Any]], bytes]:
    """Return a function that formats an OCSF event as one line of text with its line end.

    The line is coloured on a terminal with colours, unless NO_COLOR is set (https://no-color.org).
    """
    has_colours = os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")
    line = _painted if sys.stdout.isatty() and has_colours else plain
    return lambda event: f"{line(shorthand(event))}\n".encode()


def _painted(segments: tuple[Segment, ...]) -> str:
    return GAP.join(map(_paint, segments))


def _paint(segment: Segment) -> str:
    colour = _COLOURS.get(segment.style)
    return segment.text if colour is None else f"\x1b[{colour}m{segment.text}\x1b[0m"
