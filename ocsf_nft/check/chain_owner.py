"""Whose a chain is, by the names that firewalls give to their tables and chains.

A name is no proof: it decides in whose words a remedy is told, and nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocsf_nft.check.ruleset import is_compatible
from ocsf_nft.fence.ruleset import TABLE

if TYPE_CHECKING:
    from ocsf_nft.check.ruleset import Chain, Key, Ruleset

OURS: Final = "ocsf-nft"
FIREWALLD: Final = "firewalld"
UFW: Final = "ufw"
DOCKER: Final = "Docker"
IPTABLES: Final = "iptables"
LEGACY: Final = "legacy iptables"
NFTABLES: Final = "nftables"

#: Tables that are one program's, in any family.
_TABLES: Final = {
    "firewalld": FIREWALLD,
    "docker-bridges": DOCKER,
    "kube-proxy": "kube-proxy",
    "calico": "Calico",
    "libvirt_network": "libvirt",
    "netavark": "Podman",
    "lxd": "LXD",
    "incus": "Incus",
    "io.systemd.nat": "systemd-networkd",
    "fail2ban": "fail2ban",
    "crowdsec": "CrowdSec",
    "crowdsec6": "CrowdSec",
}
#: How the chains of a program begin that keeps them in iptables' tables.
_CHAINS: Final = (
    ("ufw-", UFW),
    ("ufw6-", UFW),
    ("DOCKER", DOCKER),
    ("KUBE-", "kube-proxy"),
    ("cali-", "Calico"),
    ("CILIUM_", "Cilium"),
    ("OLD_CILIUM_", "Cilium"),
    ("FLANNEL-", "flannel"),
    ("WEAVE", "Weave"),
    ("CNI-", "CNI"),
    ("LIBVIRT_", "libvirt"),
    ("NETAVARK", "Podman"),
    ("IN_", FIREWALLD),
    ("FWD_", FIREWALLD),
    ("FORWARD_direct", FIREWALLD),
    ("INPUT_direct", FIREWALLD),
    ("ts-", "Tailscale"),
    ("f2b-", "fail2ban"),
)
#: Who sets the policy of a chain that the kernel brings along, strongest first.
_POLICY_MAKERS: Final = (UFW, DOCKER)
#: Who puts its own rules first again whenever it likes.
RESTLESS: Final = frozenset({"kube-proxy", "Calico", "Cilium", "flannel", "Weave", DOCKER})


def is_ours(key: Key) -> bool:
    """Whether a chain is in a table of ocsf-nft."""
    is_named_so = key.table == TABLE or key.table.startswith(f"{TABLE}_")
    return key.backend == "nft" and is_named_so


def owner(chain: Chain, ruleset: Ruleset) -> str:
    """Who made a chain; the mechanism's own name where no program is recognised."""
    key = chain.key
    if is_ours(key):
        return OURS
    if key.backend == "nft" and key.table in _TABLES:
        return _TABLES[key.table]
    is_of_iptables = key.backend == "legacy" or is_compatible(key)
    if is_of_iptables:
        found = _of_name(key.name)
        if found is None and chain.base is not None:
            found = _policy_maker(key, ruleset)
        if found is not None:
            return found
    if key.backend == "legacy":
        return LEGACY
    return IPTABLES if is_of_iptables and _looks_like_iptables(key, ruleset) else NFTABLES


def _of_name(name: str) -> str | None:
    return next((who for start, who in _CHAINS if name.startswith(start)), None)


def _policy_maker(key: Key, ruleset: Ruleset) -> str | None:
    beside = {_of_name(other.name) for other in ruleset.chains if other[:3] == key[:3]}
    return next((who for who in _POLICY_MAKERS if who in beside), None)


def _looks_like_iptables(key: Key, ruleset: Ruleset) -> bool:
    """Iptables writes the names of base chains in capitals, and has no others."""
    bases = [chain.key.name for chain in ruleset.chains.values()
             if chain.base is not None and chain.key[:3] == key[:3]]  # fmt: skip
    return bool(bases) and all(name.isupper() for name in bases)
