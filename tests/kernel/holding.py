"""Start of attempts by processes that keep, share, pass on, lose or take over the socket.

A scenario is a function of one of the modules below. Its program prints its processes as one line,
and runs until its standard input ends.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.kernel import inside, socket_heirs, socket_kinds, socket_ports

if TYPE_CHECKING:
    from threading import Event
    from types import ModuleType

    from ocsf_nft.netns import Namespace

_SCENARIOS: Final = (socket_kinds, socket_ports, socket_heirs)
#: Creates modules from texts. Each may import the earlier ones; the last has the scenario.
_LOADER: Final = """
import json, sys, types
for name, text in json.loads(sys.argv[1]):
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec"), vars(module))
getattr(module, sys.argv[2])()
"""

#: The line that a program prints: the sending process, and other processes of the scenario.
Pids = dict[str, Any]


class Program:
    """A running program, and the processes that it printed."""

    def __init__(self, process: subprocess.Popen[str], pids: Pids) -> None:
        self.pid = process.pid
        self.pids = pids
        self._process = process

    def end(self) -> None:
        """End the program and the processes that it started."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        # Another process that has the pipe open is still running.
        self._process.stdout.read()
        self._process.stdout.close()


def start(
    namespace: Namespace, scenario: str, *, uid: int = 1000, recorded: Event | None = None
) -> Program:
    """Run a scenario as a user, and wait until it has printed its line.

    Send it a line when the test has set ``recorded``, because it has the record of the attempt.
    """
    module = next(each for each in _SCENARIOS if hasattr(each, scenario))
    # In the command line: the user may have no permission to read the folder of these files.
    texts = json.dumps([_text(inside), _text(module)])
    process = namespace.call(
        lambda: subprocess.Popen(
            ["/usr/bin/python3", "-I", "-c", _LOADER, texts, scenario],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            user=uid,
            group=uid,
            extra_groups=[],
        )
    )
    assert process.stdin is not None
    assert process.stdout is not None
    if recorded is not None:
        recorded.wait()
        process.stdin.write("\n")
        process.stdin.flush()
    return Program(process, json.loads(process.stdout.readline()))


def _text(module: ModuleType) -> tuple[str, str]:
    assert module.__file__ is not None
    return module.__name__, Path(module.__file__).read_text("utf-8")
