"""Tests of the findings about rules that stop accepted traffic."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ocsf_nft.check import firewalls, xtables
from ocsf_nft.check.accepted_flows import CheckScope
from ocsf_nft.check.blocking_rules import _remedy, _rule_text, judge
from ocsf_nft.check.finding import exit_code
from ocsf_nft.check.ruleset import ChainKey, Rule, Ruleset, from_json
from ocsf_nft.fence.values import subnet
from ocsf_nft.netns import Namespace


def test_remedy_depends_on_the_owner_of_the_rule() -> None:
    lasting = "are permanent"
    for owner, parts in (
        (
            firewalls.FIREWALLD,
            ("allow it in firewalld, with a separate zone and policy", lasting),
        ),
        (firewalls.UFW, ("allow it in ufw", lasting)),
        (
            firewalls.DOCKER,
            ("a restart removes the new rule", "Docker may insert its own rules before it again"),
        ),
        (firewalls.NFTABLES, ("a restart removes the new rule",)),
    ):
        remedy = _remedy(owner, has_commands=True)
        assert all(part in remedy for part in parts), (owner, remedy)
        assert (lasting in remedy) == (lasting in parts), (owner, remedy)
        assert ("again" in remedy) == (owner == firewalls.DOCKER), (owner, remedy)
    unwritable = _remedy(firewalls.FIREWALLD, has_commands=False)
    assert "make firewalld accept this traffic" in unwritable
    assert "no command is shown" in unwritable


def test_rule_is_shown_up_to_300_characters() -> None:
    key = ChainKey("legacy", "ip", "filter", "FORWARD")
    for text, shown in (("a" * 300, "a" * 300), ("a" * 301, "a" * 300 + "\u2026")):
        assert _rule_text(Rule(chain=key, statements=(), text=text), Namespace()) == shown


def test_judge_reports_32_rules_that_may_drop_and_counts_the_others() -> None:
    scope = CheckScope(
        namespace=Namespace(), device="vmtap-1", subnets=(subnet("172.16.0.1/30"),), port=3128
    )
    table = {"family": "inet", "table": "site"}
    unknown = {"match": {"op": "==", "left": {"numgen": {"mode": "random", "mod": 2}}, "right": 0}}
    for count, more in ((32, []), (33, ["1 more rules drop"]), (35, ["3 more rules drop"])):
        listed = [
            {"chain": {**table, "name": "c", "type": "filter", "hook": "forward", "prio": 0,
                       "policy": "accept"}},
            *({"rule": {**table, "chain": "c", "handle": handle, "expr": [unknown, {"drop": None}]}}
              for handle in range(1, count + 1)),
        ]  # fmt: skip
        found = list(judge(from_json({"nftables": listed}), scope))
        assert {each.name for each in found} == {"may-drop"}
        locations = [each.location for each in found]
        unlocated = [each for each, location in zip(found, locations, strict=True) if not location]
        assert [each.meaning[:17] for each in unlocated] == more
        handles = [location.handle for location in locations if location is not None]
        assert handles == list(range(1, 33)), count


def _refusing(table: str) -> list[dict[str, Any]]:
    """Return a table that refuses everything that is forwarded."""
    scope = {"family": "inet", "table": table}
    chain = {"type": "filter", "hook": "forward", "prio": 0, "policy": "accept"}
    return [
        {"chain": {**scope, "name": "forward", **chain}},
        {"rule": {**scope, "chain": "forward", "handle": 7, "expr": [{"drop": None}]}},
    ]


_VM = CheckScope(
    namespace=Namespace(), device="vmtap-1", subnets=(subnet("172.16.0.1/30"),), port=3128
)
_ANY_VM = replace(_VM, device="vmtap-*")


def test_active_fence_is_no_fault_and_no_command_opens_it() -> None:
    found = list(judge(from_json({"nftables": _refusing("ocsf_nft")}), _ANY_VM))
    assert [(each.name, each.severity) for each in found] == [
        ("active-fence", "info"),
        ("accepted", "ok"),
    ]
    assert found[0].meaning.startswith(
        "a fence of ocsf-nft is active here (table inet ocsf_nft): it refuses traffic from the VM"
    )
    assert all(each.commands == () for each in found)
    assert found[1].meaning.startswith("none of 0 other rules here")
    assert exit_code(found) == 0


def test_rule_of_another_program_is_a_fault_also_beside_an_active_fence() -> None:
    tables = _refusing("ocsf_nft") + _refusing("site")
    found = list(judge(from_json({"nftables": tables}), _ANY_VM))
    assert [(each.name, each.severity) for each in found] == [
        ("active-fence", "info"),
        ("drops", "blocked"),
    ]
    assert not any("ocsf_nft" in command for command in found[1].commands)
    assert found[1].commands


def test_fence_of_the_vm_itself_is_no_fault() -> None:
    tables = _refusing("ocsf_nft_vmtap-1")
    assert [each.name for each in judge(from_json({"nftables": tables}), _VM)] == [
        "active-fence",
        "accepted",
    ]


@pytest.mark.parametrize("table", ["ocsf_nft", "ocsf_nft_vmtap-2"])
def test_another_fence_that_blocks_the_vm_is_a_fault_without_commands(table: str) -> None:
    (finding,) = judge(from_json({"nftables": _refusing(table)}), _VM)
    assert (finding.name, finding.severity) == ("drops", "blocked")
    assert finding.commands == ()
    assert (finding.remedy or "").startswith("another fence blocks this traffic")


def test_scope_has_ipv6_flows_of_a_vm_if_a_subnet_or_an_uplink_has_ipv6() -> None:
    one4, one6 = subnet("172.16.0.1/30"), subnet("fd00:16::1/64")
    for subnets, uplinks, versions in (
        ((), {}, {4}),
        ((), {4: "eth0"}, {4}),
        ((), {6: "eth0"}, {4, 6}),
        ((one4,), {}, {4}),
        ((one6,), {}, {6}),
        ((one4, one6), {}, {4, 6}),
    ):
        scope = CheckScope(
            namespace=Namespace(), device="vmtap-1", subnets=subnets, port=3128, uplinks=uplinks
        )
        assert {flow.packet.version for flow in scope.flows()} == versions, (subnets, uplinks)


_ND = {"nd-neighbor-solicit", "nd-neighbor-advert"}


@pytest.mark.parametrize(
    "accepted",
    [
        ("l4proto", "ipv6-icmp"), ("l4proto", {"set": ["icmp", "ipv6-icmp"]}), ("l4proto", 58),
        ("type", "nd-neighbor-solicit"), ("type", {"set": sorted(_ND)}), ("pkttype", "multicast"),
        None,
    ],
    ids=str,
)  # fmt: skip
def test_input_chain_that_certainly_drops_neighbor_discovery_is_reported(
    accepted: tuple[str, Any] | None,
) -> None:
    scope = replace(_VM, subnets=(subnet("fd00:16::1/64"),), is_strict=True)
    table = {"family": "inet", "table": "site"}
    to_gateway = _equals({"payload": {"protocol": "tcp", "field": "dport"}}, 3128)
    rules = [[to_gateway, {"accept": None}]]
    if accepted is not None:
        key, value = accepted
        left: dict[str, Any] = {"meta": {"key": key}}
        if key == "type":
            left = {"payload": {"protocol": "icmpv6", "field": key}}
        rules.append([_equals(left, value), {"accept": None}])
    listed = [
        {"chain": {**table, "name": "c", "type": "filter", "hook": "input", "prio": 0,
                   "policy": "drop"}},
        *({"rule": {**table, "chain": "c", "expr": each}} for each in rules),
    ]  # fmt: skip
    found = [each.meaning for each in judge(from_json({"nftables": listed}), scope)]
    assert ("drops address resolution (icmpv6; IPv6)" in found[0]) == (accepted is None)
    assert len(found) == 1


def _equals(left: dict[str, Any], right: Any) -> dict[str, Any]:
    return {"match": {"op": "==", "left": left, "right": right}}


@pytest.mark.parametrize("is_accepted", [True, False])
def test_ip6tables_rule_for_a_type_of_icmpv6_may_accept_neighbor_discovery(
    is_accepted: bool,
) -> None:
    scope = replace(_VM, subnets=(subnet("fd00:16::1/64"),), is_strict=True)
    rule = "-A INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 135 -m hl --hl-eq 255 -j ACCEPT\n"
    saved = (
        "*filter\n:INPUT DROP [0:0]\n-A INPUT -p tcp -m tcp --dport 3128 -j ACCEPT\n"
        f"{rule if is_accepted else ''}COMMIT\n"
    )
    found = list(judge(Ruleset(chains=xtables.chains(saved, "ip6", "legacy")), scope))
    assert [each.name for each in found] == ["accepted" if is_accepted else "drops"]
    if not is_accepted:
        assert [command.split(" -I ")[1] for command in found[0].commands] == [
            f"INPUT -p ipv6-icmp --icmpv6-type {number} -m comment --comment ocsf-nft -j ACCEPT"
            for number in (135, 136)
        ]
