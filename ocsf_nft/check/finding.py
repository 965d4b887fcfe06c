"""What `check` has to say, and the exit code that it comes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

#: ``fatal``: no fence can stand. ``blocked``: one stands, and somebody else drops what it accepts,
#: or may. ``degraded``: something is missing, or may undo it. ``info``: worth knowing.
Severity: TypeAlias = Literal["ok", "info", "degraded", "blocked", "fatal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where in a ruleset. ``chain`` and what follows are None for a whole table, or a policy.

    ``backend`` is ``legacy`` for iptables of the kernel's old kind, which nft doesn't see.
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
    """One thing that was looked at: what came of it, what that means, what to do about it.

    ``commands`` do it, each for a shell as it stands.
    """

    name: str
    severity: Severity
    meaning: str
    remedy: str | None = None
    commands: tuple[str, ...] = ()
    place: Place | None = None


_READERS: Final = frozenset({"kmsg-reader", "journal-reader"})


def verdict(found: Sequence[Finding]) -> int:
    """The exit code.

    0: a fence stands here, its records are read and what it accepts gets through. 1: in part, or
    something would drop what it accepts, or may. 3: no fence stands. One way to log and read is
    enough; the others are not missed.
    """
    bad = {finding.name for finding in found if finding.severity not in {"ok", "info"}}
    if any(finding.severity == "fatal" for finding in found):
        return 3
    by_nflog = not bad & {"nflog", "nflog-reader"}
    by_kernel_log = not bad & {"kernel-log", "all-netns"} and not bad >= _READERS
    is_blocked = any(finding.severity == "blocked" for finding in found)
    return 0 if (by_nflog or by_kernel_log) and not is_blocked else 1
