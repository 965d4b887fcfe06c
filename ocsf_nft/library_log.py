"""Warnings of libraries, in ocsf-nft's own log."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Final

import structlog

_log = structlog.get_logger()

#: Maximum number of characters of a library's log message.
_MAX_MESSAGE: Final = 300


def use() -> None:
    """Write the warnings of libraries that have no handler of their own to ocsf-nft's log."""
    # Python's last resort would wait for a reader. Replace it, and add no handler at the root: a
    # logger with its own handler writes elsewhere, and may have a secret (see sinks/kafka_log.py).
    logging.lastResort = _FromOthers()


class _FromOthers(logging.Handler):
    """Handler that writes libraries' log messages to ocsf-nft's own log, without a traceback.

    If one line of code logs many messages, only the first, second, fourth, eighth … is written.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._numbers: Counter[tuple[object, ...]] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        origin = record.pathname, record.lineno, type(error)
        self._numbers[origin] += 1
        number = self._numbers[origin]
        # So a remote peer that sends invalid data can't flood the log.
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
