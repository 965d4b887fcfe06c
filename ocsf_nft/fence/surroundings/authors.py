"""Attribution of the changes of a fence's surroundings to the processes that made them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft import netns
from ocsf_nft.fence import netlink_sender
from ocsf_nft.fence.tamper_attribution import attribute_change

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Mapping

    from ocsf_nft.fence.ruleset_changes import Transaction
    from ocsf_nft.fence.surroundings.changes import Kind, SurroundingChange
    from ocsf_nft.fence.surroundings.notices import Area, RouteNotices
    from ocsf_nft.process import Process


class Author(NamedTuple):
    """Process that made a change, and the name that it gave itself; None if unknown."""

    process: Process | None = None
    comm: str | None = None


UNKNOWN: Final = Author()


class Authors:
    """Authors of the changes of one check. All changes together cost one search of /proc."""

    def __init__(
        self,
        notices: RouteNotices,
        transactions: Iterable[Transaction],
        inside: socket.socket,
        identity: str,
        arrived_ns: int,
    ) -> None:
        """Create the authors of changes that were noticed at ``arrived_ns`` (CLOCK_BOOTTIME).

        ``inside`` is a socket in the fence's namespace, and ``identity`` is that of the namespace.
        """
        self._notices = notices
        self._senders = {(each.pid, each.comm) for each in transactions}
        self._inside = inside
        self._identity = identity
        self._arrived_ns = arrived_ns
        self._of_tables: Author | None = None
        self._by_port: Mapping[int, Process] | None = None

    def of_all(self, changes: Iterable[SurroundingChange]) -> Author:
        """Return the author of all changes; UNKNOWN if they have several authors."""
        found: Author | None = None
        for change in changes:
            author = self.of(change)
            if author == UNKNOWN or found not in {None, author}:
                return UNKNOWN
            found = author
        return found or UNKNOWN

    def of(self, change: SurroundingChange) -> Author:
        """Return the author of a change. Blocks at the first call."""
        if change.kind in {"chain", "rule"}:
            if self._of_tables is None:
                self._of_tables = self._sender_of_tables()
            return self._of_tables
        area = _AREAS.get(change.kind)
        if area is None:
            return UNKNOWN
        about = change.fact or change.before
        ifindex = getattr(about, "ifindex", 0) if area in {"link", "tc"} else 0
        port = self._notices.port(area, ifindex)
        return UNKNOWN if port is None else Author(self._process(port))

    def _sender_of_tables(self) -> Author:
        if len(self._senders) != 1:
            return UNKNOWN
        ((pid, comm),) = self._senders
        return Author(attribute_change(pid, comm, self._arrived_ns), comm)

    def _process(self, port: int) -> Process | None:
        if self._by_port is None:
            search = partial(netlink_sender.socket_inodes, self._notices.ports)
            inodes = netns.call_beside(self._inside, search)
            self._by_port = netlink_sender.processes_of(inodes, self._identity, self._arrived_ns)
        return self._by_port.get(port)


_AREAS: Final[dict[Kind, Area]] = {
    "qdisc": "tc", "filter": "tc", "xdp": "link", "link": "link", "departure": "link",
    "route": "route", "encapsulation": "route", "routing rule": "rule",
}  # fmt: skip
