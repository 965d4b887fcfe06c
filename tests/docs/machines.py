"""Machines of readers: namespaces in which the commands of a page are run."""

from __future__ import annotations

import contextlib
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.docs.commands import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

_HERE: Final = Path(__file__).parent
_NAMESPACES: Final = ("--mount", "--net", "--pid", "--uts", "--ipc")
#: A page takes some seconds; this is for a busy machine.
_SECONDS: Final = 300


@dataclass(frozen=True, slots=True)
class Machine:
    """Machine by the process id of its init."""

    init: int

    def command(self, script: str) -> list[str]:
        """Return the command that runs a script in a reader's shell on the machine."""
        reader = f". {_HERE / 'reader.sh'}\n"
        return ["nsenter", f"--target={self.init}", *_NAMESPACES, "bash", "-c", reader + script]

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run a script in a reader's shell; the standard output has standard error too."""
        return subprocess.run(
            self.command(script), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, check=False, timeout=_SECONDS,
        )  # fmt: skip


@contextlib.contextmanager
def started(given: str | None) -> Iterator[Machine]:
    """Yield a machine after the script ``given`` (a file of ``given/``) has prepared it.

    All its processes end with the context.
    """
    with subprocess.Popen(
        ["unshare", *_NAMESPACES, "--mount-proc", "--fork", "--kill-child",
         "bash", _HERE / "machine.sh", given or ""],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            printed = []
            for line in process.stdout:
                if line == "ready\n":
                    break
                printed.append(line)
            else:
                raise AssertionError(f"no machine {given}: {''.join(printed)}")
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("ascii")
            yield Machine(int(children))
        finally:
            process.kill()  # and so its child, the init
