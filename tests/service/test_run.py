"""Errors that end a service, and the log of a program that embeds one."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

import pytest

from ocsf_nft.errors import DeliveryError, FenceError
from ocsf_nft.service.run import _first_error


def test_first_error_of_several_tasks_is_the_one_that_ends_the_service() -> None:
    inner = ExceptionGroup("inner", [FenceError("first"), FenceError("second")])
    with pytest.raises(FenceError, match="first"), _first_error():
        raise ExceptionGroup("outer", [inner, DeliveryError("third")])


def test_errors_with_a_bug_among_them_are_all_shown() -> None:
    with pytest.raises(ExceptionGroup) as ended, _first_error():
        raise ExceptionGroup("tasks", [FenceError("first"), ValueError("a bug")])
    assert [str(each) for each in ended.value.exceptions] == ["first", "a bug"]


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
