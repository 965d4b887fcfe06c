"""Run chosen tests in a chosen order, and record the running test and the failed tests.

A plugin of pytest: `pytest -p tests.mutants.chosen`. The environment variable MUTANTS_CHOSEN names
a file with the tests' names, one a line. The records go to a file with `.notes` after that name.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_chosen = Path(os.environ["MUTANTS_CHOSEN"])
_notes = _chosen.with_suffix(".notes")


@pytest.hookimpl(trylast=True)  # other plugins sort tests before
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Select the chosen tests in their order. Files without a test's name come first."""
    order = {name: at for at, name in enumerate(_chosen.read_text().splitlines())}
    left = [item for item in items if item.nodeid in order or item.nodeid.split("::")[0] in order]
    config.hook.pytest_deselected(items=[item for item in items if item not in left])
    items[:] = sorted(left, key=lambda item: order.get(item.nodeid, -1))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Record a file that can't be imported."""
    if report.failed:
        _note("failed", report.nodeid)


def pytest_runtest_logstart(nodeid: str) -> None:
    """Record the running test: if the run is killed, this test was the last."""
    _note("runs", nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Record a failed test."""
    if report.failed:
        _note("failed", report.nodeid)


def _note(what: str, test: str) -> None:
    with _notes.open("a") as file:
        file.write(f"{what} {test}\n")
