"""``tail``: events in a file, and events appended to it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given

from ocsf_nft.cli import formats
from ocsf_nft.cli.follow_file import LINE_BYTES
from ocsf_nft.ocsf.oneline import plain, shorthand
from tests.cli import forked
from tests.hostile_events import EVENTS

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMAND = (sys.executable, "-m", "ocsf_nft", "tail")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_EVENT: dict[str, Any] = {
    "class_uid": 4001,
    "time": 1_767_225_600_000,
    "severity_id": 3,
    "disposition_id": 2,
    "count": 1,
    "status_detail": "It was reset by the fence. Use the proxy.",
    "firewall_rule": {"name": "egress"},
    "src_endpoint": {"name": "sb1", "ip": "10.200.0.2"},
    "dst_endpoint": {"ip": "203.0.113.7"},
    "connection_info": {"protocol_num": 6, "direction_id": 2},
    "actor": {"user": {"uid": "1000"}},
}


def event(number: int) -> bytes:
    """Return the line of an event; the number is its port."""
    end = {"ip": "203.0.113.7", "port": 10_000 + number}
    return json.dumps(_EVENT | {"dst_endpoint": end, "raw_data": "x" * 2000}).encode() + b"\n"


def numbers(shown: str) -> list[int]:
    return [int(found) - 10_000 for found in re.findall(r"203\.0\.113\.7:(\d+)", shown)]


def tail(*arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[str]:
    done = forked.run("tail", *arguments, input=stdin or b"", text=False)
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


@contextlib.contextmanager
def following(*arguments: str, **streams: Any) -> Iterator[subprocess.Popen[str]]:
    process = forked.popen(
        "tail",
        "--follow",
        *arguments,
        stdout=streams.get("stdout", subprocess.PIPE),
        stdin=streams.get("stdin", subprocess.DEVNULL),
        stderr=subprocess.PIPE,
        text=True,
    )
    watchdog = threading.Timer(60, process.kill)  # a failed test would wait for ever
    watchdog.start()
    try:
        yield process
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()


def next_number(process: subprocess.Popen[str]) -> int:
    """Wait for the next event that is shown, and return its number."""
    assert process.stdout is not None
    (number,) = numbers(process.stdout.readline())
    return number


def wait_until_following(process: subprocess.Popen[str], path: Path) -> None:
    """Wait until a process without output has opened the file and sleeps."""
    proc = Path("/proc") / str(process.pid)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):  # the descriptor was closed meanwhile
            is_open = any(link.readlink() == path for link in (proc / "fd").iterdir())
            if is_open and (proc / "stat").read_text().rpartition(") ")[2].startswith("S"):
                return
        time.sleep(0.01)
    raise AssertionError(f"{path} was not followed")


def end(process: subprocess.Popen[str], number: int) -> tuple[int, str, str]:
    process.send_signal(number)
    rest, messages = process.communicate(timeout=30)
    return process.returncode, rest, messages


@pytest.fixture
def events(tmp_path: Path) -> Path:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"".join(map(event, range(30))))
    return path


def append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


@pytest.mark.parametrize(
    ("arguments", "first"), [((), 10), (("--lines", "3"), 27), (("-n", "100"), 0), (("-n0",), 30)]
)
@pytest.mark.parametrize("way", ["file", "standard input", "pipe", "named pipe"])
def test_the_last_events_are_shown(
    events: Path, tmp_path: Path, arguments: tuple[str, ...], first: int, way: str
) -> None:
    if way == "file":
        done = tail(*arguments, str(events))
    elif way == "pipe":
        done = tail(*arguments, stdin=events.read_bytes())
    elif way == "named pipe":
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        with subprocess.Popen(["sh", "-c", f"cat {events} >{fifo}"]):
            done = tail(*arguments, str(fifo))
    else:
        with events.open("rb") as stdin:
            done = forked.run("tail", *arguments, "-", stdin=stdin)
    assert (done.returncode, done.stderr) == (0, "")
    assert numbers(done.stdout) == list(range(first, 30))


def test_line_describes_the_event(events: Path) -> None:
    assert tail("-n", "1", str(events)).stdout == (
        "2026-01-01T00:00:00.000Z  MEDIUM  sb1  uid 1000  TCP 203.0.113.7:10029  blocked  "
        "[egress]  Use the proxy.\n"
    )


@pytest.mark.parametrize(
    ("junk", "messages"),
    [
        (b"no JSON\n", "1 line was"),
        (b"[]\n{}\n\xff\n\n", "4 lines were"),
        (b'{"class_uid":' + b"[" * 5000 + b"\n", "1 line was"),
        (b'{"class_uid":4001,"x":"' + b"x" * (2 * LINE_BYTES) + b'"}\n', "1 line was"),
    ],
)
@pytest.mark.parametrize("way", ["file", "pipe"])
def test_lines_without_an_event_are_counted_at_the_end(
    events: Path, junk: bytes, messages: str, way: str
) -> None:
    content = event(1) + junk + event(2)[:-1]
    events.write_bytes(content)
    done = tail(str(events)) if way == "file" else tail(stdin=content)
    assert numbers(done.stdout) == [1, 2]
    assert (done.returncode, done.stderr) == (0, f"{messages} no OCSF event and not shown\n")


@pytest.mark.parametrize("name", ["", "nothing"])
@pytest.mark.parametrize("follow", [(), ("--follow",)])
def test_a_file_that_is_not_there_is_one_sentence(
    tmp_path: Path, name: str, follow: tuple[str, ...]
) -> None:
    done = tail(*follow, str(tmp_path / name))
    assert (done.returncode, done.stdout) == (2, "")
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("ocsf-nft: ")
    assert "can't be read" in sentence


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_file_is_followed_until_ctrl_c(events: Path, number: int) -> None:
    with following("-n", "2", str(events)) as process:
        assert [next_number(process) for _ in range(2)] == [28, 29]
        append(events, event(30)[:50])
        append(events, event(30)[50:] + b"no event\n" + event(31))
        assert [next_number(process) for _ in range(2)] == [30, 31]
        code, rest, messages = end(process, number)
    assert (code, rest) == (0, "")
    assert messages == "1 line was no OCSF event and not shown\n"


@pytest.mark.kernel  # for /proc
def test_tail_without_lines_follows_from_the_end(events: Path) -> None:
    append(events, event(30)[:50])
    with following("-n", "0", str(events)) as process:
        wait_until_following(process, events)
        append(events, event(30)[50:])
        assert next_number(process) == 30
        assert end(process, signal.SIGINT) == (0, "", "")


def test_tail_follows_after_rotation_by_renaming(events: Path, tmp_path: Path) -> None:
    with following("-n", "1", str(events)) as process:
        assert next_number(process) == 29
        for number in range(30, 40, 2):
            rotated = events.rename(tmp_path / f"events.jsonl.{number}")
            append(rotated, event(number))  # a writer that has not noticed yet
            assert next_number(process) == number
            events.write_bytes(event(number + 1))
            assert next_number(process) == number + 1
        assert end(process, signal.SIGINT) == (0, "", "")


def test_tail_follows_after_rotation_by_copytruncate(events: Path) -> None:
    with following("-n", "1", str(events)) as process:
        assert next_number(process) == 29
        for number in range(30, 60, 10):
            os.truncate(events, 0)
            append(events, b"".join(map(event, range(number, number + 10))))
            assert [next_number(process) for _ in range(10)] == list(range(number, number + 10))
        assert end(process, signal.SIGINT) == (0, "", "")


def test_events_of_a_pipe_are_shown_at_once() -> None:
    with following("-n", "1", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        for number in range(5):
            process.stdin.write(event(number).decode())
            process.stdin.flush()
            assert next_number(process) == number
        rest, messages = process.communicate(timeout=30)
        assert (process.returncode, rest, messages) == (0, "", "")


@pytest.mark.parametrize("is_quiet", [True, False])
def test_closed_reader_ends_tail(events: Path, *, is_quiet: bool) -> None:
    reader, writer = os.pipe()
    with following("-n", "1", str(events), stdout=writer) as process:
        os.close(writer)
        with os.fdopen(reader) as shown:
            assert numbers(shown.readline()) == [29]
        if not is_quiet:
            append(events, event(30))
        _, messages = process.communicate(timeout=30)
        assert (process.returncode, messages) == (0, "")


def test_full_pipe_does_not_delay_the_exit(events: Path) -> None:
    events.write_bytes(b"".join(map(event, range(3000))))
    with following("-n", "3000", str(events)) as process:
        assert next_number(process) == 0
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_a_line_of_100_mb_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with path.open("wb") as file:
        file.write(event(1) + b'{"class_uid":"')
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n' + event(2))
    program = (
        "import resource, sys; from ocsf_nft.cli import main; "
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 28,) * 2); main()"
    )
    for stdin in (None, path):
        with path.open("rb") as content:
            done = subprocess.run(
                [sys.executable, "-c", program, "tail", str(path) if stdin is None else "-"],
                stdin=subprocess.DEVNULL if stdin is None else content,
                capture_output=True,
                text=True,
                check=False,
            )
        assert numbers(done.stdout) == [1, 2], done.stderr
        assert done.stderr == "1 line was no OCSF event and not shown\n"


def _on_a_terminal(*arguments: str, **environment: str) -> str:
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [*COMMAND, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.PIPE,
        check=False,
        env={key: value for key, value in os.environ.items() if key != "NO_COLOR"}
        | {"TERM": "xterm"}
        | environment,
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError), os.fdopen(ours, "rb", buffering=0) as screen:
        while chunk := screen.read(65536):  # EIO at the end
            shown += chunk
    return (shown + done.stderr).decode()


def test_output_has_colours_only_on_a_terminal(events: Path) -> None:
    shown = _on_a_terminal("-n", "1", str(events))
    assert "\x1b[33mMEDIUM\x1b[0m" in shown
    piped = tail("-n", "1", str(events)).stdout
    assert _COLOUR.sub("", shown).replace("\r\n", "\n") == piped
    for environment in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        shown = _on_a_terminal("-n", "1", str(events), **environment)
        assert shown.replace("\r\n", "\n") == piped
    assert "\x1b[" in _on_a_terminal("-n", "1", str(events), NO_COLOR="")


def test_tail_does_not_read_from_a_terminal(tmp_path: Path) -> None:
    assert _on_a_terminal("-") == (
        "ocsf-nft: pipe events into it, or name a file of events: ocsf-nft tail PATH\n"
    )
    none = {"OCSF_NFT_STATE_DIR": str(tmp_path), "OCSF_NFT_CONTROL": str(tmp_path / "none")}
    assert f"{tmp_path} holds no events" in _on_a_terminal(**none)


@given(EVENTS)
def test_event_can_not_control_the_terminal(event: dict[str, Any]) -> None:
    segments = shorthand(event)
    shown = _COLOUR.sub("", formats._painted(segments))
    assert shown == plain(segments)
    assert shown.isprintable()


def test_hostile_names_in_a_file_are_shown_as_text(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    process = {"name": "\x1b]0;x\x07\n\u202e", "pid": 1}
    found = _EVENT | {"actor": {"process": process}, "status_detail": "a\x9b2J\u2028b\ud83d"}
    # A lone surrogate, which orjson neither writes nor reads.
    path.write_text(json.dumps(found) + "\n" + json.dumps(found | {"status_detail": "\x9b\x7f"}))
    done = tail(str(path))
    assert done.stderr == "1 line was no OCSF event and not shown\n"
    (line,) = done.stdout.splitlines()
    assert line.isprintable()
    assert r"\x1b]0;x\x07\x0a\u202e" in line
    assert line.endswith(r"\x9b\x7f")
