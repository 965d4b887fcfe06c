"""nft's listings of a fence's tables: their differences, their logging rules, and their version."""

from __future__ import annotations

import difflib
import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from ocsf_nft import rtnetlink
from ocsf_nft.errors import OcsfNftError
from ocsf_nft.fence import host_end, nft, policy_file, ruleset, table_query
from ocsf_nft.netns import HOST

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from ocsf_nft.fence.spec import FenceSpec, TableId
    from ocsf_nft.fence.state import InstalledFence
    from ocsf_nft.netns import Namespace
    from ocsf_nft.nfnetlink import Generation

T = TypeVar("T")

#: Elements that a listing has in addition to the allowed endpoints, before it stops counting.
_ELEMENTS: Final = 1000
#: nft's listing of a table; the elements of its sets follow it (:func:`of_fence`).
_LISTING: Final = re.compile(r".*?^\}\n", re.MULTILINE | re.DOTALL)
_HANDLE: Final = re.compile(r" # handle \d+$", re.MULTILINE)
#: Start of a set, a counter or a chain in a listing, or the end of the table.
_PART: Final = re.compile(r"^(?=\t\S.*\{$|\}$)", re.MULTILINE)
#: An attacker may add thousands of rules, or one that fills a screen.
_DIFFERENCE_LINES: Final = 20
_LINE_CHARACTERS: Final = 200
#: Interfaces to which a netdev chain is attached: several, or one.
_DEVICES: Final = re.compile(r' devices? (?:= \{ (.*) \}|"(.*)")(?= priority )')
_TABLE: Final = re.compile(r"table (\S+) (\S+) \{")
_CHAIN: Final = re.compile(r"\tchain (\S+) \{")
_RULE: Final = re.compile(
    r'\t\t.*log prefix "ocsf-nft:[^":]*:([^":]+):(?:permissive:)?".* # handle (\d+)'
)


class RulesetVersion(NamedTuple):
    """Version of a namespace's ruleset: nft's listing of a fence depends on it.

    A device that is deleted leaves its chains without a transaction, so the interfaces count too.
    """

    generations: tuple[Generation, ...]
    interfaces: frozenset[tuple[int, str]]
    #: Result of :func:`host_end.state`.
    ends: tuple[object, ...] = ()


class LoggingRule(NamedTuple):
    """nftables rule of a fence that logs refused packets.

    ``name`` is the rule's name in log prefixes, such as ``egress``. ``handle`` is the rule's number
    in its table.
    """

    name: str
    family: str
    table: str
    chain: str
    handle: int


def of_fence(spec: FenceSpec, namespace: Namespace) -> dict[str, str]:
    """Return the listing of each table of an installed fence, by names such as ``inet ocsf_nft``.

    After nft's listing comes one line for each element of the sets that the installer fills.
    Missing tables are omitted. Raises AbsentError, UnsupportedError, FenceError.
    """
    most = len(spec.allowed) + _ELEMENTS
    found = {}
    with ThreadPoolExecutor(1) as pool:  # at the same time
        guard = pool.submit(list_tables, HOST, spec.guard_tables) if spec.guard_tables else None
        own = list_tables(namespace, spec.tables)
        guards = {} if guard is None else guard.result()
    for where, listings in ((namespace, own), (HOST, guards)):
        for table_id, listing in listings.items():
            elements = table_query.elements(where, *table_id, ruleset.static_sets(spec), most)
            found[" ".join(table_id)] = listing + "".join(f"{line}\n" for line in elements)
    return found


def list_tables(namespace: Namespace, tables: Collection[TableId]) -> dict[TableId, str]:
    """Do the same as :func:`nft.list_tables`, if the kernel lists the chains of the tables.

    Also raises UnlistedError.
    """
    table_query.check_listed(namespace, tables)
    return nft.list_tables(namespace, tables)


def without_elements(text: str) -> str:
    """Return nft's listing of a table from a value of :func:`of_fence`; empty if it has none."""
    found = _LISTING.match(text)
    return "" if found is None else found[0]


def ruleset_version(installed: InstalledFence, namespace: Namespace) -> RulesetVersion | None:
    """Return the present version of the ruleset with a fence; None if it can't be read.

    ``namespace`` is the fenced namespace. It takes a tenth of the time of a listing. Blocks.
    """
    namespaces = [namespace, HOST] if installed.spec.guard_tables else [namespace]
    interfaces: set[tuple[int, str]] = set()
    try:
        generations = tuple(map(table_query.generation, namespaces))
        found = namespace.call(lambda: tuple(rtnetlink.links()))
        interfaces.update((link.ifindex, link.name) for link in found)
        # Of the host's interfaces, only the guarded ones count: a host may have thousands.
        ends = HOST.call(lambda: host_end.state(installed.around.host))
    except (OcsfNftError, OSError):  # the listing that follows reports it
        return None
    return RulesetVersion(generations, frozenset(interfaces), ends)


def difference(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Return the lines of a unified diff from the installed tables to the current tables.

    ``expected`` (installed) and ``found`` (current) are results of :func:`of_fence`. Handles, and
    the order of chains, sets and counters, are ignored.
    """
    lines: list[str] = []
    for name in sorted({*expected, *found}):
        installed, current = (_sorted_parts(side.get(name, "")) for side in (expected, found))
        lines += difflib.unified_diff(
            installed, current, f"{name}, as installed", f"{name}, now", n=1, lineterm=""
        )
    return lines


def with_devices(listings: Mapping[T, str], names: Collection[str]) -> dict[T, str]:
    """Return listings in which netdev chains are attached to no other interfaces than ``names``.

    The tamper guard attaches new interfaces at once, also while a fence is loaded.
    """

    def attached(found: re.Match[str]) -> str:
        devices = (found[1] or found[2]).replace('"', "").split(", ")
        return f" devices = {policy_file.set_literal(each for each in devices if each in names)}"

    return {name: _DEVICES.sub(attached, text) for name, text in listings.items()}


def shortened(lines: list[str]) -> list[str]:
    """Return the first 20 lines, each cut to 200 characters.

    If lines were omitted, a last line states how many: "… and 3 more lines".
    """
    shown = [
        line if len(line) <= _LINE_CHARACTERS else f"{line[: _LINE_CHARACTERS - 1]}…"
        for line in lines[:_DIFFERENCE_LINES]
    ]
    if more := len(lines) - len(shown):
        shown.append(f"… and {more} more line{'' if more == 1 else 's'}")
    return shown


def logging_rules(listings: Iterable[str]) -> tuple[LoggingRule, ...]:
    """Return the rules with a log prefix of ours (``ocsf-nft:``), in the order of the listings.

    The further log statements for DNS are left out: they log packets of the same rules.
    """
    found: list[LoggingRule] = []
    family = table = chain = ""
    for line in (line for listing in listings for line in listing.splitlines()):
        if opening := _TABLE.match(line):
            family, table = opening[1], opening[2]
        elif opening := _CHAIN.match(line):
            chain = opening[1]
        elif not chain.startswith("log_dns_") and (rule := _RULE.fullmatch(line)):
            found.append(LoggingRule(rule[1], family, table, chain, int(rule[2])))
    return tuple(found)


def _sorted_parts(listing: str) -> list[str]:
    # The order has no effect. It changes if a fence is replaced while some parts are preserved.
    head, *parts = _PART.split(_HANDLE.sub("", listing))
    return [line for part in (head, *sorted(parts)) for line in part.rstrip().splitlines()]
