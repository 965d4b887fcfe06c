"""Our own log: structured, on standard error."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from typing import TYPE_CHECKING, Final

import structlog

from ocsf_nft.cli import output

if TYPE_CHECKING:
    from collections.abc import Callable

_log = structlog.get_logger()

_CUT: Final = "…".encode()
#: Characters that are told of what a library logs.
_MOST_SAID: Final = 300


def to_stderr() -> None:
    """Write log entries to standard error, one line each, values quoted: they may be hostile."""
    _configure(structlog.PrintLoggerFactory(sys.stderr))


def to_stderr_at_once() -> None:
    """Write them as :func:`to_stderr` does, but wait for no reader.

    For who has better to do: what a sandbox does makes entries, and must not be able to hold up
    the watch over it where nobody reads them. An entry is cut to what a pipe takes at once, or
    dropped, and the next one that is written ends with ``dropped=NUMBER``. What libraries log, and
    asyncio, is written in the same way.
    """
    logger = _AtOnce()
    _configure(lambda *_: logger)
    # Python's own would wait for a reader. In the place of that, and not at the root: what has a
    # handler of its own is told elsewhere, and may hold a secret (see sinks/kafka_log.py).
    logging.lastResort = _FromOthers()


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


class _FromOthers(logging.Handler):
    """Makes entries of ours of what libraries log: a line each, without a traceback.

    Who sends us nonsense has them log it, and must not be able to flood our log: so what comes from
    one place in their code is written at the first, second, fourth, eighth … time.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._numbers: Counter[tuple[object, ...]] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        """Write it when it is time to."""
        error = record.exc_info[1] if record.exc_info else None
        place = record.pathname, record.lineno, type(error)
        self._numbers[place] += 1
        number = self._numbers[place]
        if number & (number - 1) == 0:
            _log.warning(
                "a library complains", library=record.name, number=number,
                reason=_said(record, error),
            )  # fmt: skip


def _said(record: logging.LogRecord, error: BaseException | None) -> str:
    try:
        text = record.getMessage()
        if error is not None:
            text = f"{text}: {type(error).__name__}: {error}"
    except Exception as failure:  # noqa: BLE001 - whatever it is, it is not to stop who logs
        text = f"{type(failure).__name__} while it was told"
    return " ".join(text.split())[:_MOST_SAID]


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
