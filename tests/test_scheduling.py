"""Distribution of tests to xdist's workers, in a small project with our scheduling."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

_CONFTEST: Final = """
import pytest
from tests import scheduling

@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    scheduling.schedule(items)

def pytest_xdist_make_scheduler(config, log):
    return scheduling.FileScheduling(config, log)

def pytest_runtest_call(item):
    with open("ran", "a") as file:
        print(item.name, file=file)
"""
_FILE: Final = """
import pytest

@pytest.mark.alone
def test_alone_{name}(): pass

def test_{name}(): pass

@pytest.mark.kernel_log
def test_log_{name}(): pass
"""
_LONG_FILE: Final = """
import pytest

@pytest.mark.long
def test_long(): pass
"""
_MARKERS: Final = "[pytest]\nmarkers =\n    alone\n    kernel_log\n    long\n"


def test_groups_run_first_then_long_tests_files_and_those_that_run_alone(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(_CONFTEST)
    (tmp_path / "pytest.ini").write_text(_MARKERS)
    for name in "ab":
        (tmp_path / f"test_{name}.py").write_text(_FILE.format(name=name))
    (tmp_path / "test_c.py").write_text(_LONG_FILE)
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "1", "--dist=loadgroup",
         "--no-loadscope-reorder", "-p", "no:cacheprovider"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    assert (tmp_path / "ran").read_text().split() == [
        "test_log_a", "test_log_b", "test_long", "test_a", "test_b", "test_alone_a",
        "test_alone_b",
    ]  # fmt: skip
