"""Tests of the owner of a chain, recognised by the names of tables and chains."""

from __future__ import annotations

from typing import Any

from ocsf_nft.check import chain_owner, xtables
from ocsf_nft.check.ruleset import ChainKey, Ruleset, from_json


def _listed(family: str, table: str, *names: str) -> Ruleset:
    """Return a ruleset of chains; FORWARD, INPUT and forward are base chains."""
    chains: list[dict[str, Any]] = []
    for name in names:
        is_base = name in {"FORWARD", "INPUT", "forward"}
        base = {"hook": "forward", "prio": 0} if is_base else {}
        chains.append({"chain": {"family": family, "table": table, "name": name, **base}})
    return from_json({"nftables": chains})


def test_owner_of_a_chain_is_recognised_by_its_names() -> None:
    for family, table, names, owner in (
        ("inet", "ocsf_nft_agent", ["forward"], "ocsf-nft"),
        ("inet", "ocsf_nft", ["forward"], "ocsf-nft"),
        ("inet", "ocsf_nftables", ["forward"], "nftables"),
        ("inet", "firewalld", ["forward"], "firewalld"),
        ("ip", "calico", ["forward"], "Calico"),
        ("ip", "filter", ["ufw-user-forward"], "ufw"),
        ("inet", "filter", ["ufw-user-forward"], "nftables"),
        ("ip", "site", ["ufw-user-forward"], "nftables"),
        ("ip", "filter", ["DOCKER-USER", "FORWARD"], "Docker"),
        # A policy belongs to the strongest program; otherwise the names in the table decide.
        ("ip", "filter", ["FORWARD", "DOCKER"], "Docker"),
        ("ip", "filter", ["FORWARD", "DOCKER", "ufw-user-forward"], "ufw"),
        ("ip", "filter", ["FORWARD", "KUBE-FORWARD"], "iptables"),
        ("ip", "filter", ["mine", "FORWARD", "DOCKER"], "iptables"),
        ("ip6", "filter", ["mine", "INPUT"], "iptables"),
        ("ip", "filter", ["mine", "INPUT", "forward"], "nftables"),
        ("ip", "filter", ["forward"], "nftables"),
        ("ip", "filter", ["mine"], "nftables"),
        ("inet", "filter", ["FORWARD"], "nftables"),
        ("ip", "site", ["FORWARD"], "nftables"),
    ):
        ruleset = _listed(family, table, *names)
        chain = ruleset.chains[ChainKey("nft", family, table, names[0])]
        assert chain_owner.owner(chain, ruleset) == owner, (family, table, names)


def test_owner_of_a_legacy_chain_is_recognised_by_its_name_alone() -> None:
    text = "*filter\n:FORWARD DROP [0:0]\n:mine - [0:0]\n:ufw-x - [0:0]\n"
    legacy = xtables.chains(text, "ip", "legacy")
    ruleset = Ruleset(chains={**legacy, **_listed("ip", "filter", "FORWARD", "DOCKER").chains})
    found = {key.name: chain_owner.owner(chain, ruleset) for key, chain in legacy.items()}
    assert found == {"FORWARD": "ufw", "mine": "legacy iptables", "ufw-x": "ufw"}
    other = xtables.chains(":FORWARD DROP [0:0]\n", "ip", "legacy")
    (chain,) = other.values()
    assert chain_owner.owner(chain, Ruleset(chains=other)) == "legacy iptables"
    named = xtables.chains("*ocsf_nft\n:FORWARD DROP [0:0]\n", "ip", "legacy")
    (chain,) = named.values()
    assert chain_owner.owner(chain, Ruleset(chains=named)) == "legacy iptables"
