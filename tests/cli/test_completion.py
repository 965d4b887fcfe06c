"""Completion of commands and options in shells."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.cli import completion
from ocsf_nft.cli.program import COMPLETION_VARIABLE, NAME, program
from ocsf_nft.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Prints the words that bash offers for the command line in $1, with a space at its end or without.
_COMPLETE = """
read -ra COMP_WORDS <<<"$1"
case $1 in *' ') COMP_WORDS+=('') ;; esac
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
COMPREPLY=()
_ocsf_nft_completion ocsf-nft 2>/dev/null
echo "${COMPREPLY[@]}"
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a new home directory, for a shell that finds this program by its name."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    return tmp_path


def _bash(script: str, *arguments: str) -> str:
    # The last command: otherwise, bash would start it in its own process.
    return subprocess.run(
        ["bash", "--norc", "-c", f"{script}\n:", "-", *arguments],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


def test_completion_is_installed_once_and_completes_in_bash(home: Path) -> None:
    start = home / ".bashrc"
    start.write_text("export KEPT=1")
    for _ in range(2):
        _bash("ocsf-nft --install-completion")
    assert start.read_text().splitlines() == [
        "export KEPT=1",
        "source ~/.bash_completions/ocsf-nft.sh",
    ]
    script = f"source ~/.bashrc\n{_COMPLETE}"
    assert _bash(script, "ocsf-nft eve").split() == ["events"]
    assert "verify" in _bash(script, "ocsf-nft ").split()
    assert _bash(script, "ocsf-nft -q events --foll").split() == ["--follow"]


def test_shown_completion_is_the_installed_one(home: Path) -> None:
    shown = _bash("ocsf-nft --show-completion")
    _bash("ocsf-nft --install-completion")
    assert (home / ".bash_completions/ocsf-nft.sh").read_text() == shown


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_is_installed_for_other_shells(home: Path, shell: str) -> None:
    path = completion.install(shell, "a script\n")
    assert path.read_text() == "a script\n"
    assert path.is_relative_to(home)
    if shell == "zsh":
        assert "fpath+=~/.zfunc; autoload" in (home / ".zshrc").read_text()


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_shown_completion_is_that_of_the_shell_that_asks(home: Path, shell: str) -> None:
    # A copy of sh with the name of the shell, which need not be installed.
    copy = shutil.copy(os.path.realpath("/bin/sh"), home / shell)
    done = subprocess.run(
        [copy, "-c", "ocsf-nft --show-completion; :"], capture_output=True, text=True, check=True
    )
    assert f"_OCSF_NFT_COMPLETE={shell}_complete" in done.stdout


def test_script_of_zsh_completes_when_zsh_has_loaded_it_before() -> None:
    script = completion.script(program, NAME, COMPLETION_VARIABLE, "zsh")
    assert "[[ $zsh_eval_context[-1] == (loadautofunc|shfunc) ]]" in script


def test_shell_is_that_of_the_login_if_no_ancestor_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def ancestors(_pid: int) -> Iterator[str]:
        yield from ("make", "systemd")

    monkeypatch.setattr(completion, "_ancestors", ancestors)
    monkeypatch.setenv("SHELL", "/usr/bin/fish")
    assert completion.shell() == "fish"
    monkeypatch.setenv("SHELL", "/bin/csh")
    with pytest.raises(UnsupportedError, match="bash, zsh, fish: call this command in one of them"):
        completion.shell()
