"""Generator of the reference page about the command line: every command, argument and option.

The page is generated from the commands. To write the page, run ``make reference``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ocsf_nft.cli.documented_command import DocumentedCommand
from ocsf_nft.cli.lazy_command import LazyCommand
from ocsf_nft.cli.program import NAME, program

if TYPE_CHECKING:
    from collections.abc import Iterable


def guide() -> str:
    """Return the text of the reference page about the command line, in Markdown."""
    root = click.Context(program, info_name=NAME, **program.context_settings)
    parts = ["# Command line", *_parts(root), program.epilog or ""]
    summaries = [(name, command.get_short_help_str()) for name, command in program.commands.items()]
    parts.append(_section("Commands", summaries))
    for name, placeholder in program.commands.items():
        assert isinstance(placeholder, LazyCommand)
        parts.append(f"## `{NAME} {name}`")
        parts += _parts(click.Context(placeholder.loaded(), info_name=name, parent=root))
    return "\n\n".join(filter(None, parts)) + "\n"


def _parts(context: click.Context) -> Iterable[str]:
    command = context.command
    yield (command.help or "").strip()
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"**Usage**:\n\n```console\n$ {context.command_path} {usage}\n```"
    if isinstance(command, DocumentedCommand):
        yield _section("Arguments", command.argument_rows())
    options = [each for each in command.get_params(context) if isinstance(each, click.Option)]
    rows = (each.get_help_record(context) for each in options)
    yield _section("Options", filter(None, rows))


def _section(title: str, rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join([f"**{title}**:\n", *(f"* `{name}`: {text}" for name, text in rows)])


def main() -> None:
    """Write the reference page about the command line to the file given on the command line."""
    parser = argparse.ArgumentParser(description="Write the guide to the command line.")
    parser.add_argument("page", type=Path)
    page: Path = parser.parse_args().page
    try:
        page.write_text(guide(), encoding="utf-8")
    except OSError as error:
        sys.exit(f"{page}: {error.strerror}")


if __name__ == "__main__":
    main()
