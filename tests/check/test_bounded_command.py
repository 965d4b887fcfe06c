"""Tests of the limits of programs that `check` runs: output, memory and time."""

from __future__ import annotations

import selectors
import sys
from typing import Any

import pytest

from ocsf_nft.check import bounded_command
from ocsf_nft.netns import Namespace


def _output(script: str) -> bytes:
    return bounded_command.command_output(Namespace(), [sys.executable, "-S", "-c", script])


def _error(script: str) -> str:
    """Return the error of a program without the program's path."""
    with pytest.raises(bounded_command.CommandError) as raised:
        _output(script)
    return str(raised.value).removeprefix(f"{sys.executable} ")


def test_output_may_be_as_long_as_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    writing = "import sys; sys.stdout.write('x' * ({} << 20))"
    assert len(_output(writing.format(32))) == 32 << 20
    assert _error(writing.format(33)) == "printed more than 32 MiB"
    monkeypatch.setattr(bounded_command, "_OUTPUT_BYTES", 2048)
    assert len(_output("print('x' * 2047)")) == 2048
    assert _error("print('x' * 2048)") == "printed more than 0 MiB"


def test_error_of_a_program_is_cut_to_200_characters() -> None:
    failing = "import sys; sys.stderr.write('x' * {}); sys.exit(1)"
    assert _error(failing.format(200)) == f"failed: {'x' * 200}"
    assert _error(failing.format(201)) == f"failed: {'x' * 200}"
    assert _error("raise SystemExit(2)") == "failed: exit 2"
    with pytest.raises(bounded_command.CommandError, match="/absent can't be run: No such"):
        bounded_command.command_output(Namespace(), ["/absent", "list"])


def test_program_runs_in_a_group_of_its_own_with_2_gib_of_memory() -> None:
    assert _output("import os; print(os.getpgrp() == os.getpid())") == b"True\n"
    # The limit is set after the program has started.
    script = (
        "import resource\n"
        "while (limit := resource.getrlimit(resource.RLIMIT_AS)[0]) < 0: pass\n"
        "print(limit)"
    )
    assert int(_output(script)) == 2 << 30


def test_program_has_20_seconds_for_its_output(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float | None] = []

    class _Silence(selectors.DefaultSelector):
        def select(self, timeout: float | None = None) -> list[Any]:
            waits.append(timeout)
            return []

    monkeypatch.setattr("ocsf_nft.check.bounded_command.time.monotonic", lambda: 7.0)
    monkeypatch.setattr(selectors, "DefaultSelector", _Silence)
    assert _error("input()") == "gave no answer in 20 s"
    assert waits == [20.0]
