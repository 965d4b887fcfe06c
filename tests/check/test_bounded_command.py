"""Programs that `check` runs: how much of an answer it takes, and for how long it waits."""

from __future__ import annotations

import selectors
import sys
from typing import Any

import pytest

from ocsf_nft.check import bounded_command
from ocsf_nft.netns import Namespace


def _answer(script: str, *limit: int) -> bytes:
    return bounded_command.answer(Namespace(), [sys.executable, "-S", "-c", script], *limit)


def _fault(script: str, *limit: int) -> str:
    """Return why a program gave no answer."""
    with pytest.raises(bounded_command.NoAnswerError) as raised:
        _answer(script, *limit)
    return str(raised.value).removeprefix(f"{sys.executable} ")


def test_answer_may_be_as_long_as_the_limit() -> None:
    assert len(_answer("print('x' * 2047)", 2048)) == 2048
    assert _fault("print('x' * 2048)", 2048) == "has more than 0 MiB to tell"
    writing = "import sys; sys.stdout.write('x' * ({} << 20))"
    assert len(_answer(writing.format(32))) == 32 << 20
    assert _fault(writing.format(33)) == "has more than 32 MiB to tell"


def test_complaint_of_a_program_is_cut_to_200_characters() -> None:
    complaining = "import sys; sys.stderr.write('x' * {}); sys.exit(1)"
    assert _fault(complaining.format(200)) == f"failed: {'x' * 200}"
    assert _fault(complaining.format(201)) == f"failed: {'x' * 200}"
    assert _fault("raise SystemExit(2)") == "failed: exit 2"
    with pytest.raises(bounded_command.NoAnswerError, match="/absent can't be run: No such"):
        bounded_command.answer(Namespace(), ["/absent", "list"])


def test_program_runs_in_a_group_of_its_own_with_2_gib_of_memory() -> None:
    assert _answer("import os; print(os.getpgrp() == os.getpid())") == b"True\n"
    # The limit is set once the program runs.
    asking = (
        "import resource\n"
        "while (limit := resource.getrlimit(resource.RLIMIT_AS)[0]) < 0: pass\n"
        "print(limit)"
    )
    assert int(_answer(asking)) == 2 << 30


def test_program_has_20_seconds_for_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float | None] = []

    class _Silence(selectors.DefaultSelector):
        def select(self, timeout: float | None = None) -> list[Any]:
            waits.append(timeout)
            return []

    monkeypatch.setattr("ocsf_nft.check.bounded_command.time.monotonic", lambda: 7.0)
    monkeypatch.setattr(selectors, "DefaultSelector", _Silence)
    assert _fault("input()") == "gave no answer in 20 s"
    assert waits == [20.0]
