"""Compilation and start of ``calling.c``, which makes calls, in many processes."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from bench import disk, stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.stage import Fenced

#: The attempts of the processes, in turn, as in ``calling.c``; each try at the next port.
KINDS: Final = ("TCP", "UDP", "connected UDP")
FIRST_PORT: Final = 20_000
#: Value of a rate: the next process starts when a line is written to it.
AFTER_ANOTHER: Final = -1
_USER: Final = 1000
_SOURCE: Final = Path(__file__).with_name("calling.c")


@contextlib.contextmanager
def built() -> Iterator[Path]:
    """Compile ``calling.c`` in a folder that every user can read."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise stage.BenchError("cc is missing: install gcc and libc6-dev")
    with disk.folder() as folder:
        Path(folder).chmod(0o755)
        made = Path(folder) / "calling"
        subprocess.run([compiler, "-O2", "-static", "-o", made, _SOURCE], check=True)
        yield made


def swarm(
    fenced: Fenced, program: Path, numbers: tuple[int, int, int, int], output: IO[bytes] | int
) -> subprocess.Popen[bytes]:
    """Start processes in the sandbox.

    ``numbers`` are the number of processes, their rate per second, the attempts of each, and
    whether they stay (1) or exit (0).
    """
    arguments = map(str, (_USER, FIRST_PORT, *numbers))
    _, rate, *_ = numbers
    return fenced.namespace.call(
        lambda: subprocess.Popen(
            [program, "swarm", *arguments],
            stdin=subprocess.PIPE if rate == AFTER_ANOTHER else None,
            stdout=output,
        )
    )
