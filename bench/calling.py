"""The program that makes calls, ``calling.c``: compiled, and started as many processes."""

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

#: What processes try, in turn, as ``calling.c`` has them; each try at the next port.
KINDS: Final = ("TCP", "UDP", "connected UDP")
FIRST_PORT: Final = 20_000
#: A rate: the next process starts when a line is written to it.
AFTER_ANOTHER: Final = -1
_USER: Final = 1000
_SOURCE: Final = Path(__file__).with_name("calling.c")


@contextlib.contextmanager
def built() -> Iterator[Path]:
    """Compile ``calling.c``, where every user gets to it."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise stage.BenchError("cc is missing: install gcc and libc6-dev")
    with disk.folder() as folder:
        Path(folder).chmod(0o755)
        made = Path(folder) / "calling"
        subprocess.run([compiler, "-O2", "-static", "-o", made, _SOURCE], check=True)
        yield made


def swarm(
    fenced: Fenced, program: Path, wanted: tuple[int, int, int, int], told: IO[bytes] | int
) -> subprocess.Popen[bytes]:
    """Start in the sandbox so many processes, at so many a second, of so many attempts each.

    The last number is whether they stay.
    """
    arguments = map(str, (_USER, FIRST_PORT, *wanted))
    _, rate, *_ = wanted
    return fenced.namespace.call(
        lambda: subprocess.Popen(
            [program, "swarm", *arguments],
            stdin=subprocess.PIPE if rate == AFTER_ANOTHER else None,
            stdout=told,
        )
    )
