"""Replacement of an NFLOG group that another program holds, and the event about that.

The kernel gives a group to one socket. A program in a sandbox that takes the group of its fence,
while no service runs, would get the records in place of the service.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from ocsf_nft.attribution import process_details
from ocsf_nft.attribution.socket_holders import find_holders
from ocsf_nft.errors import OcsfNftError
from ocsf_nft.netlink import NETLINK_NETFILTER
from ocsf_nft.ocsf import operational_events
from ocsf_nft.ocsf.enums import Severity
from ocsf_nft.ocsf.fence_state_events import Tampering
from ocsf_nft.ocsf.finding_parts import LOG_GROUP_TAKEN
from ocsf_nft.sources.nflog import is_held
from ocsf_nft.state.change import Change

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocsf_nft.netns import Namespace
    from ocsf_nft.process import Process
    from ocsf_nft.service.event_rendering import Reporter
    from ocsf_nft.sources.nflog import GroupTakenError

_log = structlog.get_logger()

#: Other groups that are tried, one after another.
ATTEMPTS: Final = 8
#: Range of these groups: operators choose small numbers.
_FIRST_GROUP, _LAST_GROUP = 1024, 65535
#: Random numbers that are drawn to find a free group.
_DRAWS: Final = 64
_SOCKETS: Final = Path("/proc/thread-self/net/netlink")
_SEARCH_NS: Final = 500_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplacedGroup:
    """NFLOG group of a fence that another program held, and the group in place of it."""

    taken: int
    group: int
    #: Process that holds the group; None if unknown.
    process: Process | None


def other_group(namespaces: Iterable[Namespace]) -> int:
    """Return the number of an NFLOG group that no program holds in the namespaces, at random.

    So a program can't take it beforehand. If all drawn numbers are taken, return the last one. The
    call blocks.
    """
    places = tuple(namespaces)
    group = _FIRST_GROUP
    for _ in range(_DRAWS):
        group = _FIRST_GROUP + secrets.randbelow(_LAST_GROUP - _FIRST_GROUP + 1)
        if not any(each.call(partial(is_held, group)) for each in places):
            break
    return group


def holder_of(namespace: Namespace, taken: GroupTakenError) -> Process | None:
    """Return the process that holds an NFLOG group; None if it is unknown, or one of several.

    A program can choose the number of its netlink port. So the process is found by its socket. The
    call blocks for half a second at most.
    """
    port_id = taken.port_id
    if port_id is None:
        return None
    with contextlib.suppress(OcsfNftError, OSError, ValueError):
        inodes = namespace.call(partial(_inodes, port_id))
        link = f"net:[{namespace.identity().partition(':')[2]}]"
        scan = find_holders(inodes, link, time.monotonic_ns() + _SEARCH_NS)
        if len(scan.holders) == 1 and scan.missed is None:
            (holder,) = scan.holders
            return process_details.read(holder.pid, started_ns=holder.started_ns)
    return None


def _inodes(port_id: int) -> frozenset[int]:
    """Return the inodes of the netfilter sockets with a netlink port, in this namespace."""
    rows = [line.split() for line in _SOCKETS.read_text(encoding="ascii").splitlines()[1:]]
    return frozenset(
        int(row[9]) for row in rows if int(row[1]) == NETLINK_NETFILTER and int(row[2]) == port_id
    )


async def report(reporter: Reporter, sandbox: str, found: ReplacedGroup) -> None:
    """Emit an event and a finding that the NFLOG group of a sandbox's fence was replaced."""
    now_ns = time.time_ns()
    event = operational_events.log_group_taken(
        reporter.context(sandbox),
        sandbox=sandbox,
        taken=found.taken,
        group=found.group,
        process=found.process,
        time_ns=now_ns,
    )
    lines = reporter.findings.lines(
        event,
        LOG_GROUP_TAKEN,
        sandbox,
        severity=Severity.HIGH,
        tampering=Tampering(
            changes=f"NFLOG group {found.taken} was taken", process=found.process, since_ns=now_ns
        ),
    )
    await reporter.commit(Change(events=lines))
    _log.warning(
        "NFLOG group replaced", sandbox=sandbox, taken=found.taken, group=found.group,
        pid=None if found.process is None else found.process.pid,
    )  # fmt: skip
