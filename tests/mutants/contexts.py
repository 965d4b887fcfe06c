"""Give each test its own context in the coverage data, and record its duration and outcome.

A plugin of pytest: `pytest -p tests.mutants.contexts`. The environment variable MUTANTS_TESTS names
the JSON file that it writes.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import coverage
import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

_seconds: defaultdict[str, float] = defaultdict(float)
_failed: set[str] = set()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Measure a test, and the processes that it starts, in the context of its node id."""
    measured = coverage.Coverage.current()
    if measured is not None:
        measured.switch_context(item.nodeid)
        measured.set_option("run:context", item.nodeid)
        os.environ["COVERAGE_PROCESS_CONFIG"] = measured.config.serialize()
    return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add the duration of one phase of a test."""
    _seconds[report.nodeid] += report.duration
    if report.failed:
        _failed.add(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the durations; in a worker of xdist, save the coverage data."""
    if hasattr(session.config, "workerinput"):
        measured = coverage.Coverage.current()
        if measured is not None:
            measured.save()
        return
    tests = {
        name: {"seconds": round(seconds, 3), "failed": name in _failed}
        for name, seconds in _seconds.items()
    }
    Path(os.environ["MUTANTS_TESTS"]).write_text(json.dumps(tests, indent=0))
