"""OCSF ``firewall_rule`` objects: the rule that logged a packet."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from ocsf_nft.ocsf import packet_outcome
from ocsf_nft.ocsf.objects import FirewallRule
from ocsf_nft.ocsf.safe_text import visible

if TYPE_CHECKING:
    from ocsf_nft.ocsf.context import Context

_DESCRIPTIONS: Final = {
    packet_outcome.EGRESS: "what the sandbox sends goes to its proxy, or nowhere",
    packet_outcome.FORWARD: "nothing is forwarded into the sandbox, out of it or through it",
    packet_outcome.INGRESS: "nothing comes into the sandbox but what a proxy answers",
    packet_outcome.LINK: "only frames of the IP stack leave the sandbox",
    packet_outcome.GUARD: "the host's end of the link takes nothing but traffic to the proxy",
    packet_outcome.VM_FORWARD: (
        "through its host a VM gets to what it began itself, and out there alone"
    ),
    packet_outcome.VM_INPUT: "on its host a VM gets to the gateway's port alone",
    packet_outcome.VM_INGRESS: "nothing comes to a VM but replies to what it began itself",
    packet_outcome.VM_LINK: "a VM sends IP and ARP in its own name, and nothing else",
}


def firewall_rule(context: Context, rule: str, *, is_ours: bool) -> FirewallRule | None:
    """Return the rule of that name; a foreign rule has only its name. None without a name."""
    if not rule:
        return None
    if not is_ours:
        return _foreign_rule(rule)
    facts = context.rules.get(rule)
    if facts is None:
        return _own_rule(rule, None, None)
    return _own_rule(rule, facts.uid, facts.condition)


@lru_cache(maxsize=256)
def _foreign_rule(name: str) -> FirewallRule:
    return FirewallRule(name=visible(name)).cache_json()


@lru_cache(maxsize=256)
def _own_rule(name: str, uid: str | None, condition: str | None) -> FirewallRule:
    return FirewallRule(
        name=visible(name),
        uid=uid,
        type="nftables",
        desc=_DESCRIPTIONS.get(name),
        condition=condition,
    ).cache_json()
