"""Detection of rules that a list of nftables rules lacks, by the kernel's count of uses of chains.

The kernel ends a list without an error at a rule that has no room in a message of 32 KiB. Layouts
and numbers: ``include/uapi/linux/netfilter/nf_tables.h``.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from ocsf_nft import netlink
from ocsf_nft.fence.surroundings import names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

_CHAIN_USE: Final = 6
_CHAIN_FLAGS: Final = 10
#: Flag of a chain that belongs to one rule (``NFT_CHAIN_BINDING``).
_BINDING: Final = 0x4
_RULE_CHAIN: Final = 2
_RULE_EXPRESSIONS: Final = 4
_EXPRESSION_NAME: Final = 1
_EXPRESSION_DATA: Final = 2
_IMMEDIATE_DATA: Final = 2
_DATA_VERDICT: Final = 2
_VERDICT_CHAIN: Final = 2
_ELEMENT_DATA: Final = 2
_NOTHING: Final = memoryview(b"")


def of_chain(chain: Mapping[int, memoryview]) -> int:
    """Return how many rules a chain has, plus how many jumps lead to it."""
    uses = int.from_bytes(chain.get(_CHAIN_USE, b""), "big")
    flags = int.from_bytes(chain.get(_CHAIN_FLAGS, b""), "big")
    return uses - 1 if flags & _BINDING else uses  # the kernel counts the binding too


def has_hidden(
    uses: Mapping[bytes, int],
    rules: Iterable[Mapping[int, memoryview]],
    elements: Callable[[], Iterable[Mapping[int, memoryview]]],
) -> bool:
    """Return True if a table has rules beside ``rules``.

    ``uses`` has the result of :func:`of_chain` for each chain of the table. ``elements`` returns
    the elements of the table's verdict maps; it is called only if needed.
    """
    seen: Counter[bytes] = Counter()
    for rule in rules:
        seen[names.raw(rule.get(_RULE_CHAIN, _NOTHING))] += 1
        seen.update(_targets_of_rule(rule))
    if _are_explained(uses, seen):
        return False
    for element in elements():
        seen.update(_target(element.get(_ELEMENT_DATA)))
    return not _are_explained(uses, seen)


def _are_explained(uses: Mapping[bytes, int], seen: Counter[bytes]) -> bool:
    return all(seen[name] >= count for name, count in uses.items())


def _targets_of_rule(rule: Mapping[int, memoryview]) -> Iterator[bytes]:
    for _, element in netlink.attributes(rule.get(_RULE_EXPRESSIONS, _NOTHING)):
        expression = dict(netlink.attributes(element))
        if names.raw(expression.get(_EXPRESSION_NAME, _NOTHING)) == b"immediate":
            data = dict(netlink.attributes(expression.get(_EXPRESSION_DATA, _NOTHING)))
            yield from _target(data.get(_IMMEDIATE_DATA))


def _target(data: memoryview | None) -> Iterator[bytes]:
    verdict = {} if data is None else dict(netlink.attributes(data))
    found = dict(netlink.attributes(verdict.get(_DATA_VERDICT, _NOTHING)))
    if _VERDICT_CHAIN in found:
        yield names.raw(found[_VERDICT_CHAIN])
