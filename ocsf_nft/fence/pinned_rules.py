"""Rules of a policy file that depend on the pinned uplinks, and the elements of their sets."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocsf_nft.fence.spec import FenceSpec, Surroundings
    from ocsf_nft.fence.values import Address, Network

#: Matches on own addresses, by the set that they name.
_MATCHES: Final = {
    "own4": re.compile(r"(?:ip saddr|arp saddr ip) @own4 "),
    "own6": re.compile(r"ip6 saddr @own6 "),
    "own_macs": re.compile(r"(?:ether saddr|arp saddr ether) @own_macs "),
    "outer": re.compile(r"[io]if @outer "),
}
#: A match that a match on own addresses implies; it takes a lookup of the routes.
_LOCAL_SOURCE: Final = re.compile(r"fib saddr type local (?=ip6? saddr @own[46] )")
#: A jump to the rules for neighbour discovery from own addresses.
_STRICT_DISCOVERY: Final = re.compile(
    r"^(\t\t)oif @uplinks (?:ether saddr @own_macs )?(.*) jump neighbour_discovery$", re.MULTILINE
)
#: The same in a pod, and for ARP; rules for any neighbour follow these lines.
_STRICT_ND_LINE: Final = re.compile(
    r"^\t\toif @uplinks .* goto neighbour_discovery\n", re.MULTILINE
)
_STRICT_ARP_LINE: Final = re.compile(
    r"^\t\toif @uplinks .* goto address_resolution\n", re.MULTILINE
)
#: Rules for a network on the link of an uplink of a pod, and the definitions of their values.
_LINK_NETWORK: Final = re.compile(r"^.*\$link([46])\b.*\n", re.MULTILINE)
_LINK_DEFINE: Final = re.compile(r"^(?:#.*\n)*(?:define link[46] = .*\n)+", re.MULTILINE)
_SOLICITED: Final = ipaddress.ip_network("ff02::1:ff00:0/104")


def adapt(text: str, spec: FenceSpec, around: Surroundings) -> str:
    """Return the policy ``text`` without the matches for which there are no values.

    Before a route has shown the uplinks, no own address is certain. If an uplink is missing,
    another interface may be that uplink: then the fence sends no answer on any.
    """
    known = _known(spec, around)
    if not {"own6", "own_macs"} <= known:
        text = _STRICT_DISCOVERY.sub(r"\1\2 jump any_neighbour", text)
        text = _STRICT_ND_LINE.sub("", text)
    if not {"own4", "own_macs"} <= known:
        text = _STRICT_ARP_LINE.sub("", text)
    for name, match in _MATCHES.items():
        if name not in known:
            text = match.sub("", text)
    text = _repeat_for_networks(text, around.link_networks)
    # What remains has both matches.
    return _LOCAL_SOURCE.sub("", text)


def _repeat_for_networks(text: str, networks: Iterable[Network]) -> str:
    """Return ``text`` with a copy of each rule for a network on a link, for each network."""
    known = tuple(networks)

    def copies(rule: re.Match[str]) -> str:
        name = f"$link{rule[1]}"
        return "".join(
            rule[0].replace(name, str(each)) for each in known if str(each.version) == rule[1]
        )

    return _LINK_NETWORK.sub(copies, _LINK_DEFINE.sub("", text))


def options(around: Surroundings) -> list[str]:
    """Return the neighbour discovery options with a link address of an uplink, as numbers.

    They are the source and the target link-layer address (RFC 4861), with their types and lengths.
    """
    macs = [mac.replace(":", "") for mac in around.macs if around.pins]
    return [f"0x{kind}01{mac}" for kind in ("01", "02") for mac in macs]


def elements(around: Surroundings) -> dict[str, list[str]]:
    """Return the elements of the sets of interfaces and own addresses, by the names of the sets."""
    own = (*around.addresses, *around.link_locals) if around.pins else ()
    groups = {_solicited_group(each) for each in (*around.neighbours, *own) if each.version == 6}
    return {
        "uplinks": [*map(str, around.uplink_indexes)],
        "outer": [*map(str, around.outer_indexes)],
        "own4": [str(each) for each in own if each.version == 4],
        "own6": [str(each) for each in own if each.version == 6],
        "own_macs": [*around.macs] if around.pins else [],
        "solicited6": [*map(str, sorted(groups))],
    }


def _known(spec: FenceSpec, around: Surroundings) -> set[str]:
    known = set() if around.missing else {"outer"}
    if not around.pins:
        return known
    if all(pin.mac is not None for pin in around.pins):
        known.add("own_macs")
    versions = {each.version for each in around.addresses}
    if 4 in versions:
        known.add("own4")
    # If no other IPv6 address is needed, the link-local addresses are all.
    if 6 in versions or 6 not in _allowed_versions(spec):
        known.add("own6")
    return known


def _allowed_versions(spec: FenceSpec) -> Iterable[int]:
    yield from (endpoint.address.version for endpoint in spec.allowed)
    yield from (destination.network.version for destination in spec.ranges)


def _solicited_group(address: Address) -> ipaddress.IPv6Address:
    return ipaddress.IPv6Address(int(_SOLICITED.network_address) | int(address) & 0xFFFFFF)
