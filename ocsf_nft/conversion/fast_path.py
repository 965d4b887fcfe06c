"""Fast conversion of the usual lines of a log file, by a library in C.

The library knows neither OCSF nor the meaning of a record. The general code (:class:`Reader` and
:class:`Converter`) converts the first lines of each form. From these, the library learns the
template of their events. Before a template is used, the library must make the same event from the
line that the template was learnt from.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Final

from ocsf_nft.conversion import native_library
from ocsf_nft.conversion.native_library import LineCounts, NativeConverter, Rule, Settings, State
from ocsf_nft.ocsf import addresses, identifiers
from ocsf_nft.ocsf.event_slots import PORTS, rule_shape, values_of
from ocsf_nft.record import VM_RULES, Record
from ocsf_nft.sources.replay.line_numbers import MAX_COUNTED_LINES
from ocsf_nft.sources.replay.source import LineTally
from ocsf_nft.sources.replay.splitter import ENTRY_START

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Iterator

    from ocsf_nft.attempt import Attempt
    from ocsf_nft.conversion.converter import Converted, Converter
    from ocsf_nft.conversion.log_file import MakeReader
    from ocsf_nft.conversion.native_library import Result
    from ocsf_nft.record import Batch

#: Indexes of the values in the result of ``values_of`` that the rule decides: prefix, sandbox,
#: interfaces and the proxy's port; and all values from this one on.
_OF_RULE: Final = frozenset({2, 20, 26, 27, 28})
_FIRST_OF_RULE: Final = 32
_NS_PER_SECOND: Final = 1_000_000_000
#: Lines of ``journalctl -o json``.
_JSON_LINES: Final = re.compile(rb"(?:\{[^\n]*+\n)++")
#: Latest second whose time in ns has 64 bits.
_LATEST_NS: Final = (1 << 63) - 1 - _NS_PER_SECOND
#: Maximum number of shapes with a number.
_MAX_SHAPES: Final = 4096


class _Numbers:
    """Numbers of the lines that the general code converts, among equal ones.

    An object of its own: a reader with a method of its owner would only be freed by the garbage
    collector, and the memory of the library with it.
    """

    def __init__(self, counter: LineCounts) -> None:
        self._counter = counter
        #: Number of the present line; 0 if it is not counted yet.
        self.present = 0

    def number_of(self, line: bytes) -> int:
        return self.present or self._counter.count_line(line)


class FastPath:
    """Converter of the complete lines of one log file to events.

    ``reader`` and ``converter`` are the general code. ``number_of`` of the reader must be
    :meth:`number_of`.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        converter: Converter,
        make_reader: MakeReader,
    ) -> None:
        self._converter = converter
        self.counter = LineCounts(library, MAX_COUNTED_LINES)
        self._numbers = _Numbers(self.counter)
        self.reader = make_reader(number_of=self._numbers.number_of)
        self._native = NativeConverter(library, _settings(self.reader.boot_ns))
        self._shapes: dict[tuple[object, ...], int] = {}
        self._made_shapes = 0

    def convert(self, lines: bytes) -> Iterator[Converted]:
        """Convert complete lines."""
        received_ns = time.time_ns()
        at = 0
        while at < len(lines):
            if self.reader.is_inside:  # a journal export entry, or a line that is too long
                end = _end_of_entry(lines, at)
                for batch in self.reader.feed(lines[at:end]):
                    yield from self._converter.converted(batch)
                at = end
                continue
            result = self._native.convert(
                lines,
                at,
                self.counter,
                number=self._numbers.present,
                received_ns=received_ns,
                latest_ns=self.reader.latest_ns,
                is_after_kmsg=self.reader.is_after_kmsg,
            )
            self._count(result)
            if result.events:
                yield result.events
            at, self._numbers.present = result.end, result.number
            if result.state is State.FULL or at == len(lines):
                continue
            end = _end_of_odd_lines(lines, at)
            for batch in self.reader.feed(lines[at:end]):
                self._learn(lines[at:end], result, batch)
                yield from self._converter.converted(batch)
            at, self._numbers.present = end, 0

    def keep_events(self, *, is_on: bool) -> None:
        """Keep the events of all later conversions valid until the next call, or not."""
        self._native.keep_events(is_on=is_on)

    def finish(self, rest: bytes) -> Iterator[Converted]:
        """Convert the rest of the file, which has no line end."""
        for batch in (*self.reader.feed(rest), *self.reader.finish()):
            yield from self._converter.converted(batch)

    def _count(self, result: Result) -> None:
        self.reader.tally.add(LineTally(result.lines, result.records, result.skipped))
        self.reader.is_after_kmsg = result.is_after_kmsg

    def _learn(self, line: bytes, result: Result, batch: Batch) -> None:
        """Give the library what it lacked for a line, which the general code has read now."""
        if result.state in {State.DONE, State.ODD} or len(batch.records) != 1:
            return
        record = batch.records[0]
        if result.state is State.NEW_STAMP:
            second_ns = record.time_ns // _NS_PER_SECOND * _NS_PER_SECOND
            if 0 <= second_ns <= _LATEST_NS:
                self._native.add_stamp(result.key, second_ns)
            return
        attempt = self._converter.attempt(record)
        origin, prefix = attempt.record.origin, attempt.record.prefix
        if origin.raw != record.origin.raw or prefix != record.prefix:  # it has a secret
            return
        if result.state is State.NEW_RULE:
            rule = self._rule(record, attempt)
            if len(rule.flow_start) <= native_library.LONGEST_FLOW_START:
                self._native.add_rule(result.key, rule)
        else:
            self._learn_form(line, result.key, record, attempt)

    def _rule(self, record: Record, attempt: Attempt) -> Rule:
        mapper = self._converter.mapper
        derived, around = mapper.derived(attempt), mapper.around(attempt)
        values = values_of(attempt, derived, around, 0)
        return Rule(
            self._shape_number(
                rule_shape(attempt.record, derived, around, self._converter.version)
            ),
            not self._converter.is_selected(record),
            record.rule in VM_RULES,  # before a configured prefix names another rule
            identifiers.flow_uid_start(attempt.record),
            [
                _bytes(value) if number in _OF_RULE or number >= _FIRST_OF_RULE else b""
                for number, value in enumerate(values)
            ],
        )

    def _shape_number(self, shape: tuple[object, ...]) -> int:
        number = self._shapes.get(shape)
        if number is None:
            if len(self._shapes) >= _MAX_SHAPES:
                self._shapes.clear()
            self._made_shapes += 1
            number = self._shapes[shape] = self._made_shapes
        return number

    def _learn_form(self, line: bytes, key: bytes, record: Record, attempt: Attempt) -> None:
        pieces = self._converter.mapper.pieces(attempt, self._converter.version)
        if pieces is None:  # until the form has occurred more often
            return
        self._native.add_template(key, *pieces)
        if not self._makes_same_event(line, record, attempt):
            self._native.add_template(key, (), ())

    def _makes_same_event(self, line: bytes, record: Record, attempt: Attempt) -> bool:
        processed_ns = time.time_ns()
        event = self._converter.mapper.line(
            attempt, processed_ns=processed_ns, version=self._converter.version
        )
        made = self._native.convert(
            line,
            0,
            self.counter,
            number=self._numbers.present,
            received_ns=record.received_ns,
            latest_ns=self.reader.latest_ns,
            is_after_kmsg=False,
            processed_ns=processed_ns,
        )
        return made.state is State.DONE and made.events == event + b"\n"


def _end_of_odd_lines(lines: bytes, start: int) -> int:
    """Return the end of a line, or of a run of lines that are all of the journal."""
    if (run := _JSON_LINES.match(lines, start)) is not None:
        return run.end()
    end = start
    while lines.startswith(ENTRY_START, end):
        end = _end_of_entry(lines, end)
    return end if end > start else lines.find(b"\n", start) + 1 or len(lines)


def _end_of_entry(lines: bytes, start: int) -> int:
    """Return the possible end of a journal export entry: an empty line."""
    end = lines.find(b"\n\n", start)
    return len(lines) if end < 0 else end + 2


def _bytes(value: bytes | int | None) -> bytes:
    return b"%d" % value if isinstance(value, int) else value or b""


def _settings(boot_ns: int) -> Settings:
    ports = bytearray(1 << 13)
    for port in (each for each in PORTS if each is not None):
        ports[port // 8] |= 1 << port % 8
    return Settings(*addresses.packed_tables(), bytes(ports), boot_ns, identifiers.EVENT_UID_START)
