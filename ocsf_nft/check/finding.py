"""Finding of the command `check`, and the exit code that a list of findings leads to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

#: ``fatal``: no fence can be active here. ``blocked``: a fence can be active, but another rule
#: drops, or may drop, traffic that the fence accepts. ``degraded``: a feature is missing, or
#: something may undo the fence. ``info``: worth knowing.
Severity: TypeAlias = Literal["ok", "info", "degraded", "blocked", "fatal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleLocation:
    """Location of a rule, chain or table in a ruleset.

    For a whole table, all fields after ``table`` except ``owner`` are None. For the policy of a
    chain, ``handle`` and ``rule`` are None. ``backend`` is ``legacy`` for the kernel's old iptables
    (ip_tables), which nft doesn't list.
    """

    backend: str
    family: str
    table: str
    chain: str | None = None
    handle: int | None = None
    rule: str | None = None
    owner: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Result of one check of a host: its name, severity, meaning for people, and remedy.

    ``commands`` carry out the remedy; each one is ready to paste into a shell. ``location`` is the
    rule that the finding is about.
    """

    name: str
    severity: Severity
    meaning: str
    remedy: str | None = None
    commands: tuple[str, ...] = ()
    location: RuleLocation | None = None


_READERS: Final = frozenset({"kmsg-reader", "journal-reader"})


def exit_code(found: Sequence[Finding]) -> int:
    """Return the exit code of the command `check` for its findings.

    0: a fence can be active here, its records can be read, and its accepted traffic gets through.
    1: not all of this is true, or a rule may drop accepted traffic. 3: no fence can be active. One
    working way to log and read records is enough for 0.
    """
    bad = {finding.name for finding in found if finding.severity not in {"ok", "info"}}
    if any(finding.severity == "fatal" for finding in found):
        return 3
    by_nflog = not bad & {"nflog", "nflog-reader"}
    by_kernel_log = not bad & {"kernel-log", "all-netns"} and not bad >= _READERS
    is_blocked = any(finding.severity == "blocked" for finding in found)
    return 0 if (by_nflog or by_kernel_log) and not is_blocked else 1
