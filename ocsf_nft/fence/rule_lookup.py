"""Parser that finds the logging rules of a fence in the output of ``nft -a list table``."""

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
    """nftables rule of a fence that logs refused packets.

    ``name`` is the rule's name in log prefixes, such as ``egress``. ``handle`` is the rule's number
    in its table. ``text`` is the rule as nft lists it.
    """

    name: str
    family: str
    table: str
    chain: str
    handle: int
    text: str


def logging_rules(listings: Iterable[str]) -> tuple[LoggingRule, ...]:
    """Return all rules whose log prefix begins with ``ocsf-nft:``, in the order of the listings.

    ``listings`` are outputs of ``nft -a list table``.
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
