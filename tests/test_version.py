"""Version of ocsf-nft in the code and in the package."""

from __future__ import annotations

import tomllib
from pathlib import Path

from ocsf_nft.version import VERSION

_PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def test_version_is_that_of_the_package() -> None:
    assert tomllib.loads(_PROJECT.read_text())["project"]["version"] == VERSION
