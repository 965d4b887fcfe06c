"""What an address says about where it is.

Each family's addresses are cut where anything changes that is said of them: so where one is, is
looked up in a table, which is made once of the networks below.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Final, Literal, NamedTuple, TypeAlias

from ocsf_nft.ip_text import packed
from ocsf_nft.ocsf.enums import NetworkScope

_Version: TypeAlias = Literal[4, 6]


class _Network(NamedTuple):
    """Its first address and its last one, as numbers."""

    version: _Version
    first: int
    last: int


def _networks(*names: str) -> tuple[_Network, ...]:
    return tuple(
        _Network(network.version, int(network[0]), int(network[-1]))
        for network in map(ip_network, names)
    )


#: Where clouds serve a machine's credentials.
METADATA: Final = frozenset({ip_address("169.254.169.254"), ip_address("fd00:ec2::254")})
_METADATA: Final = _networks(*map(str, METADATA))
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
_LOOPBACK: Final = _networks("127.0.0.0/8", "::1/128")
_LINK_LOCAL: Final = _networks("169.254.0.0/16", "fe80::/10")
_MULTICAST: Final = _networks("224.0.0.0/4", "ff00::/8")
_BROADCAST: Final = _networks("255.255.255.255/32")
#: IPv6 addresses whose last 32 bits are the IPv4 address meant (RFC 4291, RFC 6052).
_CARRY_IPV4: Final = _networks("::ffff:0:0/96", "64:ff9b::/96")
_IPV4_BITS: Final = 32


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where an address is, and the family in which it is written.

    Addresses of which the same is said share one.
    """

    version: _Version
    scope: NetworkScope | None
    is_loopback: bool
    is_link_local: bool
    is_multicast: bool
    is_broadcast: bool
    is_cloud_metadata: bool


def place_of(address: bytes) -> Place:
    """Where an address in network bytes is."""
    starts, places = _TABLES[len(address)]
    return places[bisect_right(starts, address) - 1]


def place(text: str | None) -> Place | None:
    """Where the address is that ``text`` says, or None when it is no IP address."""
    address = packed(text)
    return None if address is None else place_of(address)


def _table(version: _Version, size: int) -> tuple[list[bytes], list[Place]]:
    """Where each part of a family's addresses begins, in network bytes, and where that is."""
    said = (*_INTERNAL, *_NOWHERE, *_LOOPBACK, *_LINK_LOCAL, *_MULTICAST, *_BROADCAST, *_METADATA)
    starts = {0, *_changes(said, version)}
    if version == 6:
        starts |= {carrier.first + start for carrier in _CARRY_IPV4 for start in _changes(said, 4)}
    found: dict[tuple[NetworkScope | None, tuple[bool, ...]], Place] = {}
    begins, places = [], []
    for start in sorted(starts):
        if start < 1 << 8 * size:
            scope, flags = key = _said(version, start)
            begins.append(start.to_bytes(size))
            places.append(found.setdefault(key, Place(version, scope, *flags)))
    return begins, places


def _changes(networks: tuple[_Network, ...], version: _Version) -> set[int]:
    ours = [network for network in networks if network.version == version]
    return {network.first for network in ours} | {network.last + 1 for network in ours}


def _said(version: _Version, address: int) -> tuple[NetworkScope | None, tuple[bool, ...]]:
    """Its scope, and what else :class:`Place` has of it."""
    if _is_in(_CARRY_IPV4, version, address):
        return _said(4, address % (1 << _IPV4_BITS))
    kinds = (_LOOPBACK, _LINK_LOCAL, _MULTICAST, _BROADCAST, _METADATA)
    flags = tuple(_is_in(networks, version, address) for networks in kinds)
    if _is_in(_INTERNAL, version, address):
        return NetworkScope.INTERNAL, flags
    return None if _is_in(_NOWHERE, version, address) else NetworkScope.EXTERNAL, flags


def _is_in(networks: tuple[_Network, ...], version: _Version, address: int) -> bool:
    return any(each.version == version and each.first <= address <= each.last for each in networks)


#: By the number of bytes of an address.
_TABLES: Final = {4: _table(4, 4), 16: _table(6, 16)}
