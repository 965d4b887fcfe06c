"""Fixtures of the tests of delivery."""

from __future__ import annotations

import contextlib
import subprocess
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.delivery.event_db import FILE
from ocsf_nft.delivery.store import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


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


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """Yield a store with the sinks a and b."""
    async with Store(tmp_path / FILE) as store:
        await store.register(["a", "b"])
        yield store
