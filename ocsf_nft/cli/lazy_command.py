"""Command whose module is imported when the command runs."""

from __future__ import annotations

from importlib import import_module
from typing import Any, cast

import click


class LazyCommand(click.Command):
    """Placeholder of a command in the program's list of commands.

    The program shows its help without the modules of its commands, because importing all of them
    is slow.
    """

    def __init__(self, name: str, module: str, summary: str, attribute: str | None = None) -> None:
        """Set the command's module in this package, and its first sentence.

        ``attribute`` is the command's name in the module, by default ``name``.
        """
        super().__init__(name, short_help=summary)
        self._module = module
        self._attribute = attribute or name

    def loaded(self) -> click.Command:
        """Import the module of the command, and return the command."""
        module = import_module(f"ocsf_nft.cli.{self._module}")
        return cast("click.Command", getattr(module, self._attribute))

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Parse the arguments of the command; return its context, which invokes the command."""
        return self.loaded().make_context(info_name, args, parent, **extra)
