"""Log of a program that embeds a service."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

_EMBEDDING: Final = """
import ocsf_nft, structlog
ocsf_nft.Service(ocsf_nft.parse({"sandbox": [{"name": "a"}]}, where="a test"))
structlog.get_logger().debug("too detailed")
structlog.get_logger().info("started")
"""


def test_log_of_a_program_that_embeds_a_service_is_not_on_standard_output() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _EMBEDDING], check=True, capture_output=True, text=True
    )
    assert done.stdout == ""
    assert "started" in done.stderr
    assert "too detailed" not in done.stderr
