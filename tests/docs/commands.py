"""Commands in the documentation: the blocks of each page, and the script that runs them.

A block of the language ``sh`` is run. A comment directly above it can change that:

- ``<!-- not run: REASON -->``
- ``<!-- prints: PATTERN -->``: it is run, and its output must match this regular expression.
- ``<!-- SIGTERM after: PATTERN -->``: one command that does not end by itself. It gets SIGTERM when
  it has printed a line that matches this pattern of grep.

A page that needs more than an empty machine names a file of ``tests/docs/given``:
``<!-- given: NAME -->``. A block of the language ``toml`` that begins with the path of a file, such
as ``# /etc/ocsf-nft/ocsf-nft.toml``, is written to that file.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from textwrap import dedent
from typing import Final

ROOT: Final = Path(__file__).parents[2]
_BLOCK: Final = re.compile(
    r"(?:^ *<!-- (?P<comment>(?:(?!-->)[^\n])*) -->\n)?"
    r"^(?P<indent> *)```(?P<language>[^\n]*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_GIVEN: Final = re.compile(r"^<!-- given: (?P<name>\w+) -->$", re.MULTILINE)
_FILE: Final = re.compile(r"# (?P<path>/\S+)\n")
_MARKS: Final = ("not run", "prints", "SIGTERM after")
_LIKE_SH: Final = frozenset({"bash", "console", "shell", "shell-session", "zsh"})
#: Last line that the script of a page prints.
END: Final = "== end of the page\n"


class MarkError(Exception):
    """Comment that is no mark, or language of commands that is not ``sh``."""


@dataclass(frozen=True, slots=True)
class Block:
    """Block of a page: its position (``README.md:20``), language, text and mark.

    ``mark`` is one of ``_MARKS`` and what follows it. It is None if no comment is above the block.
    """

    position: str
    language: str
    text: str
    mark: tuple[str, str] | None

    @property
    def is_run(self) -> bool:
        """Return whether the block has commands to run."""
        return self.language == "sh" and (self.mark is None or self.mark[0] != "not run")

    @property
    def heading(self) -> str:
        """Return the line that is printed before the output of the block."""
        return f"== {self.position}\n"

    @property
    def printed(self) -> str | None:
        """Return the pattern that the output of the block must match, if it has one."""
        return self.mark[1] if self.mark is not None and self.mark[0] == "prints" else None

    @property
    def script(self) -> str:
        """Return the lines of bash that do what a reader does with the block (``reader.sh``)."""
        file = _FILE.match(self.text)
        if self.language == "toml" and file is not None:
            path = PurePosixPath(file["path"])
            return f"mkdir -p {path.parent}\ncat >{path} <<'.'\n{self.text}.\n"
        if not self.is_run:
            return ""
        text = self.text
        if self.mark is not None and self.mark[0] == "SIGTERM after":
            text = f"until_sigterm {shlex.quote(self.mark[1])} {shlex.quote(text.strip())}\n"
        return f"position={self.position}\necho '{self.heading.strip()}'\n{text}"


@dataclass(frozen=True, slots=True)
class Page:
    """Page with its blocks; ``given`` prepares its machine (a file of ``tests/docs/given``)."""

    name: str
    blocks: tuple[Block, ...]
    given: str | None

    @property
    def has_commands(self) -> bool:
        """Return whether there is a block to run."""
        return any(block.is_run for block in self.blocks)

    @property
    def script(self) -> str:
        """Return the lines of bash that run the page from top to bottom."""
        return "".join([*(block.script for block in self.blocks), f"echo '{END.strip()}'\n"])


def parse(text: str, name: str) -> Page:
    """Return the page with this text; raises MarkError."""
    blocks = []
    for found in _BLOCK.finditer(text):
        lines_before = text.count("\n", 0, found.start("language"))
        position = f"{name}:{lines_before + 1}"
        language = found["language"]
        if language in _LIKE_SH:
            raise MarkError(f"{position}: the language of commands is sh, not {language}")
        mark = None
        if language == "sh" and found["comment"] is not None:
            mark = _mark(found["comment"], position)
        blocks.append(Block(position, language, dedent(found["text"]), mark))
    given = _GIVEN.search(text)
    return Page(name, tuple(blocks), None if given is None else given["name"])


def _mark(comment: str, position: str) -> tuple[str, str]:
    kind, colon, rest = comment.partition(": ")
    if kind not in _MARKS or not colon or not rest.strip():
        known = ", ".join(f"'{mark}: …'" for mark in _MARKS)
        raise MarkError(f"{position}: the comment {comment!r} above a block is none of {known}")
    return kind, rest


def pages() -> list[Page]:
    """Return all pages for users and maintainers; raises MarkError.

    The page of the command line is left out: its blocks are usage lines, which a program writes.
    """
    paths = {*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")}
    paths -= {ROOT / "docs/reference/cli.md"}
    return [
        parse(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))
        for path in sorted(paths)
    ]
