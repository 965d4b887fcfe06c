"""Finding of the command `check`, and the exit code that follows from all findings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from ocsf_nft.ocsf.safe_text import visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.check.ruleset import ChainKey

#: ``fatal``: no fence can be active here. ``blocked``: a fence can be active, but another rule
#: drops, or may drop, traffic that the fence accepts. ``degraded``: a feature is missing, or
#: something may undo the fence. ``info``: worth knowing.
Severity: TypeAlias = Literal["ok", "info", "degraded", "blocked", "fatal"]


@dataclass(frozen=True, slots=True)
class RuleLocation:
    """Location of a rule, chain or table in a firewall ruleset."""

    #: ``nft``, or ``legacy`` for the kernel's old iptables (ip_tables), which nft doesn't list.
    backend: str
    family: str
    table: str
    chain: str | None = None
    #: Number of the rule in the kernel; None for a chain or table.
    handle: int | None = None
    #: Text of the rule; None for a chain or table.
    rule: str | None = None
    #: Program that manages the rule, for example Docker; None if unknown.
    owner: str | None = None

    @classmethod
    def of_chain(
        cls,
        key: ChainKey,
        *,
        handle: int | None = None,
        rule: str | None = None,
        owner: str | None = None,
    ) -> RuleLocation:
        """Return the location of a chain, or of a rule in it; control characters become visible."""
        family, table, chain = map(visible, key[1:])
        return cls(key.backend, family, table, chain, handle, rule, owner)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Result of one check of a host: its name, severity, meaning and remedy."""

    name: str
    severity: Severity
    #: Sentence for people.
    meaning: str
    remedy: str | None = None
    #: Shell commands that carry out the remedy.
    commands: tuple[str, ...] = ()
    #: The rule that the finding is about; None if it is about no rule.
    location: RuleLocation | None = None


_READERS: Final = frozenset({"kmsg-reader", "journal-reader"})


def exit_code(found: Sequence[Finding]) -> int:
    """Return the exit code of the command `check` for the findings ``found``.

    - 3: No fence can be active on this host.
    - 1: Log records can't be read, or another rule may drop traffic that a fence accepts.
    - 0: All other cases.
    """
    bad = {finding.name for finding in found if finding.severity not in {"ok", "info"}}
    if any(finding.severity == "fatal" for finding in found):
        return 3
    by_nflog = not bad & {"nflog", "nflog-reader"}
    by_kernel_log = not bad & {"kernel-log", "all-netns"} and not bad >= _READERS
    is_blocked = any(finding.severity == "blocked" for finding in found)
    return 0 if (by_nflog or by_kernel_log) and not is_blocked else 1
