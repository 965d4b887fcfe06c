"""Comparison of two snapshots of a fence's surroundings: the changes that weaken the fence.

| change | severity | undone |
|---|---|---|
| base chain of another table on a netdev hook, or on ``ingress`` | High | yes |
| rule of another table that rewrites, copies or redirects packets | Medium | no |
| qdisc that may have filters or that changes packets, and a filter | High | yes |
| XDP program | High | yes |
| tcx program | High | no |
| uplink left the namespace | High | no |
| uplink was replaced or renamed; has another MAC address or a master | Medium | no |
| interface with its lower interface in another namespace | High or Medium | see below |
| pair of interfaces with one end in the namespace of the uplinks' other ends | High | see below |
| policy routing rule | Medium | no |
| another next hop or interface towards an allowed address | Medium | no |
| encapsulation of packets to an allowed address | High | no |
| static neighbour entry of an allowed address or its gateway | High | yes |
| sysctl with a weaker value | Medium | yes |
| table of legacy iptables that rewrites packets | Medium | no |
| objects of a kind that can't be read, or are more than the limit | Medium | no |
| change after which sent frames can't be compared (``comparison``, from the service) | High | no |

An interface with a lower interface in another namespace (macvlan, ipvlan, tunnels) sends there what
no fence and no guard sees. An engine may attach one, and so may a process inside that has
CAP_NET_ADMIN over both namespaces. It is High and undone if there is such a process, and Medium if
there is none: see :mod:`ocsf_nft.fence.surroundings.link_makers`. A pair (veth) is the usual way to
attach a network. So it is a change only if there is such a process, and undone only if its other
end was moved away from inside.

Other changes do not weaken the fence, because its rules name what they allow: new interfaces and
addresses, other routes, other neighbours, chains that only accept or drop, forwarding.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from ocsf_nft.fence.surroundings.facts import UNKNOWN_KIND, HookFact, LinkFact, Snapshot
from ocsf_nft.fence.surroundings.names import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.fence.surroundings.facts import (
        Fact,
        FilterFact,
        NeighbourFact,
        ProgramFact,
        QdiscFact,
        RouteFact,
        SysctlFact,
    )

#: Kind of object that has changed.
Kind: TypeAlias = Literal[
    "chain", "rule", "qdisc", "filter", "xdp", "tcx", "link", "departure", "route", "routing rule",
    "encapsulation", "foreign link", "foreign pair",
    "neighbour", "sysctl", "iptables", "limit",
    "comparison",
]  # fmt: skip

#: Kinds whose objects bypass the fence or rewrite packets after it.
_HIGH: Final = frozenset({
    "chain", "qdisc", "filter", "xdp", "tcx", "departure", "foreign link",
    "foreign pair", "neighbour",
})  # fmt: skip
_UNDONE: Final = frozenset({"chain", "qdisc", "filter", "xdp", "neighbour", "sysctl"})
#: Kinds of interfaces that are pairs. An engine attaches one end of a pair to the namespace.
PAIRS: Final = frozenset({"veth", "netkit"})
#: Kinds of changes whose maker is unknown: a process inside, or the host.
FOREIGN: Final = frozenset({"foreign link", "foreign pair"})
_ACCEPT: Final = "remove the fence and install it again to accept this"
_INGRESS, _EGRESS = "ingress", "egress"
#: A smaller value of these sysctls is the weaker one.
_STRONGER_IF_GREATER: Final = frozenset({"arp_ignore"})


@dataclass(frozen=True, slots=True)
class SurroundingChange:
    """Change of a fence's surroundings that weakens the fence.

    Two changes are equal if their kind and their ``key`` are: the names of interfaces in the texts
    may change meanwhile.
    """

    kind: Kind
    key: tuple[object, ...]
    #: Description for people, such as "a tc qdisc clsact was added on lo".
    text: str = field(compare=False)
    #: Object that was added, or that has changed.
    fact: Fact | None = field(default=None, compare=False)
    #: Earlier value of the object; None if it is new.
    before: Fact | None = field(default=None, compare=False)
    #: Whether it can let packets past the fence by itself.
    is_severe: bool = field(default=False, compare=False)
    #: Of a foreign link or pair: whether a process inside can have made it; None if unknown.
    is_from_inside: bool | None = field(default=None, compare=False)

    @property
    def can_be_undone(self) -> bool:
        """Return True if the object can be deleted, or its value restored, without harm."""
        is_undone = self.kind in _UNDONE or bool(self.is_from_inside)
        return is_undone and self.fact is not None

    def by(self, *, inside: bool | None) -> SurroundingChange:
        """Return a foreign link or pair with the answer: can a process inside have made it."""
        return replace(self, is_from_inside=inside, is_severe=inside is not False)


def accepted(snapshot: Snapshot) -> tuple[SurroundingChange, ...]:
    """Return what weakened the fence already when ``snapshot`` was made, and was accepted."""
    return weakening(Snapshot(), snapshot)


def weakening(before: Snapshot, now: Snapshot) -> tuple[SurroundingChange, ...]:
    """Return the changes between two snapshots that weaken the fence.

    The result has no duplicates, and the changes of equal snapshots are an empty tuple.
    """
    found = [
        *_hooks(before, now),
        *_rewrites(before, now),
        *_traffic_control(before, now),
        *_programs(before, now),
        *_links(before, now),
        *_foreign_links(before, now),
        *_routing(before, now),
        *_neighbours(before, now),
        *_sysctls(before, now),
        *_others(before, now),
    ]
    return tuple(dict.fromkeys(found))


def _change(
    kind: Kind,
    key: tuple[object, ...],
    text: str,
    fact: Fact | None = None,
    before: Fact | None = None,
) -> SurroundingChange:
    return SurroundingChange(kind, key, text, fact, before, kind in _HIGH)


def _hooks(before: Snapshot, now: Snapshot) -> Iterator[SurroundingChange]:
    known = {each._replace(table_hex="") for each in before.hooks}
    accepted_chains = {_chain_key(each): each for each in before.hooks}
    for each in now.hooks:
        if each._replace(table_hex="") in known or each.hook not in {_INGRESS, _EGRESS}:
            continue
        after = ", after the fence has judged" if each.hook == _EGRESS else ""
        text = (
            f"a chain {shown(each.chain)} of table {each.family} {shown(each.table)} hooks "
            f"{each.hook} of {each.device or 'no interface'} with priority {each.priority}{after}"
        )
        yield _change("chain", each, text, each, accepted_chains.get(_chain_key(each)))


def _chain_key(fact: HookFact) -> tuple[str, int, int]:
    return fact.family, fact.table_handle, fact.chain_handle


def _rewrites(before: Snapshot, now: Snapshot) -> Iterator[SurroundingChange]:
    known = {(each.family, each.table_handle, each.handle) for each in before.rewrites}
    # A table without base chains gets no packets.
    hooked = {(each.family, each.table_handle) for each in now.hooks}
    for each in now.rewrites:
        if (each.family, each.table_handle) not in hooked:
            continue
        if (each.family, each.table_handle, each.handle) not in known:
            text = (
                f"a rule with the statement {each.statement} was added to chain "
                f"{shown(each.chain)} of table {each.family} {shown(each.table)}"
            )
            yield _change("rule", each, text, each)


def _traffic_control(before: Snapshot, now: Snapshot) -> Iterator[SurroundingChange]:
    known = {*map(_key, before.qdiscs), *map(_key, before.filters)}
    for qdisc in now.qdiscs:
        if _key(qdisc) not in known:
            text = f"a tc qdisc {qdisc.kind} was added on {qdisc.link}"
            yield _change("qdisc", _key(qdisc), text, qdisc)
    for one in now.filters:
        if _key(one) not in known:
            text = f"a tc filter {one.kind} was added on {one.link}"
            yield _change("filter", _key(one), text, one)


def _key(fact: QdiscFact | FilterFact | ProgramFact | NeighbourFact) -> tuple[object, ...]:
    """Return the fact without the name of its interface, which may change."""
    return tuple(fact._replace(link=""))


def _programs(before: Snapshot, now: Snapshot) -> Iterator[SurroundingChange]:
    known = {_key(each) for each in before.programs}
    for each in now.programs:
        if _key(each) not in known:
            what = "an XDP program" if each.hook == "xdp" else f"a BPF program of {each.hook}"
            text = f"{what} (id {each.program}) was attached to {each.link}"
            yield _change("xdp" if each.hook == "xdp" else "tcx", _key(each), text, each)


def _links(before: Snapshot, now: Snapshot) -> Iterator[SurroundingChange]:
    by_index = {each.ifindex: each for each in now.links}
    names = {each.name for each in now.links}
    for was in before.links:
        if was.ifindex not in before.uplinks:
            continue
        key = (was.ifindex,)
        found = by_index.get(was.ifindex)
        if found is None and was.name in names:
            text = f"the uplink {was.name} was replaced by another interface"
            yield _change("link", key, text, None, was)
        elif found is None:
            text = f"the uplink {was.name} left the namespace"
            yield _change("departure", key, text, None, was)
        else:
            yield from _uplink(was, found)


def _uplink(was: LinkFact, now: LinkFact) -> Iterator[SurroundingChange]:
    if now.name != was.name:
        text = f"the uplink {was.name} was renamed to {now.name}"
        yield _change("link", (was.ifindex, "name", now.name), text, now, was)
    if now.mac != was.mac:
        text = f"the uplink {was.name} has the MAC address {now.mac} in place of {was.mac}"
        yield _change("link", (was.ifindex, "mac", now.mac), text, now, was)
    if now.master != was.master and now.master is not None:
        text = f"the uplink {was.name} became a port of the interface with index {now.master}"
        yield _change("link", (was.ifindex, "master", now.master), text, now, was)


def _foreign_links(before: Snapshot, now: Snapshot) -> Iterator[SurroundingChange]:
    if not before.uplinks:  # the fence was there before the network
        return
    known = {each.ifindex: each for each in before.links}
    outside = outer_numbers(before)
    for each in now.links:
        is_pair = each.kind in PAIRS
        if each.lower_nsid is None or (is_pair and each.lower_nsid not in outside):
            continue
        was = known.get(each.ifindex)
        if was is not None and (was.kind == UNKNOWN_KIND or _lower(was) == _lower(each)):
            continue
        text = (
            f"an interface {each.name} ({each.kind}) was added that leads to the interface "
            f"with index {each.lower or 0} of another namespace (number {each.lower_nsid}; "
            f"{_ACCEPT})"
        )
        kind: Kind = "foreign pair" if is_pair else "foreign link"
        yield _change(kind, (each.ifindex, *_lower(each)), text, each)


def outer_numbers(snapshot: Snapshot) -> set[int]:
    """Return the numbers of the namespaces where the uplinks have their other ends."""
    return {
        each.lower_nsid
        for each in snapshot.links
        if each.ifindex in snapshot.uplinks and each.lower_nsid is not None
    }


def moved_on(link: LinkFact, target: int) -> SurroundingChange:
    """Return the change that a link to the host was moved into a third namespace."""
    text = (
        f"an interface {link.name} ({link.kind}) that leads to the interface with index "
        f"{link.lower or 0} of another namespace (number {link.lower_nsid}) was moved to the "
        f"namespace with number {target}, where no fence is"
    )
    kind: Kind = "foreign pair" if link.kind in PAIRS else "foreign link"
    return _change(kind, ("moved", link.ifindex, *_lower(link)), text, None, link)


def _lower(link: LinkFact) -> tuple[object, ...]:
    return link.kind, link.lower, link.lower_nsid


def _routing(before: Snapshot, now: Snapshot) -> Iterator[SurroundingChange]:
    known_rules = {*before.rules}
    for rule in now.rules:
        if rule not in known_rules:
            text = f"a policy routing rule of IPv{rule.version} was added, priority {rule.priority}"
            yield _change("routing rule", rule, text, rule)
    known = {each.destination: each for each in before.routes}
    for route in now.routes:
        was = known.get(route.destination)
        # Without a route no packet leaves; the first route has to be on an uplink of the fence.
        if route.ifindex is None or (was is not None and was.ifindex is None):
            continue
        if route.encapsulation and (was is None or route.encapsulation != was.encapsulation):
            text = f"packets to {route.destination} are encapsulated"
            yield SurroundingChange("encapsulation", route, text, route, was, is_severe=True)
        elif was is not None and _hop(route) != _hop(was):
            text = f"the route to {route.destination} has another next hop or interface"
            yield _change("route", route, f"{text}: {_hop_text(route, now)}", route, was)


def _hop(route: RouteFact) -> tuple[int | None, str | None]:
    return route.ifindex, route.gateway


def _hop_text(route: RouteFact, now: Snapshot) -> str:
    name = next((each.name for each in now.links if each.ifindex == route.ifindex), "lo")
    return f"{'directly' if route.gateway is None else f'by {route.gateway}'} on {name}"


def _neighbours(before: Snapshot, now: Snapshot) -> Iterator[SurroundingChange]:
    known = {_key(each) for each in before.neighbours}
    for each in now.neighbours:
        if _key(each) not in known:
            text = f"a static neighbour entry sends {each.address} on {each.link} to {each.mac}"
            yield _change("neighbour", _key(each), text, each)


def _sysctls(before: Snapshot, now: Snapshot) -> Iterator[SurroundingChange]:
    known = {each.key: each for each in before.sysctls}
    for each in now.sysctls:
        was = known.get(each.key)
        if was is not None and _is_weaker(each, was):
            name = "net." + each.key.replace("/", ".")
            text = f"the sysctl {name} was set from {was.value} to {each.value}"
            yield _change("sysctl", each, text, each, was)


def _is_weaker(now: SysctlFact, was: SysctlFact) -> bool:
    if now.key.rpartition("/")[2] in _STRONGER_IF_GREATER:
        return now.value < was.value
    return now.value > was.value


def _others(before: Snapshot, now: Snapshot) -> Iterator[SurroundingChange]:
    for name in now.legacy:
        if name not in before.legacy:
            yield _change("iptables", (name,), f"the table {name} of legacy iptables was created")
    for kind in now.incomplete:
        if kind not in before.incomplete:
            text = f"not all {kind} can be checked: there are too many, or some can't be read"
            yield _change("limit", (kind,), text)
