"""Bindings (ctypes) for the converter of usual log lines in ``native/``, a library in C.

The names and the fields are those of ``native/converter.h`` and ``native/line_counts.h``.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import (
    POINTER,
    Structure,
    c_char_p,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
)
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Environment variable that leaves the library out, at a build and at run time.
VARIABLE: Final = "OCSF_NFT_NO_EXTENSIONS"
_FILE: Final = Path(__file__).parent / "native" / "libconverter.so.1"
_LONGEST_KEY: Final = 1024
#: Maximum size of a rule's ``flow_start``.
LONGEST_FLOW_START: Final = 800
#: Size of a buffer for events. Small ones stay in the processor's cache. All events of a block of
#: lines fit into a large one in most cases.
_BUFFER_BYTES: Final = 1 << 18
_LARGE_BUFFER_BYTES: Final = 1 << 22


class State(IntEnum):
    """Reason why a conversion ended."""

    DONE = 0
    FULL = 1
    ODD = 2
    NEW_STAMP = 3
    NEW_RULE = 4
    NEW_FORM = 5


class _Bytes(Structure):
    _fields_: ClassVar = [("at", c_char_p), ("size", c_size_t)]


class _Settings(Structure):
    _fields_: ClassVar = [
        ("ipv4_starts", _Bytes),
        ("ipv4_kinds", _Bytes),
        ("ipv6_starts", _Bytes),
        ("ipv6_kinds", _Bytes),
        ("ports", _Bytes),
        ("key", c_uint64 * 2),
        ("boot_ns", c_int64),
        ("uid_start", _Bytes),
    ]


class _RepeatedLine(Structure):
    _fields_: ClassVar = [("index", c_uint64), ("number", c_uint64)]


class _Run(Structure):
    _fields_: ClassVar = [
        ("input", _Bytes),
        ("start", c_size_t),
        ("counts", c_void_p),
        ("output", c_void_p),
        ("output_size", c_size_t),
        ("received_ns", c_int64),
        ("processed_ns", c_int64),
        ("latest_ns", c_int64),
        ("is_after_kmsg", c_uint32),
        ("state", c_uint32),
        ("end", c_size_t),
        ("number", c_uint64),
        ("written", c_size_t),
        ("lines", c_uint64),
        ("records", c_uint64),
        ("skipped", c_uint64),
        ("key_size", c_size_t),
        ("key", c_uint8 * _LONGEST_KEY),
    ]


class _Rule(Structure):
    _fields_: ClassVar = [
        ("shape", c_uint32),
        ("is_filtered", c_uint8),
        ("is_ownerless", c_uint8),
        ("flow_start", _Bytes),
        ("values", POINTER(_Bytes)),
        ("values_size", c_size_t),
    ]


class _Piece(Structure):
    _fields_: ClassVar = [("literal", _Bytes), ("slot", c_int32)]


_PROTOTYPES: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "converter_new": (c_void_p, (POINTER(_Settings),)),
    "converter_free": (None, (c_void_p,)),
    "add_stamp": (c_int, (c_void_p, _Bytes, c_int64)),
    "add_rule": (c_int, (c_void_p, _Bytes, POINTER(_Rule))),
    "add_template": (c_int, (c_void_p, _Bytes, POINTER(_Piece), c_size_t)),
    "convert": (None, (c_void_p, POINTER(_Run))),
    "line_counts_new": (c_void_p, (c_size_t, c_uint64 * 2)),
    "line_counts_free": (None, (c_void_p,)),
    "count_line": (c_uint64, (c_void_p, _Bytes)),
    "count_lines": (c_int64, (c_void_p, _Bytes, POINTER(POINTER(_RepeatedLine)))),
    "use_counted": (c_int, (c_void_p, c_char_p, c_size_t)),
}


class Settings(NamedTuple):
    """Facts for all lines; see ``struct settings`` in ``native/converter.h``."""

    ipv4_starts: bytes
    ipv4_kinds: bytes
    ipv6_starts: bytes
    ipv6_kinds: bytes
    ports: bytes
    boot_ns: int
    uid_start: bytes


class Rule(NamedTuple):
    """Facts for all lines of a log rule; see ``struct rule`` in ``native/converter.h``."""

    shape: int
    is_filtered: bool
    is_ownerless: bool
    flow_start: bytes
    values: Sequence[bytes]


class Result(NamedTuple):
    """Result of a conversion; see ``struct run`` in ``native/converter.h``."""

    state: State
    #: Events with line ends; valid until the next conversion, or until ``keep_events``.
    events: memoryview
    end: int
    #: 0 if the line is not counted.
    number: int
    is_after_kmsg: bool
    lines: int
    records: int
    skipped: int
    key: bytes


def load_library() -> ctypes.CDLL | None:
    """Load the library; return None if it was not built, or if VARIABLE is set."""
    if os.environ.get(VARIABLE) or not _FILE.exists():
        return None
    library = ctypes.CDLL(os.fspath(_FILE))
    for name, (result, arguments) in _PROTOTYPES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class NativeConverter:
    """Converter of the usual lines, which learns from the general code."""

    def __init__(self, library: ctypes.CDLL, settings: Settings) -> None:
        """Create the converter; raises MemoryError if memory is short."""
        self._library = library
        *tables, boot_ns, uid_start = settings
        made = _Settings(*map(_bytes, tables), _random_key(), boot_ns, _bytes(uid_start))
        self._converter = c_void_p(_checked(library.converter_new(ctypes.byref(made))))
        self._run = _Run()
        self._buffer = ctypes.create_string_buffer(_BUFFER_BYTES)
        #: Size of the events in the buffer that are still needed.
        self._occupied = 0
        self._keeps_events = False

    def __del__(self) -> None:
        """Free the memory of the library."""
        if hasattr(self, "_converter"):
            self._library.converter_free(self._converter)

    def convert(  # noqa: PLR0913 - arguments of one function in C
        self,
        lines: bytes,
        start: int,
        counts: LineCounts,
        *,
        number: int,
        received_ns: int,
        latest_ns: int,
        is_after_kmsg: bool,
        processed_ns: int = 0,
    ) -> Result:
        """Convert complete lines from the offset ``start``, until one needs the general code.

        ``counts`` counts equal lines. ``number`` is the number of the first line among equal ones,
        0 if it is not counted yet. ``received_ns`` is the time of the read, ``processed_ns``
        the time for ``processed_time``, 0 for the present one. ``latest_ns`` is the latest valid
        timestamp since boot.
        """
        run = self._run
        run.input.at, run.input.size, run.start, run.number = lines, len(lines), start, number
        run.counts = counts.pointer
        run.received_ns, run.processed_ns, run.latest_ns = received_ns, processed_ns, latest_ns
        run.is_after_kmsg = is_after_kmsg
        start_of_events = self._occupied
        run.output = ctypes.addressof(self._buffer) + start_of_events
        run.output_size = min(len(self._buffer) - start_of_events, _BUFFER_BYTES)
        self._library.convert(self._converter, ctypes.byref(run))
        events = memoryview(self._buffer)[start_of_events : start_of_events + run.written]
        state = State(run.state)
        if state is State.FULL and not run.written:
            state = State.ODD  # an event that is larger than a buffer
        elif self._keeps_events:
            self._occupied += run.written
            if len(self._buffer) - self._occupied < _BUFFER_BYTES:
                # The events so far hold the buffer before.
                self._buffer, self._occupied = ctypes.create_string_buffer(len(self._buffer)), 0
        return Result(
            state,
            events.cast("B").toreadonly(),
            run.end,
            run.number,
            bool(run.is_after_kmsg),
            run.lines,
            run.records,
            run.skipped,
            bytes(memoryview(run.key)[: run.key_size]),
        )

    def keep_events(self, *, is_on: bool) -> None:
        """Keep the events of all later conversions valid until the next call, or not."""
        self._keeps_events = is_on
        self._occupied = 0
        if is_on and len(self._buffer) < _LARGE_BUFFER_BYTES:
            self._buffer = ctypes.create_string_buffer(_LARGE_BUFFER_BYTES)

    def add_stamp(self, key: bytes, time_ns: int) -> None:
        """Add the time of a timestamp; the key is that of a result with NEW_STAMP."""
        _check(self._library.add_stamp(self._converter, _bytes(key), time_ns))

    def add_rule(self, key: bytes, rule: Rule) -> None:
        """Add the facts of a rule; the key is that of a result with NEW_RULE."""
        values = (_Bytes * len(rule.values))(*map(_bytes, rule.values))
        made = _Rule(
            rule.shape,
            rule.is_filtered,
            rule.is_ownerless,
            _bytes(rule.flow_start),
            values,
            len(values),
        )
        _check(self._library.add_rule(self._converter, _bytes(key), ctypes.byref(made)))

    def add_template(self, key: bytes, literals: Sequence[bytes], slots: Sequence[int]) -> None:
        """Add a template; the key is that of a result with NEW_FORM.

        Without ``literals``, the general code converts all lines of this form.
        """
        made = map(_Piece, map(_bytes, literals), (*slots, -1))
        pieces = (_Piece * len(literals))(*made)
        _check(self._library.add_template(self._converter, _bytes(key), pieces, len(literals)))


class LineCounts:
    """Counter of equal lines, as :class:`LineNumbers`."""

    def __init__(self, library: ctypes.CDLL, limit: int) -> None:
        """Create the counter of up to ``limit`` lines; raises MemoryError if memory is short."""
        self._library = library
        self.pointer = c_void_p(_checked(library.line_counts_new(limit, _random_key())))
        self._found = POINTER(_RepeatedLine)()

    def __del__(self) -> None:
        """Free the memory of the library."""
        if hasattr(self, "pointer"):
            self._library.line_counts_free(self.pointer)

    def count_line(self, line: bytes) -> int:
        """Count a line without its end; return its number among equal ones, from 1."""
        number: int = self._library.count_line(self.pointer, _bytes(line))
        return number

    def count_lines(self, lines: bytes) -> bytes:
        """Count complete lines; return the numbers for :meth:`use_counted`.

        Raises MemoryError if memory is short.
        """
        found = self._library.count_lines(self.pointer, _bytes(lines), ctypes.byref(self._found))
        if found < 0:
            raise MemoryError
        return ctypes.string_at(self._found, found * ctypes.sizeof(_RepeatedLine))

    def use_counted(self, numbers: bytes) -> None:
        """Use the numbers that another process counted for the next lines.

        Raises MemoryError if memory is short.
        """
        size = len(numbers) // ctypes.sizeof(_RepeatedLine)
        _check(self._library.use_counted(self.pointer, numbers, size))


def _bytes(value: bytes) -> _Bytes:
    return _Bytes(value, len(value))


def _random_key() -> Any:
    return (c_uint64 * 2).from_buffer_copy(os.urandom(16))


def _checked(pointer: int | None) -> int:
    if pointer is None:
        raise MemoryError
    return pointer


def _check(result: int) -> None:
    if result != 0:
        raise MemoryError
