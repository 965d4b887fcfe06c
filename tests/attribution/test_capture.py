"""Opening the BPF programs and the cgroup of a capture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ocsf_nft.attribution import capture
from ocsf_nft.errors import UnsupportedError

if TYPE_CHECKING:
    from pathlib import Path


def test_capture_names_missing_programs_as_the_cause() -> None:
    with pytest.raises(UnsupportedError, match="no BPF programs: it was built without clang"):
        capture._object("absent")


def test_capture_names_a_cgroup_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="cgroup v2 can't be opened at"):
        capture._opened(tmp_path / "absent")
