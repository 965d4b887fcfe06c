"""Mutate the package's Python code, and report the mutants that no test detects.

`python -m tests.mutants.python --seed 7 --sample 200`, as root, in the top folder of the tree. An
interrupted run continues where it stopped. To begin again after a change of the tests, remove
build/mutants. It exits with 1 if the tests catch less than 90%.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from tests.mutants import report
from tests.mutants.coverage_map import measured
from tests.mutants.running import Judge, Result
from tests.mutants.sampling import PACKAGE, Mutant, sample

_FOLDER: Final = Path("build/mutants")
#: Tests of numbers that modules define when they are imported: the map has no test for those lines.
_ALSO: Final = ["tests/test_kernel_constants.py"]


def main() -> int:
    """Run the sample and print the report."""
    options = _arguments()
    mutants = sample(options.seed, options.sample, options.paths)
    explained = report.explanations()
    results = _Results(_FOLDER / "python.jsonl", again=options.again)
    left = [each for each in mutants if not report.why(each, explained) and each not in results]
    judge = Judge(measured(PACKAGE, _FOLDER), options.seconds, options.also)
    with ThreadPoolExecutor(options.workers) as workers:
        running = {workers.submit(judge.result, each): each for each in left}
        for count, done in enumerate(as_completed(running), 1):
            results.add(running[done], done.result())
            print(f"[{count}/{len(left)}]", report.line(running[done], done.result()), flush=True)
    return report.show([(each, results.of(each)) for each in mutants], explained)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--seed", type=int, default=1)
    add("--sample", type=int, default=60, metavar="N")
    add("--paths", nargs="*", default=[], help="only files with paths that begin with one of these")
    add("--workers", type=int, default=2)
    add("--seconds", type=float, default=150, help="the most that the tests of a mutant may take")
    add(
        "--also", nargs="*", default=_ALSO, help="test files to run first, besides those of the map"
    )
    add("--again", action="store_true", help="run mutants again that survived an earlier run")
    return parser.parse_args()


class _Results:
    """The results, in a file with one JSON line for each."""

    def __init__(self, path: Path, *, again: bool) -> None:
        self._path = path
        self._found: dict[tuple[Any, ...], Result] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in path.read_text().splitlines() if path.exists() else ():
            stored = json.loads(line)
            key = tuple(stored.pop("key"))
            self._found[key] = Result(**stored)
        if again:
            self._found = {
                key: each for key, each in self._found.items() if each.status in report.CAUGHT
            }

    def __contains__(self, mutant: Mutant) -> bool:
        return mutant.key in self._found

    def of(self, mutant: Mutant) -> Result | None:
        return self._found.get(mutant.key)

    def add(self, mutant: Mutant, result: Result) -> None:
        self._found[mutant.key] = result
        with self._path.open("a") as file:
            file.write(json.dumps({"key": mutant.key, **asdict(result)}) + "\n")


if __name__ == "__main__":
    sys.exit(main())
