"""Our own log, on a standard error that is read late or never."""

from __future__ import annotations

import contextlib
import os
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
def _configured() -> Iterator[None]:
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
        with standard_error_to(writer):
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


def test_what_can_not_be_written_is_told_as_dropped() -> None:
    with standard_error() as reader:
        with Path(os.devnull).open("rb") as unwritable, standard_error_to(unwritable.fileno()):
            _log.warning("not written")
        _log.warning("written")
        (line,) = lines(reader)
    assert line.endswith(b" event='written' dropped=1\n")
