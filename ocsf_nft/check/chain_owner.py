"""Recognition of the program that made a chain, by the table and chain names of known firewalls.

Any program can choose these names. So use the result only in findings of `check`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocsf_nft.check.ruleset import is_iptables_table
from ocsf_nft.fence.ruleset import TABLE

if TYPE_CHECKING:
    from ocsf_nft.check.ruleset import Chain, ChainKey, Ruleset

OURS: Final = "ocsf-nft"
FIREWALLD: Final = "firewalld"
UFW: Final = "ufw"
DOCKER: Final = "Docker"
IPTABLES: Final = "iptables"
LEGACY: Final = "legacy iptables"
NFTABLES: Final = "nftables"

#: Tables that belong to one program, in any family.
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
#: Prefixes of the chains of programs that use iptables' tables.
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
#: Programs that set the policy of the built-in chains, strongest first.
_POLICY_OWNERS: Final = (UFW, DOCKER)
#: Programs that insert their own rules at the top again at any time.
REINSERTING: Final = frozenset({"kube-proxy", "Calico", "Cilium", "flannel", "Weave", DOCKER})


def is_ours(key: ChainKey) -> bool:
    """Return True if a chain is in a table with a name that ocsf-nft uses, such as ``ocsf_nft``."""
    is_own_name = key.table == TABLE or key.table.startswith(f"{TABLE}_")
    return key.backend == "nft" and is_own_name


def owner(chain: Chain, ruleset: Ruleset) -> str:
    """Return the name of the program that made a chain, such as firewalld or Docker.

    If no program is recognised, return ``legacy iptables`` (old kernel tables), ``iptables`` (made
    by iptables in nf_tables) or ``nftables``.
    """
    key = chain.key
    if is_ours(key):
        return OURS
    if key.backend == "nft" and key.table in _TABLES:
        return _TABLES[key.table]
    if not is_iptables_table(key):
        return NFTABLES
    found = _owner_by_name(key.name)
    if found is None and chain.base is not None:
        found = _policy_owner(key, ruleset)
    if found is not None:
        return found
    if key.backend == "legacy":
        return LEGACY
    return IPTABLES if _has_iptables_names(key, ruleset) else NFTABLES


def _owner_by_name(name: str) -> str | None:
    return next((program for start, program in _CHAINS if name.startswith(start)), None)


def _policy_owner(key: ChainKey, ruleset: Ruleset) -> str | None:
    owners = {_owner_by_name(other.name) for other in ruleset.chains if other[:3] == key[:3]}
    return next((program for program in _POLICY_OWNERS if program in owners), None)


def _has_iptables_names(key: ChainKey, ruleset: Ruleset) -> bool:
    bases = [chain.key.name for chain in ruleset.chains.values()
             if chain.base is not None and chain.key[:3] == key[:3]]  # fmt: skip
    return bool(bases) and all(name.isupper() for name in bases)
