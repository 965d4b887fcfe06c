"""The demo on a command line: its output, and the complete removal of its resources."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.demo import attempts
from ocsf_nft.demo.proxy import stub_proxy
from tests.kernel import conftest
from tests.kernel.long_limits import all_attempts, set_long_limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

_NAMESPACES = Path("/run/netns")
#: Program that waits for its end: the demo is among its attempts until a signal ends it.
_WAITING = "sleep 600"
#: Last lines of refused programs. None of them ends by a time limit.
_REFUSALS = {
    "Connection refused",
    "Could not connect to server",  # the same, by newer versions of curl
    "Operation not permitted",
    "No buffer space available",  # an Ethernet frame
}


@dataclass
class Demo:
    """A demo in its own session, with its own folder for temporary files.

    It has long time limits. No other test has namespaces in this worker's /run/netns.
    """

    folder: Path
    of_programs: Path

    @contextlib.contextmanager
    def start(self, *command: str, first: str = "") -> Iterator[subprocess.Popen[str]]:
        """Start a command, by default the demo; ``first`` is the program of its first attempt."""
        limits = (sys.executable, "-m", "tests.kernel.long_limits", str(self.of_programs), first)
        with subprocess.Popen(
            command or limits,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(self.folder), "COLUMNS": "140"},
        ) as process:
            try:
                yield process
            except BaseException:  # the demo may wait long
                process.kill()
                raise
        assert _entries(self.folder) | _entries(_NAMESPACES) | _processes(process.pid) == set()


@pytest.fixture
def demo(tmp_path: Path) -> Demo:
    made = Demo(tmp_path / "temporary", tmp_path)
    made.folder.mkdir()
    return made


def _entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def _processes(session: int) -> set[str]:
    """Return the running processes of a session (proc_pid_stat(5): fields after the name)."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            text = stat.read_text(errors="replace")
            state, _parent, _group, member_of = text.rpartition(")")[2].split()[:4]
            if member_of == str(session) and state != "Z":
                found.add(text[:60])
    return found


def _event(shown: str) -> Any:
    """Return the event on the screen: from the line ``{`` to the line ``}``."""
    lines = shown.splitlines()
    return json.loads("\n".join(lines[lines.index("{") : lines.index("}") + 1]))


def test_demo_shows_each_attempt_refused_and_reported_and_the_proxy_reached(
    demo: Demo, judge: Callable[[Any], list[str]]
) -> None:
    with demo.start() as process:
        printed, shown = process.communicate(timeout=300)
    assert process.returncode == 0, shown
    assert printed == ""
    assert "9 of 9 attempts refused and reported" in shown
    assert "200: hello from the proxy" in shown
    for attempt in all_attempts("sb0"):
        assert attempt.title in shown
    for word in ("egress", "link", "High", "Medium", "Low", "HTTPS_PROXY=http://10.200.0.1:3128"):
        assert word in shown
    event = _event(shown)
    assert judge(event) == []
    assert event["dst_endpoint"]["ip"] == "203.0.113.7"


@pytest.mark.parametrize(
    ("number", "is_whole_group", "times", "when"),
    [
        pytest.param(signal.SIGINT, False, 1, "started", id="Ctrl-C at once"),
        pytest.param(signal.SIGINT, True, 1, "started", id="Ctrl-C, also to its children"),
        pytest.param(signal.SIGINT, True, 3, "started", id="Ctrl-C three times"),
        pytest.param(signal.SIGINT, True, 1, "shown", id="Ctrl-C among the attempts"),
        pytest.param(signal.SIGINT, True, 3, "shown", id="Ctrl-C three times among the attempts"),
        pytest.param(signal.SIGTERM, False, 1, "started", id="SIGTERM at once"),
        pytest.param(signal.SIGTERM, False, 1, "shown", id="SIGTERM among the attempts"),
        pytest.param(signal.SIGHUP, True, 1, "shown", id="a terminal that closes"),
    ],
)
def test_interrupted_demo_removes_all_its_resources(
    demo: Demo, *, number: signal.Signals, is_whole_group: bool, times: int, when: str
) -> None:
    with demo.start(first=_WAITING) as process:
        assert process.stderr is not None
        if when == "started":
            _until(lambda: _entries(_NAMESPACES))
        else:
            # The fence is active, and the first attempt is next: a program that only waits.
            assert process.stderr.readline() == "\n"
        for _ in range(times):
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if is_whole_group else os.kill)(process.pid, number)
            time.sleep(0.02)
        shown = process.stderr.read()
        process.wait(60)
    assert "Traceback" not in shown
    # After the removal of all resources a signal has its default action.
    assert process.returncode in {128 + number, -number}, shown
    assert "Ethernet frame" not in shown, "the last attempt was made after the signal"


def _until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("delay", [0.3, 1.0])
def test_signal_at_any_time_leaves_no_resources(demo: Demo, delay: float) -> None:
    with demo.start() as process:
        time.sleep(delay)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        _, shown = process.communicate(timeout=120)
    assert "Traceback" not in shown
    assert process.returncode in {0, 128 + signal.SIGTERM, -signal.SIGTERM}


def test_demo_reports_to_other_users_that_it_needs_root(demo: Demo) -> None:
    # Import first: the user may have no permission to read Python's folder.
    as_unprivileged = (
        "import os, sys; from ocsf_nft import cli, demo; from ocsf_nft.cli import logs; "
        "os.setuid(65534); sys.argv[1:] = ['demo']; cli.main()"
    )
    with demo.start(sys.executable, "-c", as_unprivileged) as process:
        printed, shown = process.communicate(timeout=120)
    assert (process.returncode, printed) == (3, "")
    assert shown == (
        "ocsf-nft: the demo makes network namespaces, which needs root: run it with sudo\n"
    )


@pytest.fixture(params=[attempts._TRUSTED, ""], ids=["curl and ping", "python alone"])
def tools(request: pytest.FixtureRequest) -> str:
    """Return the search path for curl and ping."""
    path: str = request.param
    assert {bool(shutil.which(tool, path=path)) for tool in ("curl", "ping")} == {path != ""}
    return path


@pytest.fixture
def long_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_long_limits(monkeypatch, tmp_path)


@pytest.mark.usefixtures("long_limits")
async def test_attempts_without_a_fence_report_that_they_get_through(lab: Lab, tools: str) -> None:
    """Without a fence, attempts that only send succeed, and the proxy answers."""
    async with stub_proxy(lab.gateway_namespace):
        for attempt in all_attempts(lab.sandbox_device, tools):
            waits_for_an_answer = "://" in attempt.title or "ping" in attempt.title
            if attempt.trace is None or not waits_for_an_answer:
                outcome = await attempt.make(lab.sandbox_namespace)
                assert outcome.got_through, attempt.title


@pytest.mark.usefixtures("long_limits")
async def test_attempts_report_the_refusal_of_a_fence_at_once(fenced: Lab, tools: str) -> None:
    """The kernel refuses the first packet of each attempt, and the program sends no second one."""
    for attempt in all_attempts(fenced.sandbox_device, tools):
        if attempt.trace is None:
            continue
        before = conftest.counted(fenced.sandbox_namespace)
        outcome = await attempt.make(fenced.sandbox_namespace)
        assert not outcome.got_through, attempt.title
        assert outcome.saw in _REFUSALS, attempt.title
        if attempt.trace.destination is not None:
            after = conftest.counted(fenced.sandbox_namespace)
            address = attempt.trace.destination
            assert after[address] - before[address] == 1, attempt.title
