"""Checks and parsers for each value that is inserted into a ruleset.

Without these checks, a value such as a name could add statements to the ruleset. Each function
raises UsageError if the value is invalid.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, cast

from ocsf_nft.errors import UsageError
from ocsf_nft.quoted import quoted

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
#: A gateway's address, and the prefix length of its network.
Subnet: TypeAlias = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Protocol: TypeAlias = Literal["tcp", "udp"]

_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
#: IFNAMSIZ is 16 with the final NUL; dev_valid_name() in net/core/dev.c forbids blanks, `/` and
#: `:`. Of the rest, nft's quoted strings can't hold `"`, and give `*`, `\\` and `$` a meaning.
_DEVICE: Final = re.compile(r"(?:(?![\"/:*\\$])[!-~]){1,15}")
_MAC: Final = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")
_PORT: Final = re.compile(r"[0-9]{1,5}", re.ASCII)
_LAST_PORT: Final = 65535
_LAST_GROUP: Final = 65535
#: The highest user id: the kernel uses the next number for "no user".
_LAST_UID: Final = 0xFFFFFFFE


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """Address, port and protocol of a server that the sandbox may reach, such as its proxy."""

    protocol: Protocol
    address: Address
    port: int

    def __str__(self) -> str:
        """Return ``ADDR:PORT`` without the protocol; an IPv6 address is in brackets."""
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}"


def sandbox_name(text: str) -> str:
    """Return the given sandbox name unchanged; raise UsageError if it is invalid."""
    if not _NAME.fullmatch(text) or text in {".", ".."}:
        raise UsageError(
            f"{quoted(text)} is no sandbox name: use 1 to 64 letters, digits, dots, dashes or "
            "underscores"
        )
    return text


def device_name(text: str) -> str:
    """Return the given interface name unchanged; raise UsageError if Linux or nft forbids it."""
    if not _DEVICE.fullmatch(text) or text in {".", ".."}:
        raise UsageError(
            f"the interface name {quoted(text)} can't be written in a ruleset: rename it"
        )
    return text


def nflog_group(number: int) -> int:
    """Return the given NFLOG group unchanged; raise UsageError if it is out of range."""
    if not 1 <= number <= _LAST_GROUP:
        raise UsageError(f"NFLOG group {number} is out of range: use 1 to {_LAST_GROUP}")
    return number


def uid(number: int) -> int:
    """Return the given user id unchanged; raise UsageError if it is out of range."""
    if not 0 <= number <= _LAST_UID:
        raise UsageError(f"user {number} is out of range: use 0 to {_LAST_UID}")
    return number


def mac(text: str) -> str:
    """Return a MAC address in lower case; raise UsageError if it is invalid.

    Multicast addresses and the all-zero address are invalid.
    """
    found = text.lower()
    if not _MAC.fullmatch(found) or int(found[:2], 16) & 1 or not int(found.replace(":", ""), 16):
        raise UsageError(
            f"{quoted(text)} is no link address of one machine: write 02:00:00:00:00:02"
        )
    return found


def subnet(text: str) -> Subnet:
    """Parse a VM's subnet ``ADDR/LENGTH``; return the gateway's address with the prefix length.

    ADDR is the gateway's address, or the address of the network itself. In the second case, the
    gateway has the next address. Raises UsageError if the text is invalid.
    """
    try:
        found = ipaddress.ip_interface(text)
    except ValueError as error:
        raise UsageError(
            f"{quoted(text)} is no subnet: write 172.16.0.0/30, or the gateway's own address in it"
        ) from error
    if "/" not in text or found.network.num_addresses < 2:
        raise UsageError(f"{quoted(text)} has no room for a gateway and a VM: write 172.16.0.0/30")
    if isinstance(found, ipaddress.IPv6Interface) and found.scope_id is not None:
        raise UsageError(f"{quoted(text)} has a zone: a fence can't match an address by its zone")
    # In a subnet of two addresses, the first is a host's address too.
    if found.ip == found.network.network_address and found.network.num_addresses > 2:
        found = ipaddress.ip_interface(f"{found.ip + 1}/{found.network.prefixlen}")
    is_unusable = found.is_multicast or found.is_loopback
    is_unusable |= found.network.network_address.is_unspecified
    if found.version == 6:
        is_unusable |= found.is_link_local
    elif found.network.num_addresses > 2:
        is_unusable |= found.ip == found.network.broadcast_address
    if is_unusable:
        raise UsageError(
            f"{quoted(text)} is no subnet of a VM: use a private one, as 172.16.0.0/30"
        )
    return found


def endpoint(text: str, protocol: Protocol = "tcp") -> Endpoint:
    """Parse ``ADDR:PORT``; return an endpoint with this address and port, and with ``protocol``.

    An IPv6 address must be in brackets. Raises UsageError if the text is invalid.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not _PORT.fullmatch(port) or not 1 <= int(port) <= _LAST_PORT:
        raise UsageError(f"{quoted(text)} is no ADDR:PORT: write 10.0.0.1:3128 or [fd00::1]:3128")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError as error:
        raise UsageError(
            f"{quoted(host)} in {quoted(text)} is no IP address: names are not looked up, "
            "because the answer could change"
        ) from error
    if bracketed != isinstance(address, ipaddress.IPv6Address):
        raise UsageError(
            f"{quoted(text)} is ambiguous: write an IPv6 address in brackets, IPv4 without"
        )
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        raise UsageError(f"{quoted(text)} has a zone: a fence can't match an address by its zone")
    if address.is_unspecified or address.is_multicast:
        raise UsageError(f"{quoted(text)} is not the address of one host: a fence can't allow it")
    return Endpoint(protocol, address, int(port))


def exception(text: str) -> Endpoint:
    """Parse an exception of a fence: an endpoint that a sandbox may reach besides its proxies.

    The text is ``tcp:ADDR:PORT`` or ``udp:ADDR:PORT``, for example ``udp:10.0.0.1:53``. Raises
    UsageError if the text is invalid.
    """
    protocol, colon, address_port = text.partition(":")
    if not colon or protocol not in {"tcp", "udp"}:
        raise UsageError(f"{quoted(text)} is no exception: write tcp:ADDR:PORT or udp:ADDR:PORT")
    return endpoint(address_port, cast("Protocol", protocol))
