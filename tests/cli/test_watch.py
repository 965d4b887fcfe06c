"""Live view of a sandbox: on a terminal, and as lines on a pipe."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import io
import os
import pty
import re
import signal
import struct
import subprocess
import tempfile
import termios
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from rich.cells import cell_len
from rich.console import Console

from ocsf_nft.cli import sandbox_activity, sandbox_follow
from ocsf_nft.cli.sandbox_activity import REST, Activity
from ocsf_nft.cli.stored_events import Line
from ocsf_nft.cli.watch_screen import Screen, Shown
from ocsf_nft.state.state_db import FILE
from tests.cli import forked
from tests.control.engine import Served, serving, wait_until
from tests.control.test_event_stream import lines
from tests.delivery.stores import Store
from tests.hostile_events import EVENTS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from ocsf_nft.service.sandbox_view import SandboxView

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_ALTERNATE_ON, _ALTERNATE_OFF = "\x1b[?1049h", "\x1b[?1049l"


def attempt(number: int, **others: Any) -> dict[str, Any]:
    """Return an attempt of the sandbox a; the number is its port."""
    return {
        "class_uid": 4001,
        "time": 1_767_225_600_000 + number,
        "severity_id": 3,
        "disposition_id": 2,
        "count": 2,
        "firewall_rule": {"name": "egress"},
        "src_endpoint": {"name": "a", "ip": "10.200.0.2"},
        "dst_endpoint": {"ip": "203.0.113.7", "port": 10_000 + number},
        "connection_info": {"protocol_num": 6, "direction_id": 2},
        "actor": {"process": {"name": "curl", "pid": 77}},
        "metadata": {"uid": f"uid-{number}"},
        **others,
    }


def change(number: int, message: str, sandbox: str = "a") -> dict[str, Any]:
    """Return an event about the fence."""
    return {
        "class_uid": 5019,
        "time": 1_767_225_600_000 + number,
        "severity_id": 1,
        "message": message,
        "resources": [{"name": sandbox}],
        "metadata": {"uid": f"uid-{number}"},
    }


async def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(forked.run, *arguments)


class Host:
    """A service with the sandbox a, and its events."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.control = folder / "control.sock"
        self.store: Store
        self.served: Served
        self.state: dict[str, SandboxView] = {}

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        end = lambda: self.store.state.database.end  # noqa: E731 - of the present store
        async with serving(self.control, store=self.folder / FILE, end=end) as self.served:
            self.served.sandboxes.found.update(self.state)
            yield
            self.state = self.served.sandboxes.found

    async def put(self, *events: dict[str, Any]) -> None:
        await self.store.put(lines(events))

    async def add(self) -> None:
        done = await command("add", "a", "--proxy", "10.0.0.1:1", "--control", self.control)
        assert done.returncode == 0, done.stderr

    def end(self) -> None:
        del self.served.sandboxes.found["a"]


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    with tempfile.TemporaryDirectory(prefix="s") as folder:
        made = Host(Path(folder))
        async with Store(made.folder / FILE) as made.store, made.serving():
            await made.add()
            yield made


class Watching:
    """A running ``watch``: its standard output, with or without a terminal, and its messages."""

    def __init__(self, control: Path, size: tuple[int, int] | None, **environment: str) -> None:
        self.shown = ""
        self.ours, theirs = os.pipe() if size is None else pty.openpty()
        if size is not None:
            self.resize(theirs, *size)
        env = {key: each for key, each in os.environ.items() if key not in {"NO_COLOR", "TERM"}}
        env |= {"TERM": "xterm-256color"} | environment
        self.process = forked.popen(
            "watch", "a", "--control", control, env=env, stdin=subprocess.DEVNULL, stdout=theirs,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        os.close(theirs)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    @staticmethod
    def resize(terminal: int, columns: int, rows: int) -> None:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # EIO at the end of a terminal
            while part := os.read(self.ours, 65536):
                self.shown += part.decode()

    @property
    def text(self) -> str:
        return _CONTROL.sub("", self.shown)

    async def wait_for(self, text: str) -> None:
        await wait_until(lambda: text in self.text)

    async def wait(self) -> tuple[int, str]:
        """Wait until the command ends; return its exit code and its messages."""
        _, messages = await asyncio.to_thread(self.process.communicate, timeout=20)
        await asyncio.to_thread(self._thread.join)
        return self.process.returncode, messages


@contextlib.contextmanager
def watching(
    host: Host, size: tuple[int, int] | None = None, **environment: str
) -> Iterator[Watching]:
    made = Watching(host.control, size, **environment)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.communicate()
        made._thread.join()
        os.close(made.ours)


async def test_terminal_shows_attempts_processes_counts_and_the_fence(host: Host) -> None:
    await host.put(change(1, "Installed the fence"), attempt(2), attempt(3, severity_id=4))
    with watching(host, (120, 40)) as view:
        await view.wait_for("203.0.113.7:10003")
        await host.put(attempt(4, actor={"process": {"name": "nc", "pid": 78}}))
        await view.wait_for("nc[78]")
        for text in (
            "sandbox a  active  enforcing, added 2023-11-14", "Installed the fence", "MEDIUM",
            "curl[77]", "egress", "1,180,591,620,717,411,303,424", "00:00:00",
        ):  # fmt: skip
            assert text in view.text, text
        assert re.search(r"curl\[77\] +2 +4", view.text), "attempts and packets of the process"
        assert "\x1b[1;31mHIGH" in view.shown
        Watching.resize(view.ours, 40, 12)
        before = len(view.shown)
        await wait_until(lambda: "UTC" in view.shown[before:])
        view.process.send_signal(signal.SIGINT)
        assert await view.wait() == (0, "")
        assert view.shown.count(_ALTERNATE_ON) == view.shown.count(_ALTERNATE_OFF) == 1


async def test_end_of_the_sandbox_ends_the_view(host: Host) -> None:
    with watching(host, (100, 30)) as view:
        await view.wait_for("Ctrl-C ends")
        host.end()
        assert await view.wait() == (0, "sandbox a has ended\n")
        assert view.shown.endswith(f"\x1b[?25h{_ALTERNATE_OFF}"), "the cursor is visible again"


async def test_pipe_gets_each_event_once_up_to_the_last_one(host: Host) -> None:
    await host.put(*(attempt(number) for number in range(30)), change(30, "of b", "b"))
    with watching(host) as view:
        await view.wait_for(":10029")
        await host.put(attempt(31))
        await view.wait_for(":10031")
        await host.put(change(32, "The sandbox was released"), change(33, "of b", "b"))
        host.end()
        assert await view.wait() == (0, "sandbox a has ended\n")
    found = view.shown.splitlines()
    assert [int(each) for each in re.findall(r":1(\d{4})", view.shown)] == [*range(10, 30), 31]
    assert found[-1].endswith("a  The sandbox was released")
    assert len(found) == 22


async def test_events_that_were_not_read_at_the_end_are_shown(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox_follow, "_STATE_SECONDS", 0.0)
    monkeypatch.setattr(sandbox_follow._Reader, "take", lambda *_: iter(()))
    await host.put(attempt(1))
    found = sandbox_follow.items(host.control, "a", 20, 0.01)
    begun = [await asyncio.to_thread(next, found) for _ in range(2)]
    assert isinstance(begun[0], sandbox_follow.State)
    last = change(3, "The sandbox was released")
    await host.put(attempt(2), last)
    host.end()
    rest = await asyncio.to_thread(list, found)
    lines_left = [each.event for each in rest if isinstance(each, Line)]
    assert lines_left == lines([attempt(2), last])
    assert isinstance(rest[-1], sandbox_follow.Ended)


async def test_dumb_terminal_gets_lines(host: Host) -> None:
    await host.put(attempt(1))
    with watching(host, (80, 24), TERM="dumb") as view:
        await view.wait_for("203.0.113.7:10001")
        view.process.send_signal(signal.SIGTERM)
        assert await view.wait() == (0, "")
    assert "\x1b" not in view.shown


async def test_view_has_no_colours_if_the_user_wants_none(host: Host) -> None:
    await host.put(attempt(1, severity_id=4))
    with watching(host, (80, 24), NO_COLOR="1") as view:
        await view.wait_for("203.0.113.7:10001")
        assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", view.shown)
        host.end()
        await view.wait()


@pytest.mark.parametrize("size", [None, (80, 24)])
async def test_stop_of_the_service_is_waited_for(size: tuple[int, int] | None) -> None:
    with tempfile.TemporaryDirectory(prefix="s") as folder:
        host = Host(Path(folder))
        async with Store(host.folder / FILE) as host.store:
            async with host.serving():
                await host.add()
                await host.put(attempt(1))
                view = Watching(host.control, size)
                await view.wait_for(":10001")
            await host.put(attempt(2))
            if size is not None:
                await view.wait_for("the service has stopped: waiting until it runs again")
            async with host.serving():
                await view.wait_for(":10002")
                host.end()
                code, messages = await view.wait()
    assert code == 0
    said = ["the service has stopped: waiting until it runs again", "the service runs again"]
    assert messages.splitlines() == [*(said if size is None else ()), "sandbox a has ended"]
    if size is None:
        assert view.shown.count(":1000") == 2
    os.close(view.ours)


async def test_closed_reader_ends_the_command(host: Host) -> None:
    reader, writer = os.pipe()
    with forked.popen(
        "watch", "a", "--control", host.control, stdout=writer, stderr=subprocess.PIPE, text=True
    ) as process:
        os.close(writer)
        os.close(reader)
        _, messages = await asyncio.to_thread(process.communicate, timeout=20)
    assert (process.returncode, messages) == (0, "")


@pytest.mark.parametrize(
    ("name", "control", "sentence"),
    [("b", None, "there is no sandbox b"), ("a", "none", "no service listens"),
     ("a/b", None, "a/b")],
)  # fmt: skip
async def test_missing_sandbox_or_service_is_one_sentence(
    host: Host, name: str, control: str | None, sentence: str
) -> None:
    path = host.control if control is None else host.folder / control
    done = await command("watch", name, "--control", path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert sentence in line


def drawn(activity: Activity, width: int, height: int, **view: Any) -> list[str]:
    """Return the lines of the view on a terminal of a size."""
    console = Console(
        file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None
    )
    row = {"rule": "egress", "refused": 5, "allowed": 0, "reported": 3, "pending": 2}
    found = {
        "name": "a", "state": "active", "mode": "enforcing", "fault": None, "since": "2026",
        "counts": [row] * 5,
    }  # fmt: skip
    shown = Shown(name="a", view=found | view, is_stopped=False, activity=activity)
    parts = console.render_lines(Screen(console)._view(shown), console.options, pad=False)
    return ["".join(segment.text for segment in line) for line in parts]


@pytest.mark.parametrize("width", [10, 30, 49, 50, 89, 90, 250])
@pytest.mark.parametrize("height", [5, 10, 24, 60])
def test_view_fits_any_terminal(width: int, height: int) -> None:
    activity = Activity()
    for number in range(300):
        activity.add(attempt(number, actor={"process": {"name": "名前" * 20, "pid": number}}))
        activity.add(change(number, "x" * 300))
    found = drawn(activity, width, height, fault="y" * 500)
    assert len(found) <= height
    assert max(map(cell_len, found)) <= width
    if height >= 10 and width >= 30:
        assert any("UTC" in line for line in found)


def test_newest_attempts_are_shown_when_not_all_fit() -> None:
    activity = Activity()
    for number in range(100):
        activity.add(attempt(number))
    text = "\n".join(drawn(activity, 100, 24))
    assert ":10099" in text
    assert ":10050" not in text


@given(EVENTS)
def test_event_can_not_control_the_terminal(event: dict[str, Any]) -> None:
    activity = Activity()
    activity.add(event)
    activity.add(event | {"class_uid": 4001})
    assert all(line.isprintable() for line in drawn(activity, 120, 40))


def test_hostile_texts_of_the_service_are_escaped() -> None:
    hostile = "\x1b]0;x\x07\u202e[red]"
    found = drawn(
        Activity(), 200, 40, fault=hostile, since=hostile,
        counts=[{"rule": hostile, "refused": 1, "allowed": 0, "reported": 0, "pending": 1}],
    )  # fmt: skip
    assert all(line.isprintable() for line in found)
    assert sum(r"\x1b]0;x\x07\u202e[red]" in line for line in found) == 3


def test_activity_of_many_processes_has_a_bound() -> None:
    activity = Activity()
    for number in range(3 * sandbox_activity.PROCESSES):
        process = {"name": "p", "pid": number}
        activity.add(attempt(number, actor={"process": process}, count=1 + (number == 5)))
    found = dict(activity.processes())
    assert len(found) <= sandbox_activity.PROCESSES + 1
    assert found["p[5]"].packets == 2, "the process with the most packets stays"
    assert sum(each.packets for each in found.values()) == 3 * sandbox_activity.PROCESSES + 1
    assert sum(each.attempts for each in found.values()) == 3 * sandbox_activity.PROCESSES
    assert found[REST].attempts > 0
    assert len(activity.attempts) == sandbox_activity.ATTEMPTS
