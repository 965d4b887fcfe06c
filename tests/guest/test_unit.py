"""The unit is one that systemd takes; test_systemd.py boots a system with it."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.guest import cache

if TYPE_CHECKING:
    from pathlib import Path

_UNIT = cache.PROJECT / "deploy/systemd/ocsf-nft.service"


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, with a command that is there on every machine."""
    place = tmp_path / _UNIT.name
    place.write_text(_UNIT.read_text("utf-8").replace("/usr/bin/ocsf-nft", "/bin/true"), "utf-8")
    return place


def test_systemd_finds_nothing_wrong_with_the_unit(unit: Path) -> None:
    told = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    assert (told.returncode, told.stderr) == (0, "")


def test_the_unit_is_as_little_exposed_as_systemd_can_see(unit: Path) -> None:
    told = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=25", unit],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stdout
