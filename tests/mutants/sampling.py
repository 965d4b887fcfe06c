"""Draw a sample of mutants: a file by its lines of code, a group of operators, then a position."""

from __future__ import annotations

import ast
import difflib
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import parso
from cosmic_ray.ast import ast_nodes
from cosmic_ray.mutating import mutate_code

from tests.mutants.declarations import Span, declarations, is_within
from tests.mutants.operators import by_group

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE: Final = Path("ocsf_nft")

_GROUPS: Final = by_group()
_OPERATORS: Final = {name: each for group in _GROUPS.values() for name, each in group.items()}


@dataclass(frozen=True, slots=True)
class Site:
    """The nth position in a file that an operator can change."""

    path: Path
    operator: str
    occurrence: int
    line: int


@dataclass(frozen=True, slots=True)
class Mutant:
    """A changed file: its text, and its changed lines before and after."""

    site: Site
    text: str
    before: str
    after: str
    diff: str

    @property
    def key(self) -> tuple[str, str, int, str, str]:
        """Return the identifier of the mutant in the results of any run."""
        site = self.site
        return str(site.path), site.operator, site.occurrence, self.before, self.after


def sample(seed: int, size: int, below: list[str]) -> list[Mutant]:
    """Return `size` different mutants of the files with paths that begin with one of `below`.

    A smaller sample of the same seed is the beginning of a larger one.
    """
    files = [
        path
        for path in sorted(PACKAGE.rglob("*.py"))
        if not below or any(path.as_posix().startswith(each) for each in below)
    ]
    weights = [_lines_of_code(path) for path in files]
    drawing = random.Random(seed)
    drawn: dict[Site, Mutant | None] = {}
    for _ in range(100 * size):
        if sum(mutant is not None for mutant in drawn.values()) == size:
            break
        groups = sites(drawing.choices(files, weights)[0])
        if groups:
            site = drawing.choice(groups[drawing.choice(sorted(groups))])
            if site not in drawn:
                drawn[site] = mutate(site)
    return [mutant for mutant in drawn.values() if mutant is not None]


@cache
def sites(path: Path) -> dict[str, list[Site]]:
    """Return the positions in a file that a mutation can change, by group of operators."""
    text = path.read_text()
    nodes = list(ast_nodes(parso.parse(text)))
    left_out = declarations(ast.parse(text))
    return {
        group: found
        for group, operators in _GROUPS.items()
        if (found := [each for name in operators for each in _sites(path, name, nodes, left_out)])
    }


def _sites(path: Path, operator: str, nodes: list[Any], left_out: list[Span]) -> Iterator[Site]:
    starts = (start for node in nodes for start, _ in _OPERATORS[operator].mutation_positions(node))
    for occurrence, start in enumerate(starts):
        # A decorator begins at its "@", one column before its name.
        begin = (start[0], start[1] + (operator == "RemoveDecorator"))
        if not is_within(begin, left_out):
            yield Site(path, operator, occurrence, start[0])


def _lines_of_code(path: Path) -> int:
    """Return the number of lines on which code begins, without docstrings and comments."""
    tree = ast.parse(path.read_text())
    return len({node.lineno for node in ast.walk(tree) if isinstance(node, ast.stmt)})


def mutate(site: Site) -> Mutant | None:
    """Apply a mutation; return None if the result doesn't parse or is the same code."""
    text = site.path.read_text()
    mutated = mutate_code(text, _OPERATORS[site.operator], site.occurrence)
    try:
        if mutated is None or ast.dump(ast.parse(mutated)) == ast.dump(ast.parse(text)):
            return None
    except SyntaxError:
        return None
    lines = list(
        difflib.unified_diff(
            text.splitlines(), mutated.splitlines(), str(site.path), "mutant", n=2, lineterm=""
        )
    )
    return Mutant(site, mutated, _side(lines, "-"), _side(lines, "+"), "\n".join(lines[2:]))


def _side(diff: list[str], sign: str) -> str:
    return "\n".join(line[1:].strip() for line in diff[2:] if line.startswith(sign))
