from __future__ import annotations

import ipaddress
import itertools
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.ocsf import addresses
from ocsf_nft.ocsf.addresses import address_kind
from ocsf_nft.ocsf.enums import NetworkScope

SCOPES = {
    NetworkScope.INTERNAL: [
        "10.0.0.1", "172.31.0.1", "192.168.0.1", "100.64.0.1", "169.254.169.254", "127.0.0.1",
        "224.0.0.251", "239.1.2.3", "255.255.255.255", "::1", "fd00::1", "fe80::1", "ff02::fb",
        "ff15::1", "::ffff:10.0.0.1",
    ],
    # Addresses reserved for documentation represent the internet wherever they are used.
    NetworkScope.EXTERNAL: [
        "8.8.8.8", "172.32.0.1", "203.0.113.7", "224.1.2.3", "2001:db8::7", "2606:4700::1",
        "ff0e::1", "::ffff:8.8.8.8", "64:ff9b::808:808",
    ],
    None: ["0.0.0.0", "240.0.0.1", "::"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "scope"), [(text, scope) for scope, texts in SCOPES.items() for text in texts]
)
def test_address_has_its_network_scope(text: str, scope: NetworkScope | None) -> None:
    where = address_kind(text)
    assert where is not None
    assert where.scope is scope


@pytest.mark.parametrize(
    "text",
    [
        "169.254.169.254",
        "fd00:ec2::254",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
    ],
)
def test_cloud_metadata_is_known_in_each_of_its_forms(text: str) -> None:
    where = address_kind(text)
    assert where is not None
    assert where.is_cloud_metadata


@pytest.mark.parametrize("text", [None, "", "example", "fe80::1%eth0", "1.2.3", "1.2.3.4\n"])
def test_text_that_is_no_address_has_no_scope(text: str | None) -> None:
    assert address_kind(text) is None


CARRIERS = ["::ffff:0:0/96", "64:ff9b::/96"]
KINDS = [addresses._INTERNAL, addresses._UNASSIGNED, addresses._MULTICAST, addresses._METADATA]
#: First and last addresses of each network of the tables, and their neighbours.
EDGES4 = {
    (end + step) % (1 << 32)
    for network in itertools.chain(*(kind[4] for kind in KINDS))
    for end in network
    for step in (-1, 0, 1)
}
EDGES6 = {
    (end + step) % (1 << 128)
    for network in itertools.chain(*(kind[6] for kind in (*KINDS, addresses._networks(*CARRIERS))))
    for end in network
    for step in (-1, 0, 1)
}
CARRIED = {int(ipaddress.ip_network(carrier)[0]) + edge for carrier in CARRIERS for edge in EDGES4}
EDGES = sorted(
    [*(edge.to_bytes(4) for edge in EDGES4), *(edge.to_bytes(16) for edge in EDGES6 | CARRIED)]
)


@given(
    raw=st.sampled_from(EDGES)
    | st.binary(min_size=4, max_size=4)
    | st.binary(min_size=16, max_size=16)
)
def test_table_agrees_with_the_networks(raw: bytes) -> None:
    where = addresses.packed_address_kind(raw)
    scope, flags = addresses._traits(where.version, int.from_bytes(raw))
    assert where.version == (4 if len(raw) == 4 else 6)
    assert (where.scope, where.is_loopback, where.is_link_local) == (scope, *flags[:2])
    assert (where.is_multicast, where.is_broadcast, where.is_cloud_metadata) == flags[2:]


def test_kind_of_an_address_agrees_with_python() -> None:
    for raw in EDGES:
        address, where = ipaddress.ip_address(raw), addresses.packed_address_kind(raw)
        if any(address in ipaddress.ip_network(carrier) for carrier in CARRIERS):
            address = IPv4Address(raw[-4:])
        assert where.is_loopback == address.is_loopback
        assert where.is_link_local == address.is_link_local
        assert where.is_multicast == address.is_multicast


def test_addresses_with_equal_properties_share_one_object() -> None:
    assert address_kind("8.8.8.8") is address_kind("203.0.113.7")
    assert address_kind("8.8.8.8") is not address_kind("2001:db8::7")
    assert address_kind("8.8.8.8") is not address_kind("::ffff:8.8.8.8")


def test_multicast_address_is_internal_up_to_an_organization() -> None:
    """RFC 7346 defines the scopes: 1 to 5 and 8; 14 is global, 0 and 15 are reserved."""
    for flags in range(16):
        for scope in range(16):
            found = address_kind(f"ff{flags:x}{scope:x}::1")
            assert found is not None
            assert found.is_multicast
            expected = scope in {1, 2, 3, 4, 5, 8}
            assert (found.scope is NetworkScope.INTERNAL) is expected, (flags, scope)
