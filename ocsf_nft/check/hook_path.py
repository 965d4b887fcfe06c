"""Simulation of a packet's path through the netfilter hooks, to find the rules that stop it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeAlias

from ocsf_nft.check.chain_walk import Stop
from ocsf_nft.check.packet import InterfaceName, Truth, any_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ocsf_nft.check.accepted_flows import AcceptedFlow, Step
    from ocsf_nft.check.chain_walk import Walker
    from ocsf_nft.check.packet import Packet
    from ocsf_nft.check.ruleset import Chain, Rule, Ruleset

#: Priority of connection tracking in its hooks (NF_IP_PRI_CONNTRACK, and the same for IPv6).
_TRACKING: Final = -200
_IP_FAMILIES: Final = {4: frozenset({"inet", "ip"}), 6: frozenset({"inet", "ip6"})}
_LOOPBACK: Final = InterfaceName("lo")
_TRACKING_HOOKS: Final = frozenset({"prerouting", "output"})
ByHook: TypeAlias = "Mapping[str, tuple[Chain, ...]]"


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowStop:
    """Firewall rule or policy that stops, or may stop, a flow that the fence accepts."""

    flow: AcceptedFlow
    stop: Stop
    #: Base chain from which the rule was reached, or which has the policy.
    base: Chain
    #: True if the flow is stopped in any case.
    is_certain: bool
    #: Rules that may decide whether the flow is stopped: it is unknown if they match its packets.
    undecided: tuple[Rule, ...]


def by_hook(ruleset: Ruleset) -> tuple[ByHook, ByHook]:
    """Return the base chains of a ruleset by netfilter hook, sorted by priority, in two orders.

    The first mapping has chains of equal priority in the order of nft's listing, the second one in
    the reverse order: packets traverse the newer one first, but nft does not list their age.
    """
    found: dict[str, list[Chain]] = defaultdict(list)
    for chain in ruleset.chains.values():
        if chain.base is not None:
            found[chain.base.hook].append(chain)
    return (
        {hook: tuple(sorted(chains, key=_priority)) for hook, chains in found.items()},
        {
            hook: tuple(sorted(chains, key=_priority, reverse=True)[::-1])
            for hook, chains in found.items()
        },
    )


def _priority(chain: Chain) -> int:
    return 0 if chain.base is None else chain.base.priority


def flow_stops(flow: AcceptedFlow, hooks: tuple[ByHook, ByHook], walker: Walker) -> list[FlowStop]:
    """Return the rules and policies that stop, or may stop, a flow on its path through the hooks.

    ``hooks`` are from :func:`by_hook`. If the flow is certainly stopped, ``is_certain`` of the last
    entry is True. Raises TooLargeError if the ruleset is too large to be checked.
    """
    as_listed, reverse = hooks
    found = _in_order(flow, as_listed, walker)
    if as_listed == reverse:
        return found
    other = _in_order(flow, reverse, walker)
    is_certain = all(each and each[-1].is_certain for each in (found, other))
    # A chain that stops the flow in one order also stops it in the other, if the flow gets there.
    both = {flow_stop.stop: flow_stop for flow_stop in (*other, *found)}
    return sorted(
        (
            replace(flow_stop, is_certain=is_certain and flow_stop.is_certain)
            for flow_stop in both.values()
        ),
        key=lambda flow_stop: flow_stop.is_certain,
    )


def _in_order(flow: AcceptedFlow, hooks: ByHook, walker: Walker) -> list[FlowStop]:
    found: list[FlowStop] = []
    packet = flow.packet
    for step in flow.steps:
        packet = replace(packet, **step.changes)
        for chain in hooks.get(step.hook, ()):
            reach = _traverses(chain, step, packet)
            if reach is Truth.NO:
                continue
            packet = _with_state_at(chain, step, packet)
            here, packet = _walk_base_chain(chain, flow, packet, reach, walker)
            found.extend(here)
            if here and here[-1].is_certain:
                return found
        if step.hook in _TRACKING_HOOKS:
            packet = packet.tracked()
    return found


def _walk_base_chain(
    chain: Chain, flow: AcceptedFlow, packet: Packet, reach: Truth, walker: Walker
) -> tuple[list[FlowStop], Packet]:
    result = walker.walk(chain, packet)
    stops = list(result.stops)
    may_pass = result.may_be_accepted
    if result.reaches_end is not Truth.NO:
        if chain.base is not None and chain.base.policy == "drop":
            stops.append(Stop(chain=chain, rule=None, verb="drops"))
        else:
            may_pass = True
    is_certain = bool(stops) and not may_pass and reach is Truth.YES
    if is_certain:
        stops = stops[-1:]
    found = [
        FlowStop(
            flow=flow, stop=stop, base=chain, is_certain=is_certain, undecided=result.undecided
        )
        for stop in stops
    ]
    return found, result.packet


def _traverses(chain: Chain, step: Step, packet: Packet) -> Truth:
    base, family = chain.base, chain.key.family
    device = step.device
    if base is None:
        return Truth.NO
    if device is not None:
        return any_of(_matches_device(device, name) for name in base.devices)
    if step.below:
        below = map(InterfaceName, step.below)
        reach = (_matches_device(each, name) for each in below for name in base.devices)
        return min(any_of(reach), Truth.MAYBE)
    if family not in ({step.family} if step.family else _IP_FAMILIES[packet.version]):
        return Truth.NO
    # Only the first packet of a connection traverses a NAT chain: on loopback, only as it is sent
    # (nf_nat_core.c).
    is_translated = packet.is_first and not (
        step.hook in {"prerouting", "input"} and packet.input_interface == _LOOPBACK
    )
    return Truth.NO if base.kind == "nat" and not is_translated else Truth.YES


def _matches_device(device: InterfaceName, name: str) -> Truth:
    if name.endswith("*"):  # a pattern (Linux 6.16) or a literal name: nft lists both like this
        return min(device.starts_with(name[:-1]), Truth.MAYBE)
    return device.equals(name)


def _with_state_at(chain: Chain, step: Step, packet: Packet) -> Packet:
    # Connection tracking sets the state at the priority -200 of its hooks. For a chain with that
    # priority, both states are possible.
    if step.hook not in _TRACKING_HOOKS or _priority(chain) < _TRACKING:
        return packet
    tracked = packet.tracked()
    return packet.joined(tracked) if _priority(chain) == _TRACKING else tracked
