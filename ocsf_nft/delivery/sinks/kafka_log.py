"""What aiokafka tells in its log alone: why a broker can't be reached."""

from __future__ import annotations

import copy
import logging
import threading
from typing import Final

from aiokafka import errors  # type: ignore[import-untyped]  # it ships no types

from ocsf_nft.delivery.sinks.error_text import cause, printable

_log: Final = logging.getLogger("aiokafka")
# What matters of it is told in errors. Without a handler it would be printed.
_log.addHandler(logging.NullHandler())


class Listener(logging.Handler):
    """Keeps the ``last`` cause that is logged in the thread that began it.

    What the ``hidden`` are is left out: our secrets, which a broker may repeat.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last = ""
        self.hidden: tuple[str, ...] = ()
        self._thread: int | None = None

    def begin(self, hidden: tuple[str, ...]) -> None:
        """Listen to this thread."""
        self.last = ""
        self.hidden = hidden
        self._thread = threading.get_ident()
        _log.addHandler(self)

    def end(self) -> None:
        """Listen no more."""
        _log.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record, but for one that says less than the last did."""
        if record.thread != self._thread:
            return
        given = record.args if isinstance(record.args, tuple) else ()
        if not self.last or any(isinstance(each, BaseException | type) for each in given):
            told = copy.copy(record)
            told.args = tuple(self._told(each) for each in given) or record.args
            self.last = printable(told.getMessage(), self.hidden)

    def _told(self, given: object) -> object:
        if isinstance(given, type):
            return given.__name__
        if not isinstance(given, BaseException):
            return given
        if isinstance(given, errors.SaslAuthenticationFailed):
            return f"give credentials that it takes ({cause(given, self.hidden)})"
        return cause(given, self.hidden)
