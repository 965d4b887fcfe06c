"""Host names in a sandbox's policy: proxies and exceptions that are given by name.

A fence matches addresses only. A service resolves the names, and replaces the addresses in the
fence whenever they change. Each parser raises UsageError if a text is invalid.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias, cast

from ocsf_nft import cloud_metadata
from ocsf_nft.errors import UsageError
from ocsf_nft.fence import values
from ocsf_nft.fence.values import Address, Destination, Endpoint, Network, Protocol
from ocsf_nft.quoted import quoted

#: Addresses of host names, by name.
Addresses: TypeAlias = Mapping[str, tuple[Address, ...]]

#: Labels of a name (RFC 1123, 2.1), in lower case.
_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
#: Longest name in the form with dots (RFC 1035, 3.1: 255 bytes in a message).
_MAX_LENGTH: Final = 253
#: A last label like this is a number for inet_aton(3), as in ``0x7f``.
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
#: A host with these characters is an address, or an attempt to write one.
_OF_ADDRESS: Final = re.compile(r"[\[\]:/]")
_LETTER: Final = re.compile(r"[^0-9.]")
#: Addresses that a name must not allow, and why. Who answers for a name must not open the machine's
#: own services, those of the link such as a cloud's metadata, or all hosts.
_REFUSED: Final[tuple[tuple[Network, str], ...]] = tuple(
    (ipaddress.ip_network(network), reason)
    for network, reason in (
        ("0.0.0.0/8", "it means this host"),
        ("127.0.0.0/8", "it is a loopback address"),
        ("169.254.0.0/16", "it is a link-local address"),
        ("224.0.0.0/4", "it is a multicast address"),
        ("240.0.0.0/4", "it is a reserved address"),
        ("::1/128", "it is a loopback address"),
        ("::/96", "it means this host, or IPv4"),
        ("::ffff:0:0/96", "it means IPv4"),
        ("fe80::/10", "it is a link-local address"),
        ("ff00::/8", "it is a multicast address"),
    )
)
#: IPv6 addresses that a gateway translates to one IPv4 address: NAT64 (RFC 6052), IPv4-translated
#: (RFC 2765), 6to4 (RFC 3056).
_TRANSLATED: Final = (*cloud_metadata.EXACT_FORMS[2:], cloud_metadata.FREE_FORMS["6to4"])


@dataclass(frozen=True, slots=True, order=True)
class NamedProxy:
    """Host name and TCP port of a proxy."""

    name: str
    port: int

    def at(self, address: Address) -> Endpoint:
        """Return the proxy at an address of its name."""
        return Endpoint("tcp", address, self.port)

    def __str__(self) -> str:
        """Return the text that :func:`proxy` parses, in its canonical form."""
        return f"{self.name}:{self.port}"


@dataclass(frozen=True, slots=True, order=True)
class NamedDestination:
    """Host name and range of ports that the sandbox may reach: an exception of its fence."""

    protocol: Protocol
    name: str
    first_port: int
    last_port: int

    def at(self, address: Address) -> Destination:
        """Return the exception for an address of its name."""
        network = ipaddress.ip_network(address)
        return Destination(self.protocol, network, self.first_port, self.last_port)

    def __str__(self) -> str:
        """Return the text that :func:`exception` parses, in its canonical form."""
        ports = str(self.first_port)
        if self.last_port != self.first_port:
            ports += f"-{self.last_port}"
        return f"{self.protocol}:{self.name}:{ports}"


@dataclass(frozen=True, slots=True)
class ResolvedName:
    """Host name in a sandbox's policy, and its addresses as they were last resolved."""

    name: str
    addresses: tuple[Address, ...] = ()

    def __post_init__(self) -> None:
        """Check the name; raises UsageError."""
        host_name(self.name)


def proxy(text: str) -> Endpoint | NamedProxy:
    """Parse a proxy: ``ADDR:PORT``, or ``NAME:PORT`` with a host name."""
    host, _, port = text.rpartition(":")
    if not _is_name(host):
        return values.endpoint(text)
    return NamedProxy(host_name(host), values.port(port, text))


def exception(text: str) -> Destination | NamedDestination:
    """Parse an exception as :func:`values.exception` does, or one with a host name as its ADDR."""
    protocol, _, rest = text.partition(":")
    host, _, ports = rest.rpartition(":")
    if protocol not in {"tcp", "udp"} or not _is_name(host):
        return values.exception(text)
    name = host_name(host)
    return NamedDestination(cast("Protocol", protocol), name, *values.ports(ports, text))


def host_name(text: str) -> str:
    """Return a host name in lower case; raises UsageError if it is not one.

    The last label has a letter and is no number, so that no name can be taken for an
    address.
    """
    name = text.lower()
    if not text.isascii():
        raise UsageError(
            f"{quoted(text)} is not ASCII: write the name as DNS has it, with labels such as "
            "xn--bcher-kva"
        )
    if "*" in name:
        raise UsageError(
            f"{quoted(text)} has a wildcard: DNS does not list the names below a name, so give "
            "each name, or let a proxy decide"
        )
    labels = name.split(".")
    if len(name) > _MAX_LENGTH or not all(map(_LABEL.fullmatch, labels)):
        raise UsageError(
            f"{quoted(text)} is no host name: use labels of 1 to 63 letters, digits and inner "
            f"dashes, with a dot between them, and at most {_MAX_LENGTH} characters"
        )
    if _NUMBER.fullmatch(labels[-1]):
        raise UsageError(
            f"{quoted(text)} is no IP address, and no host name: the last label of a name is not a "
            "number"
        )
    if labels[-1] == "localhost":
        raise UsageError(
            f"{quoted(text)} is the machine itself: give the loopback address, as 127.0.0.1"
        )
    return name


def refusal_of(address: Address) -> str | None:
    """Return why a host name must not allow an address; None if it may.

    A policy may have such an address as it is, where :mod:`ocsf_nft.fence.values` allows it.
    """
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        return "it has a zone"
    for network, reason in _REFUSED:
        if network.version == address.version and address in network:
            return reason
    if cloud_metadata.is_metadata(address.packed):
        return "a cloud serves credentials there"
    for form in _TRANSLATED:
        if (translated := form.ipv4(address.packed)) is not None:
            return refusal_of(ipaddress.IPv4Address(translated))
    # Each of several forms gives another IPv4 address, and most of these mean nothing.
    possible = map(ipaddress.IPv4Address, cloud_metadata.ipv4_addresses(address.packed))
    if any(each.is_link_local or each.is_loopback for each in possible):
        return "it may mean a link-local or loopback address of IPv4"
    return None


def _is_name(host: str) -> bool:
    return _OF_ADDRESS.search(host) is None and _LETTER.search(host) is not None
