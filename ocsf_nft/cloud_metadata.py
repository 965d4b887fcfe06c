"""IP addresses at which clouds serve a machine's credentials, and the forms of these addresses.

An IPv6 address may contain an IPv4 address. A host, a gateway or a tunnel then sends the packet to
the IPv4 address. So each of these forms reaches the same service.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

#: Metadata services by their addresses, as their clouds document them. Other services of clouds,
#: such as time (169.254.169.123), have no credentials.
SERVICES: Final[dict[Address, str]] = {
    ipaddress.ip_address(address): clouds
    for address, clouds in (
        ("169.254.169.254", "AWS, Google Cloud, Azure, Oracle, IBM, OpenStack and most others"),
        ("169.254.170.2", "AWS: task credentials of ECS"),
        ("169.254.170.23", "AWS: EKS Pod Identity"),
        ("169.254.42.42", "Scaleway"),
        ("169.254.0.23", "Tencent Cloud"),
        ("100.100.100.200", "Alibaba Cloud"),
        ("100.96.0.96", "Volcengine, BytePlus"),
        ("168.63.129.16", "Azure: wire server"),
        ("192.0.0.192", "Oracle Cloud Classic"),
        ("fd00:ec2::254", "AWS"),
        ("fd00:ec2::23", "AWS: EKS Pod Identity"),
        ("fd20:ce::254", "Google Cloud"),
        ("fd00:c1::a9fe:a9fe", "Oracle"),
        ("fd00:100::100:200", "Alibaba Cloud"),
        ("fd00:a9fe:a9fe::1", "Akamai"),
        ("fd00:42::42", "Scaleway"),
        ("fe80::a9fe:a9fe", "OpenStack, DigitalOcean, Akamai"),
    )
}


class Ipv4Form(NamedTuple):
    """Form of an IPv6 address that contains an IPv4 address.

    ``places`` are the positions of the four bytes of the IPv4 address. With ``is_inverted``, each
    of their bits is inverted.
    """

    prefix: bytes
    places: tuple[int, int, int, int]
    is_inverted: bool = False

    def ipv4(self, address: bytes) -> bytes | None:
        """Return the IPv4 address in an IPv6 address of 16 bytes; None if it has another form."""
        if not address.startswith(self.prefix):
            return None
        found = bytes(address[place] for place in self.places)
        return _inverted(found) if self.is_inverted else found

    def address_of(self, ipv4: bytes) -> bytes:
        """Return the IPv6 address of this form that has ``ipv4``, and zeros in all other places."""
        made = bytearray(self.prefix.ljust(16, b"\0"))
        for place, value in zip(
            self.places, _inverted(ipv4) if self.is_inverted else ipv4, strict=True
        ):
            made[place] = value
        return bytes(made)

    @property
    def mask(self) -> bytes:
        """Return the bits of an IPv6 address that this form decides about, as 16 bytes."""
        fixed = {*range(len(self.prefix)), *self.places}
        return bytes(0xFF if place in fixed else 0 for place in range(16))


def _inverted(octets: bytes) -> bytes:
    return bytes(each ^ 0xFF for each in octets)


def _form(prefix: str, *places: int, is_inverted: bool = False) -> Ipv4Form:
    network = ipaddress.IPv6Network(prefix)
    first, second, third, fourth = places or (12, 13, 14, 15)
    fixed = network.network_address.packed[: network.prefixlen // 8]
    return Ipv4Form(fixed, (first, second, third, fourth), is_inverted)


#: Forms with one address for each IPv4 address: IPv4-compatible and IPv4-mapped (RFC 4291),
#: IPv4-translated (RFC 2765), and NAT64 (RFC 6052).
EXACT_FORMS: Final = tuple(
    map(_form, ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96"))
)
#: Forms in which other bits are free, by name: NAT64 with a local prefix of this many bits (RFC
#: 8215, and RFC 6052, 2.2), 6to4 (RFC 3056), and Teredo (RFC 4380).
FREE_FORMS: Final = {
    "local96": _form("64:ff9b:1::/48"),
    "local64": _form("64:ff9b:1::/48", 9, 10, 11, 12),
    "local56": _form("64:ff9b:1::/48", 7, 9, 10, 11),
    "local48": _form("64:ff9b:1::/48", 6, 7, 9, 10),
    "6to4": _form("2002::/16", 2, 3, 4, 5),
    "teredo": _form("2001::/32", is_inverted=True),
}
_FORMS: Final = (*EXACT_FORMS, *FREE_FORMS.values())
_PREFIXES: Final = tuple({form.prefix for form in _FORMS})
_ADDRESSES: Final = frozenset(address.packed for address in SERVICES)


def is_metadata(address: bytes) -> bool:
    """Return True if an IP address of 4 or 16 bytes is a metadata service's, in any form."""
    return address in _ADDRESSES or any(each in _ADDRESSES for each in ipv4_addresses(address))


def has_ipv4_form(address: bytes) -> bool:
    """Return True if an IP address of 4 or 16 bytes may contain an IPv4 address."""
    return len(address) == 16 and address.startswith(_PREFIXES)


def ipv4_addresses(address: bytes) -> Iterator[bytes]:
    """Yield the IPv4 addresses that an IP address of 4 or 16 bytes may contain, in each form."""
    if has_ipv4_form(address):
        found = (form.ipv4(address) for form in _FORMS)
        yield from (each for each in found if each is not None)


def exact_addresses() -> Iterator[bytes]:
    """Yield the addresses of metadata services, also in each form with one address for each."""
    yield from _ADDRESSES
    for form in EXACT_FORMS:
        yield from (form.address_of(each) for each in _ADDRESSES if len(each) == 4)
