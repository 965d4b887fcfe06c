"""Log entries, on a standard error that is read late or never."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.cli import logs, output
from ocsf_nft.cli.logs import as_json, as_text, limited, simple
from ocsf_nft.errors import UsageError
from tests.cli import forked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_log = structlog.get_logger()


@pytest.fixture(autouse=True)
def _configured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(logging, "lastResort", logging.lastResort)  # restored after the test
    logs.to_stderr_at_once(logs.LogSettings("text"))
    yield
    structlog.reset_defaults()


@contextlib.contextmanager
def standard_error_to(descriptor: int) -> Iterator[None]:
    # This is no fixture: between a fixture and its test, pytest replaces standard error.
    original = os.dup(2)
    os.dup2(descriptor, 2)
    try:
        yield
    finally:
        os.dup2(original, 2)
        os.close(original)


@contextlib.contextmanager
def standard_error() -> Iterator[int]:
    """Yield the reading end of a pipe that replaces standard error."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    try:
        with standard_error_to(writer), pytest.MonkeyPatch.context() as patch:
            patch.setattr(logging.getLogger(), "handlers", [])  # remove pytest's handlers
            yield reader
    finally:
        os.close(reader)
        os.close(writer)


def waits(work: Callable[[], None]) -> bool:
    """Return whether the work is unfinished after some seconds."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(5)
    return thread.is_alive()


def lines(reader: int) -> list[bytes]:
    """Return the lines in the pipe."""
    return os.read(reader, 1 << 20).splitlines(keepends=True)


def test_slow_reader_blocks_nothing_and_gets_the_number_of_dropped_entries() -> None:
    def log_much() -> None:
        for number in range(1000):
            _log.warning("fence changed", number=number, reason="x" * 200)

    with standard_error() as reader:
        was_waiting = waits(log_much)
        read = lines(reader)
        _log.error("fence degraded", reason="y")
        _log.error("fence degraded", reason="z")
        counted, whole = lines(reader)
    assert not was_waiting
    assert 100 < len(read) < 1000
    assert all(f" number={n} ".encode() in line for n, line in enumerate(read))
    assert all(line.endswith(b"x\n") for line in read)
    assert counted.endswith(f" reason=y log_dropped={1000 - len(read)}\n".encode())
    assert whole.endswith(b" reason=z\n")


def test_entry_is_cut_to_the_size_of_an_atomic_write() -> None:
    with standard_error() as reader:
        for size in range(output.AT_ONCE_BYTES - 120, output.AT_ONCE_BYTES):
            _log.warning("fence changed", reason="é" * (size // 2) + "x" * (size % 2))
            (line,) = lines(reader)
            assert len(line) <= output.AT_ONCE_BYTES
            assert line.decode().endswith(("x\n", "é\n", "…\n"))
    assert line.endswith("…\n".encode())


def test_entry_that_can_not_be_written_is_counted_as_dropped() -> None:
    with standard_error() as reader:
        with Path(os.devnull).open("rb") as unwritable, standard_error_to(unwritable.fileno()):
            _log.warning("not written")
        _log.warning("written", dropped=7)
        (line,) = lines(reader)
    assert line.endswith(b" written dropped=7 log_dropped=1\n")


def log_as_library(
    library: str = "lib", text: str = "odd", error: type[Exception] = ValueError
) -> None:
    """Log an error as a library does."""
    failure = error('\x1b[31mred\n"\u202e' + "x" * 5000)
    logging.getLogger(library).error("%s\n", text, exc_info=failure)


def numbers(reader: int) -> list[int]:
    return [int(found) for line in lines(reader) for found in re.findall(rb" number=(\d+) ", line)]


def test_log_entry_of_a_library_is_one_short_line() -> None:
    with standard_error() as reader:
        log_as_library("lib.server", "from \x1b[2J")
        logging.getLogger("lib.server").info("too little")
        (line,) = lines(reader)
    text = line.decode().removesuffix("\n")
    assert text.isprintable()
    assert " warning warning from a library library=lib.server number=1 reason=" in text
    assert r'"from \x1b[2J : ValueError: \x1b[31mred \"\u202exxx' in text
    assert len(text) < 500


def test_flood_of_library_entries_is_few_lines_and_hides_no_other_entry() -> None:
    with standard_error() as reader:
        for number in range(100):
            log_as_library(text=f"from {number}")
        assert numbers(reader) == [1, 2, 4, 8, 16, 32, 64]
        log_as_library(error=KeyError)
        logging.getLogger("lib").error("elsewhere")
        assert numbers(reader) == [1, 1]


def test_library_entries_do_not_wait_for_a_reader() -> None:
    def log_much() -> None:
        for number in range(1000):
            error = type(f"Error{number}", (Exception,), {})
            log_as_library(error=error)

    with standard_error() as reader:
        assert not waits(log_much)
        assert 100 < len(lines(reader)) < 1000


def test_log_entry_of_asyncio_is_one_line() -> None:
    async def fail() -> None:
        asyncio.get_running_loop().call_exception_handler({"message": "\x1b[31m", "fd": "\x07"})

    with standard_error() as reader:
        asyncio.run(fail())
        (line,) = lines(reader)
    assert rb" library=asyncio number=1 reason=" in line
    assert rb"\x1b[31m fd: " in line


def test_library_entries_with_their_own_handler_are_ignored() -> None:
    logging.getLogger("handled").addHandler(logging.NullHandler())
    with standard_error() as reader:
        log_as_library("handled.elsewhere")
        log_as_library("lib")
        (line,) = lines(reader)
    assert b" library=lib " in line


def test_library_entry_that_can_not_be_formatted_is_replaced() -> None:
    with standard_error() as reader:
        logging.getLogger("lib").error("%d", "no number")
        (line,) = lines(reader)
    assert line.endswith(b' reason="TypeError while the message was formatted"\n')


def test_log_entry_of_a_library_is_cut_to_300_characters() -> None:
    with standard_error() as reader:
        for size in (300, 301):
            logging.getLogger("lib").error("x" * size)
        whole, cut = lines(reader)
    for line in (whole, cut):
        assert re.findall(rb" reason=(x+)", line) == [b"x" * 300]


@pytest.mark.parametrize(
    ("form", "is_terminal", "is_json"),
    [(None, True, False), ("json", True, True), (None, False, True), ("text", False, False)],
)
def test_form_is_text_on_a_terminal_and_json_elsewhere(
    monkeypatch: pytest.MonkeyPatch, form: str | None, is_terminal: bool, is_json: bool
) -> None:
    ends = os.openpty() if is_terminal else os.pipe()
    with os.fdopen(ends[0], "rb"), os.fdopen(ends[1], "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        assert logs.log_settings(form).is_json is is_json


@pytest.mark.parametrize(
    ("options", "levels"),
    [
        ({}, ["info", "warning"]),
        ({"is_verbose": True}, ["debug", "info", "warning"]),
        ({"is_quiet": True}, ["warning"]),
    ],
)
@pytest.mark.parametrize("to_stderr", [logs.to_stderr, logs.to_stderr_at_once])
def test_level_selects_the_records(
    to_stderr: Callable[[logs.LogSettings], None], options: dict[str, bool], levels: list[str]
) -> None:
    with standard_error() as reader, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", os.fdopen(os.dup(2), "w"))
        to_stderr(logs.log_settings("json", **options))
        for level in ("debug", "info", "warning"):
            _log.bind(sink="siem").log(logging.getLevelNamesMapping()[level.upper()], "happened")
        records = [orjson.loads(line) for line in lines(reader)]
        sys.stderr.close()
    assert [record["level"] for record in records] == levels
    assert [list(record) for record in records] == [["ts", "level", "event", "sink"]] * len(levels)


def test_records_of_several_writers_of_a_pipe_do_not_mix() -> None:
    program = (
        "import sys, structlog; from ocsf_nft.cli import logs, output; output.prepare()\n"
        "logs.to_stderr(logs.LogSettings('json'))\n"
        "for number in range(200):\n"
        "    structlog.get_logger().info('x', who=sys.argv[1], number=number, pad='y' * 9000)"
    )
    reader, writer = os.pipe()
    writers = [
        subprocess.Popen([sys.executable, "-c", program, str(who)], stderr=writer)
        for who in range(3)
    ]
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        written = list(pipe)
    assert [each.wait() for each in writers] == [0, 0, 0]
    assert max(map(len, written)) == output.AT_ONCE_BYTES
    records = [orjson.loads(line) for line in written]
    for who in "012":
        numbers = [record["number"] for record in records if record["who"] == who]
        assert numbers == list(range(200))


def test_record_of_an_exception_names_it_and_its_line() -> None:
    with standard_error() as reader:
        try:
            int("a\nmistake")
        except ValueError:
            _log.exception("failed")
        (line,) = lines(reader)
    assert b" error failed error=" in line
    assert rb"ValueError: invalid literal for int()" in line
    assert b" at=test_logs.py:" in line
    with standard_error() as reader:
        try:
            Path("/no such").stat()
        except OSError:
            _log.exception("failed")
        (line,) = lines(reader)
    assert b' error="FileNotFoundError: No such file or directory: /no such" ' in line


@pytest.mark.parametrize("form", ["xml", "", "JSON"])
def test_unknown_form_is_answered_with_the_known_ones(form: str) -> None:
    with pytest.raises(UsageError, match="give text or json"):
        logs.log_settings(form)
    done = forked.run("--log-format", form, "config", "/no/such")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


_HEAD = {"ts": "2026-11-28T21:00:00.000000Z", "level": "warning", "event": "sink down"}


def record(**values: Any) -> dict[str, Any]:
    return dict(simple(None, "warning", {**values, **_HEAD}))


def test_text_has_time_level_event_and_values() -> None:
    made = record(sink="siem", seconds=1.5, number=3, is_late=False, dropped=None)
    assert as_text(made) == (
        b"2026-11-28T21:00:00.000000Z warning sink down "
        b"sink=siem seconds=1.5 number=3 is_late=false dropped=null\n"
    )


def test_json_keeps_the_types_of_values() -> None:
    made = record(sink="siem", seconds=1.5, number=3, is_late=False, dropped=None, names=("a", "b"))
    assert orjson.loads(as_json(made)) == {
        **_HEAD, "sink": "siem", "seconds": 1.5, "number": 3, "is_late": False, "dropped": None,
        "names": ["a", "b"],
    }  # fmt: skip


class _Colour(enum.Enum):
    RED = "red one"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ("it's", "it's"),
        ("two words", '"two words"'),
        ("", '""'),
        ('a "b"', r'"a \"b\""'),
        ("x level=error", '"x level=error"'),
        ('x \\" level=error', r'"x \\\" level=error"'),
        ("C:\\", r'"C:\\"'),
        ("red\x1b[31m\n", r"red\x1b[31m\x0a"),
        ("\u202e\udc80", r'"\u202e\\x80"'),
        (Path("/var/log/a"), "/var/log/a"),
        (["a", "b'c"], '"a, b\'c"'),
        ([Path("/a")], "/a"),
        ((), '""'),
        ({"a": [1, None]}, '"a=1, null"'),
        (_Colour.RED, '"red one"'),
        (ValueError("no"), "no"),
        (1 << 70, str(1 << 70)),
    ],
)
def test_value_in_text_has_no_python_in_it(value: object, text: str) -> None:
    assert as_text(record(key=value)).decode().partition(" key=")[2] == f"{text}\n"
    assert orjson.loads(as_json(record(key=value)))["event"] == "sink down"


@given(st.dictionaries(st.sampled_from("abc"), st.text(max_size=300)), st.integers(150, 400))
@pytest.mark.parametrize("encode", [as_json, as_text])
def test_line_is_one_printable_line_of_limited_size(
    encode: Callable[[Mapping[str, Any]], bytes], values: dict[str, str], size: int
) -> None:
    made = record(**values)
    line = limited(made, encode, size)
    whole = encode(made)
    assert len(line) <= size
    assert line == whole or (len(whole) > size and "…".encode() in line)
    assert line.decode().removesuffix("\n").isprintable()
    if encode is as_json:
        assert orjson.loads(line).keys() == made.keys()


@pytest.mark.parametrize("encode", [as_json, as_text])
def test_longest_value_is_shortened_no_more_than_needed(
    encode: Callable[[Mapping[str, Any]], bytes],
) -> None:
    made = record(short="s" * 20, long="x" * 500)
    line = limited(made, encode, 300)
    assert len(line) == 300
    assert b"s" * 20 in line
    assert "x…".encode() in line
    assert limited(made, encode, len(encode(made))) == encode(made)


def test_list_is_shortened_as_text() -> None:
    line = limited(record(names=["agent"] * 500), as_json, 300)
    assert orjson.loads(line)["names"].startswith("agent, agent")
    assert len(line) <= 300
