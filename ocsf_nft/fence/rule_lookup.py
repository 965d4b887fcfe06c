"""Lookup of a fence's logging rules by name, in the listings of its tables that nft printed."""

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
class LoggingRule:
    """nftables rule of a fence that logs refused packets: its name, position, handle and text.

    ``name`` is the rule's name in log prefixes, such as ``egress``. ``text`` is the rule as nft
    lists it.
    """

    name: str
    family: str
    table: str
    chain: str
    handle: int
    text: str


def logging_rules(listings: Iterable[str]) -> tuple[LoggingRule, ...]:
    """Return the fences' rules that log packets, in the order of nft's table listings.

    ``listings`` are outputs of ``nft -a list table``, which include the rules' handles.
    """
    found: list[LoggingRule] = []
    family = table = chain = ""
    for line in (line for listing in listings for line in listing.splitlines()):
        if opening := _TABLE.match(line):
            family, table = opening[1], opening[2]
        elif opening := _CHAIN.match(line):
            chain = opening[1]
        elif rule := _RULE.fullmatch(line):
            found.append(
                LoggingRule(
                    name=rule[2],
                    family=family,
                    table=table,
                    chain=chain,
                    handle=int(rule[3]),
                    text=rule[1],
                )
            )
    return tuple(found)
