"""Commands import no plugin of pydantic: it would run with their privileges."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

_PLUGIN = "import sys; print('imported', file=sys.stderr); plugin = None\n"
_COMMAND = (
    "import sys; from ocsf_nft.cli import main; sys.argv[1:] = ['config', '--schema']; main()"
)
_OTHER_PROGRAM = "from pydantic import TypeAdapter; TypeAdapter(dict[str, int])"


@pytest.mark.parametrize(("program", "is_imported"), [(_COMMAND, False), (_OTHER_PROGRAM, True)])
def test_command_imports_no_plugin_of_an_installed_distribution(
    tmp_path: Path, program: str, is_imported: bool
) -> None:
    metadata = tmp_path / "foreign-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[pydantic]\nforeign = foreign_plugin:plugin\n")
    (tmp_path / "foreign_plugin.py").write_text(_PLUGIN)
    # The tests themselves have imported the command line.
    inherited = {k: v for k, v in os.environ.items() if k != "PYDANTIC_DISABLE_PLUGINS"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**inherited, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ("imported" in done.stderr) is is_imported, done.stderr
    assert is_imported or (done.returncode == 0 and done.stdout.startswith("{"))
