"""Tests of the owner of a chain, and of the commands that `check` shows for its rules."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ocsf_nft.check import firewalls, xtables
from ocsf_nft.check.accepted_flows import AcceptedFlow, CheckScope, FlowDirection
from ocsf_nft.check.ruleset import BaseSpec, Chain, ChainKey, Ruleset, from_json
from ocsf_nft.fence import nft
from ocsf_nft.fence.values import endpoint, subnet
from ocsf_nft.netns import Namespace

if TYPE_CHECKING:
    from collections.abc import Collection

    import pytest

    from ocsf_nft.check.ruleset import Backend

_OUT, _REPLY = FlowDirection.OUT, FlowDirection.REPLY
_GATEWAY, _ANSWER = FlowDirection.GATEWAY, FlowDirection.GATEWAY_ANSWER
_PROXY, _PROXY_ANSWER = FlowDirection.PROXY, FlowDirection.PROXY_ANSWER
_STATES: Final = "-m conntrack --ctstate RELATED,ESTABLISHED"


class _Traffic(NamedTuple):
    """Traffic that must be accepted: flows, and their scope."""

    scope: CheckScope
    flows: list[AcceptedFlow]


def _traffic(
    *directions: FlowDirection, versions: Collection[int] = (4, 6), **more: Any
) -> _Traffic:
    given: dict[str, Any] = {
        "namespace": Namespace(),
        "device": "vmtap-*",
        "subnets": (subnet("172.16.0.1/30"), subnet("fd00:16::1/64")),
        "port": 3128,
        "proxies": (endpoint("192.0.2.1:3128"), endpoint("[2001:db8::1]:8080")),
    }
    scope = CheckScope(**given | more)
    return _Traffic(
        scope,
        [
            flow
            for flow in scope.flows()
            if flow.direction in directions and flow.packet.version in versions
        ],
    )


def _commands(
    owner: str, key: tuple[Backend, str, str, str], hook: str, traffic: _Traffic
) -> tuple[str, ...]:
    base = BaseSpec(kind="filter", hook=hook, priority=0, policy="drop")
    chain = Chain(key=ChainKey(*key), base=base, rules=())
    return firewalls.commands(owner, chain, Ruleset(), *traffic)


def test_ufw_commands_allow_each_direction() -> None:
    for direction, commands in (
        (_OUT, ["ufw route allow in on vmtap-+"]),
        (_REPLY, ["ufw route allow out on vmtap-+"]),
        (_ANSWER, ["ufw allow out on vmtap-+ proto tcp from any port 3128"]),
        (
            _GATEWAY,
            [
                "ufw allow in on vmtap-+ to 172.16.0.1 port 3128 proto tcp",
                "ufw allow in on vmtap-+ to fd00:16::1 port 3128 proto tcp",
            ],
        ),
    ):
        key: tuple[Backend, str, str, str] = ("nft", "ip", "filter", "FORWARD")
        assert _commands(firewalls.UFW, key, "forward", _traffic(direction)) == tuple(commands)
        none = _traffic(direction, device='vm"; reboot')
        assert _commands(firewalls.UFW, key, "forward", none) == ()
    gateway = _traffic(_GATEWAY, subnets=())
    assert _commands(firewalls.UFW, key, "input", gateway) == (
        "ufw allow in on vmtap-+ to any port 3128 proto tcp",
    )


def test_firewalld_commands_add_a_policy_for_outgoing_traffic() -> None:
    for direction, has_policy in ((_OUT, True), (_REPLY, True), (_GATEWAY, False)):
        key: tuple[Backend, str, str, str] = ("nft", "inet", "firewalld", "filter_FORWARD")
        found = _commands(firewalls.FIREWALLD, key, "forward", _traffic(direction))
        assert found[:2] == (
            "firewall-cmd --permanent --new-zone=ocsf-nft",
            "firewall-cmd --permanent --zone=ocsf-nft --add-interface=vmtap-+",
        )
        assert found[2] == "firewall-cmd --permanent --zone=ocsf-nft --add-port=3128/tcp"
        assert any("--set-target=ACCEPT" in each for each in found) == has_policy


def test_iptables_commands_accept_each_direction_in_its_chain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nft, "find_program", lambda _: None)
    for chain, direction, matches in (
        ("FORWARD", _OUT, ["-i vmtap-+"]),
        ("POSTROUTING", _OUT, []),
        ("FORWARD", _REPLY, [f"-o vmtap-+ {_STATES}"]),
        ("POSTROUTING", _REPLY, [f"-o vmtap-+ {_STATES}"]),
        ("PREROUTING", _REPLY, [_STATES]),
        ("INPUT", _GATEWAY, ["-i vmtap-+ -d 172.16.0.1 -p tcp --dport 3128"]),
        ("OUTPUT", _ANSWER, ["-o vmtap-+ -p tcp --sport 3128"]),
        ("OUTPUT", _PROXY, ["-d 192.0.2.1 -p tcp --dport 3128"]),
        ("INPUT", _PROXY_ANSWER, ["-s 192.0.2.1 -p tcp --sport 3128"]),
    ):
        key: tuple[Backend, str, str, str] = ("legacy", "ip", "filter", chain)
        traffic = _traffic(direction, versions={4})
        found = _commands(firewalls.LEGACY, key, chain.lower(), traffic)
        end = "-m comment --comment ocsf-nft -j ACCEPT"
        assert found == tuple(f"iptables-legacy -I {chain} {match} {end}" for match in matches)
    (found6,) = _commands(
        firewalls.IPTABLES,
        ("nft", "ip6", "raw", "OUTPUT"),
        "output",
        _traffic(_PROXY, versions={6}),
    )
    match = "-d 2001:db8::1 -p tcp --dport 8080"
    assert found6 == f"ip6tables-nft -t raw -I OUTPUT {match} {end}"


def test_nft_commands_accept_each_direction_at_its_hook() -> None:
    device, states = "'\"vmtap-*\"'", "ct state established,related"
    for hook, direction, matches in (
        ("forward", _OUT, [f"iifname {device}"]),
        ("forward", _REPLY, [f"oifname {device} {states}"]),
        ("postrouting", _REPLY, [f"oifname {device} {states}"]),
        ("prerouting", _REPLY, [states]),
        ("ingress", _REPLY, []),
        ("egress", _OUT, []),
        ("input", _GATEWAY, [f"iifname {device} ip daddr 172.16.0.1 tcp dport 3128"]),
        ("output", _ANSWER, [f"oifname {device} tcp sport 3128"]),
        ("output", _PROXY, ["ip daddr 192.0.2.1 tcp dport 3128"]),
        ("input", _PROXY_ANSWER, ["ip saddr 192.0.2.1 tcp sport 3128"]),
    ):
        key: tuple[Backend, str, str, str] = ("nft", "inet", "site", "chain")
        found = _commands(firewalls.NFTABLES, key, hook, _traffic(direction, versions={4}))
        assert found == tuple(
            f"nft insert rule inet site chain {match} accept comment '\"ocsf-nft\"'"
            for match in matches
        )
    found = _commands(firewalls.NFTABLES, key, "output", _traffic(_PROXY))
    assert "ip6 daddr 2001:db8::1 tcp dport 8080" in found[1]


def test_docker_commands_use_the_chain_for_other_rules(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    forward, users = (
        ChainKey("nft", "ip", "filter", "FORWARD"),
        ChainKey("nft", "ip", "filter", "DOCKER-USER"),
    )
    base = BaseSpec(kind="filter", hook="forward", priority=0, policy="drop")
    for owner, key, others, name in (
        (firewalls.DOCKER, forward, [users], "DOCKER-USER"),
        (firewalls.DOCKER, forward, [], "FORWARD"),
        (firewalls.IPTABLES, forward, [users], "FORWARD"),
        (firewalls.DOCKER, forward._replace(name="INPUT"), [users], "INPUT"),
        (firewalls.DOCKER, forward._replace(family="ip6"), [users], "FORWARD"),
    ):
        chain = Chain(key=key, base=base, rules=())
        ruleset = Ruleset(chains={each: Chain(key=each, base=None, rules=()) for each in others})
        (command,) = firewalls.commands(owner, chain, ruleset, *_traffic(_OUT))
        assert f" -I {name} " in command
    # The plain name is shown if it is the program of that backend.
    for kind in ("nft", "legacy"):
        (tmp_path / f"xtables-{kind}-multi").touch()
        program = tmp_path / kind
        program.symlink_to(f"xtables-{kind}-multi")
        monkeypatch.setattr(nft, "find_program", lambda _, program=program: program)
        (found,) = _commands(
            firewalls.IPTABLES, ("nft", "ip", "filter", "FORWARD"), "forward", _traffic(_OUT)
        )
        expected = "iptables" if kind == "nft" else "iptables-nft"
        assert found.startswith(f"{expected} -I FORWARD "), kind


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
        assert firewalls.owner(chain, ruleset) == owner, (family, table, names)


def test_owner_of_a_legacy_chain_is_recognised_by_its_name_alone() -> None:
    text = "*filter\n:FORWARD DROP [0:0]\n:mine - [0:0]\n:ufw-x - [0:0]\n"
    legacy = xtables.chains(text, "ip", "legacy")
    ruleset = Ruleset(chains={**legacy, **_listed("ip", "filter", "FORWARD", "DOCKER").chains})
    found = {key.name: firewalls.owner(chain, ruleset) for key, chain in legacy.items()}
    assert found == {"FORWARD": "ufw", "mine": "legacy iptables", "ufw-x": "ufw"}
    other = xtables.chains(":FORWARD DROP [0:0]\n", "ip", "legacy")
    (chain,) = other.values()
    assert firewalls.owner(chain, Ruleset(chains=other)) == "legacy iptables"
    named = xtables.chains("*ocsf_nft\n:FORWARD DROP [0:0]\n", "ip", "legacy")
    (chain,) = named.values()
    assert firewalls.owner(chain, Ruleset(chains=named)) == "legacy iptables"


def test_no_command_is_shown_for_a_namespace_with_an_unusual_path() -> None:
    for name, is_shown in (("a b", True), ("a\x1b[31m", False), ("a\udcff", False)):
        traffic = _traffic(_OUT, namespace=Namespace(Path("/run/netns") / name))
        found = _commands(firewalls.NFTABLES, ("nft", "inet", "t", "c"), "forward", traffic)
        assert bool(found) is is_shown
