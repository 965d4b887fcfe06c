"""Read the whole ruleset of a namespace: nft's own, and what nft doesn't see or can't decode.

iptables-nft keeps its extensions as blobs that nft names and no more; iptables-nft-save decodes
them. Tables of legacy iptables (ip_tables) are no nftables at all: /proc names them, and
iptables-legacy-save reads them. Each is asked where it is installed, and what stays unread is told.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from ocsf_nft.check import xtables
from ocsf_nft.check.bounded_command import NoAnswerError, answer
from ocsf_nft.check.ruleset import XTABLES, XTABLES_FAMILIES, Key, Ruleset, from_json
from ocsf_nft.errors import OcsfNftError, UsageError
from ocsf_nft.fence import nft
from ocsf_nft.nfnetlink import Nftables

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ocsf_nft.check.ruleset import Chain, Rule
    from ocsf_nft.netns import Namespace

_TRIES: Final = 3
_NFT_MSG_GETGEN: Final = 16
_NFTA_GEN_ID: Final = 1
_PREFIXES: Final = {"ip": "iptables", "ip6": "ip6tables"}
_NAMES: Final = {"ip": "ip_tables_names", "ip6": "ip6_tables_names"}
_NET: Final = Path("/proc/thread-self/net")


def read(namespace: Namespace) -> Ruleset:
    """All rules of a namespace; raises UnsupportedError when nft can't list them.

    What could not be read beside that is in ``unread``.
    """
    binary = str(nft.find())
    found = Ruleset()
    unread: list[str] = []
    for _ in range(_TRIES):
        before = generation(namespace)
        found, unread = _of_nft(namespace, binary)
        found, opaque = _decoded(namespace, found)
        unread += opaque
        if generation(namespace) == before:
            break
    else:
        unread.append("the ruleset changes faster than it can be read")
    legacy, unreadable = _of_legacy(namespace)
    return replace(found, chains={**found.chains, **legacy}, unread=(*unread, *unreadable))


def generation(namespace: Namespace) -> bytes | None:
    """What changes with every change of nftables; None where the kernel doesn't tell."""

    def ask() -> bytes | None:
        try:
            with Nftables() as nftables:
                return nftables.ask(_NFT_MSG_GETGEN, 0, b"").get(_NFTA_GEN_ID)
        except OSError:  # without the privilege, nft itself will say so
            return None

    return namespace.call(ask)


def _of_nft(namespace: Namespace, binary: str) -> tuple[Ruleset, list[str]]:
    try:
        return from_json(_json(namespace, [binary, "-j", "list", "ruleset"])), []
    except NoAnswerError as error:
        if "Operation not permitted" in str(error):
            raise nft.not_permitted() from error
        # What sets hold may be what there is so much of.
        found = from_json(_json(namespace, [binary, "-j", "-t", "list", "ruleset"]))
        sets = {key: replace(each, elements=None) for key, each in found.sets.items()}
        return replace(found, sets=sets), [f"what sets hold was not read: {error}"]


def _json(namespace: Namespace, command: list[str]) -> Any:
    try:
        return orjson.loads(answer(namespace, command))
    except orjson.JSONDecodeError as error:
        raise NoAnswerError("nft lists the ruleset in a form that can't be read") from error


def _decoded(namespace: Namespace, found: Ruleset) -> tuple[Ruleset, list[str]]:
    """The ruleset with iptables' extensions decoded, where iptables-nft-save does it."""
    chains, unread = dict(found.chains), []
    for family, prefix in _PREFIXES.items():
        for table in XTABLES:
            opaque = [
                chain
                for key, chain in chains.items()
                if (key.family, key.table) == (family, table) and _is_opaque(chain)
            ]
            if not opaque:
                continue
            try:
                saved = _saved(namespace, f"{prefix}-nft-save", table)
            except OcsfNftError as error:
                unread.append(
                    f"rules of table {family} {table} are {prefix}' own, and can't be read: {error}"
                )
                continue
            decoded = {key: _zipped(chain, saved) for key, chain in chains.items() if
                       (key.family, key.table) == (family, table)}  # fmt: skip
            chains.update(decoded)
    return replace(found, chains=chains), unread


def _is_opaque(chain: Chain) -> bool:
    return any(kind == "xt" for rule in chain.rules for kind, _ in rule.statements)


def _saved(namespace: Namespace, program: str, table: str) -> xtables.Saved:
    binary = nft.program(program)
    if binary is None:
        raise NoAnswerError(f"{program} is not installed")
    written = answer(namespace, [str(binary), "-t", table])
    return xtables.read(written.decode("utf-8", "surrogateescape"))


def _zipped(chain: Chain, saved: xtables.Saved) -> Chain:
    """The chain with each rule as iptables tells it; as it is, when the two don't agree."""
    lines = [line for line in saved.lines if line.chain == chain.key.name]
    if len(lines) != len(chain.rules):
        return chain
    names = {(table, name) for table, name, _ in saved.chains}
    rules = tuple(
        _decoded_rule(rule, line, names) for rule, line in zip(chain.rules, lines, strict=True)
    )
    return replace(chain, rules=rules)


def _decoded_rule(rule: Rule, line: xtables.Line, names: set[tuple[str, str]]) -> Rule:
    told = xtables.rule(line, rule.chain, names, rule.handle)
    is_opaque = any(kind == "xt" for kind, _ in rule.statements)
    # What nft itself decodes is exact; what iptables says is needed for the rest.
    return told if is_opaque else replace(told, statements=rule.statements)


def _of_legacy(namespace: Namespace) -> tuple[Mapping[Key, Chain], list[str]]:
    found: dict[Key, Chain] = {}
    unread: list[str] = []
    for family in XTABLES_FAMILIES:
        for table in legacy_tables(namespace, family):
            try:
                saved = _saved(namespace, f"{_PREFIXES[family]}-legacy-save", table)
            except (NoAnswerError, UsageError) as error:
                unread.append(
                    f"legacy {_PREFIXES[family]} has a table {table!r}, which nft doesn't see, "
                    f"and which can't be read: {error}"
                )
            else:
                found.update(xtables.chains(saved, family, "legacy"))
    return found, unread


def legacy_tables(namespace: Namespace, family: str) -> tuple[str, ...]:
    """The tables of legacy iptables that a namespace has; none where that can't be looked at."""

    def look() -> tuple[str, ...]:
        try:
            text = (_NET / _NAMES[family]).read_text("ascii", "replace")
        except OSError:  # no such kind of iptables in this kernel, or not for us to see
            return ()
        return tuple(name for name in text.split() if name in XTABLES)

    return namespace.call(look)
