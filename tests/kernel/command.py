"""The command line, as a user runs it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

COMMAND = (sys.executable, "-m", "ocsf_nft")


@dataclass(frozen=True)
class Outcome:
    code: int
    events: tuple[dict[str, Any], ...]
    stdout: str
    stderr: str

    @property
    def sentence(self) -> str:
        """The one sentence of a failure; raises AssertionError when it is anything else."""
        (line,) = self.stderr.splitlines()
        assert line.startswith("ocsf-nft: ")
        return line


def run(*arguments: str, under: Sequence[str] = (), stdin: str | None = None) -> Outcome:
    """Run it to its end. ``under`` is a command that runs it, such as ``unshare -m``."""
    done = subprocess.run(
        [*under, *COMMAND, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "Traceback" not in done.stderr
    lines = done.stdout.splitlines() if done.stdout.startswith("{") else []
    events = tuple(orjson.loads(line) for line in lines)
    return Outcome(done.returncode, events, done.stdout, done.stderr)


@dataclass
class Running:
    process: subprocess.Popen[str]
    stderr: IO[str]
    heard: list[str] = field(default_factory=list)

    def until_said(self, words: str) -> None:
        """Wait for a line with these words; raises AssertionError when it ends without."""
        with self._killed_after(20):
            for line in self.stderr:
                self.heard.append(line)
                if words in line:
                    return
        raise AssertionError(f"it never said {words!r}: {''.join(self.heard)}")

    def stop(self, number: int) -> tuple[int, str]:
        """Send a signal; the exit code, and what it said since it was ready."""
        self.process.send_signal(number)
        with self._killed_after(30):
            self.heard += self.stderr
            code = self.process.wait()
        return code, "".join(self.heard)

    @contextlib.contextmanager
    def _killed_after(self, seconds: float) -> Iterator[None]:
        watchdog = threading.Timer(seconds, self.process.kill)
        watchdog.start()
        try:
            yield
        finally:
            watchdog.cancel()
            watchdog.join()


@contextlib.contextmanager
def running(
    *arguments: str, under: Sequence[str] = (), stdout: IO[bytes] | None = None
) -> Iterator[Running]:
    """A ``run`` that says it is ready; killed at the end when it still runs."""
    process = subprocess.Popen(
        [*under, *COMMAND, "run", *arguments], stdout=stdout, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("ready"):
                break
        else:
            raise AssertionError(f"it never was ready: exit {process.wait()}")
        yield Running(process, process.stderr)
    finally:
        process.kill()
        process.communicate()
