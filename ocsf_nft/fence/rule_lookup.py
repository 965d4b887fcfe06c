"""Which rule in the kernel stands behind a log prefix, read from nft's listing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_TABLE: Final = re.compile(r"table (\S+) (\S+) \{")
_CHAIN: Final = re.compile(r"\tchain (\S+) \{")
_RULE: Final = re.compile(
    r'\t\t(.*log prefix "ocsf-nft:[^":]*:([^":]+):(?:permissive:)?".*) # handle (\d+)'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleFact:
    """A rule that logs: where it stands, and its text as nft lists it."""

    name: str
    family: str
    table: str
    chain: str
    handle: int
    text: str


def logging_rules(listings: Iterable[str]) -> tuple[RuleFact, ...]:
    """The logging rules in nft's listings (with handles), in their order."""
    found: list[RuleFact] = []
    family = table = chain = ""
    for line in (line for listing in listings for line in listing.splitlines()):
        if opened := _TABLE.match(line):
            family, table = opened[1], opened[2]
        elif opened := _CHAIN.match(line):
            chain = opened[1]
        elif rule := _RULE.fullmatch(line):
            found.append(
                RuleFact(
                    name=rule[2],
                    family=family,
                    table=table,
                    chain=chain,
                    handle=int(rule[3]),
                    text=rule[1],
                )
            )
    return tuple(found)
