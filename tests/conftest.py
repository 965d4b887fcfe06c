"""Fixtures and hooks of all tests."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from hypothesis import settings

from tests import leftovers, scheduling

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

#: On other systems only the pure parts are tested. On Linux no test is skipped.
collect_ignore = [] if sys.platform == "linux" else ["guest", "kernel"]

#: Text in each file that has a slow test.
_SLOW = b"mark.slow"

# The speed of an example depends on the machine; `make bench` measures speed.
settings.register_profile("house", deadline=None, print_blob=True)
#: More examples for tests without their own number: `pytest --hypothesis-profile thorough`.
settings.register_profile("thorough", settings.get_profile("house"), max_examples=2000)
settings.load_profile("house")


def pytest_configure(config: pytest.Config) -> None:
    """Set umask, locale and signals for all tests, and fail tests that leave something behind."""
    os.umask(0o022)
    os.environ["LC_ALL"] = "C.UTF-8"
    # nohup(1) and background jobs ignore these signals, and child processes inherit that.
    for number, handler in (
        (signal.SIGHUP, signal.SIG_DFL),
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGQUIT, signal.SIG_DFL),
    ):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)
    if sys.platform == "linux":
        config.pluginmanager.register(leftovers.Leftovers(config))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skip files without a slow test for ``-m slow``: each worker needs 8 s to import all files."""
    if config.option.markexpr != "slow" or collection_path.suffix != ".py":
        return None
    return True if _SLOW not in collection_path.read_bytes() else None


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Drop the tests that need Linux on other systems, and sort the remaining tests."""
    if sys.platform != "linux":
        items[:] = [item for item in items if item.get_closest_marker("kernel") is None]
    for path in {item.path for item in items if item.get_closest_marker("slow") is not None}:
        if _SLOW not in path.read_bytes():
            raise pytest.UsageError(f"{path} has a slow test, so it must contain {_SLOW.decode()}")
    scheduling.schedule(items)


def pytest_collection_finish() -> None:
    """Exempt the collected tests from later garbage collections: each would take 0.3 s."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Run a test when the resources that it needs are free."""
    with scheduling.reserved(item):
        return (yield)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> scheduling.FileScheduling:
    """Give each worker whole files (``-n``)."""
    return scheduling.FileScheduling(config, log)


@pytest.fixture(autouse=True)
def default_log() -> Iterator[None]:
    """Undo a test's settings of structlog, which apply to all later tests in the process."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def judge() -> Callable[..., list[str]]:
    """Return a function that lists the faults of an OCSF event (as JSON reads it), as sentences.

    Its second argument is the OCSF version to check against. Warnings count as faults: our events
    have none.
    """
    from ocsf_nft.validation import EventValidator  # noqa: PLC0415 - few tests need the schema

    def faults(event: Any, version: str = "1.8.0") -> list[str]:
        return [str(fault) for fault in EventValidator(version).faults(event)]

    return faults


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder on its own disk of 1 MiB; needs root."""
    with _mounted(tmp_path / "small", "1m") as folder:
        yield folder


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder on its own disk of 32 MiB; needs root."""
    with _mounted(tmp_path / "disk", "32m") as folder:
        yield folder


@pytest.fixture
def large_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder on its own disk of 160 MiB; needs root."""
    with _mounted(tmp_path / "large", "160m") as folder:
        yield folder


@contextlib.contextmanager
def _mounted(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
