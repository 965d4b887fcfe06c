"""Our own log, on a standard error that is read late or never."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog

from ocsf_nft.cli import logs, output

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_log = structlog.get_logger()


@pytest.fixture(autouse=True)
def _configured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(logging, "lastResort", logging.lastResort)  # it is put back
    logs.to_stderr_at_once()
    yield
    structlog.reset_defaults()


@contextlib.contextmanager
def standard_error_to(descriptor: int) -> Iterator[None]:
    # No fixture: pytest takes standard error for itself between one and its test.
    kept = os.dup(2)
    os.dup2(descriptor, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextlib.contextmanager
def standard_error() -> Iterator[int]:
    """The reading end of a pipe that is standard error meanwhile."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    try:
        with standard_error_to(writer), pytest.MonkeyPatch.context() as patch:
            patch.setattr(logging.getLogger(), "handlers", [])  # pytest's
            yield reader
    finally:
        os.close(reader)
        os.close(writer)


def waits(work: Callable[[], None]) -> bool:
    """Whether it is not done within some seconds."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(5)
    return thread.is_alive()


def lines(reader: int) -> list[bytes]:
    """What waits in the pipe."""
    return os.read(reader, 1 << 20).splitlines(keepends=True)


def test_a_reader_is_not_waited_for_and_learns_how_much_it_missed() -> None:
    def log_much() -> None:
        for number in range(1000):
            _log.warning("fence changed", number=number, reason="x" * 200)

    with standard_error() as reader:
        was_waiting = waits(log_much)
        read = lines(reader)
        _log.error("fence degraded", reason="y")
        _log.error("fence degraded", reason="z")
        told, whole = lines(reader)
    assert not was_waiting
    assert 100 < len(read) < 1000
    assert all(f" number={n} ".encode() in line for n, line in enumerate(read))
    assert all(line.endswith(b"x'\n") for line in read)
    assert told.endswith(f" reason='y' dropped={1000 - len(read)}\n".encode())
    assert whole.endswith(b" reason='z'\n")


def test_an_entry_is_cut_to_what_a_pipe_takes_at_once() -> None:
    with standard_error() as reader:
        for size in range(output.AT_ONCE_BYTES - 120, output.AT_ONCE_BYTES):
            _log.warning("fence changed", reason="é" * (size // 2) + "x" * (size % 2))
            (line,) = lines(reader)
            assert len(line) <= output.AT_ONCE_BYTES
            assert line.decode().endswith(("x'\n", "é'\n", "…\n"))
    assert line.endswith("…\n".encode())


def test_log_entry_that_just_fits_is_whole() -> None:
    assert logs._cut("é" * 5, 10).decode() == "é" * 5
    assert logs._cut("x" * 11, 10).decode() == "x" * 7 + "…"


def test_what_can_not_be_written_is_told_as_dropped() -> None:
    with standard_error() as reader:
        with Path(os.devnull).open("rb") as unwritable, standard_error_to(unwritable.fileno()):
            _log.warning("not written")
        _log.warning("written")
        (line,) = lines(reader)
    assert line.endswith(b" event='written' dropped=1\n")


def complain(library: str = "lib", said: str = "odd", error: type[Exception] = ValueError) -> None:
    """As a library logs what went wrong."""
    failure = error("\x1b[31mred\n'\u202e" + "x" * 5000)
    logging.getLogger(library).error("%s\n", said, exc_info=failure)


def numbers(reader: int) -> list[int]:
    return [int(found) for line in lines(reader) for found in re.findall(rb" number=(\d+) ", line)]


def test_what_a_library_logs_is_one_short_line_of_ours() -> None:
    with standard_error() as reader:
        complain("lib.server", "from \x1b[2J")
        logging.getLogger("lib.server").info("too little")
        (line,) = lines(reader)
    text = line.decode().removesuffix("\n")
    assert text.isprintable()
    assert " level='warning' event='a library complains' library='lib.server' number=1 " in text
    assert r"from \x1b[2J : ValueError: \x1b[31mred '\u202exxx" in text
    assert len(text) < 500


def test_a_flood_of_what_libraries_log_is_few_lines_and_hides_nothing_else() -> None:
    with standard_error() as reader:
        for number in range(100):
            complain(said=f"from {number}")
        assert numbers(reader) == [1, 2, 4, 8, 16, 32, 64]
        complain(error=KeyError)
        logging.getLogger("lib").error("elsewhere")
        assert numbers(reader) == [1, 1]


def test_what_libraries_log_waits_for_no_reader() -> None:
    def log_much() -> None:
        for number in range(1000):
            error = type(f"Error{number}", (Exception,), {})
            complain(error=error)

    with standard_error() as reader:
        assert not waits(log_much)
        assert 100 < len(lines(reader)) < 1000


def test_what_asyncio_logs_is_a_line_too() -> None:
    async def fail() -> None:
        asyncio.get_running_loop().call_exception_handler({"message": "\x1b[31m", "fd": "\x07"})

    with standard_error() as reader:
        asyncio.run(fail())
        (line,) = lines(reader)
    assert rb" library='asyncio' number=1 reason=" in line
    assert rb"\x1b[31m fd: " in line


def test_what_a_library_logs_to_a_handler_of_its_own_is_not_told() -> None:
    logging.getLogger("heard").addHandler(logging.NullHandler())
    with standard_error() as reader:
        complain("heard.elsewhere")
        complain("lib")
        (line,) = lines(reader)
    assert b" library='lib' " in line


def test_what_can_not_be_told_harms_nobody() -> None:
    with standard_error() as reader:
        logging.getLogger("lib").error("%d", "no number")
        (line,) = lines(reader)
    assert line.endswith(b" reason='TypeError while it was told'\n")


def test_log_entry_of_a_library_is_cut_to_300_characters() -> None:
    with standard_error() as reader:
        for size in (300, 301):
            logging.getLogger("lib").error("x" * size)
        whole, cut = lines(reader)
    for line in (whole, cut):
        assert re.findall(rb" reason=.?(x+)", line) == [b"x" * 300]
