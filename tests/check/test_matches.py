"""Tests of the packets that a rule stops, by its matches and statements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.check import hook_path
from ocsf_nft.check.accepted_flows import CheckScope
from ocsf_nft.check.blocking_rules import judge
from ocsf_nft.check.chain_walk import Walker
from ocsf_nft.check.ruleset import from_json
from ocsf_nft.fence.values import subnet
from ocsf_nft.netns import Namespace

if TYPE_CHECKING:
    from ocsf_nft.check.ruleset import Ruleset

_TABLE = {"family": "inet", "table": "t"}
_BASE = {"type": "filter", "hook": "forward", "prio": 0, "policy": "accept"}
_SET = {"name": "seen", "type": "ipv4_addr", "elem": []}
_SCOPE = CheckScope(
    namespace=Namespace(),
    device="vmtap-1",
    subnets=(subnet("172.16.0.1/30"), subnet("fd00:16::1/64")),
    port=3128,
)


def _ruleset(*statements: dict[str, Any], hook: str = "forward") -> Ruleset:
    """Return a ruleset with one rule."""
    return from_json(
        {
            "nftables": [
                {"set": {**_TABLE, **_SET}},
                {"chain": {**_TABLE, "name": "base", **_BASE, "hook": hook}},
                {"rule": {**_TABLE, "chain": "base", "handle": 1, "expr": [*statements]}},
            ]
        }
    )


def _stopped(*statements: dict[str, Any]) -> set[tuple[int, bool]]:
    """Return IP version and is_certain of the flows that a rule stops."""
    ruleset = _ruleset(*statements)
    hooks, walker = hook_path.by_hook(ruleset), Walker(ruleset, 1_000_000)
    return {
        (flow.packet.version, flow_stop.is_certain)
        for flow in _SCOPE.flows()
        for flow_stop in hook_path.flow_stops(flow, hooks, walker)
    }


def _match(left: dict[str, Any], right: Any) -> dict[str, Any]:
    return {"match": {"op": "==", "left": left, "right": right}}


@pytest.mark.parametrize(("name", "version"), [("ipv4", 4), ("ipv6", 6)])
def test_rule_for_a_family_stops_its_packets(name: str, version: int) -> None:
    family = _match({"meta": {"key": "nfproto"}}, name)
    assert _stopped(family, {"drop": None}) == {(version, True)}


@pytest.mark.parametrize("below", [0, 100])
@pytest.mark.parametrize("above", [0, 100])
def test_set_element_is_found_at_any_position(below: int, above: int) -> None:
    elements: list[Any] = [f"10.0.0.{number}" for number in range(below)]
    elements += [f"192.0.2.{number}" for number in range(above)]
    elements.append({"prefix": {"addr": "172.16.0.0", "len": 29}})
    source = _match({"payload": {"protocol": "ip", "field": "saddr"}}, {"set": elements})
    assert (4, True) in _stopped(source, {"drop": None})


@pytest.mark.parametrize(("statement", "is_certain"), [("counter", True), ("limit", False)])
def test_set_update_is_uncertain_with_a_limit(statement: str, *, is_certain: bool) -> None:
    update = {"op": "update", "elem": "192.0.2.1", "set": "@seen", "stmt": [{statement: None}]}
    assert _stopped({"set": update}, {"drop": None}) == {(4, is_certain), (6, is_certain)}


def test_finding_names_the_flows_that_a_rule_stops() -> None:
    port = _match({"payload": {"protocol": "tcp", "field": "dport"}}, 3128)
    ipv4 = _match({"meta": {"key": "nfproto"}}, "ipv4")
    new = {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "new"}}
    for statements, flows in (
        ((port, {"drop": None}), "tcp 3128; IPv4 and IPv6"),
        ((port, ipv4, new, {"drop": None}), "tcp 3128; IPv4"),
    ):
        (found,) = judge(_ruleset(*statements, hook="input"), _SCOPE)
        assert found.meaning.startswith("table inet t, chain base (nftables): rule 1 `")
        assert found.meaning.endswith(f"drops traffic from the VM to the gateway's port ({flows})")


@pytest.mark.parametrize(
    ("field", "value", "is_certain"), [("ttl", 9, True), ("saddr", "10.9.9.9", False)]
)
def test_rewritten_field_makes_the_source_unknown_if_it_may_be_an_address(
    field: str, value: int | str, *, is_certain: bool
) -> None:
    key = {"payload": {"protocol": "ip", "field": field}}
    elements = {"set": [{"prefix": {"addr": "172.16.0.0", "len": 29}}]}
    source = _match({"payload": {"protocol": "ip", "field": "saddr"}}, elements)
    stopped = _stopped({"mangle": {"key": key, "value": value}}, source, {"drop": None})
    assert ((4, True) in stopped) is is_certain
