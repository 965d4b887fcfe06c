"""Policy of a fence, as the BPF program of the last gate reads it (``bpf/gate.bpf.c``)."""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import TYPE_CHECKING, Final

from ocsf_nft.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from ocsf_nft.fence.spec import FenceSpec, Surroundings
    from ocsf_nft.fence.values import Address, Network

# Sizes of the arrays of struct policy.
_MACS: Final = 4
_ADDRESSES: Final = 32
_NEIGHBOURS: Final = 32
_DESTINATIONS: Final = 128
#: Whether it is permissive, the numbers of MACs, addresses, neighbours and destinations, and the IP
#: versions whose own addresses are not known.
_HEAD: Final = struct.Struct("=6I")
#: Bit of each IP version: UNKNOWN4 and UNKNOWN6.
_UNKNOWN: Final = {4: 1, 6: 2}
_MAC: Final = struct.Struct("=6s2x")
_ADDRESS: Final = struct.Struct("=16s")
#: Network, mask, first and last port, protocol, and whether the fence allows ARP and neighbour
#: discovery to all of its addresses.
_DESTINATION: Final = struct.Struct("=16s16sHHBB2x")
_PROTOCOLS: Final = {
    "tcp": socket.IPPROTO_TCP,
    "udp": socket.IPPROTO_UDP,
    "sctp": 132,
    "dccp": 33,
    "udplite": 136,
}
_MAPPED: Final = bytes(10) + b"\xff\xff"
#: Bytes of a policy.
SIZE: Final = (
    _HEAD.size
    + _MACS * _MAC.size
    + (_ADDRESSES + _NEIGHBOURS) * _ADDRESS.size
    + _DESTINATIONS * _DESTINATION.size
)


def gate_policy(*fences: tuple[FenceSpec, Surroundings]) -> bytes:
    """Return the policy that allows what any of some versions of one fence allows.

    Raises UnsupportedError if that is too much for the gate.
    """
    macs = {mac for _, around in fences for mac in around.macs}
    addresses = {each for _, around in fences for each in around.addresses}
    neighbours = {each for _, around in fences for each in around.neighbours}
    destinations: dict[tuple[Network, str, int, int, bool], None] = {}
    for spec, _ in fences:
        for end in spec.allowed:
            network = ipaddress.ip_network(end.address)
            destinations[network, end.protocol, end.port, end.port, False] = None
        for each in spec.ranges:
            key = each.network, each.protocol, each.first_port, each.last_port, True
            destinations[key] = None
    for what, found, most in (
        ("link addresses", macs, _MACS),
        ("own addresses", addresses, _ADDRESSES),
        ("neighbours", neighbours, _NEIGHBOURS),
        ("destinations", destinations, _DESTINATIONS),
    ):
        _check(what, found, most)
    unknown = {version for each in fences for version in _unknown_versions(*each)}
    return b"".join(
        (
            _HEAD.pack(
                any(spec.is_permissive for spec, _ in fences),
                len(macs), len(addresses), len(neighbours), len(destinations),
                sum(map(_UNKNOWN.__getitem__, unknown)),
            ),
            _array(_MAC, (bytes.fromhex(mac.replace(":", "")) for mac in sorted(macs)), _MACS),
            _array(_ADDRESS, map(_packed, addresses), _ADDRESSES),
            _array(_ADDRESS, map(_packed, neighbours), _NEIGHBOURS),
            b"".join(
                _DESTINATION.pack(
                    _packed(network.network_address), _mask(network), first, last,
                    _PROTOCOLS[protocol], is_range,
                )
                for network, protocol, first, last, is_range in destinations
            ).ljust(_DESTINATIONS * _DESTINATION.size, b"\0"),
        )
    )  # fmt: skip


def _unknown_versions(spec: FenceSpec, around: Surroundings) -> set[int]:
    """Return the IP versions of destinations of which the sandbox has no known address yet."""
    used: set[int] = {each.address.version for each in spec.allowed}
    used |= {each.network.version for each in spec.ranges}
    return used - {each.version for each in around.addresses}


def _check(what: str, found: Collection[object], most: int) -> None:
    if len(found) > most:
        raise UnsupportedError(f"the fence has {len(found)} {what}, more than {most}")


def _array(item: struct.Struct, values: Iterable[bytes], length: int) -> bytes:
    return b"".join(map(item.pack, values)).ljust(length * item.size, b"\0")


def _packed(address: Address) -> bytes:
    return address.packed if address.version == 6 else _MAPPED + address.packed


def _mask(network: Network) -> bytes:
    return network.netmask.packed if network.version == 6 else b"\xff" * 12 + network.netmask.packed
