"""What every test may use."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Callable

#: Elsewhere the pure parts are tested. On Linux nothing is left out, whatever is missing.
collect_ignore = [] if sys.platform == "linux" else ["guest", "kernel"]

# How fast an example runs is the machine's business: `make bench` measures ours.
settings.register_profile("house", deadline=None)
settings.load_profile("house")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out single tests that need Linux's kernel, where there is another one."""
    if sys.platform != "linux":
        items[:] = [item for item in items if item.get_closest_marker("kernel") is None]


@pytest.fixture(scope="session")
def judge() -> Callable[..., list[str]]:
    """What is wrong with an OCSF event (as JSON reads it), as sentences; empty when nothing is.

    A second argument is the version that it is held to. Warnings count: of ours there are none.
    """
    from ocsf_nft.validation import Judge  # noqa: PLC0415 - few tests need the schema

    def faults(event: Any, version: str = "1.8.0") -> list[str]:
        return [str(fault) for fault in Judge(version).faults(event)]

    return faults
