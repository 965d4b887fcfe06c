"""Exceptions of a fence: strategies, and the bounds of their networks."""

from __future__ import annotations

import ipaddress

from hypothesis import strategies as st

from ocsf_nft.fence.values import Destination, Network

#: Unspecified, multicast and broadcast addresses, which no host has.
_NO_HOSTS = tuple(
    map(
        ipaddress.ip_network,
        ("0.0.0.0/32", "224.0.0.0/4", "255.255.255.255/32", "::/128", "ff00::/8"),
    )
)


def is_allowed(network: Network) -> bool:
    return not any(network.overlaps(each) for each in _NO_HOSTS if each.version == network.version)


def _networks(version: int) -> st.SearchStrategy[Network]:
    bits = 32 if version == 4 else 128
    make = ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address
    return st.builds(
        lambda number, length: ipaddress.ip_network((make(number), length), strict=False),
        st.integers(0, 2**bits - 1),
        st.integers(1, bits),
    ).filter(is_allowed)


PORTS = st.tuples(st.integers(1, 65535), st.integers(1, 65535)).map(sorted)
DESTINATIONS = st.builds(
    lambda protocol, network, ports: Destination(protocol, network, *ports),
    st.sampled_from(["tcp", "udp"]),
    _networks(4) | _networks(6),
    PORTS,
)


def bounds(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> tuple[str, str, str, str]:
    """Return the first and the last address of a network, and the addresses next to these."""
    first, last = network[0], network[-1]
    return str(first), str(last), str(first - 1), str(last + 1)
