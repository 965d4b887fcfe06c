"""Tests of the findings about rules that stop accepted traffic."""

from __future__ import annotations

from ocsf_nft.check import chain_owner
from ocsf_nft.check.diagnosis import CheckScope, _remedy, _rule_text, judge
from ocsf_nft.check.ruleset import ChainKey, Rule, from_json
from ocsf_nft.fence.values import subnet
from ocsf_nft.netns import Namespace


def test_remedy_depends_on_the_owner_of_the_rule() -> None:
    lasting = "are permanent"
    for owner, parts in (
        (chain_owner.OURS, ("install it again",)),
        (
            chain_owner.FIREWALLD,
            ("allow it in firewalld, with a separate zone and policy", lasting),
        ),
        (chain_owner.UFW, ("allow it in ufw", lasting)),
        (
            chain_owner.DOCKER,
            ("a restart removes the new rule", "Docker may insert its own rules before it again"),
        ),
        (chain_owner.NFTABLES, ("a restart removes the new rule",)),
    ):
        remedy = _remedy(owner, has_commands=True)
        assert all(part in remedy for part in parts), (owner, remedy)
        assert (lasting in remedy) == (lasting in parts), (owner, remedy)
        assert ("again" in remedy) == (owner in {chain_owner.DOCKER, chain_owner.OURS}), (
            owner,
            remedy,
        )
    unwritable = _remedy(chain_owner.FIREWALLD, has_commands=False)
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
