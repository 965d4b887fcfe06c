"""Values of a guard's rules: the addresses of the sandbox, its gateways, and its neighbours."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocsf_nft.fence.spec import FenceSpec, Surroundings
    from ocsf_nft.fence.values import Address

#: Conditions on the sandbox's own addresses, by the set or the variable that they name.
_CONDITION: Final = (
    r"(?:(?:ether|ip6?) (?:saddr|daddr)|arp [sd]addr (?:ether|ip)|icmpv6 taddr|@th,\d+,\d+)"
)
#: Base chain, with the comment before it.
_BASE_CHAIN: Final = re.compile(
    r"^(?:\t#.*\n)?\tchain (?:ingress|egress) \{\n(?:\t\t.*\n|\n)+?\t\}\n\n", re.MULTILINE
)


def elements(spec: FenceSpec, around: Surroundings) -> dict[str, list[str]]:
    """Return the elements of the sets that only a guard has, by the sets' names."""
    if spec.guard_device is None:
        return {}
    host = around.host
    own = around.addresses
    # The gateway's kernel may ask, and be asked, with its link-local address.
    gateway_links = sorted(map(link_local, host.gateway_macs))
    asked = {*around.neighbours, *gateway_links}
    groups = sorted({_group(each) for each in asked if each.version == 6})
    return {
        "peers4": sorted({str(each.address) for each in spec.allowed if each.address.version == 4}),
        "own_macs": list(around.macs),
        "own4": _texts(own, 4),
        "own6": _texts(own, 6),
        "own_links6": _texts(host.link_locals, 6),
        "gateway_macs": list(host.gateway_macs),
        "gateway_links6": [str(each) for each in gateway_links],
        "direct_macs": list(host.direct_macs),
        "next_hops4": _texts(host.next_hops, 4),
        "next_hops6": _texts(host.next_hops, 6),
        "groups6": [str(group) for group in groups],
        "group_macs": [_group_mac(group) for group in groups],
    }


def learned_elements(around: Surroundings) -> dict[str, list[str]]:
    """Return the first elements of the sets that packets fill."""
    return {"learned_macs": list(around.host.next_hop_macs)}


def without_unknown(text: str, spec: FenceSpec, around: Surroundings) -> str:
    """Return a guard's ruleset without the conditions on addresses that are not known."""
    for version in _unknown_versions(spec, around):
        text = _without_conditions(text, rf"(?:@own{version}|\$own{version}_quoted)")
    if not around.macs:
        text = _without_conditions(text, r"(?:@own_macs|\$own_options)")
    return text


def without_hooks(text: str) -> str:
    """Return a guard's ruleset without its base chains, so that it filters nothing.

    It is for a guard that was found and whose device is missing now. It is also for one of a
    permissive fence: each packet would be counted inside, and once more here.
    """
    removed, count = _BASE_CHAIN.subn("", text)
    if count != 2:
        raise AssertionError("the policy file must have two base chains")
    return removed


def unknown(spec: FenceSpec, around: Surroundings) -> str:
    """Return which of a guarded sandbox's addresses are not known, for people; else empty."""
    missing = [f"IPv{version} addresses" for version in _unknown_versions(spec, around)]
    if not around.macs:
        missing.append("link addresses")
    return " and ".join(missing)


def link_local(mac: str) -> ipaddress.IPv6Address:
    """Return the link-local address that a kernel derives from a link address (RFC 4291)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + identifier)


def _unknown_versions(spec: FenceSpec, around: Surroundings) -> list[int]:
    """Return the IP versions of allowed destinations of which the sandbox has no address yet."""
    used = {endpoint.address.version for endpoint in spec.allowed}
    used |= {destination.network.version for destination in spec.ranges}
    return sorted(used - {each.version for each in around.addresses})


def _without_conditions(text: str, value: str) -> str:
    return re.sub(rf"(?<=[\t ]){_CONDITION} {value} ", "", text)


def _texts(addresses: Iterable[Address], version: int) -> list[str]:
    return [str(each) for each in addresses if each.version == version]


def _group(address: Address) -> ipaddress.IPv6Address:
    """Return the multicast group in which a neighbour is asked for its link address (RFC 4291)."""
    return ipaddress.IPv6Address(bytes.fromhex("ff0200000000000000000001ff") + address.packed[-3:])


def _group_mac(group: ipaddress.IPv6Address) -> str:
    """Return the link address of an IPv6 multicast group (RFC 2464)."""
    return (b"\x33\x33" + group.packed[-4:]).hex(":")
