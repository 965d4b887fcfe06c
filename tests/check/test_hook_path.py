"""Tests of a flow's path through base chains: order, hooks, NAT, connection tracking."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.check import hook_path
from ocsf_nft.check.accepted_flows import CheckScope, FlowDirection
from ocsf_nft.check.chain_walk import Walker
from ocsf_nft.check.ruleset import from_json
from ocsf_nft.fence.values import endpoint, subnet
from ocsf_nft.netns import Namespace

if TYPE_CHECKING:
    import pytest

_SCOPE: Final = CheckScope(
    namespace=Namespace(),
    device="vmtap-1",
    subnets=(subnet("172.16.0.1/30"), subnet("fd00:16::1/64")),
    port=3128,
    proxies=(endpoint("192.0.2.1:3128"),),
)
_DROP: Final[dict[str, Any]] = {"drop": None}
_ACCEPT: Final[dict[str, Any]] = {"accept": None}
_LIMITED: Final = {"limit": {"rate": 1}}


def _match(left: dict[str, Any], right: Any) -> dict[str, Any]:
    return {"match": {"op": "==", "left": left, "right": right}}


_MARKED: Final = _match({"meta": {"key": "mark"}}, 5)
_MARK: Final = {"mangle": {"key": {"meta": {"key": "mark"}}, "value": 5}}


def _state(name: str) -> dict[str, Any]:
    return _match({"ct": {"key": "state"}}, name)


def _chain(
    name: str, hook: str, priority: int, *rule: dict[str, Any], family: str = "inet", **more: Any
) -> list[dict[str, Any]]:
    table = {"family": family, "table": "t"}
    base = {"type": "filter", "hook": hook, "prio": priority, "policy": "accept"}
    return [
        {"chain": {**table, "name": name, **base, **more}},
        {"rule": {**table, "chain": name, "expr": list(rule)}},
    ]


def _ends(*chains: list[dict[str, Any]]) -> set[tuple[FlowDirection, bool, int, bool]]:
    """Return direction, is_first, IP version and is_certain of the stopped flows."""
    ruleset = from_json({"nftables": [entry for chain in chains for entry in chain]})
    hooks, walker = hook_path.by_hook(ruleset), Walker(ruleset)
    return {
        (flow.direction, flow.packet.is_first, flow.packet.version, flow_stop.is_certain)
        for flow in _SCOPE.flows()
        for flow_stop in hook_path.flow_stops(flow, hooks, walker)
    }


def _certain(*directions: FlowDirection, first: bool | None = None) -> set[tuple[Any, ...]]:
    """Return the certain ends of flows in these directions.

    ``first`` selects their first packets or the others; None selects all.
    """
    return {
        (flow.direction, flow.packet.is_first, flow.packet.version, True)
        for flow in _SCOPE.flows()
        if flow.direction in directions and first in {None, flow.packet.is_first}
    }


def test_flow_traverses_the_chains_of_a_hook_in_the_order_of_their_priorities() -> None:
    forwarded = _certain(FlowDirection.OUT, FlowDirection.REPLY)
    for mark, drop, ends in ((-1, 1, forwarded), (1, -1, set())):
        marking = _chain("a", "forward", mark, _MARK)
        dropping = _chain("b", "forward", drop, _MARKED, _DROP)
        assert _ends(marking, dropping) == ends, (mark, drop)
        assert _ends(dropping, marking) == ends, (mark, drop)
    uncertain = {(*flow[:3], False) for flow in forwarded}
    one, other = _chain("a", "forward", 0, _MARK), _chain("b", "forward", 0, _MARKED, _DROP)
    for chains in ((one, other), (other, one)):
        assert _ends(*chains) == uncertain
    # Both chains drop the flow, so the order doesn't matter.
    assert _ends(_chain("a", "forward", 0, _DROP), _chain("b", "forward", 0, _DROP)) == forwarded
    limited = _chain("a", "forward", 0, _LIMITED, _DROP)
    assert _ends(limited, _chain("b", "forward", 0, _ACCEPT)) == uncertain
    twice = [_chain(name, "forward", 1, _DROP) for name in ("b", "c")]
    assert _ends(limited, *twice) == forwarded | uncertain


def test_flow_stop_is_the_last_rule_that_certainly_stops_a_flow() -> None:
    uncertain = {(*each[:3], False) for each in _certain(FlowDirection.OUT, FlowDirection.REPLY)}
    for rule, ends in (
        (_ACCEPT, set()),
        (_LIMITED, _certain(FlowDirection.OUT, FlowDirection.REPLY)),
    ):
        assert _ends(_chain("a", "forward", 0, rule, policy="drop")) == ends
    limited = _chain("a", "forward", 0, _LIMITED, _DROP)
    assert _ends(limited) == uncertain
    limited[0]["chain"]["policy"] = "drop"
    ruleset = from_json({"nftables": limited})
    flow = next(iter(_SCOPE.flows()))
    (found,) = hook_path.flow_stops(flow, hook_path.by_hook(ruleset), Walker(ruleset))
    assert (found.stop.rule, found.stop.verb, found.is_certain) == (None, "drops", True)


def test_flow_traverses_the_chains_of_its_hooks_and_family() -> None:
    for hook, directions in (
        (
            "prerouting",
            [
                FlowDirection.OUT,
                FlowDirection.REPLY,
                FlowDirection.GATEWAY,
                FlowDirection.PROXY_ANSWER,
            ],
        ),
        ("input", [FlowDirection.GATEWAY, FlowDirection.PROXY_ANSWER]),
        ("forward", [FlowDirection.OUT, FlowDirection.REPLY]),
        ("output", [FlowDirection.GATEWAY_ANSWER, FlowDirection.PROXY]),
        (
            "postrouting",
            [
                FlowDirection.OUT,
                FlowDirection.REPLY,
                FlowDirection.GATEWAY_ANSWER,
                FlowDirection.PROXY,
            ],
        ),
    ):
        for family, versions in (("inet", {4, 6}), ("ip", {4}), ("ip6", {6}), ("bridge", set())):
            # No packet traverses the first chain; all packets traverse the second one.
            chains = (_chain("a", hook, 0, _ACCEPT, family="arp"),
                      _chain("b", hook, 0, _DROP, family=family))  # fmt: skip
            ends = {each for each in _certain(*directions) if each[2] in versions}
            assert _ends(*chains) == ends, (hook, family)


def test_nat_chain_is_traversed_only_by_first_packets() -> None:
    out = _certain(FlowDirection.OUT, first=True)
    assert _ends(_chain("a", "forward", 0, _DROP, type="nat")) == out
    assert _ends(_chain("a", "forward", 0, _DROP)) == _certain(
        FlowDirection.OUT, FlowDirection.REPLY
    )
    # All packets traverse the later chain.
    nat = _chain("a", "forward", -1, _ACCEPT, type="nat")
    assert _ends(nat, _chain("b", "forward", 0, _DROP)) == _certain(
        FlowDirection.OUT, FlowDirection.REPLY
    )


def test_flow_traverses_the_chains_of_its_devices() -> None:
    by_vm = [FlowDirection.OUT, FlowDirection.GATEWAY]
    for devices, is_certain in (
        (["vmtap-1"], True),
        (["eth7", "vmtap-1"], True),
        (["vmtap-1", "eth7"], True),
        (["vmtap-2"], None),
        (["vmtap-*"], False),
        (["vmtap-2*"], None),
        (["eth7*"], None),
        ([], None),
    ):
        ends = _ends(_chain("a", "ingress", 0, _DROP, family="netdev", dev=devices))
        stopped = {each for each in ends if each[0] in by_vm}
        expected = set() if is_certain is None else _certain(*by_vm)
        assert stopped == {(*each[:3], is_certain) for each in expected}, devices


def test_packet_has_a_state_before_and_after_connection_tracking() -> None:
    incoming = [
        FlowDirection.OUT,
        FlowDirection.REPLY,
        FlowDirection.GATEWAY,
        FlowDirection.PROXY_ANSWER,
    ]
    outgoing = [FlowDirection.GATEWAY_ANSWER, FlowDirection.PROXY]
    for hook, directions in (("prerouting", incoming), ("output", outgoing)):
        everything, new = _certain(*directions), _certain(*directions, first=True)
        for priority, state, ends in (
            (-201, "invalid", everything),
            (-201, "new", set()),
            (-200, "invalid", {(*each[:3], False) for each in everything}),
            (-200, "new", {(*each[:3], False) for each in new}),
            (-199, "invalid", set()),
            (-199, "new", new),
            (-199, "established", everything - new),
        ):
            found = _ends(_chain("a", hook, priority, _state(state), _DROP))
            assert found == ends, (hook, priority, state)
    # Connection tracking is after the ingress hook.
    at_device = [FlowDirection.OUT, FlowDirection.GATEWAY]
    for state, ends in (("invalid", _certain(*at_device)), ("new", set())):
        rule = (_state(state), _DROP)
        found = _ends(_chain("a", "ingress", 0, *rule, family="netdev", dev=["vmtap-1"]))
        assert {each for each in found if each[0] in at_device} == ends, state
    # The state stays known at later hooks.
    forwarded = _chain("a", "forward", -300, _state("new"), _DROP)
    assert _ends(forwarded) == _certain(FlowDirection.OUT, first=True)


def test_flow_to_an_own_proxy_is_sent_and_received_on_loopback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proxy = endpoint("127.0.0.1:3128")
    scope = CheckScope(
        namespace=Namespace(), device=None, port=3128, proxies=(proxy,), links={proxy: "lo"}
    )
    monkeypatch.setattr(f"{__name__}._SCOPE", scope)
    both = _certain(FlowDirection.PROXY, FlowDirection.PROXY_ANSWER)
    for hook in ("output", "postrouting", "prerouting", "input"):
        assert _ends(_chain("a", hook, 0, _DROP)) == both, hook
        by_name = _match({"meta": {"key": "iifname"}}, "lo"), _DROP
        assert _ends(_chain("a", hook, 0, *by_name)) == (
            both if hook in {"prerouting", "input"} else set()
        ), hook
    new = _certain(FlowDirection.PROXY, first=True)
    assert _ends(_chain("a", "input", 0, _state("new"), _DROP)) == new
    # The kernel has translated the addresses of the packet as it was sent.
    assert _ends(_chain("a", "prerouting", -100, _DROP, type="nat")) == set()
    assert _ends(_chain("a", "output", -100, _DROP, type="nat")) == new
