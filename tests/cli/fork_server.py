"""A process of its own that forks commands, for tests that have a database open.

SQLite in a fork must not use what its parent has opened. This process opens nothing, and imports
the command line once for all commands.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.cli import forked

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_ROOT: Final = Path(__file__).parents[2]


class ForkServer:
    """Client of the process; it runs one command at a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lock = threading.Lock()

    def run(
        self, *arguments: str | Path, env: Mapping[str, str], stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command, wait until it exits, and return the result."""
        texts = [str(each) for each in arguments]
        request = {"arguments": texts, "env": dict(env), "stdin": stdin}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(f"{json.dumps(request)}\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        assert answer, "the process has ended; its error is above"
        return subprocess.CompletedProcess(texts, **json.loads(answer))


@contextlib.contextmanager
def started() -> Iterator[ForkServer]:
    """Yield a new process, which ends at exit."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.cli.fork_server"], cwd=_ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        yield ForkServer(process)


def _serve() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        done = forked.run(*request["arguments"], env=request["env"], input=request["stdin"])
        answer = {"returncode": done.returncode, "stdout": done.stdout, "stderr": done.stderr}
        print(json.dumps(answer), flush=True)  # noqa: T201 - the answer to the test


if __name__ == "__main__":
    _serve()
