from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocsf_nft.fence.surroundings.changes import accepted, weakening
from ocsf_nft.fence.surroundings.facts import (
    UNKNOWN_KIND,
    FilterFact,
    HookFact,
    LinkFact,
    NeighbourFact,
    ProgramFact,
    QdiscFact,
    RewriteFact,
    RouteFact,
    RuleFact,
    Snapshot,
    SysctlFact,
)

_UPLINK = LinkFact(2, "eth0", "02:00:00:00:00:02", None)
_FOREIGN = LinkFact(5, "m0", "02:00:00:00:00:05", None, "macvlan", 3, 0)
_LATE = HookFact("netdev", "x", 7, "late", 8, "egress", 10, "eth0")
_NAT = HookFact("ip", "nat", 9, "out", 3, "output", -100, None)
_ROUTE = RouteFact("10.0.0.1", 2, None, 0)
_SYSCTL = SysctlFact("ipv4/conf/all/route_localnet", 0)
_BASE = Snapshot(
    links=(LinkFact(1, "lo", None, None), _UPLINK), uplinks=(2,), hooks=(_NAT,), routes=(_ROUTE,),
    sysctls=(_SYSCTL, SysctlFact("ipv4/conf/all/arp_ignore", 1)),
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "text", "kind", "is_severe", "can_be_undone"),
    [
        ({"hooks": (_NAT, _LATE)},
         "hooks egress of eth0 with priority 10, after the fence has judged", "chain", True, True),
        ({"rewrites": (RewriteFact("ip", "nat", 9, "out", 12, "nat"),)},
         "a rule with the statement nat was added to chain out of table ip nat", "rule", False,
         False),
        # A name can't be taken for a part of the sentence.
        ({"rewrites": (RewriteFact("ip", 'x", by sshd[812]; undone', 9, "é" * 99, 12, "nat"),)},
         f'to chain "{"é" * 63}…" of table ip "x\', by sshd[812]; undone"', "rule", False, False),
        ({"qdiscs": (QdiscFact(1, "lo", "clsact", 1, 2),)}, "a tc qdisc clsact was added on lo",
         "qdisc", True, True),
        ({"filters": (FilterFact(1, "lo", "u32", 1, 2, 3),)}, "a tc filter u32 was added on lo",
         "filter", True, True),
        ({"programs": (ProgramFact(2, "eth0", "xdp", 2, 99),)},
         "an XDP program (id 99) was attached to eth0", "xdp", True, True),
        ({"programs": (ProgramFact(2, "eth0", "tcx egress", 0, 99),)},
         "a BPF program of tcx egress (id 99) was attached to eth0", "tcx", True, False),
        ({"links": ()}, "the uplink eth0 left the namespace", "departure", True, False),
        ({"links": (_UPLINK._replace(ifindex=9),)},
         "the uplink eth0 was replaced by another interface", "link", False, False),
        ({"links": (_UPLINK._replace(name="x"),)}, "the uplink eth0 was renamed to x", "link",
         False, False),
        ({"links": (_UPLINK._replace(master=7),)},
         "the uplink eth0 became a port of the interface with index 7", "link", False, False),
        ({"links": (_UPLINK, _FOREIGN)},
         "an interface m0 (macvlan) was added that leads to the interface with index 3 of another",
         "foreign link", True, False),
        ({"rules": (RuleFact(6, 5, "00"),)}, "a policy routing rule of IPv6 was added, priority 5",
         "routing rule", False, False),
        ({"routes": (_ROUTE._replace(gateway="10.0.0.9"),)},
         "the route to 10.0.0.1 has another next hop or interface: by 10.0.0.9 on eth0", "route",
         False, False),
        ({"routes": (_ROUTE._replace(encapsulation=2),)}, "packets to 10.0.0.1 are encapsulated",
         "encapsulation", True, False),
        ({"neighbours": (NeighbourFact(2, "eth0", "10.0.0.1", "02:"),)},
         "a static neighbour entry sends 10.0.0.1 on eth0 to 02:", "neighbour", True, True),
        ({"sysctls": (_SYSCTL._replace(value=1),)},
         "the sysctl net.ipv4.conf.all.route_localnet was set from 0 to 1", "sysctl", False, True),
        ({"sysctls": (SysctlFact("ipv4/conf/all/arp_ignore", 0),)},
         "the sysctl net.ipv4.conf.all.arp_ignore was set from 1 to 0", "sysctl", False, True),
        ({"legacy": ("ip nat",)}, "the table ip nat of legacy iptables was created", "iptables",
         False, False),
        ({"incomplete": ("tc filters",)}, "not all tc filters can be checked", "limit", False,
         False),
    ],
)  # fmt: skip
def test_each_weakening_change_is_described(
    change: dict[str, Any], text: str, kind: str, is_severe: bool, can_be_undone: bool
) -> None:
    (found,) = weakening(_BASE, replace(_BASE, **change))
    assert text in found.text
    assert (found.kind, found.is_severe, found.can_be_undone) == (kind, is_severe, can_be_undone)


@pytest.mark.parametrize(
    "change",
    [
        {"links": (*_BASE.links, LinkFact(5, "nested", None, None))},
        {"links": (LinkFact(1, "lo", None, 4), _UPLINK)},
        {"routes": (_ROUTE._replace(ifindex=None),)},
        {"routes": (*_BASE.routes, RouteFact("10.0.0.2", 2, None, 0))},
        {"sysctls": (_SYSCTL._replace(value=-1),)},
        {"sysctls": (SysctlFact("ipv4/conf/all/arp_ignore", 2),)},
        {"hooks": (_NAT, _NAT._replace(chain="in", chain_handle=4, hook="input"))},
        # No packet gets to a table without a base chain.
        {"rewrites": (RewriteFact("ip", "unused", 20, "out", 12, "nat"),)},
        {"hooks": (), "routes": (), "sysctls": ()},
    ],
)
def test_ordinary_change_is_none(change: dict[str, Any]) -> None:
    assert weakening(_BASE, replace(_BASE, **change)) == ()


def test_accepted_table_that_is_created_again_is_a_change() -> None:
    rule = RewriteFact("ip", "nat", 9, "out", 12, "nat")
    before = replace(_BASE, rewrites=(rule,))
    again = replace(
        before, rewrites=(rule._replace(table_handle=10),), hooks=(_NAT._replace(table_handle=10),)
    )
    assert [each.kind for each in weakening(before, again)] == ["rule"]
    assert weakening(before, before) == ()
    assert [each.kind for each in accepted(before)] == ["rule"]


def test_change_stays_the_same_if_its_interface_is_renamed() -> None:
    lo = QdiscFact(1, "lo", "clsact", 1, 2)
    (before,) = weakening(_BASE, replace(_BASE, qdiscs=(lo,)))
    (after,) = weakening(_BASE, replace(_BASE, qdiscs=(lo._replace(link="other"),)))
    assert before == after
    assert before.text != after.text


@settings(max_examples=30, deadline=None)
@given(before=st.from_type(Snapshot), now=st.from_type(Snapshot))
def test_changes_are_distinct_and_none_of_equal_snapshots(before: Snapshot, now: Snapshot) -> None:
    found = weakening(before, now)
    assert len(set(found)) == len(found)
    assert (
        weakening(before, before) == ()
        or len(set(before.links)) > len({each.ifindex for each in before.links})
        or _has_conflicts(before)
    )


def _has_conflicts(snapshot: Snapshot) -> bool:
    """Return True for facts that no kernel has: two values of one object."""
    for keys in (
        [each.destination for each in snapshot.routes],
        [each.key for each in snapshot.sysctls],
        [each.ifindex for each in snapshot.links],
    ):
        if len(set(keys)) < len(keys):
            return True
    return False


@settings(max_examples=30, deadline=None)
@given(now=st.from_type(Snapshot), data=st.data())
def test_objects_that_end_are_no_change(now: Snapshot, data: st.DataObject) -> None:
    names = [each.name for each in fields(Snapshot) if each.name not in {"links", "uplinks"}]
    name = data.draw(st.sampled_from(names))
    fewer = replace(now, **{name: ()})
    if not _has_conflicts(now):
        assert weakening(now, fewer) == ()


@pytest.mark.parametrize(
    "link",
    [
        _FOREIGN._replace(lower_nsid=None),  # on an interface of the namespace itself
        _FOREIGN._replace(kind="veth"),
        LinkFact(6, "d0", None, None, "dummy"),
    ],
)
def test_links_that_stay_in_the_namespace_and_pairs_are_no_foreign_links(link: LinkFact) -> None:
    assert not weakening(_BASE, replace(_BASE, links=(*_BASE.links, link)))


def test_foreign_link_before_the_first_uplink_is_accepted() -> None:
    """A fence may be installed before the engine connects its namespace."""
    before = Snapshot(links=(LinkFact(1, "lo", None, None),))
    assert not weakening(before, replace(before, links=(*before.links, _FOREIGN)))


def test_link_that_was_made_again_elsewhere_is_a_foreign_link() -> None:
    was = _FOREIGN._replace(kind="dummy", lower=None, lower_nsid=None)
    before = replace(_BASE, links=(*_BASE.links, was))
    (change,) = weakening(before, replace(_BASE, links=(*_BASE.links, _FOREIGN)))
    assert change.kind == "foreign link"
    old = _FOREIGN._replace(kind=UNKNOWN_KIND, lower=None, lower_nsid=None)
    before = replace(_BASE, links=(*_BASE.links, old))
    assert not weakening(before, replace(_BASE, links=(*_BASE.links, _FOREIGN)))


@pytest.mark.parametrize(
    ("inside", "is_severe", "can_be_undone"),
    [(True, True, True), (None, True, False), (False, False, False)],
)
def test_foreign_link_is_undone_only_if_a_process_inside_can_have_made_it(
    inside: bool | None, is_severe: bool, can_be_undone: bool
) -> None:
    (change,) = weakening(_BASE, replace(_BASE, links=(*_BASE.links, _FOREIGN)))
    judged = change.by(inside=inside)
    assert (judged.is_severe, judged.can_be_undone) == (is_severe, can_be_undone)
    assert judged == change
