"""Conversion of events that are lines of JSON by templates, which is faster than a parse.

A template is learnt from lines that differ only in some values. It has the texts between these
values, and the converted line with slots for them. The conversion itself is a function of decoded
events. A template has a slot only for a value that the function copies without reading it.
"""

from __future__ import annotations

import re
import threading
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import orjson

from ocsf_nft.ocsf.placeholder_values import Placeholder, ReadError, taken_apart, with_placeholders
from ocsf_nft.ocsf.safe_text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Conversion: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]

#: Maximum number of templates for lines with one beginning, and of beginnings. A sender of packets
#: can cause any number of shapes, and each template that does not fit takes time.
MAX_TEMPLATES: Final = 8
MAX_BEGINNINGS: Final = 16
#: Longer lines get no template.
_MAX_BYTES: Final = 1 << 13
#: Number of examined lines before a template is made. It grows by as many each time.
_SIGHTINGS: Final = 3
#: Time that may be used for learning, in units of the examination of a line. Each line adds to it.
#: So lines of ever new shapes take at most about twice the time of a conversion without templates.
_START_BUDGET: Final = 160.0
_MAX_BUDGET: Final = 288.0
_BUDGET_OF_LINE: Final = 0.25
_COST_OF_TEMPLATE: Final = 32.0

#: Text, without its quotation marks, and integer that orjson writes in no other form, with 64 bits
#: at most.
_TEXT: Final = rb'(?:[^"\\\x00-\x1f]++|\\["\\bfnrt]|\\u00(?:0[0-7be]|1[0-9a-f]))++'
_INTEGER: Final = rb"(?:0|-?[1-9][0-9]{0,17}+)"
#: Byte on both sides of the number of a slot. JSON does not contain it.
_EDGE: Final = b"\x00"
_SLOT: Final = re.compile(rb"\x00([0-9]+)\x00")
_FIRST_BYTES: Final = 4
_TIME: Final = b',"time":'


class LineConverter:
    """Conversion of an event's line of JSON by a function that changes the decoded event."""

    def __init__(self, convert: Conversion) -> None:
        self._convert = convert
        #: Templates by the beginning of a line, which has the class and the activity.
        self._templates: dict[bytes, tuple[_Template, ...]] = {}
        self._budget = _START_BUDGET
        self._lock = threading.Lock()

    def __call__(self, line: bytes) -> bytes:
        """Return the converted event as a line of printable JSON.

        Raises ValueError if the line is not JSON, and the errors of the function.
        """
        self._budget += _BUDGET_OF_LINE
        beginning = line[: line.find(_TIME)]
        for template in self._templates.get(beginning, ()):
            form = template.form
            if form is not None and (converted := form.converted(line)) is not None:
                template.uses += 1
                return converted
        event = orjson.loads(line)
        if self._budget > _COST_OF_TEMPLATE and len(line) <= _MAX_BYTES:
            self._learn(beginning, event)
        return printable(orjson.dumps(self._convert(event)))

    def _learn(self, beginning: bytes, event: Any) -> None:
        """Examine a line that no template fits, and its decoded ``event``."""
        with self._lock:
            self._budget = min(self._budget, _MAX_BUDGET) - 1
            shape, values = taken_apart(event)
            templates = self._templates.get(beginning, ())
            template = next((each for each in templates if each.is_of(shape, values)), None)
            if template is None:
                template = _Template(shape, values)
                self._templates[beginning] = (*_most_used(templates), template)
                if len(self._templates) > MAX_BEGINNINGS:
                    del self._templates[next(iter(self._templates))]
            if template.learn(values):
                self._budget -= _COST_OF_TEMPLATE
                template.make(event, self._convert)


def _most_used(templates: Sequence[_Template]) -> Sequence[_Template]:
    """Return the templates that stay beside a new one, with the most used ones first."""
    found = sorted(templates, key=lambda template: template.uses, reverse=True)
    for template in found:
        template.uses //= 2  # earlier uses count less
    return found[: MAX_TEMPLATES - 1]


class _Form:
    """Immutable form of lines that differ only in some values, and of the converted lines."""

    def __init__(self, given: bytes, output: bytes, kinds: Sequence[type]) -> None:
        """Take the form from a line and its converted line, both with placeholders for values.

        ``kinds`` are the types of the event's values, in the order of their numbers. Raises
        ValueError if the output has less than two of the values.
        """
        texts, numbers = _parts(given)
        texts = list(map(printable, texts))
        values = [b"(%b)" % (_TEXT if kinds[each] is str else _INTEGER) for each in numbers]
        # The expression is slow at texts: it compares only their first bytes. With DOTALL it skips
        # the others in one step.
        skips = [
            re.escape(each[:_FIRST_BYTES]) + b".{%d}" % len(each[_FIRST_BYTES:]) for each in texts
        ]
        self._match = re.compile(_joined(skips, values), re.DOTALL).fullmatch
        self._start = texts[0]
        self._given = _format(texts)
        texts, copied = _parts(output)
        self._output = _format(texts)
        first, second, *others = map(numbers.index, copied)
        self._pick = itemgetter(first, second, *others)

    def converted(self, line: bytes) -> bytes | None:
        """Return the converted form of a line; None if the line has another form."""
        if not line.startswith(self._start) or (found := self._match(line)) is None:
            return None
        values = found.groups()
        if self._given % values != line:
            return None
        return printable(self._output % self._pick(values))


class _Template:
    """Form of lines of one shape, and what is known about the values in them."""

    def __init__(self, shape: object, values: Sequence[object]) -> None:
        self.uses = 0
        #: None until enough lines are known.
        self.form: _Form | None = None
        self._shape = shape
        self._values = values
        #: Numbers of values that differ between lines, and of values that the conversion reads.
        self._varying: set[int] = set()
        self._read: set[int] = set()
        self._sightings = 0
        self._needed_sightings = _SIGHTINGS

    def is_of(self, shape: object, values: Sequence[object]) -> bool:
        """Return True if lines of this shape, with these values where they are read, are alike."""
        return shape == self._shape and all(
            values[number] == self._values[number] for number in self._read
        )

    def learn(self, values: Sequence[object]) -> bool:
        """Note the values of a line that does not fit; return True if :meth:`make` is due."""
        pairs = enumerate(zip(values, self._values, strict=True))
        self._varying.update(number for number, (one, other) in pairs if one != other)
        self._sightings += 1
        return self._sightings >= self._needed_sightings

    def make(self, event: dict[str, Any], convert: Conversion) -> None:
        """Make the form from one of the events, with slots for the values known to differ."""
        self._sightings = 0
        self._needed_sightings += _SIGHTINGS
        while True:
            slots = self._varying - self._read
            try:
                given = orjson.dumps(with_placeholders(event, slots), default=_encoded)
                converted = convert(with_placeholders(event, slots))
                output = orjson.dumps(converted, default=_encoded)
                self.form = _Form(given, output, list(map(type, self._values)))
            except ReadError as error:
                self._read.add(error.number)
            except Exception:  # noqa: BLE001 - the conversion needs the values in another way
                return
            else:
                return


def _encoded(value: Any) -> orjson.Fragment:
    if type(value) is not Placeholder:
        raise TypeError
    edge = b'"' if value.kind is str else b""
    return orjson.Fragment(b"%b%b%d%b%b" % (edge, _EDGE, value.number, _EDGE, edge))


def _parts(line: bytes) -> tuple[list[bytes], list[int]]:
    """Return the texts of a line with placeholders, and the numbers of the values between them."""
    parts = _SLOT.split(line)
    return parts[::2], [int(each) for each in parts[1::2]]


def _format(texts: Sequence[bytes]) -> bytes:
    return b"%b".join(each.replace(b"%", b"%%") for each in texts)


def _joined(texts: Sequence[bytes], values: Sequence[bytes]) -> bytes:
    pairs = zip(texts, [*values, b""], strict=True)
    return b"".join(part for pair in pairs for part in pair)
