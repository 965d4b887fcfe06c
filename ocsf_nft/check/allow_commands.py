"""The commands that let through what a fence accepts, in the words of whoever drops it.

A command is shown to be run by root. So no name goes into one that isn't plain, and every word of
it is quoted for a shell. Where it can't be written so, there is none.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ocsf_nft.check.accepted_flows import Direction
from ocsf_nft.check.chain_owner import DOCKER, FIREWALLD, UFW
from ocsf_nft.check.ruleset import is_compatible
from ocsf_nft.fence import nft

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet

    from ocsf_nft.check.ruleset import Chain, Ruleset
    from ocsf_nft.fence.values import Endpoint, Subnet
    from ocsf_nft.netns import Namespace

#: Marks rules as wanted by us: they are no leftovers of somebody's.
COMMENT: Final = "ocsf-nft"
#: firewalld's zone of the VMs, and its policy for what they send out.
_ZONE, _POLICY = "ocsf-nft", "ocsf-nft-out"
_PLAIN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}", re.ASCII)
#: A name that every firewall here can write, or the start of one.
_DEVICE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@=-]{0,14}\*?", re.ASCII)
_FAMILIES: Final = {4: "ip", 6: "ip6"}
_STATES: Final = ("-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to get through, and where the rules are.

    ``device`` is the VM's, or a pattern of such; None for a sandbox with ``proxies``.
    """

    namespace: Namespace
    directions: AbstractSet[Direction]
    versions: AbstractSet[int]
    device: str | None
    subnets: tuple[Subnet, ...] = ()
    port: int
    proxies: tuple[Endpoint, ...] = ()


def commands(owner: str, base: Chain, ruleset: Ruleset, wish: Wish) -> tuple[str, ...]:
    """The commands, each for a shell; none where they can't be written."""
    if wish.device is not None and not is_plain_device(wish.device):
        return ()
    if owner == FIREWALLD and wish.device is not None:
        return tuple(map(shlex.join, _firewalld(wish)))
    if owner == UFW and wish.device is not None:
        return tuple(map(shlex.join, _ufw(wish)))
    if base.key.backend == "legacy" or (is_compatible(base.key) and base.key.name.isupper()):
        found = _iptables(base, owner, ruleset, wish)
    else:
        found = _nft(base, ruleset, wish)
    return tuple(shlex.join([*_inside(wish.namespace), *command]) for command in found)


def is_plain_device(name: str) -> bool:
    """Whether every firewall here can write an interface's name, or a pattern's."""
    return _DEVICE.fullmatch(name) is not None


def is_plain(name: str) -> bool:
    """Whether nft takes a name on its command line as that name and nothing else."""
    return _PLAIN.fullmatch(name) is not None


def _inside(namespace: Namespace) -> tuple[str, ...]:
    return () if namespace.path is None else ("nsenter", f"--net={namespace.path}", "--")


def _with_plus(device: str) -> str:
    """The device as iptables, ufw and firewalld write it: a final plus is their asterisk."""
    return f"{device[:-1]}+" if device.endswith("*") else device


def _firewalld(wish: Wish) -> Iterator[list[str]]:
    permanent = ["firewall-cmd", "--permanent"]
    yield [*permanent, f"--new-zone={_ZONE}"]
    yield [*permanent, f"--zone={_ZONE}", f"--add-interface={_with_plus(wish.device or '')}"]
    yield [*permanent, f"--zone={_ZONE}", f"--add-port={wish.port}/tcp"]
    if wish.directions & {Direction.OUT, Direction.REPLY}:
        yield [*permanent, f"--new-policy={_POLICY}"]
        yield [*permanent, f"--policy={_POLICY}", f"--add-ingress-zone={_ZONE}"]
        yield [*permanent, f"--policy={_POLICY}", "--add-egress-zone=ANY"]
        yield [*permanent, f"--policy={_POLICY}", "--set-target=ACCEPT"]
    yield ["firewall-cmd", "--reload"]


def _ufw(wish: Wish) -> Iterator[list[str]]:
    device = _with_plus(wish.device or "")
    if Direction.OUT in wish.directions:
        yield ["ufw", "route", "allow", "in", "on", device]
    if Direction.REPLY in wish.directions:
        yield ["ufw", "route", "allow", "out", "on", device]
    if Direction.GATEWAY in wish.directions:
        gateways = [str(subnet.ip) for subnet in wish.subnets if subnet.version in wish.versions]
        for gateway in gateways or ["any"]:
            yield ["ufw", "allow", "in", "on", device, "to", gateway,
                   "port", str(wish.port), "proto", "tcp"]  # fmt: skip
    if Direction.ANSWER in wish.directions:
        yield ["ufw", "allow", "out", "on", device, "proto", "tcp", "from", "any",
               "port", str(wish.port)]  # fmt: skip


def _iptables(base: Chain, owner: str, ruleset: Ruleset, wish: Wish) -> Iterator[list[str]]:
    version = 4 if base.key.family == "ip" else 6
    chain = base.key.name
    users = base.key._replace(name="DOCKER-USER")
    if owner == DOCKER and chain == "FORWARD" and users in ruleset.chains:
        chain = users.name
    where = [] if base.key.table == "filter" else ["-t", base.key.table]
    insert = [_iptables_program(version, base.key.backend), *where, "-I", chain]
    for direction in Direction:
        if direction in wish.directions:
            for match in _iptables_matches(direction, base, version, wish):
                yield [*insert, *match, "-m", "comment", "--comment", COMMENT, "-j", "ACCEPT"]


def _iptables_program(version: int, backend: str) -> str:
    """Its plain name, where that is the right kind; on many hosts it is the other one's."""
    name = "iptables" if version == 4 else "ip6tables"
    found = nft.program(name)
    kind = "legacy" if backend == "legacy" else "nft"
    return name if found is not None and kind in found.resolve().name else f"{name}-{kind}"


def _iptables_matches(
    direction: Direction, base: Chain, version: int, wish: Wish
) -> Iterator[list[str]]:
    device, hook = _with_plus(wish.device or ""), base.key.name
    port = str(wish.port)
    match direction:
        case Direction.OUT if hook != "POSTROUTING":
            yield ["-i", device]
        case Direction.REPLY if hook == "PREROUTING":
            yield list(_STATES)
        case Direction.REPLY:
            yield ["-o", device, *_STATES]
        case Direction.GATEWAY:
            ends = ["-p", "tcp", "--dport", port]
            yield from (["-i", device, *to, *ends] for to in _gateways(version, wish))
        case Direction.ANSWER:
            yield ["-o", device, "-p", "tcp", "--sport", port]
        case Direction.PROXY | Direction.PROXY_ANSWER:
            end, port_of = ("-d", "--dport") if direction is Direction.PROXY else ("-s", "--sport")
            yield from (
                [end, str(proxy.address), "-p", "tcp", port_of, str(proxy.port)]
                for proxy in _proxies(version, wish)
            )


def _gateways(version: int, wish: Wish) -> list[list[str]]:
    found = [["-d", str(subnet.ip)] for subnet in wish.subnets if subnet.version == version]
    return found or [[]]


def _proxies(version: int, wish: Wish) -> list[Endpoint]:
    return [proxy for proxy in wish.proxies if proxy.address.version == version]


def _nft(base: Chain, ruleset: Ruleset, wish: Wish) -> Iterator[list[str]]:
    key = base.key
    # A table that a running program owns can be changed by that program alone.
    is_owned = "owner" in ruleset.tables.get((key.family, key.table), ())
    if is_owned or not (is_plain(key.table) and is_plain(key.name)):
        return
    insert = ["nft", "insert", "rule", key.family, key.table, key.name]
    for direction in Direction:
        if direction in wish.directions:
            for match in _nft_matches(direction, base, wish):
                yield [*insert, *match, "accept", "comment", f'"{COMMENT}"']


def _nft_matches(direction: Direction, base: Chain, wish: Wish) -> Iterator[list[str]]:
    device, hook = f'"{wish.device}"', base.base.hook if base.base is not None else ""
    port, replies = str(wish.port), ["ct", "state", "established,related"]
    match direction:
        case Direction.OUT if hook != "egress":  # egress does not see the input interface
            yield ["iifname", device]
        case Direction.REPLY if hook in {"forward", "postrouting"}:
            yield ["oifname", device, *replies]
        case Direction.REPLY if hook == "prerouting":
            yield replies
        case Direction.GATEWAY:
            to: list[list[str]] = [
                [_FAMILIES[subnet.version], "daddr", str(subnet.ip)]
                for subnet in wish.subnets
                if subnet.version in wish.versions
            ]
            yield from (["iifname", device, *each, "tcp", "dport", port] for each in to or [[]])
        case Direction.ANSWER:
            yield ["oifname", device, "tcp", "sport", port]
        case Direction.PROXY | Direction.PROXY_ANSWER:
            is_out = direction is Direction.PROXY
            address, end = ("daddr", "dport") if is_out else ("saddr", "sport")
            for proxy in wish.proxies:
                if proxy.address.version in wish.versions:
                    header = _FAMILIES[proxy.address.version]
                    yield [header, address, str(proxy.address), "tcp", end, str(proxy.port)]
