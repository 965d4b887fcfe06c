"""Run the tests of one mutant after another, each in a fork of a process with all imports done.

It starts in a copy of the tree. It reads a JSON line for each run: the policy file, its text, and
groups of tests. The groups run one after another until a test fails. It writes a JSON line for each
run.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

_SECONDS: Final = 240
_NO_END: Final = f"no end after {_SECONDS} s"
#: The most tests of a group that may also fail without the mutation.
_MOST_UNRELIABLE: Final = 3
_FAILED: Final = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", re.MULTILINE)
_OPTIONS: Final = (
    *("-x", "-q", "--no-header", "--tb=line", "-p", "no:cacheprovider", "--basetemp=temporary"),
    *("-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"),
)


#: Modules that every fork would otherwise import.
_IMPORTED: Final = (
    *("hypothesis", "pytest_asyncio", "ocsf_nft.fence.installer", "ocsf_nft.fence.counters"),
    "ocsf_nft.sources.nflog",
)


def main() -> None:
    """Answer requests until the input ends."""
    for module in _IMPORTED:
        importlib.import_module(module)

    for line in sys.stdin:
        request = json.loads(line)
        policy = _Policy(Path("rules") / request["file"], request["text"])
        began = time.monotonic()
        failed = _first_failure(policy, request["tests"])
        answer = {"failed": failed, "seconds": round(time.monotonic() - began, 1)}
        print(json.dumps(answer), flush=True)


class _Policy:
    """A policy file, and its text with a mutation."""

    def __init__(self, path: Path, mutated: str) -> None:
        self._path, self._mutated = path, mutated
        self._original = path.read_text("utf-8")

    def failure(self, tests: list[str], without: list[str]) -> str | None:
        """Return the first test that fails with the mutation."""
        self._path.write_text(self._mutated, "utf-8")
        try:
            return _failure(tests, without)
        finally:
            self._path.write_text(self._original, "utf-8")

    def is_noticed(self, tests: list[str]) -> bool:
        """Return whether tests fail because of the mutation: without it they pass."""
        return _failure(tests) is None and self.failure(tests, []) is not None


def _first_failure(policy: _Policy, groups: list[list[str]]) -> str | None:
    """Return the first test that detects the mutation; raise RuntimeError if tests fail anyway."""
    for tests in groups:
        unreliable: list[str] = []
        while failed := policy.failure(tests, unreliable):
            again = tests if failed == _NO_END else [failed]
            if policy.is_noticed(again):
                return failed
            if failed == _NO_END or len(unreliable) == _MOST_UNRELIABLE:
                raise RuntimeError(f"{failed}, also without a mutation: {tests}, {unreliable}")
            unreliable.append(failed)
    return None


def _failure(tests: list[str], without: Sequence[str] = ()) -> str | None:
    """Return the first test that fails, or `_NO_END`."""
    output = Path("run.txt")
    child = os.fork()
    if child == 0:
        _run([*tests, *(f"--deselect={each}" for each in without)], output)
    deadline = time.monotonic() + _SECONDS
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return _NO_END
        time.sleep(0.02)
    if os.waitstatus_to_exitcode(status) == 0:
        return None
    text = output.read_text("utf-8", "replace")
    found = _FAILED.search(text)
    if found is None:
        raise RuntimeError(f"the tests could not run: {text}")
    return found[1]


def _run(tests: list[str], output: Path) -> None:
    """Run pytest in the calling process, and exit."""
    code = 70
    try:
        os.setpgid(0, 0)
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (descriptor, 1), (descriptor, 2)):
            os.dup2(source, target)
        code = pytest.main([*_OPTIONS, *tests])
        sys.stdout.flush()
    except BaseException:  # noqa: BLE001 - the process ends here
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
