"""Run the tests of one mutant. Only their processes see its file, mounted over the original."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.mutants.supervised import TIME_IS_OVER

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.mutants.coverage_map import CoverageMap
    from tests.mutants.sampling import Mutant

#: Mount a file over another one in a new mount namespace, and run a command there.
_MOUNTED: Final = (
    "unshare", "--mount", "sh", "-ec", 'mount --bind "$1" "$2"; shift 2; exec "$@"', "sh",
)  # fmt: skip
_ROUNDS: Final = 4


@dataclass(slots=True)
class Result:
    """Result of one mutant: its outcome, its test, and the tests that fail without it as well."""

    status: str
    by: str = ""
    ran: int = 0
    unreliable: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Run:
    code: int
    ran: int
    test: str
    """The test that failed, or the last one that ran."""


@dataclass(frozen=True, slots=True)
class Judge:
    """Runner that checks whether tests detect a mutant, in `seconds` of recorded time at most."""

    map: CoverageMap
    seconds: float
    also: list[str]

    def result(self, mutant: Mutant) -> Result:
        """Run the tests until one of them fails because of the mutant."""
        unreliable: list[str] = []
        found = _Run(0, 0, "")
        for _ in range(_ROUNDS):
            tests = [*self.also, *self._within_limit(mutant, unreliable)]
            found = self._run(mutant, mutant.text, tests) if tests else found
            if found.code == 0:
                break
            if self._is_noticed(mutant, found.test or tests[0]):
                status = "hangs" if found.code == TIME_IS_OVER else "caught"
                return Result(status, found.test, found.ran, unreliable)
            unreliable.append(found.test)
        return Result("survived" if found.ran else "no test", "", found.ran, unreliable)

    def _within_limit(self, mutant: Mutant, without: list[str]) -> Iterable[str]:
        left = self.seconds
        for test in self.map.tests_of(mutant):
            left -= self._recorded(test)
            if left >= 0 and test not in without:
                yield test

    def _recorded(self, test: str) -> float:
        """Return the measured duration of a test in seconds; an estimate for a new file."""
        seconds: float = self.map.tests.get(test, {"seconds": 60})["seconds"]
        return seconds

    def _is_noticed(self, mutant: Mutant, test: str) -> bool:
        """Return whether the mutant causes a failure: without it the test passes."""
        original = mutant.site.path.read_text()
        return (
            self._run(mutant, original, [test]).code == 0
            and self._run(mutant, mutant.text, [test]).code != 0
        )

    def _run(self, mutant: Mutant, text: str, tests: list[str]) -> _Run:
        """Run tests with a text in place of the mutant's file."""
        limit = 60 + 3 * sum(map(self._recorded, tests))
        with tempfile.TemporaryDirectory(prefix="mutant", ignore_cleanup_errors=True) as name:
            folder = Path(name)
            folder.chmod(0o755)
            chosen = folder / "chosen"
            chosen.write_text("\n".join(tests))
            (folder / "mutant.py").write_text(text)
            (folder / "mutant.py").chmod(0o644)
            command = (
                *_MOUNTED, str(folder / "mutant.py"), str(mutant.site.path),
                sys.executable, "-m", "tests.mutants.supervised", str(limit),
                sys.executable, "-m", "pytest", "-q", "-x", "-p", "tests.mutants.chosen",
                "-p", "no:cacheprovider", "--basetemp", str(folder / "tmp"), "-m", "",
                *dict.fromkeys(test.split("::")[0] for test in tests),
            )  # fmt: skip
            environment = {
                **os.environ, "MUTANTS_CHOSEN": str(chosen), "PYTHONDONTWRITEBYTECODE": "1",
            }  # fmt: skip
            code = subprocess.run(
                command, env=environment, check=False, capture_output=True
            ).returncode
            return _Run(code, *_noted(chosen.with_suffix(".notes")))


def _noted(notes: Path) -> tuple[int, str]:
    """Return the number of tests that ran, and the failed test or else the last one."""
    lines = notes.read_text().splitlines() if notes.exists() else []
    failed = [line.removeprefix("failed ") for line in lines if line.startswith("failed ")]
    ran = [line.removeprefix("runs ") for line in lines if line.startswith("runs ")]
    return len(ran), (failed or ran or [""])[-1]
