"""Map from lines to the tests that run them, from one run of all tests under coverage.py."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import coverage

from tests.mutants.code import lines_that_show

if TYPE_CHECKING:
    from tests.mutants.sampling import Mutant

_HERE: Final = Path(__file__).parent


class CoverageMap:
    """Map from each line to the tests that run it, with their durations."""

    def __init__(self, folder: Path, package: Path) -> None:
        self._package = package
        self._data = coverage.CoverageData(str(folder / "coverage"))
        self._data.read()
        tests = json.loads((folder / "tests.json").read_text())
        self.tests: dict[str, dict[str, Any]] = {_plain(test): tests[test] for test in tests}

    def tests_of(self, mutant: Mutant) -> list[str]:
        """Return the tests that run a mutant's lines: unit tests first, then the quickest first.

        Tests that failed in the measurement are left out: they can't show a mutant. Tests
        that are named after the module run in any case: a line that runs at import has an effect
        that other tests show, and a program may run without coverage.
        """
        found: set[str] = set()
        path, line = mutant.site.path, mutant.site.line
        for shown in lines_that_show(path, line, self._package):
            contexts = set().union(*(self._contexts(*each) for each in shown.items()))
            found = {test for test in map(_plain, contexts) if test in self.tests}
            if found or (not contexts and line in shown.get(path, ())):
                break
        found |= {test for test in self.tests if test.startswith(self._named_for(path))}
        found = {test for test in found if not self.tests[test]["failed"]}
        return sorted(found, key=lambda test: (_is_slow_part(test), self.tests[test]["seconds"]))

    def _named_for(self, path: Path) -> tuple[str, str]:
        parts = path.relative_to(self._package).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1] or ("package",)
        *folders, name = parts
        return "/".join(("tests", *folders, f"test_{name}")), f"tests/kernel/test_{name}"

    def _contexts(self, path: Path, lines: set[int]) -> set[str]:
        """Return the contexts in which a file's lines ran."""
        by_line = self._data.contexts_by_lineno(str(path.absolute()))
        return {context for line in lines for context in by_line.get(line, ())}


def _plain(test: str) -> str:
    """Return a test's name without the group that xdist appends."""
    return re.sub(r"@\w+$", "", test)


def _is_slow_part(test: str) -> bool:
    return test.startswith(("tests/kernel/", "tests/guest/", "tests/deploy/"))


def measured(package: Path, folder: Path) -> CoverageMap:
    """Return the map for the current text of the package; run all tests if there is no map."""
    texts = b"".join(path.read_bytes() for path in sorted(package.rglob("*.py")))
    folder_of_map = folder / f"map-{hashlib.sha256(texts).hexdigest()[:12]}"
    if not (folder_of_map / "tests.json").exists():
        _measure(folder_of_map)
    return CoverageMap(folder_of_map, package)


def _measure(folder_of_map: Path) -> None:
    """Run all tests once. A test that fails is left out of the map, and the run continues."""
    print("measuring which tests run each line: this takes as long as all tests", flush=True)
    folder_of_map.mkdir(parents=True, exist_ok=True)
    folder_of_map.chmod(0o1777)  # tests start programs as other users
    environment = {
        **os.environ,
        "COVERAGE_FILE": str((folder_of_map / "coverage").absolute()),
        "MUTANTS_TESTS": str((folder_of_map / "new.json").absolute()),
    }
    rules = f"--rcfile={_HERE / 'coverage.ini'}"
    tests = ["pytest", "-q", "-n", "4", "-p", "tests.mutants.contexts"]
    measuring = [sys.executable, "-m", "coverage", "run", rules, "-m", *tests]
    subprocess.run(measuring, env=environment, check=False)
    combining = [sys.executable, "-m", "coverage", "combine", "--quiet", str(folder_of_map)]
    subprocess.run(combining, env=environment, check=True)
    (folder_of_map / "new.json").replace(folder_of_map / "tests.json")
