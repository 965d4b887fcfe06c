"""Processes in new network namespaces, which run until the test ends them."""

from __future__ import annotations

import contextlib
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def isolated(*program: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process in a new network namespace, which runs until its standard input ends.

    ``program`` must write a line when it has begun.
    """
    with subprocess.Popen(
        ["unshare", "--net", *(program or ("/bin/sh", "-c", "echo; exec cat"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
