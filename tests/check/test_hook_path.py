"""The way of a flow through base chains: order, hooks, NAT and connection tracking."""

from __future__ import annotations

from typing import Any, Final

from ocsf_nft.check import hook_path
from ocsf_nft.check.accepted_flows import Direction
from ocsf_nft.check.chain_walk import Walker
from ocsf_nft.check.diagnosis import Question
from ocsf_nft.check.ruleset import from_json
from ocsf_nft.fence.values import endpoint, subnet
from ocsf_nft.netns import Namespace

_QUESTION: Final = Question(
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
    place = {"family": family, "table": "t"}
    base = {"type": "filter", "hook": hook, "prio": priority, "policy": "accept"}
    return [
        {"chain": {**place, "name": name, **base, **more}},
        {"rule": {**place, "chain": name, "expr": list(rule)}},
    ]


def _ends(*chains: list[dict[str, Any]]) -> set[tuple[Direction, bool, int, bool]]:
    """Return direction, is_first, IP version and is_certain of the flows that are stopped."""
    ruleset = from_json({"nftables": [entry for chain in chains for entry in chain]})
    hooks, walker = hook_path.by_hook(ruleset), Walker(ruleset)
    return {
        (flow.direction, flow.packet.is_first, flow.packet.version, ending.is_certain)
        for flow in _QUESTION.flows()
        for ending in hook_path.endings(flow, hooks, walker)
    }


def _sure(*directions: Direction, first: bool | None = None) -> set[tuple[Any, ...]]:
    """Return the endings of both packets (or one) of flows in these directions, for sure."""
    return {
        (flow.direction, flow.packet.is_first, flow.packet.version, True)
        for flow in _QUESTION.flows()
        if flow.direction in directions and first in {None, flow.packet.is_first}
    }


def test_check_passes_the_chains_of_a_hook_in_the_order_of_their_priorities() -> None:
    forwarded = _sure(Direction.OUT, Direction.REPLY)
    for mark, drop, ends in ((-1, 1, forwarded), (1, -1, set())):
        marking = _chain("a", "forward", mark, _MARK)
        dropping = _chain("b", "forward", drop, _MARKED, _DROP)
        assert _ends(marking, dropping) == ends, (mark, drop)
        assert _ends(dropping, marking) == ends, (mark, drop)
    unsure = {(*flow[:3], False) for flow in forwarded}
    one, other = _chain("a", "forward", 0, _MARK), _chain("b", "forward", 0, _MARKED, _DROP)
    for chains in ((one, other), (other, one)):
        assert _ends(*chains) == unsure
    # It is stopped in either order, by the one chain or by the other.
    assert _ends(_chain("a", "forward", 0, _DROP), _chain("b", "forward", 0, _DROP)) == forwarded
    limited = _chain("a", "forward", 0, _LIMITED, _DROP)
    assert _ends(limited, _chain("b", "forward", 0, _ACCEPT)) == unsure
    twice = [_chain(name, "forward", 1, _DROP) for name in ("b", "c")]
    assert _ends(limited, *twice) == forwarded | unsure


def test_check_tells_the_last_of_the_rules_that_surely_stop_a_flow() -> None:
    unsure = {(*each[:3], False) for each in _sure(Direction.OUT, Direction.REPLY)}
    for rule, ends in ((_ACCEPT, set()), (_LIMITED, _sure(Direction.OUT, Direction.REPLY))):
        assert _ends(_chain("a", "forward", 0, rule, policy="drop")) == ends
    limited = _chain("a", "forward", 0, _LIMITED, _DROP)
    assert _ends(limited) == unsure
    limited[0]["chain"]["policy"] = "drop"
    ruleset = from_json({"nftables": limited})
    flow = next(iter(_QUESTION.flows()))
    (found,) = hook_path.endings(flow, hook_path.by_hook(ruleset), Walker(ruleset))
    assert (found.stop.rule, found.stop.verb, found.is_certain) == (None, "drops", True)


def test_check_passes_the_chains_of_the_hooks_and_families_of_a_packet() -> None:
    for hook, directions in (
        ("prerouting", [Direction.OUT, Direction.REPLY, Direction.GATEWAY, Direction.PROXY_ANSWER]),
        ("input", [Direction.GATEWAY, Direction.PROXY_ANSWER]),
        ("forward", [Direction.OUT, Direction.REPLY]),
        ("output", [Direction.ANSWER, Direction.PROXY]),
        ("postrouting", [Direction.OUT, Direction.REPLY, Direction.ANSWER, Direction.PROXY]),
    ):
        for family, versions in (("inet", {4, 6}), ("ip", {4}), ("ip6", {6}), ("bridge", set())):
            # A chain that no packet of a version passes comes before one that all pass.
            chains = (_chain("a", hook, 0, _ACCEPT, family="arp"),
                      _chain("b", hook, 0, _DROP, family=family))  # fmt: skip
            ends = {each for each in _sure(*directions) if each[2] in versions}
            assert _ends(*chains) == ends, (hook, family)


def test_check_passes_only_first_packets_through_nat() -> None:
    out = _sure(Direction.OUT, first=True)
    assert _ends(_chain("a", "forward", 0, _DROP, type="nat")) == out
    assert _ends(_chain("a", "forward", 0, _DROP)) == _sure(Direction.OUT, Direction.REPLY)
    # Later chains are passed by all packets.
    nat = _chain("a", "forward", -1, _ACCEPT, type="nat")
    assert _ends(nat, _chain("b", "forward", 0, _DROP)) == _sure(Direction.OUT, Direction.REPLY)


def test_check_passes_the_chains_of_the_devices_of_a_packet() -> None:
    machine = [Direction.OUT, Direction.GATEWAY]
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
        by_machine = {each for each in ends if each[0] in machine}
        expected = set() if is_certain is None else _sure(*machine)
        assert by_machine == {(*each[:3], is_certain) for each in expected}, devices


def test_check_knows_the_state_of_a_packet_before_and_after_tracking() -> None:
    incoming = [Direction.OUT, Direction.REPLY, Direction.GATEWAY, Direction.PROXY_ANSWER]
    outgoing = [Direction.ANSWER, Direction.PROXY]
    for hook, directions in (("prerouting", incoming), ("output", outgoing)):
        everything, new = _sure(*directions), _sure(*directions, first=True)
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
    # Nothing is tracked before the first hook of IP.
    at_device = [Direction.OUT, Direction.GATEWAY]
    for state, ends in (("invalid", _sure(*at_device)), ("new", set())):
        rule = (_state(state), _DROP)
        found = _ends(_chain("a", "ingress", 0, *rule, family="netdev", dev=["vmtap-1"]))
        assert {each for each in found if each[0] in at_device} == ends, state
    # What a hook has tracked stays so at later hooks.
    forwarded = _chain("a", "forward", -300, _state("new"), _DROP)
    assert _ends(forwarded) == _sure(Direction.OUT, first=True)
