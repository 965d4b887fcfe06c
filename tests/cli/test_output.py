"""Standard streams that are closed, full, or without a reader."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.cli import output

if TYPE_CHECKING:
    from collections.abc import Iterator

if TYPE_CHECKING:
    from pathlib import Path

LINE = (
    "<4>[1.000000] ocsf-nft:sb:egress:IN= OUT=e0 SRC=10.0.0.2 DST=203.0.113.7 LEN=48 TOS=0x00 "
    "PREC=0x00 TTL=64 ID=1 DF PROTO=UDP SPT=4000 DPT=53 LEN=28 UID=0 GID=0 \n"
)


def in_shell(redirections: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            "sh",
            "-c",
            f'exec "$@" {redirections}',
            "sh",
            sys.executable,
            "-m",
            "ocsf_nft",
            *arguments,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


@pytest.fixture
def log(tmp_path: Path) -> str:
    path = tmp_path / "kernel.log"
    path.write_text(LINE * 2000)
    return str(path)


@pytest.mark.kernel  # for /dev/full
@pytest.mark.parametrize("command", ["convert", "explain", "--help"])
def test_a_full_standard_output_is_one_sentence(log: str, command: str) -> None:
    arguments = {"convert": [log], "explain": [LINE], "--help": []}[command]
    done = in_shell(">/dev/full", command, *arguments)
    assert done.returncode == 3
    sentence = done.stderr.splitlines()[-1]
    assert sentence == "ocsf-nft: standard output can't be written: No space left on device"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("redirections", [">&-", "<&- >&-"])
def test_a_closed_standard_output_is_one_sentence(log: str, redirections: str) -> None:
    done = in_shell(redirections, "convert", log)
    assert done.returncode == 3
    assert done.stderr == "ocsf-nft: standard output can't be written: Bad file descriptor\n"


def test_output_is_never_written_to_a_file_with_the_number_of_a_closed_stream(
    log: str, tmp_path: Path
) -> None:
    unparsed = tmp_path / "unparsed"
    done = in_shell("<&- >&- 2>&-", "convert", "--rejects", str(unparsed), log)
    assert done.returncode == 3
    assert unparsed.read_bytes() == b""


def test_closed_standard_input_is_empty() -> None:
    done = in_shell("<&-", "convert")
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    "redirections", ["2>&-", pytest.param("2>/dev/full", marks=pytest.mark.kernel)]
)
def test_full_standard_error_changes_no_exit_code(log: str, redirections: str) -> None:
    done = in_shell(redirections, "convert", log)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 2000
    assert in_shell(redirections, "convert", "--no-such-option").returncode == 2
    assert in_shell(redirections, "convert", "/nowhere").returncode == 2
    assert in_shell(redirections, "explain", "nothing").returncode == 1
    assert in_shell(redirections, "explain", LINE).returncode == 0


def test_closed_reader_ends_the_command_quietly(log: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "ocsf_nft", "convert", log],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
        timeout=30,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("way", ["convert {}", "run --source replay:{}"])
def test_command_waits_for_a_full_non_blocking_pipe(log: str, way: str) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with (
        subprocess.Popen(
            [sys.executable, "-m", "ocsf_nft", *way.format(log).split()],
            stdout=writer,
            stderr=subprocess.PIPE,
        ) as process,
        os.fdopen(reader, "rb") as written,
    ):
        while not _is_full(writer):
            assert process.poll() is None
            time.sleep(0.01)
        os.close(writer)
        lines = written.read().splitlines()
        assert process.stderr is not None
        messages = process.stderr.read()
    assert (process.returncode, len(lines)) == (0, 2000), messages


def _is_full(pipe: int) -> bool:
    return not select.select((), (pipe,), (), 0)[1]


def test_messages_can_not_control_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.show("not fenced: \x1b]0;x\x07, \u202epz\n\tcounter \x9b2J")
    assert capsys.readouterr().err == r"not fenced: \x1b]0;x\x07, \u202epz" + "\n\t" + (
        r"counter \x9b2J" + "\n"
    )


@pytest.fixture
def one_cpu() -> Iterator[None]:
    """Run all processes on one CPU: the reader runs before the writer returns from its write."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.kernel
@pytest.mark.usefixtures("one_cpu")
def test_an_interrupt_right_after_an_event_writes_it_once() -> None:
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-m", "ocsf_nft", "convert"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(LINE.encode())
        process.stdin.flush()
        event = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest, _errors = process.communicate(timeout=10)
        assert event.startswith(b"{")
        assert (rest, process.returncode) == (b"", 130)
