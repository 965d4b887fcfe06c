"""The demo with long time limits, which a busy machine does not reach."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from ocsf_nft import cli, demo
from ocsf_nft.demo import attempts, program, proxy

if TYPE_CHECKING:
    from ocsf_nft.demo.attempts import Attempt

#: Limit of the programs and of the wait for an event.
SECONDS: Final = 60
#: Limit of an attempt and of the proxy: the program ends first.
_LONGER: Final = 300.0


def long_program(folder: Path) -> Path:
    """Copy the demo's program, with a long time limit, into a folder; return the path."""
    limit = "_TIMEOUT_SECONDS: Final = "
    text = Path(program.__file__).read_text()
    assert text.count(f"{limit}2.0\n") == 1
    copy = folder / "program.py"
    copy.write_text(text.replace(f"{limit}2.0\n", f"{limit}{SECONDS}\n"))
    return copy


def set_long_limits(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Give the demo, its programs and its proxy long time limits; ``folder`` is for a program."""
    monkeypatch.setattr(attempts, "_TIMEOUT_SECONDS", _LONGER)
    monkeypatch.setattr(attempts, "_PROGRAM", long_program(folder))
    monkeypatch.setattr(proxy, "_TIMEOUT_SECONDS", _LONGER)
    monkeypatch.setattr(demo, "_REPORT_SECONDS", SECONDS)
    monkeypatch.setattr(demo, "all_attempts", all_attempts)


def all_attempts(device: str, tools: str = attempts._TRUSTED) -> tuple[Attempt, ...]:
    """Return the attempts of the demo; curl waits as long as the other programs."""
    return tuple(map(_with_long_wait, attempts.all_attempts(device, tools)))


def _with_long_wait(attempt: Attempt) -> Attempt:
    if "--max-time" not in attempt.command:
        return attempt
    before = attempt.command.index("--max-time") + 1
    command = (*attempt.command[:before], str(SECONDS), *attempt.command[before + 1 :])
    return replace(attempt, command=command)


def _main(folder: str, first: str) -> None:
    """Run the demo on a command line; ``first`` replaces the program of the first attempt."""

    def found(device: str) -> tuple[Attempt, ...]:
        beginning, *others = all_attempts(device)
        command = tuple(first.split()) or beginning.command
        return replace(beginning, command=command), *others

    with pytest.MonkeyPatch.context() as monkeypatch:
        set_long_limits(monkeypatch, Path(folder))
        monkeypatch.setattr(demo, "all_attempts", found)
        monkeypatch.setattr(sys, "argv", ["ocsf-nft", "demo"])
        cli.main()


if __name__ == "__main__":
    _main(*sys.argv[1:])
