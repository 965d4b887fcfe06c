"""Mutate rules/*.nft line by line, and see whether the tests notice.

    python -m tests.mutants.rules [--file tap.nft] [--sample N --seed S] [--list] [--results FILE]

Needs root, as the tests do. Results are JSON lines in a file; a run that is started again goes on
where it ended. The report tells for each policy file how many mutants the tests caught, and shows
each one that they did not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import tomllib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.mutants import nft_render
from tests.mutants.nft_mutations import Mutant, mutants

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_TREE: Final = Path(__file__).parents[2]
_EQUIVALENT: Final = Path(__file__).with_name("equivalent.toml")
_LEFT_OUT: Final = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "bench", "deploy")
_WORKERS: Final = 2
_QUICK = "--quick" in sys.argv
_KERNEL: Final = "tests/kernel"
#: The tests of each policy file in groups, the quickest and most telling first.
TESTS: Final = {
    "accounting.nft": [
        ["test_rules_loaded.py", "test_rules_accounting.py"],
        ["test_counters.py", "test_escapes.py"],
    ],
    "guard.nft": [["test_rules_guard.py", "test_rules_loaded.py"], ["test_guard.py"]],
    "permissive.nft": [
        ["test_rules_permissive.py", "test_rules_loaded.py"],
        ["test_permissive_profiles.py", "test_permissive.py"],
    ],
    "permissive_tap.nft": [
        ["test_rules_permissive.py", "test_rules_loaded.py"], ["test_permissive_profiles.py"],
    ],
    "sandbox.nft": [
        ["test_rules_sandbox.py", "test_rules_rivals.py"],
        ["test_rules_loaded.py", "test_other_links.py", "test_escapes.py", "test_flows.py"],
    ],
    "sidecar.nft": [
        ["test_rules_sidecar.py", "test_rules_rivals.py", "test_rules_loaded.py"],
        ["test_sidecar_unowned.py", "test_sidecar_links.py", "test_sidecar_answers.py"],
        ["test_sidecar.py", "test_sidecar_escapes.py"],
    ],
    "tap.nft": [
        ["test_rules_tap.py", "test_rules_vm_rivals.py", "test_rules_loaded.py"],
        ["test_tap_refused.py", "test_tap_host.py"], ["test_tap.py"],
    ],
}  # fmt: skip


def main() -> None:
    """Run what the command line asks for, and report."""
    arguments = _arguments()
    wanted = _wanted(arguments)
    if arguments.list:
        for mutant in wanted:
            _say(f"{mutant.key} {_shown(mutant)}")
        return
    results = _known(arguments.results)
    if arguments.again:
        results = {key: result for key, result in results.items() if result["failed"]}
    todo = iter([mutant for mutant in wanted if mutant.key not in results])
    lock = threading.Lock()
    with arguments.results.open("a", encoding="utf-8") as file, tempfile.TemporaryDirectory() as at:
        threads = [
            threading.Thread(target=_work, args=(Path(at) / str(number), todo, lock, results, file))
            for number in range(_WORKERS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    _report(wanted, results)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Mutate rules/*.nft and run their tests.")
    parser.add_argument("--file", choices=nft_render.FILES, action="append", default=[])
    parser.add_argument("--sample", type=int, help="so many mutants, drawn at random")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    parser.add_argument("--quick", action="store_true", help="run the first group of tests alone")
    parser.add_argument("--again", action="store_true", help="run those again that survived")
    parser.add_argument("--lines", help="mutants of lines FIRST-LAST alone")
    parser.add_argument("--results", type=Path, default=Path(".mutants-rules.jsonl"))
    return parser.parse_args()


def _wanted(arguments: argparse.Namespace) -> list[Mutant]:
    found = [
        mutant
        for file in arguments.file or nft_render.FILES
        for mutant in mutants(file, nft_render.policy(file))
    ]
    if arguments.lines:
        first, last = map(int, arguments.lines.split("-"))
        found = [mutant for mutant in found if first <= mutant.line <= last]
    if arguments.sample is not None:
        random.Random(arguments.seed).shuffle(found)
        # Of those that are drawn some are no ruleset.
        found = found[: arguments.sample * 2]
    checked = nft_render.valid(found)
    return checked if arguments.sample is None else checked[: arguments.sample]


def _known(path: Path) -> dict[str, dict[str, Any]]:
    """Return the results of earlier runs."""
    if not path.exists():
        return {}
    lines = map(json.loads, path.read_text("utf-8").splitlines())
    return {line["key"]: line for line in lines}


def _work(
    tree: Path,
    todo: Iterator[Mutant],
    lock: threading.Lock,
    results: dict[str, dict[str, Any]],
    file: Any,
) -> None:
    with _worker(tree) as worker:
        while True:
            with lock:
                mutant = next(todo, None)
            if mutant is None:
                return
            answer = _answer(worker, mutant)
            with lock:
                results[mutant.key] = {"key": mutant.key, **mutant._asdict(), **answer}
                file.write(json.dumps(results[mutant.key]) + "\n")
                file.flush()
                outcome = answer["failed"] or "SURVIVED"
                _say(f"{answer['seconds']:6} s  {_shown(mutant)}  {outcome}")


def _answer(worker: subprocess.Popen[str], mutant: Mutant) -> dict[str, Any]:
    if worker.stdin is None or worker.stdout is None:
        raise AssertionError("a worker has pipes")
    groups = [
        [f"{_KERNEL}/{name}" for name in group]
        for group in TESTS[mutant.file][: 1 if _QUICK else None]
    ]
    text = mutant.applied(nft_render.policy(mutant.file))
    json.dump({"file": mutant.file, "text": text, "tests": groups}, worker.stdin)
    worker.stdin.write("\n")
    worker.stdin.flush()
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError("a worker ended")
    answer: dict[str, Any] = json.loads(line)
    return answer


@contextlib.contextmanager
def _worker(tree: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a worker in a copy of the tree, where it and its children import the copy's code."""
    shutil.copytree(_TREE, tree, ignore=_LEFT_OUT)
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


def _report(wanted: Iterable[Mutant], results: dict[str, dict[str, Any]]) -> None:
    reasons = _explained()
    counts: dict[str, Counter[str]] = {}
    for mutant in wanted:
        of_file = counts.setdefault(mutant.file, Counter())
        if results[mutant.key]["failed"]:
            of_file["caught"] += 1
        elif reason := reasons.get(mutant[:1] + mutant[2:]):
            of_file["explained"] += 1
            _say(f"explained {_shown(mutant)}\n    {reason}")
        else:
            of_file["survived"] += 1
            _say(
                f"SURVIVED {mutant.file}:{mutant.line}\n    - {mutant.before}\n    + {mutant.after}"
            )
    for file, of_file in counts.items():
        _say(f"{file}: " + ", ".join(f"{count} {name}" for name, count in of_file.items()))
    total = sum(counts.values(), Counter())
    share = 100 * (total["caught"] + total["explained"]) / max(total.total(), 1)
    _say(f"{total.total()} mutants, {share:.1f}% caught or explained")


def _explained() -> dict[tuple[str, str, str], str]:
    """Return why mutants are redundant, by their file and the line before and after."""
    if not _EQUIVALENT.exists():
        return {}
    entries = tomllib.loads(_EQUIVALENT.read_text("utf-8")).get("rules", [])
    return {(each["file"], each["before"], each["after"]): each["why"] for each in entries}


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - the report


def _shown(mutant: Mutant) -> str:
    return f"{mutant.file}:{mutant.line} {mutant.before} -> {mutant.after or 'removed'}"


if __name__ == "__main__":
    main()
