"""Fixtures of the tests of the control API."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.control import server
from tests.control.engine import serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from ocsf_nft.http_connections import Limits
    from tests.control.engine import Served


@pytest.fixture
def folder() -> Iterator[Path]:
    """Yield a new folder with a short path: that of a socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="s") as made:
        yield Path(made)


@pytest.fixture
def limits() -> Limits:
    """Return the limits of the server; a test can replace them by its parameter."""
    return server.LIMITS


@pytest.fixture
async def served(folder: Path, limits: Limits) -> AsyncIterator[Served]:
    """Yield a server of the control API."""
    async with serving(folder / "control.sock", limits=limits) as made:
        yield made
