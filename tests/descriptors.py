"""The descriptors of the test process: how many are open, and a limit that lets none be opened."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def no_more_descriptors() -> Iterator[None]:
    """Let every call that opens something fail with EMFILE."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_descriptors(*, collect: bool = False) -> int:
    """Return the number of open descriptors.

    ``collect`` first closes those of earlier tests that only the garbage collector would close.
    """
    if collect:
        gc.collect()
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - two calls fewer than Path's
