"""Log of ocsf-nft itself: structured records on standard error, one line each."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast, get_args

import structlog

from ocsf_nft import library_log
from ocsf_nft.cli import log_record, output
from ocsf_nft.errors import UsageError
from ocsf_nft.quoted import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LogForm: TypeAlias = Literal["text", "json"]


@dataclass(frozen=True, slots=True)
class LogSettings:
    """Form of ocsf-nft's log, and the lowest level (of :mod:`logging`) that is written.

    If ``form`` is None, the log is text if standard error is a terminal, and JSON if it is not.
    """

    form: LogForm | None = None
    level: int = logging.INFO

    @property
    def is_json(self) -> bool:
        """Return True if log records are written as JSON."""
        return self.form == "json" or (self.form is None and not sys.stderr.isatty())

    @property
    def is_quiet(self) -> bool:
        """Return True if log records of level info are not written."""
        return self.level > logging.INFO


_DEFAULT: Final = LogSettings()


def log_settings(
    form: str | None = None, *, is_verbose: bool = False, is_quiet: bool = False
) -> LogSettings:
    """Return the log settings for the options ``--log-format``, ``--verbose`` and ``--quiet``.

    Raises UsageError if ``form`` is unknown, or if both ``is_verbose`` and ``is_quiet`` are true.
    """
    if is_verbose and is_quiet:
        raise UsageError("--verbose and --quiet can't be combined: give one of them")
    level = logging.DEBUG if is_verbose else logging.WARNING if is_quiet else logging.INFO
    if form is not None and form not in get_args(LogForm):
        raise UsageError(f"--log-format {quoted(form)} is not known: give text or json")
    return LogSettings(cast("LogForm | None", form), level)


def to_stderr(settings: LogSettings = _DEFAULT) -> None:
    """Configure ocsf-nft's log: write each log record to standard error with one write call.

    If standard error is a full pipe, a write blocks until the pipe is read.
    """
    _configure(_Waiting(_line_writer(settings)), settings)


def to_stderr_at_once(settings: LogSettings = _DEFAULT) -> None:
    """Configure ocsf-nft's log: write to standard error, but never block.

    A log record that can't be written at once is dropped. The next record that is written has the
    number of dropped records in the key ``log_dropped``.
    """
    # A sandboxed program can cause log records, so a full pipe must not block the service.
    _configure(_AtOnce(_line_writer(settings)), settings)
    library_log.use()


def _line_writer(settings: LogSettings) -> Callable[[Mapping[str, Any]], bytes]:
    encode = log_record.as_json if settings.is_json else log_record.as_text
    # At most PIPE_BUF bytes, so the log records of several processes in one pipe never mix.
    return partial(log_record.limited, encode=encode, size=output.AT_ONCE_BYTES)


class _Waiting:
    def __init__(self, line: Callable[[Mapping[str, Any]], bytes]) -> None:
        self._line = line

    def msg(self, record: Mapping[str, Any]) -> None:
        output.write_stderr(self._line(record))

    debug = info = warning = error = critical = msg


class _AtOnce:
    def __init__(self, line: Callable[[Mapping[str, Any]], bytes]) -> None:
        self._line = line
        self._dropped = 0

    def msg(self, record: Mapping[str, Any]) -> None:
        if self._dropped:
            record = {**record, "log_dropped": self._dropped}
        if output.write_stderr_at_once(self._line(record)):
            self._dropped = 0
        else:
            self._dropped += 1

    debug = info = warning = error = critical = msg


def _configure(logger: _Waiting | _AtOnce, settings: LogSettings) -> None:
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
            log_record.simple,
            # As the only argument of the logger, which makes a line of it.
            lambda _, __, record: ((record,), {}),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(settings.level),
        logger_factory=lambda *_: logger,
    )
