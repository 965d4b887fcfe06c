"""Creation of OCSF ``firewall_rule`` objects: the rule that logged a packet."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from ocsf_nft.ocsf import packet_outcome
from ocsf_nft.ocsf.objects import FirewallRule
from ocsf_nft.ocsf.safe_text import visible

if TYPE_CHECKING:
    from ocsf_nft.ocsf.context import Context

_DESCRIPTIONS: Final = {
    packet_outcome.EGRESS: "the sandbox may send only to its proxy",
    packet_outcome.FORWARD: "no packet is forwarded into the sandbox, out of it or through it",
    packet_outcome.INGRESS: "the sandbox may receive only replies of its proxy",
    packet_outcome.LINK: "the sandbox may send only frames of the IP stack",
    packet_outcome.GUARD: "the host's end of the link accepts only traffic to the proxy",
    packet_outcome.VM_FORWARD: "the host forwards only the VM's connections to external addresses",
    packet_outcome.VM_INPUT: "on its host, the VM may connect only to the gateway's port",
    packet_outcome.VM_INGRESS: "the VM may receive only replies on connections that it opened",
    packet_outcome.VM_LINK: "the VM may send only IP and ARP from its own addresses",
}


def firewall_rule(context: Context, rule: str, *, is_ours: bool) -> FirewallRule | None:
    """Return the OCSF object of the rule that logged a packet; None if the rule has no name.

    ``is_ours`` is true for a rule of an ocsf-nft fence. The object of such a rule also has the
    rule's unique id and condition, if known.
    """
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
