"""Run tests many times on a machine that is busy with something else: `make test-loaded`.

Two processes compute without pause, and one writes to the disk and syncs. Meanwhile the tests of
the kernel, the service, the guests, delivery and the state run repeatedly. A test that depends on
timing fails here sooner or later. Prints one line for each run, and the failed tests at the end.
Exits with 1 if a test failed.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TESTS: Final = ("tests/kernel", "tests/service", "tests/guest", "tests/delivery", "tests/state")
_FAILED: Final = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", re.MULTILINE)
_CHUNK: Final = 1 << 20
_FILE_BYTES: Final = 64 << 20


def main() -> int:
    """Run the tests under load the requested number of times; return the exit code."""
    arguments = _parser().parse_args()
    failures: Counter[str] = Counter()
    with _load(arguments.busy):
        for number in range(1, arguments.runs + 1):
            began = time.monotonic()
            code, output = _run(arguments.pytest)
            failed = _FAILED.findall(output)
            if code != 0:
                # A run that ends without naming a test (a crash) must not count as passed.
                failures.update(failed or [f"exit code {code}"])
                sys.stdout.write(output)
            (summary,) = output.splitlines()[-1:] or ["no output"]
            seconds = time.monotonic() - began
            print(f"run {number} of {arguments.runs}: {seconds:.0f} s, {summary}", flush=True)
    for test, times in failures.most_common():
        print(f"failed in {times} of {arguments.runs} runs: {test}")
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.loaded", description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="number of runs (%(default)s)")
    parser.add_argument("--busy", type=int, default=2, help="busy processes (%(default)s)")
    parser.add_argument("pytest", nargs="*", default=[*TESTS, "-n", "4"], help="pytest's arguments")
    return parser


def _run(arguments: Sequence[str]) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@contextlib.contextmanager
def _load(busy: int) -> Iterator[None]:
    """Keep processors and the disk busy until the context or this process ends."""
    with tempfile.TemporaryDirectory() as folder:
        spinners = [multiprocessing.Process(target=_compute, daemon=True) for _ in range(busy)]
        writer = multiprocessing.Process(target=_write, args=(Path(folder),), daemon=True)
        processes = [*spinners, writer]
        for process in processes:
            process.start()
        try:
            yield
        finally:
            for process in processes:
                process.kill()
                process.join()


def _compute() -> None:
    parent = os.getppid()
    while os.getppid() == parent:
        sum(range(100_000))


def _write(folder: Path) -> None:
    parent = os.getppid()
    chunk = os.urandom(_CHUNK)
    with (folder / "written").open("wb", buffering=0) as file:
        while os.getppid() == parent:
            if file.tell() >= _FILE_BYTES:
                file.seek(0)
            file.write(chunk)
            os.fsync(file.fileno())


if __name__ == "__main__":
    raise SystemExit(main())
