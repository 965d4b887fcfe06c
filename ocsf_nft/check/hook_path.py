"""Take a flow through every hook on its way, and tell where it ends."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.check import statement_effects
from ocsf_nft.check.chain_walk import Stop
from ocsf_nft.check.ternary import Truth, any_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ocsf_nft.check.accepted_flows import Flow, Step
    from ocsf_nft.check.chain_walk import Walker
    from ocsf_nft.check.packet import Packet
    from ocsf_nft.check.ruleset import Chain, Rule, Ruleset
    from ocsf_nft.check.ternary import Name

#: Where connection tracking is among the chains of a hook (NF_IP_PRI_CONNTRACK, and the same for
#: IPv6).
_TRACKING: Final = -200
_TRACKING_HOOKS: Final = frozenset({"prerouting", "output"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """Where a flow is stopped, or may be: ``is_certain`` is whether it surely is.

    ``base`` is the chain by which it came there; ``undecided`` are the rules that decide it and
    can't be told of.
    """

    flow: Flow
    stop: Stop
    base: Chain
    is_certain: bool
    undecided: tuple[Rule, ...]


class Hooks(NamedTuple):
    """The base chains of a ruleset by their hook, in the order that packets pass them.

    Which of two chains of one priority comes first isn't told (the one that was made last): in
    ``one`` it is the one that is listed first, in ``other`` it is not.
    """

    one: Mapping[str, tuple[Chain, ...]]
    other: Mapping[str, tuple[Chain, ...]]


def by_hook(ruleset: Ruleset) -> Hooks:
    """The base chains of a ruleset."""
    found: dict[str, list[Chain]] = defaultdict(list)
    for chain in ruleset.chains.values():
        if chain.base is not None:
            found[chain.base.hook].append(chain)
    return Hooks(
        {hook: tuple(sorted(chains, key=_priority)) for hook, chains in found.items()},
        {
            hook: tuple(sorted(chains, key=lambda chain: -_priority(chain))[::-1])
            for hook, chains in found.items()
        },
    )


def _priority(chain: Chain) -> int:
    return 0 if chain.base is None else chain.base.priority


def endings(flow: Flow, hooks: Hooks, walker: Walker) -> list[Ending]:
    """Where the flow may be stopped, the last one for sure if its ``is_certain`` says so.

    None when it gets through. Raises TooLargeError.
    """
    found = _in_order(flow, hooks.one, walker)
    if hooks.one == hooks.other:
        return found
    other = _in_order(flow, hooks.other, walker)
    is_certain = all(each and each[-1].is_certain for each in (found, other))
    # A chain that stops it in the one order would stop it in the other as well, had it come there.
    both = {ending.stop: ending for ending in (*other, *found)}
    return sorted(
        (replace(ending, is_certain=is_certain and ending.is_certain) for ending in both.values()),
        key=lambda ending: ending.is_certain,
    )


def _in_order(flow: Flow, hooks: Mapping[str, tuple[Chain, ...]], walker: Walker) -> list[Ending]:
    found: list[Ending] = []
    packet = flow.packet
    for step in flow.steps:
        packet = replace(packet, **step.changes)
        for chain in hooks.get(step.hook, ()):
            reach = _passes(chain, step, packet)
            if reach is Truth.NO:
                continue
            packet = _as_seen_at(chain, step, packet)
            here, packet = _through(chain, flow, packet, reach, walker)
            found.extend(here)
            if here and here[-1].is_certain:
                return found
        if step.hook in _TRACKING_HOOKS:
            packet = statement_effects.tracked(packet)
    return found


def _through(
    chain: Chain, flow: Flow, packet: Packet, reach: Truth, walker: Walker
) -> tuple[list[Ending], Packet]:
    walked = walker.walk(chain, packet)
    stops = list(walked.stops)
    drops_at_end = chain.base is not None and chain.base.policy == "drop"
    may_pass = walked.may_be_accepted
    if walked.goes_on is not Truth.NO:
        if drops_at_end:
            stops.append(Stop(chain=chain, rule=None, verb="drops"))
        else:
            may_pass = True
    is_certain = bool(stops) and not may_pass and reach is Truth.YES
    if is_certain:
        stops = stops[-1:]
    found = [
        Ending(flow=flow, stop=stop, base=chain, is_certain=is_certain, undecided=walked.undecided)
        for stop in stops
    ]
    return found, walked.packet


def _passes(chain: Chain, step: Step, packet: Packet) -> Truth:
    """Whether a packet passes a base chain at all."""
    base, family = chain.base, chain.key.family
    device = step.device
    if base is not None and device is not None:
        return any_of(_answers_to(device, name) for name in base.devices)
    if base is None or family not in {"inet", "ip" if packet.version == 4 else "ip6"}:
        return Truth.NO
    # Only the first packet of a connection passes a chain of NAT (nf_nat_core.c).
    return Truth.NO if base.kind == "nat" and not packet.is_first else Truth.YES


def _answers_to(device: Name, name: str) -> Truth:
    if name.endswith("*"):  # any end of a name (Linux 6.16), or that very name: nft lists both so
        return min(device.starts_with(name[:-1]), Truth.MAYBE)
    return device.equals(name)


def _as_seen_at(chain: Chain, step: Step, packet: Packet) -> Packet:
    """What connection tracking has said of a packet by the time it gets to a chain."""
    if step.hook not in _TRACKING_HOOKS or chain.base is None:
        return packet
    if chain.base.priority == _TRACKING:
        return packet.joined(statement_effects.tracked(packet))
    return statement_effects.tracked(packet) if chain.base.priority > _TRACKING else packet
