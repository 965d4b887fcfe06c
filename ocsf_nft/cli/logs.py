"""Our own log: structured, on standard error."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import structlog

from ocsf_nft.cli import output

if TYPE_CHECKING:
    from collections.abc import Callable

_CUT: Final = "…".encode()


def to_stderr() -> None:
    """Write log entries to standard error, one line each, values quoted: they may be hostile."""
    _configure(structlog.PrintLoggerFactory(sys.stderr))


def to_stderr_at_once() -> None:
    """Write them as :func:`to_stderr` does, but wait for no reader.

    For who has better to do: what a sandbox does makes entries, and must not be able to hold up
    the watch over it where nobody reads them. An entry is cut to what a pipe takes at once, or
    dropped, and the next one that is written ends with ``dropped=NUMBER``.
    """
    logger = _AtOnce()
    _configure(lambda *_: logger)


class _AtOnce:
    def __init__(self) -> None:
        self._dropped = 0

    def msg(self, entry: str) -> None:
        """Write a line, or count it as dropped."""
        told = f" dropped={self._dropped}".encode() if self._dropped else b""
        line = _cut(entry, output.AT_ONCE_BYTES - len(told) - 1)
        if output.write_stderr_at_once(line + told + b"\n"):
            self._dropped = 0
        else:
            self._dropped += 1

    debug = info = warning = error = critical = msg


def _cut(entry: str, size: int) -> bytes:
    """An entry in at most ``size`` bytes."""
    line = entry.encode(errors="backslashreplace")
    if len(line) <= size:
        return line
    return line[: size - len(_CUT)].decode(errors="ignore").encode() + _CUT


def _configure(factory: Callable[..., object]) -> None:
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.KeyValueRenderer(
                key_order=["timestamp", "level", "event"], repr_native_str=True
            ),
        ],
        logger_factory=factory,
    )
