"""Tests that several processes give the same events, in the same order, as one process."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from ocsf_nft.conversion import parallel
from ocsf_nft.conversion.log_file import EventOutput
from tests.attribution import living
from tests.cli import forked
from tests.conversion.both_ways import BothWays, without_times
from tests.sources.replaying import MESSAGE, entry, export

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.conversion.converter import Converted

_BOOT: Final = ("--boot", "2026-11-01T00:00:00Z")
#: Lines of several blocks.
_LINES: Final = 6_000


class _Conversion(NamedTuple):
    """Conversion of standard input by two processes, and the file of its events."""

    process: subprocess.Popen[bytes]
    events: Path

    def send(self, text: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def end(self) -> str:
        """End the input; return the text on standard error."""
        _, errors = self.process.communicate(timeout=60)
        return errors.decode()


@pytest.fixture
def converting(tmp_path: Path) -> Iterator[_Conversion]:
    """Yield a conversion that waits for lines."""
    path = tmp_path / "events"
    with path.open("wb") as events:
        process = forked.popen(
            "convert", *_BOOT, "--jobs", "2",
            stdin=subprocess.PIPE, stdout=events, stderr=subprocess.PIPE,
        )  # fmt: skip
    with process:
        yield _Conversion(process, path)
        process.kill()  # if it has not ended


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_BLOCK_BYTES", 1 << 16)


def _text(forms: tuple[str, ...], number: int = _LINES) -> bytes:
    """Return lines of each form; one in fifty equals an earlier one."""
    return "".join(
        f"{forms[each % len(forms)].format(each - each % 50 // 49 * 49)}\n"
        for each in range(number)
    ).encode()


_FORMS: Final = {
    "dmesg": (f"[ 5000.{{:06d}}] {MESSAGE}", "usb 1-1: device {}", f"[ 5000.{{:06d}}] {MESSAGE}"),
    "kmsg": (f"4,{{}},77,-;{MESSAGE}", " SUBSYSTEM={} IN= OUT=", " DEVICE=+{}"),
    "syslog": (f"Nov 24 12:34:56 host{{}} kernel: {MESSAGE}", "Nov 24 12:34:56 h app: IN=x OUT={}"),
    "nflog": ("NFLOG group={}", f"[ 1.000001] {MESSAGE}"),
}


def _converted(path: Path, jobs: int, *options: str) -> tuple[bytes, str, bytes]:
    rejects = path.with_suffix(f".{jobs}")
    found = forked.run(
        "convert", *_BOOT, *options, "--jobs", str(jobs), "--rejects", rejects, path, text=False
    )
    assert found.returncode == 0, found.stderr
    return without_times(found.stdout), found.stderr.decode(), rejects.read_bytes()


@pytest.mark.parametrize("form", _FORMS)
@pytest.mark.parametrize("jobs", [2, 3])
def test_processes_give_the_result_of_one(tmp_path: Path, form: str, jobs: int) -> None:
    path = tmp_path / "log"
    path.write_bytes(_text(_FORMS[form]))
    assert path.stat().st_size > (jobs + 1) * parallel._BLOCK_BYTES
    assert _converted(path, jobs) == _converted(path, 1)


@pytest.mark.parametrize("options", [("--format", "syslog"), ("--detail", "lean")])
def test_processes_write_other_forms(tmp_path: Path, options: tuple[str, str]) -> None:
    path = tmp_path / "log"
    path.write_bytes(_text(_FORMS["dmesg"]))
    assert _converted(path, 2, *options) == _converted(path, 1, *options)


def test_processes_without_the_library_give_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    path.write_bytes(_text(_FORMS["dmesg"]))
    fast = _converted(path, 2)
    monkeypatch.setenv("OCSF_NFT_NO_EXTENSIONS", "1")
    assert _converted(path, 2) == fast


def test_journal_entries_after_other_lines_are_converted(tmp_path: Path) -> None:
    entries = b"".join(export(entry(__CURSOR=f"s=1;i={each}")) for each in range(1_000))
    path = tmp_path / "log"
    lines = _text(_FORMS["dmesg"])
    path.write_bytes(lines + entries + lines)
    one = _converted(path, 1)
    assert _converted(path, 2) == one
    assert one[1] == "13000 lines: 9000 records, 4000 others\n"


def test_line_that_is_longer_than_a_block_is_reported_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = _text(_FORMS["dmesg"])
    path.write_bytes(lines + b"IN=" + b"x" * (4 << 20) + b"\n" + lines)
    one = _converted(path, 1)
    assert _converted(path, 2) == one
    assert [json.loads(each)["reason"] for each in one[2].splitlines()] == [
        "the line is longer than a log line can be"
    ]


def test_many_repeated_and_unparsed_lines_block_no_process(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"IN=\n" * 100_000 + b"ocsf-nft:IN=\n" * 60_000 + _text(_FORMS["dmesg"]))
    one = _converted(path, 1)
    assert _converted(path, 2) == one


def test_lines_that_trickle_are_converted_in_time(converting: _Conversion) -> None:
    for each in range(1_000):
        converting.send(f"[ 1.{each:06d}] {MESSAGE}\n".encode())
        if converting.events.stat().st_size:
            break
        time.sleep(0.01)  # a shorter pause than one that ends a block
    assert each < 500
    converting.end()


def test_blocks_are_divided_among_processes_while_the_output_is_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = _text(_FORMS["dmesg"])
    chunks = [text[at : at + 50_000] for at in range(0, len(text), 50_000)]
    lines = BothWays().fast
    here: list[int] = []
    convert = lines.convert

    def convert_here(block: bytes) -> Iterator[Converted]:
        here.append(len(block))
        return convert(block)

    monkeypatch.setattr(lines, "convert", convert_here)
    output = EventOutput(lambda events: events, lambda _: time.sleep(0.15))
    for _ in parallel.convert(chunks, lines, output, 2):
        pass
    assert lines.reader.tally.lines == _LINES
    # The first block, from which templates are learnt, and no other one.
    assert len(here) == 1
    assert here[0] < len(text) / 5


def test_full_disk_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(_text(_FORMS["dmesg"]))
    with Path("/dev/full").open("wb") as full:
        found = forked.run("convert", *_BOOT, "--jobs", "2", path, stdout=full, stderr=-1)
    assert found.returncode == 3
    assert found.stderr == "ocsf-nft: standard output can't be written: No space left on device\n"


def test_reader_that_has_enough_ends_all_processes(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(_text(_FORMS["dmesg"], 30_000))
    process = forked.popen(
        "convert", *_BOOT, "--jobs", "2", path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(3 << 20)
    process.stdout.close()
    assert process.wait(60) == 0
    assert process.stderr.read() == b""
    process.stderr.close()


def test_lines_of_a_slow_pipe_are_converted_at_once(converting: _Conversion) -> None:
    block = _text(_FORMS["kmsg"], 4_000)
    assert len(block) > 3 * parallel._BLOCK_BYTES
    # Less than a block, several blocks, and a record whose next line comes later.
    records = 0
    for text in (f"[ 1.0] {MESSAGE}\n".encode(), block, f"4,1,2,-;{MESSAGE}\n".encode(), b" A=1\n"):
        converting.send(text)
        records += text.count(b"OUT=eth0")
        living.until(lambda: converting.events.read_bytes().count(b"\n") == records)  # noqa: B023
    assert converting.end().startswith(f"4003 lines: {records} records")


@pytest.fixture
def running(converting: _Conversion) -> subprocess.Popen[bytes]:
    """Return a conversion by two processes, which have started."""
    converting.send(_text(_FORMS["dmesg"]))
    living.until(lambda: len(living.children(converting.process.pid)) == 2)
    return converting.process


def test_terminated_conversion_ends_all_processes(running: subprocess.Popen[bytes]) -> None:
    children = [os.pidfd_open(pid) for pid in living.children(running.pid)]
    running.terminate()
    running.communicate(timeout=60)
    for each in children:
        assert select.select((each,), (), (), 60)[0], "a process has not ended"
        os.close(each)
    assert running.returncode in {-signal.SIGTERM, 128 + signal.SIGTERM}


def test_killed_process_is_reported(running: subprocess.Popen[bytes]) -> None:
    os.kill(living.children(running.pid)[0], signal.SIGKILL)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 3
    assert errors.decode() == (
        "ocsf-nft: the events are incomplete, because a process that converts lines has ended with "
        "code -9: give --jobs 1 to convert without such processes\n"
    )


def test_processes_end_with_the_first_one(running: subprocess.Popen[bytes]) -> None:
    children = [os.pidfd_open(pid) for pid in living.children(running.pid)]
    running.kill()
    running.communicate(timeout=60)
    for each in children:
        assert select.select((each,), (), (), 60)[0], "a process has not ended"
        os.close(each)


def test_interrupt_ends_all_processes(running: subprocess.Popen[bytes]) -> None:
    children = living.children(running.pid)
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=60)
    assert running.returncode == 130
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
