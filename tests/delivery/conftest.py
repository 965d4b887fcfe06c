"""Fixtures of the tests of delivery."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ocsf_nft.state.state_db import FILE
from tests.delivery.stores import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """Yield a store with the sinks a and b."""
    async with Store(tmp_path / FILE) as store:
        await store.register(["a", "b"])
        yield store
