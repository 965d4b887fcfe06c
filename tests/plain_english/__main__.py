"""Count words and docstrings that break the rules for language: part of `make lint`.

The words are in ``words.toml``. Exits with 1 if there are too many, or if a text for users has one.
``--list`` shows each occurrence, ``--by-file`` the number in each file.

A document that must name private words (the glossary, old names) has them between the comments
``<!-- private words: REASON -->`` and ``<!-- private words: end -->``. They are not counted there.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_WORDS: Final = Path(__file__).with_name("words.toml")
#: Maximum number of private words in 1,000 lines.
_MOST_WORDS: Final = 3
_MOST_HEADLESS_SHARE: Final = 0.05
#: First words of a docstring that leave its subject open.
_HEADLESS: Final = frozenset(
    ("what", "whether", "who", "whom", "whose", "where", "when", "how", "why", "that", "of",
     "which")
)  # fmt: skip
_TEXT: Final = frozenset((".md", ".nft", ".c", ".h", ".sh", ".service", ".toml", ".yaml"))
#: Real records and published schemas of others.
_FOREIGN: Final = ("tests/corpus/", "tests/plain_english/", "tests/golden/", "LICENSE")
#: Region of a document that names private words on purpose. It is not counted.
_ON_PURPOSE: Final = re.compile(
    r"<!-- private words: (?!end )[^>]*-->.*?<!-- private words: end -->", re.DOTALL
)
_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@dataclass(frozen=True, slots=True)
class Found:
    """A private word in a line of a file."""

    path: str
    line: int
    word: str
    is_for_users: bool


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of a file: text, a comment or a name."""

    line: int
    content: str
    is_for_users: bool


class Words:
    """The private words, as one pattern."""

    def __init__(self, path: Path = _WORDS) -> None:
        table = tomllib.loads(path.read_text(encoding="utf-8"))["word"]
        self.instead = {form: word["instead"] for word in table for form in word["forms"]}
        self._forms = _pattern(self.instead)
        self._allowed = _pattern(phrase for word in table for phrase in word.get("allowed", ()))

    def in_text(self, text: str) -> list[str]:
        """Return the private words of a text, in lower case, one entry for each occurrence."""
        plain = self._allowed.sub(" ", _CAMEL.sub(" ", text).replace("_", " "))
        return [" ".join(match[0].lower().split()) for match in self._forms.finditer(plain)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Check all files in git; return the exit code."""
    options = _parser().parse_args(arguments)
    words = Words()
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True)
    code = 0
    for title, is_part in (
        ("the package", lambda path: not path.startswith(("tests/", "bench/"))),
        ("tests and benchmarks", lambda path: path.startswith(("tests/", "bench/"))),
    ):
        paths = [
            path
            for path in listed.stdout.splitlines()
            if is_part(path) and _is_ours(path) and path.startswith(tuple(options.paths) or "")
        ]
        code |= _check(title, paths, words, options)
    return code


def _check(title: str, paths: Sequence[str], words: Words, options: argparse.Namespace) -> int:
    found: list[Found] = []
    headless: list[str] = []
    lines = docstrings = 0
    for path in paths:
        source = Path(path).read_text(encoding="utf-8")
        lines += source.count("\n")
        found += _words_of(path, source, words)
        if path.endswith(".py"):
            first = list(_first_lines(source))
            docstrings += len(first)
            headless += [f"{path}:{line}: {text}" for line, text in first if _is_headless(text)]
    for_users = [each for each in found if each.is_for_users]
    rate, share = 1000 * len(found) / max(lines, 1), len(headless) / max(docstrings, 1)
    if options.list:
        for each in found:
            users = " (for users)" if each.is_for_users else ""
            print(f"{each.path}:{each.line}: {each.word}: {words.instead[each.word]}{users}")
        print(*headless, sep="\n")
    if options.by_file:
        for path, number in Counter(each.path for each in found).most_common():
            print(f"{number:5} {path}")
    print(
        f"{title}: {rate:.1f} private words in 1,000 lines (at most {_MOST_WORDS}), "
        f"{len(for_users)} in texts for users (at most 0), "
        f"{share:.1%} headless docstrings (at most {_MOST_HEADLESS_SHARE:.0%})"
    )
    is_good = rate <= _MOST_WORDS and share <= _MOST_HEADLESS_SHARE and not for_users
    return 0 if is_good else 1


def _words_of(path: str, source: str, words: Words) -> Iterator[Found]:
    pieces = _python(path, source) if path.endswith(".py") else _lines(path, source)
    for piece in pieces:
        for number, line in enumerate(piece.content.split("\n")):
            for word in words.in_text(line):
                yield Found(path, piece.line + number, word, piece.is_for_users)


def _lines(path: str, source: str) -> Iterator[Text]:
    # Guides for users; the others are for maintainers.
    is_for_users = path.endswith(".md") and path not in {"ARCHITECTURE.md", "CONTRIBUTING.md"}
    counted = source
    if path.endswith(".md"):  # the line numbers stay
        counted = _ON_PURPOSE.sub(lambda region: "\n" * region[0].count("\n"), source)
    yield Text(1, counted, is_for_users)


def _python(path: str, source: str) -> Iterator[Text]:
    documented = {line for line, _ in _first_lines(source)}
    is_help = path.startswith(("ocsf_nft/cli/", "ocsf_nft/config/"))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line = token.start[0]
        if token.type in {tokenize.NAME, tokenize.COMMENT}:
            yield Text(line, token.string, is_for_users=False)
        elif token.type == tokenize.STRING:
            is_docstring = line in documented
            is_message = " " in token.string and path.startswith("ocsf_nft/")
            yield Text(line, token.string, is_help if is_docstring else is_message)


def _first_lines(source: str) -> Iterator[tuple[int, str]]:
    """Yield line number and first line of each docstring."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, documented) and (text := ast.get_docstring(node)) is not None:
            yield node.body[0].lineno, text.partition("\n")[0]


def _is_headless(text: str) -> bool:
    return re.split(r"\W+", text, maxsplit=1)[0].lower() in _HEADLESS


def _is_ours(path: str) -> bool:
    return not path.startswith(_FOREIGN) and (
        path.endswith(".py") or Path(path).suffix in _TEXT or path == "Makefile"
    )


def _pattern(phrases: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(phrases, key=len, reverse=True)
    either = "|".join(re.escape(phrase).replace("\\ ", r"\s+") for phrase in longest_first)
    return re.compile(rf"(?<![A-Za-z])(?:{either})(?![A-Za-z])", re.IGNORECASE)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.plain_english", description=__doc__)
    parser.add_argument("--list", action="store_true", help="show each occurrence")
    parser.add_argument("--by-file", action="store_true", help="show the number in each file")
    parser.add_argument("paths", nargs="*", help="only below these paths")
    return parser


if __name__ == "__main__":
    sys.exit(main())
