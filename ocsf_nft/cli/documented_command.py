"""Command whose help also describes its arguments; click before 8.5 describes only options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Sequence


class DocumentedArgument(click.Argument):
    """Argument of a command with a text for the help."""

    def __init__(self, declarations: Sequence[str], *, text: str, **attributes: Any) -> None:
        super().__init__(declarations, **attributes)
        self._text = text

    @property
    def row(self) -> tuple[str, str]:
        """Return the row of the help: the argument's name, and its description."""
        return self.human_readable_name, f"{self._text}{'  [required]' if self.required else ''}"


class DocumentedCommand(click.Command):
    """Command whose help has a section for its arguments."""

    def argument_rows(self) -> list[tuple[str, str]]:
        """Return the name and the description of each argument."""
        return [each.row for each in self.params if isinstance(each, DocumentedArgument)]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the arguments and the options of the help to ``formatter``."""
        with formatter.section("Arguments"):
            formatter.write_dl(self.argument_rows())
        super().format_options(ctx, formatter)
