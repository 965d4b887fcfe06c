"""Guide to the command line, generated from the commands."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from ocsf_nft.cli.program import program
from tests.docs.cli_page import guide
from tests.docs.commands import ROOT

if TYPE_CHECKING:
    from pathlib import Path


def test_the_page_is_up_to_date() -> None:
    page = ROOT / "docs/reference/cli.md"
    assert page.read_text(encoding="utf-8") == guide(), "run `make reference`"


def test_every_command_has_its_arguments_and_options() -> None:
    sections = guide().split("\n## `ocsf-nft ")[1:]
    assert [each.partition("`")[0] for each in sections] == list(program.commands)
    assert all("* `-h, --help`: " in each for each in sections)
    (added,) = (each for each in sections if each.startswith("add`"))
    assert "* `NAME`: The sandbox's name.  [required]\n" in added
    assert "$ ocsf-nft add [OPTIONS] NAME\n" in added


def test_guide_is_written_to_the_given_path(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.docs.cli_page"]
    subprocess.run([*command, tmp_path / "page.md"], check=True, cwd=ROOT)
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == guide()
    nowhere = tmp_path / "no" / "page.md"
    done = subprocess.run([*command, nowhere], check=False, cwd=ROOT, capture_output=True)
    assert done.returncode == 1
    assert b"No such file or directory" in done.stderr
