"""Guide to sinks, generated from the tables of the configuration."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Final

import pytest

from ocsf_nft.config.sinks import KINDS
from ocsf_nft.config.sinks.base import SinkTable
from tests.docs.commands import ROOT
from tests.docs.sinks_page import guide

if TYPE_CHECKING:
    from pathlib import Path

PAGE: Final = ROOT / "docs/reference/sinks.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == guide(), "run `make reference`"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_and_key_is_documented(kind: str) -> None:
    section = guide().partition(f"\n## {kind}\n")[2].partition("\n## ")[0]
    own = set(KINDS[kind].model_fields) - set(SinkTable.model_fields) - {"type"}
    assert {key for key in own if f"| `{key}` |" not in section} == set()


def test_guide_does_not_name_the_library() -> None:
    assert "Pydantic" not in guide()
    assert "``" not in guide()


def test_guide_is_written_to_the_given_path(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.docs.sinks_page"]
    subprocess.run([*command, tmp_path / "page.md"], check=True, cwd=ROOT)
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == guide()
    done = subprocess.run(
        [*command, tmp_path / "no" / "page.md"],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 1
    assert "No such file or directory" in done.stderr
