"""Shell commands that make another firewall accept the traffic that a fence accepts.

An administrator runs the commands as root, so every word is quoted. No command is shown if a name
in it has unusual characters.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ocsf_nft.check.accepted_flows import FlowDirection
from ocsf_nft.check.chain_owner import DOCKER, FIREWALLD, UFW
from ocsf_nft.check.ruleset import is_iptables_table
from ocsf_nft.fence import nft

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet

    from ocsf_nft.check.ruleset import Chain, Ruleset
    from ocsf_nft.fence.values import Endpoint, Subnet
    from ocsf_nft.netns import Namespace

#: Comment of the rules that our commands add: `check` doesn't take them for leftovers.
COMMENT: Final = "ocsf-nft"
#: firewalld's zone of the VMs, and its policy for traffic that they send out.
_ZONE, _POLICY = "ocsf-nft", "ocsf-nft-out"
_PLAIN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}", re.ASCII)
#: An interface's name, or a pattern, that all these firewalls' commands can express.
_DEVICE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@=-]{0,14}\*?", re.ASCII)
_FAMILIES: Final = {4: "ip", 6: "ip6"}
_STATES: Final = ("-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED")


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowRequest:
    """Traffic of a VM or a sandbox that another firewall must accept."""

    #: Network namespace of the other firewall's rules.
    namespace: Namespace
    directions: AbstractSet[FlowDirection]
    #: IP versions: 4, 6 or both.
    versions: AbstractSet[int]
    #: Interface of the VM, or a pattern such as ``vmtap-*``; None for a sandbox that is no VM.
    device: str | None
    #: Subnets of the VM; not used for a sandbox.
    subnets: tuple[Subnet, ...] = ()
    #: Port of the proxy at the VM's gateway; not used for a sandbox.
    port: int
    #: Proxies of the sandbox.
    proxies: tuple[Endpoint, ...] = ()


def commands(owner: str, base: Chain, ruleset: Ruleset, request: AllowRequest) -> tuple[str, ...]:
    """Return shell commands that make another firewall accept the requested traffic.

    ``owner`` is the program that manages that firewall. ``base`` is the base chain that leads to
    the dropping rule. The result is empty if no safe command exists.
    """
    if request.device is not None and not is_plain_device(request.device):
        return ()
    if owner == FIREWALLD and request.device is not None:
        return tuple(map(shlex.join, _firewalld(request)))
    if owner == UFW and request.device is not None:
        return tuple(map(shlex.join, _ufw(request)))
    if base.key.backend == "legacy" or (is_iptables_table(base.key) and base.key.name.isupper()):
        found = _iptables(base, owner, ruleset, request)
    else:
        found = _nft(base, ruleset, request)
    return tuple(shlex.join([*_nsenter(request.namespace), *command]) for command in found)


def is_plain_device(name: str) -> bool:
    """Return True if an interface name is valid in commands of nft, iptables, ufw and firewalld.

    A name with spaces, quotes or similar characters is not valid. The name may be a pattern such as
    ``vmtap-*``.
    """
    return _DEVICE.fullmatch(name) is not None


def is_plain(name: str) -> bool:
    """Return True if an nft command can safely contain ``name`` as the name of a table or chain."""
    return _PLAIN.fullmatch(name) is not None


def _nsenter(namespace: Namespace) -> tuple[str, ...]:
    return () if namespace.path is None else ("nsenter", f"--net={namespace.path}", "--")


def _with_plus_wildcard(device: str) -> str:
    # iptables, ufw and firewalld use the wildcard "+".
    return f"{device[:-1]}+" if device.endswith("*") else device


def _firewalld(request: AllowRequest) -> Iterator[list[str]]:
    permanent = ["firewall-cmd", "--permanent"]
    yield [*permanent, f"--new-zone={_ZONE}"]
    yield [
        *permanent,
        f"--zone={_ZONE}",
        f"--add-interface={_with_plus_wildcard(request.device or '')}",
    ]
    yield [*permanent, f"--zone={_ZONE}", f"--add-port={request.port}/tcp"]
    if request.directions & {FlowDirection.OUT, FlowDirection.REPLY}:
        yield [*permanent, f"--new-policy={_POLICY}"]
        yield [*permanent, f"--policy={_POLICY}", f"--add-ingress-zone={_ZONE}"]
        yield [*permanent, f"--policy={_POLICY}", "--add-egress-zone=ANY"]
        yield [*permanent, f"--policy={_POLICY}", "--set-target=ACCEPT"]
    yield ["firewall-cmd", "--reload"]


def _ufw(request: AllowRequest) -> Iterator[list[str]]:
    device = _with_plus_wildcard(request.device or "")
    if FlowDirection.OUT in request.directions:
        yield ["ufw", "route", "allow", "in", "on", device]
    if FlowDirection.REPLY in request.directions:
        yield ["ufw", "route", "allow", "out", "on", device]
    if FlowDirection.GATEWAY in request.directions:
        gateways = [
            str(subnet.ip) for subnet in request.subnets if subnet.version in request.versions
        ]
        for gateway in gateways or ["any"]:
            yield ["ufw", "allow", "in", "on", device, "to", gateway,
                   "port", str(request.port), "proto", "tcp"]  # fmt: skip
    if FlowDirection.GATEWAY_ANSWER in request.directions:
        yield ["ufw", "allow", "out", "on", device, "proto", "tcp", "from", "any",
               "port", str(request.port)]  # fmt: skip


def _iptables(
    base: Chain, owner: str, ruleset: Ruleset, request: AllowRequest
) -> Iterator[list[str]]:
    version = 4 if base.key.family == "ip" else 6
    chain = base.key.name
    users = base.key._replace(name="DOCKER-USER")
    if owner == DOCKER and chain == "FORWARD" and users in ruleset.chains:
        chain = users.name
    where = [] if base.key.table == "filter" else ["-t", base.key.table]
    insert = [_iptables_program(version, base.key.backend), *where, "-I", chain]
    for direction in FlowDirection:
        if direction in request.directions:
            for match in _iptables_matches(direction, base, version, request):
                yield [*insert, *match, "-m", "comment", "--comment", COMMENT, "-j", "ACCEPT"]


def _iptables_program(version: int, backend: str) -> str:
    """Return the iptables program for a backend, for example ``iptables-legacy``.

    ``backend`` is ``legacy`` or ``nft``, and ``version`` is the IP version. The name has no suffix
    if this host's plain ``iptables`` or ``ip6tables`` uses the backend.
    """
    name = "iptables" if version == 4 else "ip6tables"
    found = nft.find_program(name)
    kind = "legacy" if backend == "legacy" else "nft"
    return name if found is not None and kind in found.resolve().name else f"{name}-{kind}"


def _iptables_matches(
    direction: FlowDirection, base: Chain, version: int, request: AllowRequest
) -> Iterator[list[str]]:
    device, hook = _with_plus_wildcard(request.device or ""), base.key.name
    port = str(request.port)
    match direction:
        case FlowDirection.OUT if hook != "POSTROUTING":
            yield ["-i", device]
        case FlowDirection.REPLY if hook == "PREROUTING":
            yield list(_STATES)
        case FlowDirection.REPLY:
            yield ["-o", device, *_STATES]
        case FlowDirection.GATEWAY:
            ends = ["-p", "tcp", "--dport", port]
            yield from (["-i", device, *to, *ends] for to in _gateways(version, request))
        case FlowDirection.GATEWAY_ANSWER:
            yield ["-o", device, "-p", "tcp", "--sport", port]
        case FlowDirection.PROXY | FlowDirection.PROXY_ANSWER:
            end, port_of = (
                ("-d", "--dport") if direction is FlowDirection.PROXY else ("-s", "--sport")
            )
            yield from (
                [end, str(proxy.address), "-p", "tcp", port_of, str(proxy.port)]
                for proxy in _proxies(version, request)
            )


def _gateways(version: int, request: AllowRequest) -> list[list[str]]:
    found = [["-d", str(subnet.ip)] for subnet in request.subnets if subnet.version == version]
    return found or [[]]


def _proxies(version: int, request: AllowRequest) -> list[Endpoint]:
    return [proxy for proxy in request.proxies if proxy.address.version == version]


def _nft(base: Chain, ruleset: Ruleset, request: AllowRequest) -> Iterator[list[str]]:
    key = base.key
    # Only the owner of a table can change it.
    is_owned = "owner" in ruleset.tables.get((key.family, key.table), ())
    if is_owned or not (is_plain(key.table) and is_plain(key.name)):
        return
    insert = ["nft", "insert", "rule", key.family, key.table, key.name]
    for direction in FlowDirection:
        if direction in request.directions:
            for match in _nft_matches(direction, base, request):
                yield [*insert, *match, "accept", "comment", f'"{COMMENT}"']


def _nft_matches(
    direction: FlowDirection, base: Chain, request: AllowRequest
) -> Iterator[list[str]]:
    device, hook = f'"{request.device}"', base.base.hook if base.base is not None else ""
    port, replies = str(request.port), ["ct", "state", "established,related"]
    match direction:
        case FlowDirection.OUT if hook != "egress":  # the input interface is unknown at egress
            yield ["iifname", device]
        case FlowDirection.REPLY if hook in {"forward", "postrouting"}:
            yield ["oifname", device, *replies]
        case FlowDirection.REPLY if hook == "prerouting":
            yield replies
        case FlowDirection.GATEWAY:
            to: list[list[str]] = [
                [_FAMILIES[subnet.version], "daddr", str(subnet.ip)]
                for subnet in request.subnets
                if subnet.version in request.versions
            ]
            yield from (["iifname", device, *each, "tcp", "dport", port] for each in to or [[]])
        case FlowDirection.GATEWAY_ANSWER:
            yield ["oifname", device, "tcp", "sport", port]
        case FlowDirection.PROXY | FlowDirection.PROXY_ANSWER:
            is_out = direction is FlowDirection.PROXY
            address, end = ("daddr", "dport") if is_out else ("saddr", "sport")
            for proxy in request.proxies:
                if proxy.address.version in request.versions:
                    header = _FAMILIES[proxy.address.version]
                    yield [header, address, str(proxy.address), "tcp", end, str(proxy.port)]
