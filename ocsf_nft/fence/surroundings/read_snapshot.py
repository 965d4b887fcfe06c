"""Reader of the surroundings of a fence in its network namespace."""

from __future__ import annotations

import contextlib
import errno
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from ocsf_nft import netlink, rtnetlink
from ocsf_nft.errors import FenceError
from ocsf_nft.fence.surroundings import (
    foreign_tables,
    programs,
    routing,
    sysctls,
    traffic_control,
)
from ocsf_nft.fence.surroundings.facts import LinkFact, ProgramFact, Snapshot
from ocsf_nft.fence.surroundings.foreign_tables import ForeignTables
from ocsf_nft.fence.surroundings.limits import Limit

if TYPE_CHECKING:
    from ocsf_nft.fence.spec import FenceSpec, Surroundings, TableId
    from ocsf_nft.fence.values import Address
    from ocsf_nft.netns import Namespace

#: Objects of each kind that are read.
_MOST: Final = 1_000
#: Allowed addresses whose routes are checked, and uplinks whose sysctls are.
_MOST_ADDRESSES: Final = 16
_MOST_UPLINKS: Final = 8
_MASTER: Final = 10
_XDP: Final = 43
_IFINFOMSG_BYTES: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Fence whose surroundings are read: the names and addresses on which it depends."""

    own_tables: tuple[TableId, ...]
    uplinks: tuple[str, ...] = ()
    destinations: tuple[Address, ...] = ()
    neighbours: frozenset[Address] = frozenset()

    @classmethod
    def of(cls, spec: FenceSpec, around: Surroundings) -> Subject:
        """Return the names and addresses on which a fence depends."""
        destinations = sorted({each.address for each in spec.allowed}, key=str)
        return cls(
            own_tables=(*spec.tables, *spec.guard_tables),
            uplinks=around.uplinks,
            destinations=tuple(destinations[:_MOST_ADDRESSES]),
            # Before the fence has uplinks, the engine may still make the network.
            neighbours=frozenset((*around.neighbours, *destinations) if around.pins else ()),
        )


def read_in(namespace: Namespace, subject: Subject) -> Snapshot:
    """Return the surroundings of a fence in a namespace.

    Raises AbsentError, UnsupportedError, FenceError.
    """
    try:
        return namespace.call(lambda: read(subject))
    except OSError as error:
        raise FenceError(
            f"the surroundings of the fence can't be read: {error.strerror or error}"
        ) from error


def without_gate(snapshot: Snapshot, program: int | None) -> Snapshot:
    """Return a snapshot without the BPF program that is the fence's last gate.

    Read its id (:meth:`StateDirectory.gate`) after the snapshot: it is stored before the program is
    attached.
    """
    others = tuple(each for each in snapshot.programs if each.program != program)
    return replace(snapshot, programs=others)


def read(subject: Subject) -> Snapshot:
    """Return the surroundings of a fence in the calling thread's namespace; raises OSError."""
    return read_polled(subject, read_notified(subject))


def read_notified(subject: Subject) -> Snapshot:
    """Return the facts about whose changes the kernel sends notices; raises OSError."""
    limits = {
        kind: Limit(_MOST)
        for kind in ("interfaces", "tc objects", "rules of tables", "routing rules")
    }
    links, xdp = _links(limits["interfaces"])
    by_index = {each.ifindex: each.name for each in links}
    traffic = limits["tc objects"]
    qdiscs = traffic.take(traffic_control.qdiscs(by_index))
    filters = []
    for each in qdiscs:
        with contextlib.suppress(FileNotFoundError, OSError):  # it has just been deleted
            filters += traffic.take(traffic_control.filters(each))
    tables = _tables(subject, limits["rules of tables"])
    return Snapshot(
        links=tuple(links),
        uplinks=tuple(each.ifindex for each in links if each.name in subject.uplinks),
        hooks=tables.hooks,
        rewrites=tables.rewrites,
        qdiscs=tuple(sorted(each for each in qdiscs if not traffic_control.is_harmless(each))),
        filters=tuple(sorted(filters[:_MOST])),
        programs=tuple(xdp),
        rules=tuple(sorted(limits["routing rules"].take(routing.rules()))),
        routes=tuple(routing.route(each) for each in subject.destinations),
        incomplete=tuple(kind for kind, limit in limits.items() if limit.is_exceeded),
    )


def read_polled(subject: Subject, known: Snapshot) -> Snapshot:
    """Return a snapshot with the facts about whose changes the kernel sends no notices.

    The others are those of ``known``. Raises OSError.
    """
    by_index = {each.ifindex: each.name for each in known.links}
    names = {name for name in subject.uplinks if name in by_index.values()}
    neighbours = Limit(_MOST)
    static = neighbours.take(routing.static_neighbours(by_index, subject.neighbours))
    tcx = [program for each in known.links for program in programs.tcx(each.ifindex, each.name)]
    xdp = tuple(each for each in known.programs if each.hook == "xdp")
    return replace(
        known,
        programs=(*xdp, *sorted(tcx)),
        neighbours=tuple(sorted(static)),
        sysctls=tuple(sysctls.read(sorted(names)[:_MOST_UPLINKS])),
        legacy=tuple(sysctls.legacy_tables()),
    )


def _links(limit: Limit) -> tuple[list[LinkFact], list[ProgramFact]]:
    links: list[LinkFact] = []
    found: list[ProgramFact] = []
    replies = netlink.replies(
        netlink.NETLINK_ROUTE, rtnetlink.RTM_GETLINK, rtnetlink.ALL_LINKS, dump=True
    )
    for reply in limit.take(replies):
        link = rtnetlink.link(memoryview(reply))
        if link is None:
            continue
        values = dict(netlink.attributes(memoryview(reply)[_IFINFOMSG_BYTES:]))
        name = link.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        master = values.get(_MASTER)
        port = None if master is None else int.from_bytes(master, "little")
        links.append(LinkFact(link.ifindex, name, link.mac, port))
        found += programs.xdp(link.ifindex, name, values.get(_XDP))
    return sorted(links), sorted(found)


def _tables(subject: Subject, limit: Limit) -> ForeignTables:
    try:
        found = foreign_tables.read(subject.own_tables, _MOST)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.ENOENT}:
            raise
        return ForeignTables((), (), is_cut=False)  # the kernel has no nf_tables
    limit.is_exceeded = found.is_cut
    return found
