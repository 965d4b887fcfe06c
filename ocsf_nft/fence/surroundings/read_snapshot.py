"""Reader of the surroundings of a fence in its network namespace."""

from __future__ import annotations

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
    from collections.abc import Collection, Iterable, Mapping

    from ocsf_nft.fence.spec import FenceSpec, Surroundings, TableId
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.fence.surroundings.facts import FilterFact, QdiscFact
    from ocsf_nft.fence.values import Address
    from ocsf_nft.netns import Namespace
    from ocsf_nft.rtnetlink import Link

#: Objects of each kind that are read.
_MOST: Final = 1_000
#: Allowed addresses whose routes are checked, and uplinks whose sysctls are.
_MOST_ADDRESSES: Final = 16
_MOST_UPLINKS: Final = 8
#: Programs without a privilege can fill the kernel's two neighbour tables with 1,024 entries each.
_MOST_NEIGHBOURS: Final = 4_096
#: Errors about an interface or a qdisc that has just been deleted, and of a kernel without filters.
_NO_FILTERS: Final = frozenset({errno.ENOENT, errno.ENODEV, errno.EINVAL, errno.EOPNOTSUPP})
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
    def of(cls, spec: FenceSpec, around: Surroundings, others: Collection[TableId] = ()) -> Subject:
        """Return the names and addresses on which a fence depends.

        ``others`` are the tables of other fences in its namespace (:func:`own_tables.of_others`).
        """
        destinations = sorted({each.address for each in spec.allowed}, key=str)
        return cls(
            own_tables=(*spec.tables, *others),
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


def without_gates(snapshot: Snapshot, state: StateDirectory, sandbox: str = "") -> Snapshot:
    """Return a snapshot without the BPF programs of last gates: that of ``sandbox``, and others.

    Call this after the snapshot was read: the ids are stored before the programs are attached.
    """
    own = state.gate(sandbox) if sandbox else frozenset()
    others = tuple(each for each in snapshot.programs if each.program not in own)
    if others:  # the host's namespace has those of other guarded fences
        own = frozenset().union(*map(state.gate, state.sandboxes()))
        others = tuple(each for each in others if each.program not in own)
    return replace(snapshot, programs=others)


def read(subject: Subject) -> Snapshot:
    """Return the surroundings of a fence in the calling thread's namespace; raises OSError."""
    return read_polled(subject, read_notified(subject))


def read_notified(subject: Subject) -> Snapshot:
    """Return the facts about whose changes the kernel sends notices; raises OSError."""
    limits = {
        kind: Limit(_MOST)
        for kind in ("interfaces", "tc qdiscs", "tc filters", "rules of tables", "routing rules")
    }
    links, xdp = _links(limits["interfaces"])
    by_index = {each.ifindex: each.name for each in links}
    qdiscs = list(traffic_control.qdiscs(by_index, limits["tc qdiscs"]))
    tables = _tables(subject, limits["rules of tables"])
    return Snapshot(
        links=tuple(links),
        uplinks=_uplinks(subject, links),
        hooks=tables.hooks,
        rewrites=tables.rewrites,
        qdiscs=tuple(sorted(each for each in qdiscs if not traffic_control.is_harmless(each))),
        filters=tuple(sorted(_filters(qdiscs, limits["tc filters"]))),
        programs=tuple(xdp),
        rules=tuple(sorted(routing.rules(limits["routing rules"]))),
        routes=tuple(routing.route(each) for each in subject.destinations),
        incomplete=_exceeded(limits),
    )


def read_polled(subject: Subject, known: Snapshot) -> Snapshot:
    """Return a snapshot with the facts about whose changes the kernel may send no notices.

    The others are those of ``known``. Raises OSError.
    """
    limits = {
        "interfaces": Limit(_MOST),
        "neighbours": Limit(_MOST_NEIGHBOURS),
        "BPF programs": Limit(_MOST),
    }
    # The kernel sends no notice of an XDP program that a BPF link attaches.
    links, xdp = _links(limits["interfaces"])
    by_index = {each.ifindex: each.name for each in links}
    names = {name for name in subject.uplinks if name in by_index.values()}
    static = routing.static_neighbours(by_index, subject.neighbours, limits["neighbours"])
    tcx = [
        program
        for each in links
        for program in programs.tcx(each.ifindex, each.name, limits["BPF programs"])
    ]
    others = (kind for kind in known.incomplete if kind not in limits)
    return replace(
        known,
        links=tuple(links),
        uplinks=_uplinks(subject, links),
        programs=(*xdp, *sorted(tcx)),
        neighbours=tuple(sorted(static)),
        sysctls=tuple(sysctls.read(sorted(names)[:_MOST_UPLINKS])),
        legacy=tuple(sysctls.legacy_tables()),
        incomplete=(*others, *_exceeded(limits)),
    )


def _exceeded(limits: Mapping[str, Limit]) -> tuple[str, ...]:
    return tuple(kind for kind, limit in limits.items() if limit.is_exceeded)


def _uplinks(subject: Subject, links: Iterable[LinkFact]) -> tuple[int, ...]:
    return tuple(each.ifindex for each in links if each.name in subject.uplinks)


def _filters(qdiscs: Iterable[QdiscFact], limit: Limit) -> list[FilterFact]:
    found: list[FilterFact] = []
    for qdisc in qdiscs:
        try:
            found += traffic_control.filters(qdisc, limit)
        except OSError as error:  # such as EMSGSIZE, for a filter that is too long
            limit.is_exceeded |= error.errno not in _NO_FILTERS
    return found


def link_fact(link: Link) -> LinkFact:
    """Return an interface as a fact."""
    name = link.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    lower = (link.kind, link.peer_ifindex, link.peer_nsid)
    return LinkFact(link.ifindex, name, link.mac, link.master, *lower)


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
        fact = link_fact(link)
        links.append(fact)
        found += programs.xdp(link.ifindex, fact.name, values.get(_XDP))
    return sorted(links, key=lambda each: each.ifindex), sorted(found)


def _tables(subject: Subject, limit: Limit) -> ForeignTables:
    try:
        found = foreign_tables.read(subject.own_tables, _MOST)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.ENOENT, errno.EMSGSIZE}:
            raise
        # The kernel has no nf_tables, or an object has no room in a message.
        found = ForeignTables((), (), is_cut=error.errno == errno.EMSGSIZE)
    limit.is_exceeded = found.is_cut
    return found
