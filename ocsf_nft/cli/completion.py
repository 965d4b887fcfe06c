"""Completion of commands and options in bash, zsh and fish: the script, and its installation."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from click.shell_completion import (
    ZshComplete,
    add_completion_class,
    get_completion_class,
    shell_complete,
)

from ocsf_nft.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import click


class _Files(NamedTuple):
    """Files of a shell below the home directory: the script, and the one that loads it."""

    script: str
    start: str | None = None
    #: Line of the file ``start`` that loads the script.
    line: str = ""


_FILES: Final = {
    "bash": _Files(
        ".bash_completions/ocsf-nft.sh", ".bashrc", "source ~/.bash_completions/ocsf-nft.sh"
    ),
    "zsh": _Files(".zfunc/_ocsf-nft", ".zshrc", "fpath+=~/.zfunc; autoload -Uz compinit; compinit"),
    "fish": _Files(".config/fish/completions/ocsf-nft.fish"),
}


class _ReloadedZsh(ZshComplete):
    """Completion for zsh, which also works at the second call of an autoloaded script.

    click's script checks only if zsh has just loaded it.
    """

    source_template = ZshComplete.source_template.replace(
        "== loadautofunc ", "== (loadautofunc|shfunc) "
    )


add_completion_class(_ReloadedZsh)


def answer(program: click.Command, name: str, variable: str, request: str) -> int:
    """Write the script, or the words that complete a command, that a shell requests.

    ``request`` is the value of the environment variable ``variable``, for example ``bash_source``.
    Return the exit code.
    """
    return shell_complete(program, {}, name, variable, request)


def shell() -> str:
    """Return the shell that started this process, or else the user's login shell.

    Raises UnsupportedError if it is neither bash, zsh nor fish.
    """
    for name in (*_ancestors(os.getppid()), Path(os.environ.get("SHELL", "")).name):
        if name in _FILES:
            return name
    raise UnsupportedError(
        f"completion is for {', '.join(_FILES)}: call this command in one of them"
    )


def script(program: click.Command, name: str, variable: str, shell: str) -> str:
    """Return the script that completes commands and options in a shell such as ``bash``.

    ``name`` is the name of ``program``. The script sets the environment variable ``variable`` to
    ask it for words.
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise ValueError(f"click has no completion for {shell}")
    return kind(program, {}, name, variable).source()


def install(shell: str, text: str) -> Path:
    """Install a completion script for the user's shell, and return its path.

    Raises OSError if a file can't be written.
    """
    files, home = _FILES[shell], Path.home()
    path = home / files.script
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    if files.start is not None:
        start = home / files.start
        present = start.read_text(encoding="utf-8") if start.exists() else ""
        if files.line not in present.splitlines():
            with start.open("a", encoding="utf-8") as file:
                file.write(f"\n{files.line}\n")
    return path


def _ancestors(pid: int) -> Iterator[str]:
    """Yield the names of a process and its ancestors, as far as /proc shows them."""
    from ocsf_nft import proc  # noqa: PLC0415 - a shell that asks for words starts without it

    with contextlib.suppress(OSError):
        while pid > 0:
            with proc.opened(f"/proc/{pid}") as where:
                found = proc.stat(where)
            yield proc.text(found.name)
            pid = found.parent
