"""Capture of aiokafka's log records.

If no broker can be reached, the cause is only in the log, and not in aiokafka's exception.
"""

from __future__ import annotations

import copy
import logging
import threading
from typing import Final

from aiokafka import errors  # type: ignore[import-untyped]  # it ships no types

from ocsf_nft.delivery.sinks.error_text import cause, printable

_log: Final = logging.getLogger("aiokafka")
# Errors report the important part. Without a handler Python would print the records.
_log.addHandler(logging.NullHandler())


class LogCapture(logging.Handler):
    """Log handler that stores the cause of aiokafka's last failure, as text in ``last``.

    The handler captures only log records of the thread that called :meth:`start`. Texts in
    ``secrets``, such as a password, are masked.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last = ""
        self.secrets: tuple[str, ...] = ()
        self._thread: int | None = None

    def start(self, secrets: tuple[str, ...]) -> None:
        """Start to capture the log records of the current thread.

        ``last``, the text about aiokafka's last failure, becomes empty. Each text in ``secrets`` is
        masked in later texts.
        """
        self.last = ""
        self.secrets = secrets
        self._thread = threading.get_ident()
        _log.addHandler(self)

    def stop(self) -> None:
        """Stop the capture; the text in ``last`` remains."""
        _log.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Store the text of a log record in ``last``.

        If ``last`` has a text, replace it only if an argument of the log record is an exception.
        """
        if record.thread != self._thread:
            return
        arguments = record.args if isinstance(record.args, tuple) else ()
        if not self.last or any(isinstance(each, BaseException | type) for each in arguments):
            readable = copy.copy(record)
            readable.args = tuple(self._readable(each) for each in arguments) or record.args
            self.last = printable(readable.getMessage(), self.secrets)

    def _readable(self, argument: object) -> object:
        if isinstance(argument, type):
            return argument.__name__
        if not isinstance(argument, BaseException):
            return argument
        if isinstance(argument, errors.SaslAuthenticationFailed):
            return f"give credentials that it accepts ({cause(argument, self.secrets)})"
        return cause(argument, self.secrets)
