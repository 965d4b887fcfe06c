"""Lines of this program's own log: JSON for programs, text for people.

A log record is a mapping with the keys ``ts``, ``level``, ``event`` and others.
"""

from __future__ import annotations

import enum
import re
import sys
import traceback
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.errors import reason_of
from ocsf_nft.ocsf.safe_text import encodable, printable, visible

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

_CUT: Final = "…"
#: First keys of a record, in this order.
_HEAD: Final = ("ts", "level", "event")
_INT64_MAX: Final = (1 << 63) - 1
_WORDS: Final = {True: "true", False: "false", None: "null"}
#: Values without quotes in the text form. Values are untrusted: without quotes, a part of a value
#: could be mistaken for another key.
_PLAIN: Final = re.compile(r'[^ "=\\]+')


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
