"""Mutate rules/*.nft line by line, and check whether the tests detect each mutant.

    python -m tests.mutants.rules [--file tap.nft] [--sample N --seed S] [--list] [--results FILE]

Needs root, as the tests do. Results are JSON lines in a file. A run that is started again continues
where it stopped. The report has the number of caught mutants for each policy file, and shows each
mutant that no test caught.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from tests.mutants import nft_render, report
from tests.mutants.nft_mutations import Mutant, mutants

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: The outcomes of runs, by the mutant's key.
Results: TypeAlias = dict[str, dict[str, Any]]

_TREE: Final = Path(__file__).parents[2]
_EQUIVALENT: Final = Path(__file__).with_name("equivalent_rules.toml")
_LEFT_OUT: Final = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "bench", "deploy")
_WORKERS: Final = 2
#: The share of mutants, in percent, that the tests must catch.
_ENOUGH: Final = 95
#: The test files of each policy file in groups: first the quickest ones that detect the most.
_TESTS: Final = {
    "accounting.nft": (("rules_loaded", "rules_accounting"), ("counters", "escapes")),
    "guard.nft": (("rules_guard", "rules_loaded", "rules_exceptions"), ("guard",)),
    "permissive.nft": (
        ("rules_permissive", "rules_loaded"),
        ("permissive_profiles", "permissive"),
    ),
    "permissive_tap.nft": (("rules_permissive", "rules_loaded"), ("permissive_profiles",)),
    "sandbox.nft": (
        ("rules_sandbox", "rules_rivals", "rules_loaded", "rules_exceptions"),
        ("other_links", "escapes", "flows"),
    ),
    "sidecar.nft": (
        (
            "rules_sidecar",
            "rules_sidecar_memory",
            "rules_rivals",
            "rules_loaded",
            "rules_exceptions",
        ),
        ("sidecar_unowned", "sidecar_links", "sidecar_answers"),
        ("sidecar", "sidecar_escapes"),
    ),
    "strict_tap.nft": (("rules_strict_tap",),),
    "tap.nft": (
        ("rules_tap", "rules_vm_rivals", "rules_loaded", "rules_exceptions_tap"),
        ("tap_refused", "tap_host"),
        ("tap",),
    ),
}


def main() -> int:
    """Run the requested mutants, and report; return the exit code."""
    arguments = _arguments()
    selected = _selected(arguments)
    if arguments.list:
        for mutant in selected:
            _print(f"{mutant.key} {_shown(mutant)}")
        return 0
    results = _known(arguments.results)
    if arguments.again:
        results = {key: result for key, result in results.items() if result["failed"]}
    reasons = report.explanations(_EQUIVALENT)
    todo = [
        mutant for mutant in selected if mutant.key not in results and not _why(mutant, reasons)
    ]
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    with arguments.results.open("a", encoding="utf-8") as file, tempfile.TemporaryDirectory() as at:
        for key, result in _run(todo, Path(at), is_quick=arguments.quick):
            results[key] = result
            file.write(json.dumps(result) + "\n")
            file.flush()
    return _report(selected, results, reasons)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Mutate rules/*.nft and run their tests.")
    parser.add_argument("--file", choices=nft_render.FILES, action="append", default=[])
    parser.add_argument("--sample", type=int, help="the number of mutants to draw at random")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    parser.add_argument("--quick", action="store_true", help="run the first group of tests alone")
    parser.add_argument("--again", action="store_true", help="run those again that survived")
    parser.add_argument("--results", type=Path, default=Path("build/mutants/rules.jsonl"))
    return parser.parse_args()


def _selected(arguments: argparse.Namespace) -> list[Mutant]:
    found = [
        mutant
        for file in arguments.file or nft_render.FILES
        for mutant in mutants(file, nft_render.policy(file))
    ]
    if arguments.sample is None:
        return nft_render.valid(found)
    random.Random(arguments.seed).shuffle(found)
    # nft refuses some of the drawn mutants.
    return nft_render.valid(found[: arguments.sample * 3 // 2])[: arguments.sample]


def _known(path: Path) -> Results:
    """Return the results of earlier runs."""
    if not path.exists():
        return {}
    lines = map(json.loads, path.read_text("utf-8").splitlines())
    return {line["key"]: line for line in lines}


def _run(todo: list[Mutant], at: Path, *, is_quick: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the result of each mutant, in the order in which the workers finish."""
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(_worker(at / str(each))) for each in range(_WORKERS)]
        pool = stack.enter_context(ThreadPoolExecutor(_WORKERS))
        idle: queue.SimpleQueue[subprocess.Popen[str]] = queue.SimpleQueue()
        for worker in workers:
            idle.put(worker)

        def tried(mutant: Mutant) -> dict[str, Any]:
            worker = idle.get()
            try:
                return _answer(worker, mutant, is_quick=is_quick)
            finally:
                idle.put(worker)

        for mutant, answer in zip(todo, pool.map(tried, todo), strict=True):
            _print(f"{answer['seconds']:6} s  {_shown(mutant)}  {answer['failed'] or 'SURVIVED'}")
            yield mutant.key, {"key": mutant.key, **mutant._asdict(), **answer}


def _answer(worker: subprocess.Popen[str], mutant: Mutant, *, is_quick: bool) -> dict[str, Any]:
    if worker.stdin is None or worker.stdout is None:
        raise AssertionError("a worker has pipes")
    groups = _TESTS[mutant.file][: 1 if is_quick else None]
    request = {
        "file": mutant.file,
        "text": mutant.applied(nft_render.policy(mutant.file)),
        "tests": [[f"tests/kernel/test_{name}.py" for name in group] for group in groups],
    }
    worker.stdin.write(json.dumps(request) + "\n")
    worker.stdin.flush()
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError("a worker ended: see its error output")
    answer: dict[str, Any] = json.loads(line)
    return answer


@contextlib.contextmanager
def _worker(tree: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a worker in a copy of the tree. It and its children import the code of the copy."""
    shutil.copytree(_TREE, tree, ignore=_LEFT_OUT)
    # An editable install reads the rules from another folder.
    (tree / "ocsf_nft" / "rules").symlink_to("../rules")
    with subprocess.Popen(
        [sys.executable, "-m", "tests.mutants.nft_worker"],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as worker:
        try:
            yield worker
        finally:
            if worker.stdin is not None:
                worker.stdin.close()


def _why(mutant: Mutant, reasons: report.Explanations) -> str | None:
    """Return the reason why a mutant is redundant, or None."""
    return reasons.get((f"rules/{mutant.file}", mutant.before, mutant.after))


def _report(selected: Iterable[Mutant], results: Results, reasons: report.Explanations) -> int:
    """Print the report; return 1 when too few mutants are caught or explained."""
    counts: dict[str, Counter[str]] = {}
    for mutant in selected:
        of_file = counts.setdefault(mutant.file, Counter())
        change = f"{mutant.file}:{mutant.line}\n    - {mutant.before}\n    + {mutant.after}"
        if reason := _why(mutant, reasons):
            of_file["explained"] += 1
            _print(f"explained {change}\n    {reason}")
        elif results[mutant.key]["failed"]:
            of_file["caught"] += 1
        else:
            of_file["survived"] += 1
            _print(f"SURVIVED {change}")
    for file, of_file in counts.items():
        _print(f"{file}: " + ", ".join(f"{count} {name}" for name, count in of_file.items()))
    total = sum(counts.values(), Counter())
    share = 100 * (total["caught"] + total["explained"]) / max(total.total(), 1)
    _print(
        f"{total.total()} mutants, {share:.1f}% caught or explained; at least {_ENOUGH}% required"
    )
    return int(share < _ENOUGH)


def _print(text: str) -> None:
    print(text, flush=True)


def _shown(mutant: Mutant) -> str:
    return f"{mutant.file}:{mutant.line} {mutant.before} -> {mutant.after or 'removed'}"


if __name__ == "__main__":
    raise SystemExit(main())
