"""Parser of arguments for tests of command lines that others run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ocsf_nft.cli.program import NAME, program

if TYPE_CHECKING:
    from collections.abc import Sequence


def context_of(command: str, arguments: Sequence[str]) -> click.Context:
    """Return the context of a command with its arguments; raises UsageError of click."""
    root = click.Context(program, info_name=NAME, **program.context_settings)
    return program.commands[command].make_context(command, list(arguments), parent=root)


def parsed(command: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Return the parameters of a command; raises UsageError of click."""
    return context_of(command, arguments).params
