"""Starts attempts by processes that keep, share, pass on, lose or take over the socket.

A scenario is a function of one of the modules below. Its program says in a line which processes
there were, and lives until its standard input ends.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.kernel import inside, socket_heirs, socket_kinds, socket_ports

if TYPE_CHECKING:
    from types import ModuleType

    from ocsf_nft.netns import Namespace

_SCENARIOS: Final = (socket_kinds, socket_ports, socket_heirs)
#: Makes modules of their texts, each of which may import those before it; the last has a scenario.
_LOADER: Final = """
import json, sys, types
for name, text in json.loads(sys.argv[1]):
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec"), vars(module))
getattr(module, sys.argv[2])()
"""

#: What a program says: the process that sent, and others that matter.
Pids = dict[str, Any]


class Program:
    """A running program, and what it said."""

    def __init__(self, process: subprocess.Popen[str], pids: Pids) -> None:
        self.pid = process.pid
        self.pids = pids
        self._process = process

    def end(self) -> None:
        """Have it end, and what it started."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        # Whoever else has it open is still there.
        self._process.stdout.read()
        self._process.stdout.close()


def start(namespace: Namespace, scenario: str, *, uid: int = 1000) -> Program:
    """Run a scenario as a user, and wait until it has said its line."""
    module = next(each for each in _SCENARIOS if hasattr(each, scenario))
    # In the command line: the user may not be allowed to read the folder that these files are in.
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
    assert process.stdout is not None
    return Program(process, json.loads(process.stdout.readline()))


def _text(module: ModuleType) -> tuple[str, str]:
    assert module.__file__ is not None
    return module.__name__, Path(module.__file__).read_text("utf-8")
