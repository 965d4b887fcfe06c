"""What every test may use."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

# Test folders are not packages: what tests share is imported from the root, as `tests.…`.
sys.path.insert(0, str(Path(__file__).parent.parent))


@pytest.fixture(scope="session")
def judge() -> Callable[[Any], list[str]]:
    """What is wrong with an OCSF event (as JSON reads it), as sentences; empty when nothing is."""
    from tests.conformance.judge import faults  # noqa: PLC0415 - after the path is set

    return faults
