"""Rules and elements for the uplinks and own addresses, by what a survey has found."""

from __future__ import annotations

import dataclasses
import re
from ipaddress import ip_address, ip_network

import pytest

from ocsf_nft.fence import pinned_rules, ruleset
from ocsf_nft.fence.spec import FenceSpec, Surroundings, Uplink
from ocsf_nft.fence.values import endpoint, exception

_MAC = "02:00:00:00:00:07"
_PROXY4, _PROXY6 = endpoint("10.0.0.1:3128"), endpoint("[fd00::1]:3128")
_SANDBOX = FenceSpec(sandbox="a", proxies=(_PROXY4, _PROXY6))
_POD = FenceSpec(
    sandbox="a",
    proxy_uids=(7,),
    exceptions=(exception("tcp:10.0.0.1:3128"), exception("tcp:[fd00::1]:3128")),
)
_AROUND = Surroundings(
    links=("eth0", "n0"),
    uplinks=("eth0",),
    neighbours=(ip_address("10.0.0.1"), ip_address("fd00::1")),
    addresses=(ip_address("10.0.0.2"), ip_address("fd00::2")),
    macs=(_MAC,),
    pins=(Uplink(name="eth0", ifindex=3, mac=_MAC),),
    link_locals=(ip_address("fe80::ff:fe00:7"),),
    uplink_indexes=(3,),
    outer_indexes=(3, 4),
)
_UNPINNED = dataclasses.replace(_AROUND, pins=(), link_locals=())


def _matches(spec: FenceSpec, around: Surroundings) -> set[str]:
    """Return the sets of own values that the rules for packets of a fence name, or compare with."""
    text = ruleset.fence(spec, around, "nflog")
    reached = _reached(text)
    for name, elements in pinned_rules.elements(around).items():
        if name in {"own4", "own6"} and len(elements) == 1:
            reached = re.sub(rf"(saddr(?: ip)?) {elements[0]} ", rf"\1 @{name} ", reached)
    return set(re.findall(r"[@$](own\w+|outer)\b", reached))


def _reached(text: str) -> str:
    """Return the rules of a ruleset, without the chains of its text that nothing refers to."""
    parts = re.split(r"^\tchain (?=\w+ \{$)", text, flags=re.MULTILINE)[1:]
    chains: dict[str, str] = {}
    for part in parts:
        name = part.partition(" ")[0]
        chains[name] = chains.get(name, "") + part
    reached = {name for name, part in chains.items() if " hook " in part}
    while True:
        found = {
            target
            for name in reached
            for target in re.findall(r"(?:jump|goto) (\w+)", chains[name])
        }
        if found & set(chains) <= reached:
            return "".join(chains[name] for name in sorted(reached))
        reached |= found & set(chains)


def test_fence_with_a_route_matches_all_own_values() -> None:
    assert _matches(_SANDBOX, _AROUND) == {"own4", "own6", "own_macs", "own_options", "outer"}
    assert _matches(_POD, _AROUND) == {"own4", "own6", "own_macs", "own_options"}
    for spec in (_SANDBOX, _POD):
        text = ruleset.fence(spec, _AROUND, "nflog")
        assert "define own_options = { 0x0101020000000007, 0x0201020000000007 }" in text
        for family in ("inet", "netdev"):
            assert f"add element {family} ocsf_nft uplinks {{ 3 }}" in text
            assert f"add element {family} ocsf_nft own4 {{ 10.0.0.2 }}" in text
            assert f"add element {family} ocsf_nft own6 {{ fd00::2, fe80::ff:fe00:7 }}" in text
    groups = "ff02::1:ff00:1, ff02::1:ff00:2, ff02::1:ff00:7"
    assert f"solicited6 {{ {groups} }}" in ruleset.fence(_SANDBOX, _AROUND, "nflog")


def test_own_addresses_of_a_fence_do_not_depend_on_its_guard() -> None:
    """A guard has the link-local addresses in a set of its own."""
    guarded = dataclasses.replace(_SANDBOX, guard_device="veth7")
    assert ruleset.fence(guarded, _AROUND, "nflog") == ruleset.fence(_SANDBOX, _AROUND, "nflog")
    text = ruleset.guard(guarded, _AROUND, "nflog")
    assert "own6 { fd00::2 }" in text


def test_fence_with_a_route_looks_up_no_source() -> None:
    """An own address was local when it was pinned."""
    local = re.compile(r"fib saddr type local (?:ip6? [sd]addr|fib daddr)")
    for spec in (_SANDBOX, _POD):
        assert not local.search(ruleset.fence(spec, _AROUND, "nflog"))
        assert len(local.findall(ruleset.fence(spec, _UNPINNED, "nflog"))) == 2


@pytest.mark.parametrize("spec", [_SANDBOX, _POD], ids=["sandbox", "pod"])
def test_fence_without_a_route_matches_no_own_value(spec: FenceSpec) -> None:
    assert _matches(spec, _UNPINNED) <= {"outer"}
    text = ruleset.fence(spec, _UNPINNED, "nflog")
    assert "add element inet ocsf_nft uplinks { 3 }" in text
    assert " own" not in "".join(re.findall("^add element.*", text, re.MULTILINE))


@pytest.mark.parametrize("spec", [_SANDBOX, _POD], ids=["sandbox", "pod"])
def test_fence_matches_addresses_of_a_version_that_has_some(spec: FenceSpec) -> None:
    only4 = dataclasses.replace(_AROUND, addresses=_AROUND.addresses[:1])
    assert _matches(spec, only4) & {"own4", "own6", "own_options"} == {"own4"}
    only6 = dataclasses.replace(_AROUND, addresses=_AROUND.addresses[1:])
    assert _matches(spec, only6) & {"own4", "own6"} == {"own6"}
    # If no destination has an IPv6 address, a sandbox needs no more than its link-local ones.
    without6 = FenceSpec(sandbox="a", proxies=(_PROXY4,))
    assert "own6" in _matches(without6, only4)


def test_fence_on_uplinks_without_link_addresses_matches_none() -> None:
    tunnel = dataclasses.replace(_AROUND, pins=(Uplink(name="tun0", ifindex=3),), macs=())
    for spec in (_SANDBOX, _POD):
        assert not _matches(spec, tunnel) & {"own_macs", "own_options"}
        assert "own4" in _matches(spec, tunnel)


def test_fence_with_a_missing_uplink_answers_on_no_link() -> None:
    missing = dataclasses.replace(_AROUND, missing=("eth0",))
    text = _reached(ruleset.fence(_SANDBOX, missing, "nflog"))
    assert "@outer" not in text
    output = text[text.index("type filter hook output") :]
    # The rest of the chain is for nested namespaces.
    assert "\t\tgoto refuse_egress\n\t\tip6 nexthdr icmpv6" in output
    assert "\t\tgoto refuse_link\n\t\tether type arp meta length <= 60" in text
    forward = text[text.index("type filter hook forward") :]
    assert forward.index("\t\tdrop\n") < forward.index("reject")


def test_options_are_those_of_each_uplink() -> None:
    two = dataclasses.replace(_AROUND, macs=(_MAC, "02:00:00:00:00:09"))
    assert pinned_rules.options(two) == [
        "0x0101020000000007", "0x0101020000000009", "0x0201020000000007", "0x0201020000000009",
    ]  # fmt: skip
    assert pinned_rules.options(_UNPINNED) == []


def test_pod_resolves_in_each_network_of_its_links_alone() -> None:
    networks = tuple(map(ip_network, ("10.0.0.0/24", "192.0.2.0/25", "fd00::/64")))
    text = ruleset.fence(_POD, dataclasses.replace(_AROUND, link_networks=networks), "nflog")
    for network, rules in (("10.0.0.0/24", 1), ("192.0.2.0/25", 1), ("fd00::/64", 6)):
        assert len(re.findall(rf" {network} .*accept$", text, re.MULTILINE)) == rules
    for each in (text, ruleset.fence(_POD, _AROUND, "nflog")):
        assert "link4" not in each
        assert "link6" not in each


def test_pod_without_an_ipv6_address_sends_from_its_link_local_ones_alone() -> None:
    only4 = dataclasses.replace(_AROUND, addresses=_AROUND.addresses[:1])
    assert "own6" in _matches(dataclasses.replace(_POD, exceptions=()), only4)
