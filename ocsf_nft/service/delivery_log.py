"""Log of the delivery process: its records go to the service, which writes them in its own form."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any

import structlog

from ocsf_nft import library_log
from ocsf_nft.errors import reason_of
from ocsf_nft.service.delivery_link import Kind, Link, clean

if TYPE_CHECKING:
    from collections.abc import MutableMapping


def use(link: Link, level: int) -> None:
    """Send all log records of at least ``level`` (of :mod:`logging`) over a link from now on."""
    level = min(max(level, 0) // 10 * 10, 50)  # structlog knows no others
    logger = _LinkLogger(link)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            _with_error,
            # As the only argument of the logger.
            lambda _, __, record: ((record,), {}),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: logger,
    )
    library_log.use()


class _LinkLogger:
    """Logger that sends records to the service, which writes them in its own form."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def msg(self, record: MutableMapping[str, Any]) -> None:
        values = {name: _plain(value) for name, value in record.items()}
        if threading.get_ident() == self._thread:
            self._send(values)
        else:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._send, values)

    debug = info = warning = error = critical = msg

    def _send(self, values: MutableMapping[str, Any]) -> None:
        if not self._link.is_behind:
            self._link.send_json(Kind.LOG, values)


def _plain(value: Any) -> Any:
    """Return a value that the service accepts: a number as it is, anything else as a short text."""
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, int) and 0 <= value < 1 << 63:
        return value
    return clean(str(value))


def _with_error(_: object, __: str, values: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace ``exc_info`` in a log record by the exception as text, and its source line."""
    error = sys.exc_info()[1] if values.pop("exc_info", None) else None
    if error is not None:
        values["error"] = f"{type(error).__name__}: {reason_of(error)}"
        frame = traceback.extract_tb(error.__traceback__)[-1]
        values["at"] = f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
    return values
