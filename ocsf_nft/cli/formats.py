"""Formats of events on standard output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import orjson

from ocsf_nft.cli.colour_oneline import painter
from ocsf_nft.delivery import rfc5424
from ocsf_nft.errors import UsageError
from ocsf_nft.quoted import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

#: Converts events as JSON to the bytes that are written for them.
Writer: TypeAlias = "Callable[[Iterable[bytes]], Iterator[bytes]]"


def writer(name: str) -> Writer:
    """Return the function that converts JSON events to the format ``name``, such as ``jsonl``.

    Raises UsageError if the format is unknown.
    """
    if name not in _WRITERS:
        raise UsageError(f"--format {quoted(name)} is not known: give one of {', '.join(_WRITERS)}")
    return _WRITERS[name]


def _jsonl(events: Iterable[bytes]) -> Iterator[bytes]:
    for event in events:
        yield event
        yield b"\n"


def _shorthand(events: Iterable[bytes]) -> Iterator[bytes]:
    paint = painter()
    return (paint(orjson.loads(event)) for event in events)


def _syslog(events: Iterable[bytes]) -> Iterator[bytes]:
    return (rfc5424.frame(orjson.loads(event), event) + b"\n" for event in events)


_WRITERS: Final[dict[str, Writer]] = {
    "jsonl": _jsonl,
    "shorthand": _shorthand,
    "syslog": _syslog,
}
