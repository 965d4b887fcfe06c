"""The command line, as a user runs it.

A command without ``under`` is a fork of the test process (tests/cli/forked.py).
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any, Final

import orjson

from tests.cli import forked

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ocsf_nft.netns import Namespace

COMMAND = (sys.executable, "-m", "ocsf_nft")
#: Constants for the stop of a run, which a busy machine may hold up for seconds. Otherwise the run
#: leaves events in its store, or counts the records of events without reading them.
LONG_STOP: Final[Mapping[str, float]] = {
    "ocsf_nft.service.delivery_start.DRAIN_SECONDS": 60.0,
    "ocsf_nft.service.pipeline._DRAIN_SECONDS": 60.0,
    "ocsf_nft.service.pipeline._COUNT_SECONDS": 60.0,
}
#: A new process of the command line with other constants, which a fork inherits from the tests.
_WITH_CONSTANTS: Final = """
import importlib, json, sys
for name, value in json.loads(sys.argv.pop(1)).items():
    module, _, constant = name.rpartition(".")
    setattr(importlib.import_module(module), constant, value)
from ocsf_nft.cli import main
main()
"""
#: Value of ``under`` for a new process instead of a fork: this command changes nothing.
FRESH = ("env",)


def with_constants(constants: Mapping[str, float]) -> tuple[str, ...]:
    """Return a command like COMMAND, with other values of constants, by their full names."""
    return (sys.executable, "-c", _WITH_CONSTANTS, json.dumps(dict(constants)))


@dataclass(frozen=True)
class Outcome:
    code: int
    events: tuple[dict[str, Any], ...]
    stdout: str
    stderr: str

    @property
    def sentence(self) -> str:
        """Return the one line of stderr of a failure; raise AssertionError for any other output."""
        (line,) = self.stderr.splitlines()
        assert line.startswith("ocsf-nft: ")
        return line


def run(
    *arguments: str,
    under: Sequence[str] = (),
    inside: Namespace | None = None,
    stdin: str | None = None,
) -> Outcome:
    """Run a command, and return its result after it exits.

    ``under`` is a command that runs it, such as ``unshare -m``. ``inside`` is the network namespace
    in which it starts.
    """
    pipe = subprocess.PIPE
    with _started(arguments, under, inside, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        try:
            stdout, stderr = process.communicate(stdin, timeout=60)
        except BaseException:
            process.kill()
            raise
    assert "Traceback" not in stderr
    lines = stdout.splitlines() if stdout.startswith("{") else []
    events = tuple(orjson.loads(line) for line in lines)
    return Outcome(process.returncode, events, stdout, stderr)


def _started(
    arguments: Sequence[str],
    under: Sequence[str],
    inside: Namespace | None,
    constants: Mapping[str, float] | None = None,
    **streams: Any,
) -> subprocess.Popen[str]:
    # In text form, as on a terminal: standard error is a pipe here.
    arguments = ("--log-format", "text", *arguments)
    start_with = COMMAND if constants is None else with_constants(constants)
    command = [*under, *start_with, *arguments]
    work = None if under else partial(forked.become, arguments)

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, text=True, preexec_fn=work, **streams)  # noqa: PLW1509

    return start() if inside is None else inside.call(start)


@dataclass
class Running:
    process: subprocess.Popen[str]
    stderr: IO[str]
    messages: list[str] = field(default_factory=list)

    def wait_for_message(self, words: str) -> None:
        """Wait for a line with these words; raise AssertionError if the process ends before."""
        with self._killed_after(60):
            for line in self.stderr:
                self.messages.append(line)
                if words in line:
                    return
        raise AssertionError(f"no message with {words!r}: {''.join(self.messages)}")

    def stop(self, number: int) -> tuple[int, str]:
        """Send a signal; return the exit code and the messages since it was ready."""
        self.process.send_signal(number)
        with self._killed_after(120):
            self.messages += self.stderr
            code = self.process.wait()
        return code, "".join(self.messages)

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
    *arguments: str,
    under: Sequence[str] = (),
    inside: Namespace | None = None,
    stdout: IO[bytes] | None = None,
    constants: Mapping[str, float] = MappingProxyType({}),
) -> Iterator[Running]:
    """Start a ``run``, wait until it is ready, and yield it; kill it at the end.

    ``constants`` are full names and values for a new process. A fork has those of the tests.
    """
    process = _started(
        *(("run", *arguments), under, inside, {**LONG_STOP, **constants}),
        stdout=stdout,
        stderr=subprocess.PIPE,
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
