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


class Sender(NamedTuple):
    """Netlink port of a socket that caused a change, and the inode of the socket."""

    port: int
    inode: int


def senders_of(
    changes: Iterable[SurroundingChange], notices: RouteNotices, inside: socket.socket
) -> dict[SurroundingChange, Sender]:
    """Return the sockets that caused changes, of which the notices since the last check know.

    Call this function when the changes are first found. Later, another socket may have the port.
    ``inside`` is a socket in the fence's namespace.
    """
    ports = {each: port for each in changes if (port := _port(each, notices)) is not None}
    if not ports:
        return {}
    search = partial(netlink_sender.socket_inodes, {*ports.values()})
    inodes = netns.call_beside(inside, search)
    return {each: Sender(port, inodes[port]) for each, port in ports.items() if port in inodes}


def _port(change: SurroundingChange, notices: RouteNotices) -> int | None:
    area = _AREAS.get(change.kind)
    if area is None:
        return None
    about = change.fact or change.before
    return notices.port(area, getattr(about, "ifindex", 0) if area in {"link", "tc"} else 0)


class Authors:
    """Authors of the changes of one check. All changes together cost one search of /proc."""

    def __init__(
        self,
        senders: Mapping[SurroundingChange, Sender],
        transactions: Iterable[Transaction],
        identity: str,
        arrived_ns: int,
    ) -> None:
        """Create the authors of changes that were noticed at ``arrived_ns`` (CLOCK_BOOTTIME).

        ``senders`` is a result of :func:`senders_of`. ``identity`` is that of the namespace.
        """
        self._senders = senders
        self._of_transactions = {(each.pid, each.comm) for each in transactions}
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
        sender = self._senders.get(change)
        return UNKNOWN if sender is None else Author(self._process(sender))

    def _sender_of_tables(self) -> Author:
        if len(self._of_transactions) != 1:
            return UNKNOWN
        ((pid, comm),) = self._of_transactions
        return Author(attribute_change(pid, comm, self._arrived_ns), comm)

    def _process(self, sender: Sender) -> Process | None:
        if self._by_port is None:
            inodes = dict(self._senders.values())
            # The process of a port that two sockets have had, one after the other, stays unknown.
            for port, inode in self._senders.values():
                if inodes.get(port) != inode:
                    inodes.pop(port, None)
            self._by_port = netlink_sender.processes_of(inodes, self._identity, self._arrived_ns)
        return self._by_port.get(sender.port)


#: Not of XDP programs and changed links: the kernel's notices of these changes have no port.
_AREAS: Final[dict[Kind, Area]] = {
    "qdisc": "tc", "filter": "tc", "foreign link": "link",
    "route": "route", "encapsulation": "route", "routing rule": "rule",
}  # fmt: skip
