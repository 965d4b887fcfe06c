"""Log of ocsf-nft itself: structured records on standard error, one line each.

A log record is a mapping with the keys ``ts``, ``level``, ``event`` and others. Its line is JSON
for programs, or text for people.
"""

from __future__ import annotations

import enum
import re
import sys
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias, cast, get_args

from ocsf_nft.cli import output, structlog_import
from ocsf_nft.errors import UsageError, reason_of
from ocsf_nft.ocsf.safe_text import encodable, printable, visible
from ocsf_nft.quoted import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

LogForm: TypeAlias = Literal["text", "json"]

#: Levels of :mod:`logging`, which is slow to import.
_DEBUG: Final = 10
_INFO: Final = 20
_WARNING: Final = 30

_CUT: Final = "…"
#: First keys of a record, in this order.
_HEAD: Final = ("ts", "level", "event")
_INT64_MAX: Final = (1 << 63) - 1
_WORDS: Final = {True: "true", False: "false", None: "null"}
#: Values without quotes in the text form. Values are untrusted: without quotes, a part of a value
#: could be mistaken for another key.
_PLAIN: Final = re.compile(r'[^ "=\\]+')


class LogSettings(NamedTuple):
    """Form of ocsf-nft's log, and the lowest level (of :mod:`logging`) that is written.

    If ``form`` is None, the log is text if standard error is a terminal, and JSON if it is not.
    """

    form: LogForm | None = None
    level: int = _INFO

    @property
    def is_json(self) -> bool:
        """Return True if log records are written as JSON."""
        return self.form == "json" or (self.form is None and not sys.stderr.isatty())

    @property
    def is_quiet(self) -> bool:
        """Return True if log records of level info are not written."""
        return self.level > _INFO


_DEFAULT: Final = LogSettings()


def log_settings(
    form: str | None = None, *, is_verbose: bool = False, is_quiet: bool = False
) -> LogSettings:
    """Return the log settings for the options ``--log-format``, ``--verbose`` and ``--quiet``.

    Raises UsageError if ``form`` is unknown, or if both ``is_verbose`` and ``is_quiet`` are true.
    """
    if is_verbose and is_quiet:
        raise UsageError("--verbose and --quiet can't be combined: give one of them")
    level = _DEBUG if is_verbose else _WARNING if is_quiet else _INFO
    if form is not None and form not in get_args(LogForm):
        raise UsageError(f"--log-format {quoted(form)} is not known: give text or json")
    return LogSettings(cast("LogForm | None", form), level)


def to_stderr(settings: LogSettings = _DEFAULT) -> None:
    """Configure ocsf-nft's log: write each log record to standard error with one write call.

    If standard error is a full pipe, a write blocks until the pipe is read.
    """
    _configure(output.write_stderr, settings)


def to_stderr_at_once(settings: LogSettings = _DEFAULT) -> None:
    """Configure ocsf-nft's log: write to standard error, but never block.

    A log record that can't be written at once is dropped. The next record that is written has the
    number of dropped records in the key ``log_dropped``.
    """
    # A sandboxed program can cause log records, so a full pipe must not block the service.
    from ocsf_nft import library_log  # noqa: PLC0415 - imports structlog, which is slow

    _configure(output.write_stderr_at_once, settings)
    library_log.use()


class _Logger:
    def __init__(
        self, encode: Callable[[Mapping[str, Any]], bytes], write: Callable[[bytes], bool]
    ) -> None:
        self._encode = encode
        self._write = write
        self._dropped = 0

    def msg(self, record: Mapping[str, Any]) -> None:
        if self._dropped:
            record = {**record, "log_dropped": self._dropped}
        # At most PIPE_BUF bytes, so the log records of several processes in one pipe never mix.
        is_written = self._write(limited(record, self._encode, output.AT_ONCE_BYTES))
        self._dropped = 0 if is_written else self._dropped + 1

    debug = info = warning = error = critical = msg


def _configure(write: Callable[[bytes], bool], settings: LogSettings) -> None:
    logger = _Logger(as_json if settings.is_json else as_text, write)

    def configure() -> None:
        import structlog  # noqa: PLC0415 - slow, and most commands log nothing

        structlog.configure(
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
                simple,
                # As the only argument of the logger, which makes a line of it.
                lambda _, __, record: ((record,), {}),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(settings.level),
            logger_factory=lambda *_: logger,
        )

    structlog_import.when_imported(configure)


def as_json(record: Mapping[str, Any]) -> bytes:
    """Return a record of this program's own log as one line of JSON, with its line end.

    The record's values must be simple: :func:`simple` converts them.
    """
    import orjson  # noqa: PLC0415 - a command that logs nothing starts without it

    return printable(orjson.dumps(record)) + b"\n"


def as_text(record: Mapping[str, Any]) -> bytes:
    """Return a log record as ``ts level event key=value …``, with its line end.

    A value is in double quotes if it is empty, or contains a space, a quote, a backslash or ``=``.
    """
    words = [visible(str(record[key])) for key in _HEAD if key in record]
    words += [f"{key}={_text(value)}" for key, value in record.items() if key not in _HEAD]
    return " ".join(words).encode() + b"\n"


def limited(
    record: Mapping[str, Any], encode: Callable[[Mapping[str, Any]], bytes], size: int
) -> bytes:
    """Return a log record as a line of at most ``size`` bytes; shorten its values if necessary.

    ``encode`` converts a record to a line, for example :func:`as_json`. The longest values are
    shortened first. If the record's keys alone are too long, the line is longer than ``size``.
    """
    line = encode(record)
    while len(line) > size:
        longest = max(record, key=lambda key: len(_words(record[key])))
        text = _words(record[longest])
        low, high = 0, min(len(text), size)  # a character has at least one byte
        while low < high:
            middle = (low + high + 1) // 2
            if len(encode({**record, longest: text[:middle] + _CUT})) <= size:
                low = middle
            else:
                high = middle - 1
        record = {**record, longest: text[:low] + _CUT}
        line = encode(record)
        if len(text) <= len(_CUT):
            break  # every value is short: only the keys, which are ours, are left
    return line


def simple(_: object, __: str, values: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Convert the values of a log record to text, numbers, booleans, None, and lists of these.

    An exception in the key ``exc_info`` is replaced by two keys. ``error`` is the exception as
    text, and ``at`` is the source line that raised it. structlog calls this function.
    """
    given = values.pop("exc_info", None)
    error = sys.exc_info()[1] if given is True else given
    if isinstance(error, BaseException):
        import traceback  # noqa: PLC0415 - slow, and few log records have an error

        values["error"] = f"{type(error).__name__}: {_cause(error)}"
        if frames := traceback.extract_tb(error.__traceback__):
            values["at"] = f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}"
    head = {key: values.pop(key) for key in _HEAD if key in values}
    return {key: _simple(value) for key, value in (head | dict(values)).items()}


def _cause(error: BaseException) -> str:
    file = error.filename if isinstance(error, OSError) and error.strerror else None
    return reason_of(error) if file is None else f"{reason_of(error)}: {file}"


def _simple(value: object) -> Any:
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, str):
        return encodable(value)
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if -_INT64_MAX <= value <= _INT64_MAX else str(value)
    if isinstance(value, Mapping):
        return [f"{key}={_words(_simple(each))}" for key, each in value.items()]
    if isinstance(value, list | tuple | AbstractSet):
        return [_simple(each) for each in value]
    return encodable(str(value))


def _words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    return _WORDS[value] if value is None or isinstance(value, bool) else str(value)


def _text(value: Any) -> str:
    words = _words(value)
    if _PLAIN.fullmatch(words):
        return visible(words)
    return '"' + visible(words.replace("\\", r"\\").replace('"', r"\"")) + '"'
