"""Firewalls of a host: which one made a chain, and commands that make it accept traffic.

A firewall is recognised by the names of its tables and chains. Any program can choose these names,
so use the result only in findings of `check`. An administrator runs the commands as root, so every
word is quoted. No command is shown if a name in it has unusual characters.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ocsf_nft.check.accepted_flows import FlowDirection
from ocsf_nft.check.ruleset import is_iptables_table
from ocsf_nft.fence import nft
from ocsf_nft.fence.spec import TABLE
from ocsf_nft.ocsf.safe_text import visible

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from collections.abc import Set as AbstractSet

    from ocsf_nft.check.accepted_flows import AcceptedFlow, CheckScope
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

#: Comment of the rules that our commands add: `check` doesn't take them for leftovers.
COMMENT: Final = "ocsf-nft"
#: firewalld's zone of the VMs, and its policy for traffic that they send out.
_ZONE, _POLICY = "ocsf-nft", "ocsf-nft-out"
_PLAIN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}", re.ASCII)
#: An interface's name, or a pattern, that all these firewalls' commands can express.
_DEVICE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@=-]{0,14}\*?", re.ASCII)
_FAMILIES: Final = {4: "ip", 6: "ip6"}
_STATES: Final = ("-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED")


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


def commands(
    owner: str, base: Chain, ruleset: Ruleset, scope: CheckScope, flows: Collection[AcceptedFlow]
) -> tuple[str, ...]:
    """Return shell commands that make another firewall accept ``flows``, which are of ``scope``.

    ``owner`` is the program that manages that firewall. ``base`` is the base chain that leads to
    the dropping rule. The result is empty if no safe command exists.
    """
    directions = {flow.direction for flow in flows}
    versions = {flow.packet.version for flow in flows}
    endpoints = dict.fromkeys(flow.endpoint for flow in flows if flow.endpoint is not None)
    subnets = (subnet for subnet in scope.subnets if subnet.version in versions)
    scope = replace(scope, subnets=tuple(subnets), proxies=tuple(endpoints))
    path = "" if scope.namespace.path is None else str(scope.namespace.path)
    if visible(path) != path:  # it can't be shown as it is
        return ()
    if scope.device is not None:
        if not is_plain_device(scope.device):
            return ()
        if owner == FIREWALLD:
            return tuple(map(shlex.join, _firewalld(scope, directions)))
        if owner == UFW:
            return tuple(map(shlex.join, _ufw(scope, directions)))
    key = base.key
    is_owned = "owner" in ruleset.tables.get((key.family, key.table), ())
    if is_iptables_table(key) and key.name.isupper():
        insert = _iptables_insert(base, owner, ruleset)
        end, matches = ["-m", "comment", "--comment", COMMENT, "-j", "ACCEPT"], _iptables_matches
    elif is_plain(key) and not is_owned and key.family != "bridge":  # it has other interfaces
        insert = ["nft", "insert", "rule", key.family, key.table, key.name]
        end, matches = ["accept", "comment", f'"{COMMENT}"'], _nft_matches
    else:  # only the owner of a table can change it
        return ()
    enter = ["nsenter", f"--net={path}", "--"] if path else []
    return tuple(
        shlex.join([*enter, *insert, *match, *end])
        for direction in FlowDirection
        if direction in directions
        for match in (
            _resolution_matches(insert[0], key.family)
            if direction is FlowDirection.NEIGHBOR
            else matches(direction, base, scope)
        )
    )


def is_plain_device(name: str) -> bool:
    """Return True if an interface name is valid in commands of nft, iptables, ufw and firewalld.

    A name with spaces, quotes or similar characters is not valid. The name may be a pattern such as
    ``vmtap-*``.
    """
    return _DEVICE.fullmatch(name) is not None


def is_plain(key: ChainKey) -> bool:
    """Return True if an nft command can safely contain the names of a chain and of its table."""
    return all(_PLAIN.fullmatch(name) for name in (key.table, key.name))


def _plus_wildcard(scope: CheckScope) -> str:
    # iptables, ufw and firewalld use the wildcard "+".
    device = scope.device or ""
    return f"{device[:-1]}+" if device.endswith("*") else device


def _firewalld(scope: CheckScope, directions: AbstractSet[FlowDirection]) -> Iterator[list[str]]:
    permanent = ["firewall-cmd", "--permanent"]
    zone, policy = [*permanent, f"--zone={_ZONE}"], [*permanent, f"--policy={_POLICY}"]
    yield [*permanent, f"--new-zone={_ZONE}"]
    yield [*zone, f"--add-interface={_plus_wildcard(scope)}"]
    yield [*zone, f"--add-port={scope.port}/tcp"]
    if directions & {FlowDirection.OUT, FlowDirection.REPLY}:
        yield [*permanent, f"--new-policy={_POLICY}"]
        yield [*policy, f"--add-ingress-zone={_ZONE}"]
        yield [*policy, "--add-egress-zone=ANY"]
        yield [*policy, "--set-target=ACCEPT"]
    yield ["firewall-cmd", "--reload"]


def _ufw(scope: CheckScope, directions: AbstractSet[FlowDirection]) -> Iterator[list[str]]:
    device, port = _plus_wildcard(scope), str(scope.port)
    if FlowDirection.OUT in directions:
        yield ["ufw", "route", "allow", "in", "on", device]
    if FlowDirection.REPLY in directions:
        yield ["ufw", "route", "allow", "out", "on", device]
    if FlowDirection.GATEWAY in directions:
        for gateway in [str(subnet.ip) for subnet in scope.subnets] or ["any"]:
            to = ["to", gateway, "port", port, "proto", "tcp"]
            yield ["ufw", "allow", "in", "on", device, *to]
    if FlowDirection.GATEWAY_ANSWER in directions:
        yield ["ufw", "allow", "out", "on", device, "proto", "tcp", "from", "any", "port", port]


def _iptables_insert(base: Chain, owner: str, ruleset: Ruleset) -> list[str]:
    key, chain = base.key, base.key.name
    users = key._replace(name="DOCKER-USER")
    if owner == DOCKER and chain == "FORWARD" and users in ruleset.chains:
        chain = users.name
    table = [] if key.table == "filter" else ["-t", key.table]
    program = "iptables" if key.family == "ip" else "ip6tables"
    found = nft.find_program(program)
    # The name has no suffix if this host's plain program uses the backend.
    if found is None or key.backend not in found.resolve().name:
        program = f"{program}-{key.backend}"
    return [program, *table, "-I", chain]


def _iptables_matches(
    direction: FlowDirection, base: Chain, scope: CheckScope
) -> Iterator[list[str]]:
    device, hook, port = _plus_wildcard(scope), base.key.name, str(scope.port)
    match direction:
        case FlowDirection.OUT if hook != "POSTROUTING":
            yield ["-i", device]
        case FlowDirection.REPLY if hook == "PREROUTING":
            yield list(_STATES)
        case FlowDirection.REPLY:
            yield ["-o", device, *_STATES]
        case FlowDirection.GATEWAY:
            for to in [["-d", str(subnet.ip)] for subnet in scope.subnets] or [[]]:
                yield ["-i", device, *to, "-p", "tcp", "--dport", port]
        case FlowDirection.GATEWAY_ANSWER:
            yield ["-o", device, "-p", "tcp", "--sport", port]
        case FlowDirection.PROXY | FlowDirection.PROXY_ANSWER:
            is_out = direction is FlowDirection.PROXY
            end, port_of = ("-d", "--dport") if is_out else ("-s", "--sport")
            for proxy in scope.proxies:
                yield [end, str(proxy.address), "-p", "tcp", port_of, str(proxy.port)]


def _resolution_matches(program: str, family: str) -> Iterator[list[str]]:
    if program == "nft" and family == "arp":
        yield []
    elif program == "nft" and family in {"inet", "ip6"}:
        yield ["icmpv6", "type", "{ nd-neighbor-solicit, nd-neighbor-advert }"]
    elif family == "ip6":
        for number in ("135", "136"):  # neighbor solicitation and advertisement (RFC 4861)
            yield ["-p", "ipv6-icmp", "--icmpv6-type", number]


def _nft_matches(direction: FlowDirection, base: Chain, scope: CheckScope) -> Iterator[list[str]]:
    device, port = f'"{scope.device}"', str(scope.port)
    hook, replies = base.base.hook if base.base else "", ["ct", "state", "established,related"]
    match direction:
        case FlowDirection.OUT if hook != "egress":  # the input interface is unknown at egress
            yield ["iifname", device]
        case FlowDirection.REPLY if hook in {"forward", "postrouting"}:
            yield ["oifname", device, *replies]
        case FlowDirection.REPLY if hook == "prerouting":
            yield replies
        case FlowDirection.GATEWAY:
            gateways = [[_FAMILIES[net.version], "daddr", str(net.ip)] for net in scope.subnets]
            for to in gateways or [[]]:
                yield ["iifname", device, *to, "tcp", "dport", port]
        case FlowDirection.GATEWAY_ANSWER:
            yield ["oifname", device, "tcp", "sport", port]
        case FlowDirection.PROXY | FlowDirection.PROXY_ANSWER:
            is_out = direction is FlowDirection.PROXY
            address, end = ("daddr", "dport") if is_out else ("saddr", "sport")
            for proxy in scope.proxies:
                header = _FAMILIES[proxy.address.version]
                yield [header, address, str(proxy.address), "tcp", end, str(proxy.port)]
