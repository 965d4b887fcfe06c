"""Reader of all firewall rules in a namespace, including rules that nft doesn't list or decode.

The rules that nft doesn't list or decode are read with iptables-nft-save and iptables-legacy-save.
If one of these programs is missing, the result has a message about each unread table.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from ocsf_nft.check import xtables
from ocsf_nft.check.bounded_command import CommandError, command_output
from ocsf_nft.check.ruleset import XTABLES, XTABLES_FAMILIES, ChainKey, Ruleset, from_json
from ocsf_nft.errors import OcsfNftError, UsageError
from ocsf_nft.fence import nft
from ocsf_nft.nfnetlink import Nftables
from ocsf_nft.quoted import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ocsf_nft.check.ruleset import Backend, Chain, Rule
    from ocsf_nft.netns import Namespace

_TRIES: Final = 3
_NET: Final = Path("/proc/thread-self/net")


def read(namespace: Namespace) -> Ruleset:
    """Return all rules in a network namespace, those of nftables and those of legacy iptables.

    ``unread`` of the result has a message for each part that could not be read. Raises
    UnsupportedError if nft can't list the rules.
    """
    binary = str(nft.find())
    found = Ruleset()
    unread: list[str] = []
    for _ in range(_TRIES):
        before = _generation(namespace)
        found, unread = _read_nft(namespace, binary)
        found, opaque = _decoded(namespace, found)
        unread += opaque
        if _generation(namespace) == before:
            break
    else:
        unread.append("the ruleset changes faster than it can be read")
    legacy, unreadable = _read_legacy(namespace)
    return replace(found, chains={**found.chains, **legacy}, unread=(*unread, *unreadable))


def _generation(namespace: Namespace) -> int | None:
    def request() -> int | None:
        try:
            with Nftables() as nftables:
                return nftables.generation()
        except OSError:  # without the privilege; nft then reports the reason itself
            return None

    return namespace.call(request)


def _read_nft(namespace: Namespace, binary: str) -> tuple[Ruleset, list[str]]:
    try:
        return from_json(_json(namespace, [binary, "-j", "list", "ruleset"])), []
    except CommandError as error:
        if "Operation not permitted" in str(error):
            raise nft.permission_error() from error
        # The elements of sets may be the reason for too much output: list without them.
        found = from_json(_json(namespace, [binary, "-j", "-t", "list", "ruleset"]))
        sets = {key: replace(each, elements=None) for key, each in found.sets.items()}
        return replace(found, sets=sets), [f"the elements of sets were not read: {error}"]


def _json(namespace: Namespace, command: list[str]) -> Any:
    try:
        return orjson.loads(command_output(namespace, command))
    except orjson.JSONDecodeError as error:
        raise CommandError("nft lists the ruleset in a form that can't be read") from error


def _decoded(namespace: Namespace, found: Ruleset) -> tuple[Ruleset, list[str]]:
    """Return a ruleset with decoded extensions of iptables, and a message for each other table.

    nft lists only the names of iptables-nft's extensions (matches and targets), as ``xt``.
    """
    chains, unread = dict(found.chains), []
    for family in XTABLES_FAMILIES:
        for table in XTABLES:
            here = {
                key: chain
                for key, chain in chains.items()
                if (key.family, key.table) == (family, table)
            }
            if not any(_is_opaque(rule) for chain in here.values() for rule in chain.rules):
                continue
            try:
                saved = _saved(namespace, "nft", family, table)
            except OcsfNftError as error:
                unread.append(
                    f"table {family} {table} has extensions of {family}tables that can't be "
                    f"read: {error}"
                )
                continue
            for key in here.keys() & saved.keys():
                chains[key] = _with_saved_rules(here[key], saved[key])
    return replace(found, chains=chains), unread


def _is_opaque(rule: Rule) -> bool:
    return any(kind == "xt" for kind, _ in rule.statements)


def _saved(
    namespace: Namespace, backend: Backend, family: str, table: str
) -> dict[ChainKey, Chain]:
    program = f"{family}tables-{backend}-save"
    binary = nft.find_program(program)
    if binary is None:
        raise CommandError(f"{program} is not installed")
    written = command_output(namespace, [str(binary), "-t", table])
    return xtables.chains(written.decode("utf-8", "surrogateescape"), family, backend)


def _with_saved_rules(chain: Chain, saved: Chain) -> Chain:
    if len(saved.rules) != len(chain.rules):  # they have changed meanwhile
        return chain
    pairs = zip(chain.rules, saved.rules, strict=True)
    return replace(chain, rules=tuple(_decoded_rule(rule, other) for rule, other in pairs))


def _decoded_rule(rule: Rule, saved: Rule) -> Rule:
    # nft's own decoding is exact; iptables' decoding is needed only for opaque rules. But each rule
    # gets its text from iptables-nft-save.
    statements = saved.statements if _is_opaque(rule) else rule.statements
    return replace(saved, statements=statements, handle=rule.handle)


def _read_legacy(namespace: Namespace) -> tuple[Mapping[ChainKey, Chain], list[str]]:
    found: dict[ChainKey, Chain] = {}
    unread: list[str] = []
    for family in XTABLES_FAMILIES:
        for table in legacy_tables(namespace, family):
            try:
                found |= _saved(namespace, "legacy", family, table)
            except (CommandError, UsageError) as error:
                unread.append(
                    f"legacy {family}tables has a table {quoted(table)}, which nft doesn't "
                    f"list, and which can't be read: {error}"
                )
    return found, unread


def legacy_tables(namespace: Namespace, family: str) -> tuple[str, ...]:
    """Return the names of a namespace's legacy iptables tables, for example ``filter``.

    ``family`` is ``ip`` or ``ip6``. The result is empty if the names can't be read.
    """

    def read_names() -> tuple[str, ...]:
        try:
            text = (_NET / f"{family}_tables_names").read_text("ascii", "replace")
        except OSError:  # this kernel has no legacy iptables, or no permission
            return ()
        return tuple(name for name in text.split() if name in XTABLES)

    return namespace.call(read_names)
