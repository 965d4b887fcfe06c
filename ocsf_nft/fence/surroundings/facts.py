"""Facts about the surroundings of a fence, as they are found in its network namespace.

All names come from the namespace's owner, who is not trusted. Bytes that are not UTF-8 are
replaced by an escape, so that each text can be stored. Such a text is not sent back to the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

#: Kind of an interface in the record of an earlier version.
UNKNOWN_KIND: Final = "?"


class LinkFact(NamedTuple):
    """Interface: its name in the kernel, its MAC address, its master and its lower interface."""

    ifindex: int
    name: str
    mac: str | None
    #: Index of the bridge, bond or VRF that it is a port of.
    master: int | None
    #: Type of a virtual interface, such as ``macvlan``; None for hardware.
    kind: str | None = UNKNOWN_KIND
    #: Index of the lower interface, or of the other end of a pair.
    lower: int | None = None
    #: Number of the namespace of ``lower``, as this namespace numbers it. None: this one.
    lower_nsid: int | None = None


class HookFact(NamedTuple):
    """Base chain of a table that is not the fence's, on one hook; ``device`` if it is of one.

    ``table_hex`` has the bytes of the table's name, which need not be UTF-8. It is empty in a
    record of an older version.
    """

    family: str
    table: str
    table_handle: int
    chain: str
    chain_handle: int
    hook: str
    priority: int
    device: str | None
    table_hex: str = ""


class RewriteFact(NamedTuple):
    """Rule of a table that is not the fence's, which changes, copies or redirects packets.

    ``statement`` is the name of the expression, such as ``nat``.
    """

    family: str
    table: str
    table_handle: int
    chain: str
    handle: int
    statement: str


class QdiscFact(NamedTuple):
    """Queueing discipline of an interface that may have filters, or that changes packets."""

    ifindex: int
    link: str
    kind: str
    handle: int
    parent: int


class FilterFact(NamedTuple):
    """Traffic control filter of an interface."""

    ifindex: int
    link: str
    kind: str
    parent: int
    #: Priority and protocol (``tcm_info``).
    info: int
    handle: int


class ProgramFact(NamedTuple):
    """BPF program on an interface; ``hook`` is ``xdp`` or that of tcx, ``mode`` that of XDP."""

    ifindex: int
    link: str
    hook: str
    mode: int
    program: int


class RuleFact(NamedTuple):
    """Policy routing rule, as ``version`` of IP, ``priority`` and all its attributes in hex."""

    version: int
    priority: int
    content: str


class RouteFact(NamedTuple):
    """Route to an allowed address; ``encapsulation`` is the number of its type, 0 for none."""

    destination: str
    ifindex: int | None
    gateway: str | None
    encapsulation: int


class NeighbourFact(NamedTuple):
    """Static neighbour entry of an allowed address or of a gateway towards one."""

    ifindex: int
    link: str
    address: str
    mac: str


class SysctlFact(NamedTuple):
    """Value of a sysctl; ``key`` is its path below ``/proc/sys/net``."""

    key: str
    value: int


Fact: TypeAlias = (
    "LinkFact | HookFact | RewriteFact | QdiscFact | FilterFact | ProgramFact | RuleFact"
    " | RouteFact | NeighbourFact | SysctlFact"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Surroundings of a fence at one time; each tuple is sorted."""

    links: tuple[LinkFact, ...] = ()
    #: Indexes of the fence's uplinks.
    uplinks: tuple[int, ...] = ()
    hooks: tuple[HookFact, ...] = ()
    rewrites: tuple[RewriteFact, ...] = ()
    qdiscs: tuple[QdiscFact, ...] = ()
    filters: tuple[FilterFact, ...] = ()
    programs: tuple[ProgramFact, ...] = ()
    rules: tuple[RuleFact, ...] = ()
    routes: tuple[RouteFact, ...] = ()
    neighbours: tuple[NeighbourFact, ...] = ()
    sysctls: tuple[SysctlFact, ...] = ()
    #: Names of the tables of legacy iptables, such as ``ip nat``.
    legacy: tuple[str, ...] = ()
    #: Kinds of facts of which there are more than the limit, or that can't be read.
    incomplete: tuple[str, ...] = field(default=())
