"""Open descriptors of the test process: their number, and a limit that allows no more."""

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
    """Make every call that opens a descriptor fail with EMFILE."""
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
