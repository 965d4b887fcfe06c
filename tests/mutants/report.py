"""Report the results of the mutants by package, with the diff of each surviving mutant."""

from __future__ import annotations

import tomllib
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.mutants.running import Result
    from tests.mutants.sampling import Mutant

CAUGHT: Final = ("caught", "hangs")
#: The share of the sample that tests must catch or that must have an explanation.
_ENOUGH: Final = 0.9
_EQUIVALENT: Final = Path(__file__).parent / "equivalent.toml"

Explanations = dict[tuple[str, str, str], str]


def explanations(path: Path = _EQUIVALENT) -> Explanations:
    """Return the reasons why mutants are equivalent, by file, line before and line after."""
    entries = tomllib.loads(path.read_text("utf-8"))["mutants"]
    return {
        (each["file"], before, after): each["why"]
        for each in entries
        for before, after in each["changes"]
    }


def why(mutant: Mutant, explained: Explanations) -> str | None:
    """Return the reason why a mutant is equivalent, or None."""
    return explained.get((mutant.site.path.as_posix(), mutant.before, mutant.after))


def line(mutant: Mutant, result: Result) -> str:
    """Return a result in one line."""
    by = f" by {result.by}" if result.by else f" {result.ran} tests"
    return f"{result.status} {mutant.site.path}:{mutant.site.line} {mutant.site.operator}{by}"


def show(mutants: list[tuple[Mutant, Result | None]], explained: Explanations) -> int:
    """Print the report; return 1 if too few mutants are caught or explained."""
    table: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for mutant, result in mutants:
        status = "survived"
        if why(mutant, explained):
            status = "explained"
        elif result is not None and result.status in CAUGHT:
            status = "caught"
        else:
            print(f"\nsurvived ({mutant.site.operator}), {result.ran if result else 0} tests ran:")
            print(mutant.diff)
        table[_package(mutant)][status] += 1
    return _summary(table)


def _summary(table: dict[str, Counter[str]]) -> int:
    total = sum(table.values(), Counter[str]())
    print(f"\n{'':14}  caught  survived  explained")
    for name, counts in [*sorted(table.items()), ("all", total)]:
        print(f"{name:14}{counts['caught']:8}{counts['survived']:10}{counts['explained']:11}")
    share = 1 - total["survived"] / max(total.total(), 1)
    print(f"\n{share:.1%} caught or explained; at least {_ENOUGH:.0%} required")
    return int(share < _ENOUGH)


def _package(mutant: Mutant) -> str:
    parts = mutant.site.path.parts
    return parts[1] if len(parts) > 2 else "(top)"
