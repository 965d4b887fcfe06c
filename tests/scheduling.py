"""Scheduling of tests that share one machine: which tests run in parallel, and which do not.

Most tests run in parallel, file by file. The marker ``alone`` is for a test that needs the whole
machine (a flood, many forks, a latency): it runs after all others, with no other test beside it.
The marker ``long`` is for a test of more than a minute: it begins before those of other files.
The marker ``kernel_log`` is for a test that reads the machine's only kernel log. It is also for a
test that changes the sysctl that lets namespaces write to that log. One such test runs at a time.

pytest-xdist keeps the tests of a marker on one worker. The locks also hold between two runs on one
machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from xdist.scheduler import LoadGroupScheduling

if TYPE_CHECKING:
    from collections.abc import Iterator

ALONE: Final = "alone"
LONG: Final = "long"
KERNEL_LOG: Final = "kernel_log"
_LOCKS: Final = Path("/run/lock")


class FileScheduling(LoadGroupScheduling):  # type: ignore[misc]  # xdist ships no types for it
    """Distribution of whole files to workers, and of whole groups for tests that name a group."""

    def _split_scope(self, nodeid: str) -> str:
        group: str = super()._split_scope(nodeid)
        return group if group != nodeid else nodeid.partition("::")[0]


def schedule(items: list[pytest.Item]) -> None:
    """Sort tests into their order, and group those that must run on one worker."""
    for item in items:
        for marker in (ALONE, KERNEL_LOG):
            if item.get_closest_marker(marker) is not None:
                item.add_marker(pytest.mark.xdist_group(marker))
                break
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    """Return a test's rank: groups and long tests come first, those that run alone last.

    Of the groups, that of the kernel log comes first: a worker that has begun with another long one
    would run its many kills after all other tests.
    """
    if item.get_closest_marker(ALONE) is not None:
        return 5
    if item.get_closest_marker("xdist_group") is not None:
        return 0 if item.get_closest_marker(KERNEL_LOG) is not None else 1
    if item.get_closest_marker(LONG) is not None:
        return 2
    return 3 if item.get_closest_marker("kernel") is not None else 4


@contextlib.contextmanager
def reserved(item: pytest.Item) -> Iterator[None]:
    """Hold the locks of the resources that a test needs; wait until they are free."""
    is_alone = item.get_closest_marker(ALONE) is not None
    with contextlib.ExitStack() as locks:
        locks.enter_context(locked("machine", fcntl.LOCK_EX if is_alone else fcntl.LOCK_SH))
        if item.get_closest_marker(KERNEL_LOG) is not None:
            locks.enter_context(locked(KERNEL_LOG, fcntl.LOCK_EX))
        yield


@contextlib.contextmanager
def locked(name: str, how: int) -> Iterator[None]:
    """Hold a machine-wide lock, such as :data:`KERNEL_LOG`; ``how`` is flock(2)'s operation."""
    # Not in TMPDIR, which may differ in a second run.
    folder = _LOCKS if os.access(_LOCKS, os.W_OK) else Path(tempfile.gettempdir())
    path = folder / f"ocsf-nft-tests-{os.geteuid()}.{name}"
    # Any user may put a symbolic link into that folder: it is not followed.
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        # Closing alone keeps the lock as long as a child has a copy of the descriptor.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)
