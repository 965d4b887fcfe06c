"""Classification of IP addresses, for example as private, multicast or cloud metadata.

A binary search in a table of address ranges finds the kind of an address.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import cache
from ipaddress import ip_network
from typing import Final, Literal, NamedTuple, TypeAlias

from ocsf_nft import cloud_metadata
from ocsf_nft.ip_text import packed
from ocsf_nft.ocsf.enums import NetworkScope

_Version: TypeAlias = Literal[4, 6]


class _Network(NamedTuple):
    first: int
    last: int


#: Networks by IP version.
_Networks: TypeAlias = dict[_Version, list[_Network]]


def _networks(*names: str) -> _Networks:
    found: _Networks = {4: [], 6: []}
    for network in map(ip_network, names):
        found[network.version].append(_Network(int(network[0]), int(network[-1])))
    return found


_METADATA: Final = _networks(*map(str, cloud_metadata.SERVICES))
#: Addresses that a site assigns itself, or that never leave a link or a host (IANA's
#: special-purpose registries; multicast by its scope: RFC 2365, RFC 4291).
_INTERNAL: Final = _networks(
    "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16",
    "127.0.0.0/8", "198.18.0.0/15", "224.0.0.0/24", "239.0.0.0/8", "255.255.255.255/32",
    "::1/128", "fc00::/7", "fe80::/10", "fec0::/10",
    # The scopes 1 to 5 and 8, in as few networks as possible, because each takes time at the start.
    *(
        f"ff{flags:x}{scope}" for flags in range(16)
        for scope in ("1::/16", "2::/15", "4::/15", "8::/16")
    ),
)  # fmt: skip
#: Unspecified and never assigned addresses, which have no scope.
_UNASSIGNED: Final = _networks("0.0.0.0/8", "240.0.0.0/4", "::/128")
_LOOPBACK: Final = _networks("127.0.0.0/8", "::1/128")
_LINK_LOCAL: Final = _networks("169.254.0.0/16", "fe80::/10")
_MULTICAST: Final = _networks("224.0.0.0/4", "ff00::/8")
_BROADCAST: Final = _networks("255.255.255.255/32")
#: IPv6 addresses with the real IPv4 address in the last 32 bits (RFC 4291, RFC 6052).
_CARRY_IPV4: Final = _networks("::ffff:0:0/96", "64:ff9b::/96")
_IPV4_BITS: Final = 32


@dataclass(frozen=True, slots=True, eq=False)
class AddressKind:
    """Kind of an IP address: its family, scope and special purposes."""

    version: _Version
    scope: NetworkScope | None
    is_loopback: bool
    is_link_local: bool
    is_multicast: bool
    is_broadcast: bool
    is_cloud_metadata: bool


def packed_address_kind(address: bytes) -> AddressKind:
    """Return the kind of an IP address, for example private, multicast or cloud metadata.

    ``address`` has 4 bytes for IPv4 and 16 bytes for IPv6, in network order.
    """
    starts, kinds = _TABLES[len(address)]
    kind = kinds[bisect_right(starts, address) - 1]
    if cloud_metadata.has_ipv4_form(address) and cloud_metadata.is_metadata(address):
        return _metadata_kind(kind)
    return kind


@cache
def _metadata_kind(kind: AddressKind) -> AddressKind:
    return replace(kind, is_cloud_metadata=True)


def address_kind(text: str | None) -> AddressKind | None:
    """Return the kind of an IP address in text form; None if the text is no IP address."""
    address = packed(text)
    return None if address is None else packed_address_kind(address)


def _table(version: _Version, size: int) -> tuple[list[bytes], list[AddressKind]]:
    """Return the first address of each address range, and the kind of each range."""
    starts = {0, *_changes(version)}
    if version == 6:
        starts |= {carrier.first + start for carrier in _CARRY_IPV4[6] for start in _changes(4)}
    found: dict[tuple[NetworkScope | None, tuple[bool, ...]], AddressKind] = {}
    begins, kinds = [], []
    for start in sorted(starts):
        if start < 1 << 8 * size:
            scope, flags = key = _traits(version, start)
            begins.append(start.to_bytes(size))
            kinds.append(found.setdefault(key, AddressKind(version, scope, *flags)))
    return begins, kinds


def _changes(version: _Version) -> set[int]:
    kinds = (
        _INTERNAL, _UNASSIGNED, _LOOPBACK, _LINK_LOCAL, _MULTICAST, _BROADCAST, _METADATA,
    )  # fmt: skip
    networks = [network for each in kinds for network in each[version]]
    return {network.first for network in networks} | {network.last + 1 for network in networks}


def _traits(version: _Version, address: int) -> tuple[NetworkScope | None, tuple[bool, ...]]:
    """Return the scope of an address, and its flags in the order of the fields in AddressKind."""
    if _is_in(_CARRY_IPV4, version, address):
        return _traits(4, address % (1 << _IPV4_BITS))
    kinds = (_LOOPBACK, _LINK_LOCAL, _MULTICAST, _BROADCAST, _METADATA)
    flags = tuple(_is_in(networks, version, address) for networks in kinds)
    if _is_in(_INTERNAL, version, address):
        return NetworkScope.INTERNAL, flags
    return None if _is_in(_UNASSIGNED, version, address) else NetworkScope.EXTERNAL, flags


def _is_in(networks: _Networks, version: _Version, address: int) -> bool:
    return any(first <= address <= last for first, last in networks[version])


#: Tables by the number of bytes of an address.
_TABLES: Final = {4: _table(4, 4), 16: _table(6, 16)}


def packed_tables() -> tuple[bytes, bytes, bytes, bytes]:
    """Return the tables of all address ranges: those of IPv4, and those of IPv6.

    Of each family, the first table has the first address of each range, and the second one a number
    for the kind of each range: equal kinds have equal numbers.
    """
    (starts4, kinds4), (starts6, kinds6) = _TABLES[4], _TABLES[16]
    return b"".join(starts4), _numbers(kinds4), b"".join(starts6), _numbers(kinds6)


def _numbers(kinds: list[AddressKind]) -> bytes:
    found = {kind: number for number, kind in enumerate(dict.fromkeys(map(id, kinds)))}
    return bytes(found[id(kind)] for kind in kinds)
