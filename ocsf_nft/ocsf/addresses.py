"""What an address says about where it is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final, TypeAlias

from ocsf_nft.ocsf.caching import CACHED
from ocsf_nft.ocsf.enums import NetworkScope

_Address: TypeAlias = IPv4Address | IPv6Address
_Networks: TypeAlias = tuple[IPv4Network | IPv6Network, ...]


def _networks(*names: str) -> _Networks:
    return tuple(ip_network(name) for name in names)


#: Addresses that a site gives out itself, or that never leave a link or a host (IANA's
#: special-purpose registries; multicast by its scope: RFC 2365, RFC 4291).
_INTERNAL: Final = _networks(
    "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16",
    "127.0.0.0/8", "198.18.0.0/15", "224.0.0.0/24", "239.0.0.0/8", "255.255.255.255/32",
    "::1/128", "fc00::/7", "fe80::/10", "fec0::/10",
    *(f"ff{flags:x}{scope}::/16" for flags in range(16) for scope in (1, 2, 3, 4, 5, 8)),
)  # fmt: skip
#: Addresses that are nowhere: unspecified, and never assigned.
_NOWHERE: Final = _networks("0.0.0.0/8", "240.0.0.0/4", "::/128")
#: IPv6 addresses whose last 32 bits are the IPv4 address meant (RFC 4291, RFC 6052).
_CARRIES_IPV4: Final = (IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"))
#: Where clouds serve a machine's credentials.
METADATA: Final = frozenset({ip_address("169.254.169.254"), ip_address("fd00:ec2::254")})


@dataclass(frozen=True, slots=True)
class Place:
    """One address: its text and network bytes, and where that is."""

    text: str
    packed: bytes
    scope: NetworkScope | None
    is_loopback: bool
    is_link_local: bool
    is_multicast: bool
    is_broadcast: bool
    is_cloud_metadata: bool


@lru_cache(maxsize=CACHED)
def place(text: str | None) -> Place | None:
    """What ``text`` says, or None when it is no IP address (a scoped one is none on the wire)."""
    if text is None or "%" in text:
        return None
    try:
        address = ip_address(text)
    except ValueError:
        return None
    meant = _meant(address)
    return Place(
        text=text,
        packed=address.packed,
        scope=_scope(meant),
        is_loopback=meant.is_loopback,
        is_link_local=meant.is_link_local,
        is_multicast=meant.is_multicast,
        is_broadcast=meant == IPv4Address("255.255.255.255"),
        is_cloud_metadata=meant in METADATA,
    )


def _meant(address: _Address) -> _Address:
    if isinstance(address, IPv6Address) and any(address in net for net in _CARRIES_IPV4):
        return IPv4Address(address.packed[-4:])
    return address


def _scope(address: _Address) -> NetworkScope | None:
    if any(address in network for network in _INTERNAL):
        return NetworkScope.INTERNAL
    if any(address in network for network in _NOWHERE):
        return None
    return NetworkScope.EXTERNAL
