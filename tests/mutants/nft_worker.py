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
from typing import Final

import pytest

_SECONDS: Final = 240
_FAILED: Final = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
_OPTIONS: Final = (
    *("-x", "-q", "--no-header", "--tb=line", "-p", "no:cacheprovider", "--basetemp=temporary"),
    *("-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"),
)


#: The modules that every fork would have to import.
_IMPORTED: Final = (
    *("hypothesis", "pytest_asyncio", "ocsf_nft.fence.installer", "ocsf_nft.fence.counters"),
    "ocsf_nft.sources.nflog",
)


def main() -> None:
    """Answer requests until the input ends."""
    for module in _IMPORTED:
        importlib.import_module(module)

    for line in sys.stdin:
        wanted = json.loads(line)
        path = Path("rules") / wanted["file"]
        original = path.read_text("utf-8")
        path.write_text(wanted["text"], "utf-8")
        try:
            began = time.monotonic()
            failed = _first_failure(wanted["tests"])
            answer = {"failed": failed, "seconds": round(time.monotonic() - began, 1)}
        finally:
            path.write_text(original, "utf-8")
        print(json.dumps(answer), flush=True)


def _first_failure(groups: list[list[str]]) -> str | None:
    for tests in groups:
        if failed := _failure(tests):
            return failed
    return None


def _failure(tests: list[str]) -> str | None:
    """Return the first test that fails, or a description of a run that broke."""
    output = Path("run.txt")
    child = os.fork()
    if child == 0:
        _run(tests, output)
    deadline = time.monotonic() + _SECONDS
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return f"no end after {_SECONDS} s"
        time.sleep(0.02)
    if os.waitstatus_to_exitcode(status) == 0:
        return None
    said = output.read_text("utf-8", "replace")
    found = _FAILED.search(said)
    if found is None:
        raise RuntimeError(f"the tests could not run: {said}")
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
