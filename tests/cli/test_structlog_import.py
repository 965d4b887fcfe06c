"""Import of structlog on demand."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

import pytest

_PROGRAM: Final = """
import sys
from ocsf_nft.cli import logs, output
output.prepare()
logs.to_stderr(logs.log_settings("json", is_quiet=True))
logs.to_stderr(logs.log_settings("text"))
assert "structlog" not in sys.modules
{before}
import structlog
assert ("rich" in sys.modules) == {has_rich}
structlog.get_logger().info("a record", key=1)
"""


@pytest.mark.parametrize("has_rich", [False, True])
def test_log_is_configured_by_the_last_settings_when_structlog_is_imported(
    *, has_rich: bool
) -> None:
    before = "import rich" if has_rich else ""
    program = _PROGRAM.format(before=before, has_rich=has_rich)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    (line,) = done.stderr.splitlines()
    assert line.endswith("info a record key=1")
    assert done.stdout == ""


@pytest.mark.parametrize("command", [("list",), ("convert", "/dev/null"), ("tail", "/dev/null")])
def test_command_that_logs_nothing_does_not_import_structlog(command: tuple[str, ...]) -> None:
    program = (
        f"import sys; from ocsf_nft.cli import main; sys.argv[1:] = {list(command)}\n"
        "try: main()\n"
        "finally: assert not {'structlog', 'rich'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert "AssertionError" not in done.stderr
