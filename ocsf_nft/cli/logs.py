"""Log of ocsf-nft itself: structured, on standard error."""

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
#: Maximum number of characters of a library's log message.
_MAX_MESSAGE: Final = 300


def to_stderr() -> None:
    """Write log entries to standard error, one line each; values are quoted, as they are untrusted.

    Waits for the reader of standard error.
    """
    _configure(structlog.PrintLoggerFactory(sys.stderr))


def to_stderr_at_once() -> None:
    """Write log entries as :func:`to_stderr` does, but do not wait for a reader.

    A sandbox can cause entries. If no process reads them, the service must not block on them. An
    entry is truncated to the size that a pipe accepts at once, or dropped. The next written entry
    ends with ``dropped=NUMBER``. Log messages of libraries and of asyncio are written in the same
    way.
    """
    logger = _AtOnce()
    _configure(lambda *_: logger)
    # Python's last resort would wait for a reader. Replace it, and add no handler at the root: a
    # logger with its own handler writes elsewhere, and may have a secret (see sinks/kafka_log.py).
    logging.lastResort = _FromOthers()


class _AtOnce:
    def __init__(self) -> None:
        self._dropped = 0

    def msg(self, entry: str) -> None:
        """Write a line, or count it as dropped."""
        suffix = f" dropped={self._dropped}".encode() if self._dropped else b""
        line = _cut(entry, output.AT_ONCE_BYTES - len(suffix) - 1)
        if output.write_stderr_at_once(line + suffix + b"\n"):
            self._dropped = 0
        else:
            self._dropped += 1

    debug = info = warning = error = critical = msg


class _FromOthers(logging.Handler):
    """Converter of log messages of libraries to entries: one line each, without a traceback.

    A remote peer that sends invalid data can cause such messages, and must not flood the log. So
    the messages of one line of code are written at the first, second, fourth, eighth … time.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._numbers: Counter[tuple[object, ...]] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        """Write the message if its number is a power of two."""
        error = record.exc_info[1] if record.exc_info else None
        origin = record.pathname, record.lineno, type(error)
        self._numbers[origin] += 1
        number = self._numbers[origin]
        if number & (number - 1) == 0:
            _log.warning(
                "warning from a library", library=record.name, number=number,
                reason=_message(record, error),
            )  # fmt: skip


def _message(record: logging.LogRecord, error: BaseException | None) -> str:
    try:
        text = record.getMessage()
        if error is not None:
            text = f"{text}: {type(error).__name__}: {error}"
    except Exception as failure:  # noqa: BLE001 - no error may stop the library that logs
        text = f"{type(failure).__name__} while the message was formatted"
    return " ".join(text.split())[:_MAX_MESSAGE]


def _cut(entry: str, size: int) -> bytes:
    """Return an entry in at most ``size`` bytes."""
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
