"""Checks and parsers for each value that is inserted into a ruleset.

Without these checks, a value such as a name could add statements to the ruleset. Each function
raises UsageError if the value is invalid.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, cast

from ocsf_nft.errors import UsageError
from ocsf_nft.quoted import quoted

if TYPE_CHECKING:
    from pydantic_core import CoreSchema

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
#: A gateway's address, and the prefix length of its network.
Subnet: TypeAlias = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Protocol: TypeAlias = Literal["tcp", "udp"]

_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
#: IFNAMSIZ is 16 with the final NUL; dev_valid_name() in net/core/dev.c forbids blanks, `/` and
#: `:`. Of the rest, nft's quoted strings can't hold `"`, and give `*`, `\\` and `$` a meaning.
_DEVICE: Final = re.compile(r"(?:(?![\"/:*\\$])[!-~]){1,15}")
_MAC: Final = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")
_PORT: Final = re.compile(r"[0-9]{1,5}", re.ASCII)
_PORTS: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", re.ASCII)
_LENGTH: Final = re.compile(r"[0-9]{1,3}", re.ASCII)
_LAST_PORT: Final = 65535
_LAST_GROUP: Final = 65535
#: The highest user id: the kernel uses the next number for "no user".
_LAST_UID: Final = 0xFFFFFFFE
#: Addresses that no host has: unspecified, multicast and broadcast. A datagram to a group or to all
#: machines on the link would reach machines that the operator has not allowed.
_NO_HOSTS: Final[tuple[Network, ...]] = tuple(
    map(
        ipaddress.ip_network,
        ("0.0.0.0/32", "224.0.0.0/4", "255.255.255.255/32", "::/128", "ff00::/8"),
    )
)


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


@dataclass(frozen=True, slots=True)
class Destination:
    """Network and range of ports that the sandbox may reach: an exception of its fence.

    Most exceptions have one address and one port.
    """

    protocol: Protocol
    network: Network
    first_port: int
    last_port: int

    @property
    def endpoint(self) -> Endpoint | None:
        """Return the only endpoint of the destination; None if it has several."""
        if self.network.num_addresses > 1 or self.first_port != self.last_port:
            return None
        return Endpoint(self.protocol, self.network.network_address, self.first_port)

    @property
    def ports(self) -> str:
        """Return the port, or the range of ports, for example ``8000-8100``."""
        if self.first_port == self.last_port:
            return str(self.first_port)
        return f"{self.first_port}-{self.last_port}"

    def __str__(self) -> str:
        """Return the text that :func:`exception` parses, in its canonical form."""
        is_network = self.network.num_addresses > 1
        host = str(self.network if is_network else self.network.network_address)
        if self.network.version == 6:
            host = f"[{host}]"
        return f"{self.protocol}:{host}:{self.ports}"

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: object, _handler: object) -> CoreSchema:
        """Let pydantic store the destination as its text, and read it again."""
        from pydantic_core import core_schema  # noqa: PLC0415 - only if pydantic asks

        return core_schema.no_info_plain_validator_function(
            _stored_exception, serialization=core_schema.to_string_ser_schema()
        )


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
    host, _, written = text.rpartition(":")
    found = port(written if host else "", text)
    is_bracketed = host.startswith("[") and host.endswith("]")
    address = _address(host[1:-1] if is_bracketed else host, text, is_bracketed=is_bracketed)
    _refuse_no_hosts(ipaddress.ip_network(address), text)
    return Endpoint(protocol, address, found)


def port(written: str, text: str) -> int:
    """Parse the port of the proxy ``text``; raises UsageError if it is invalid."""
    if not _PORT.fullmatch(written):
        raise UsageError(f"{quoted(text)} is no ADDR:PORT: write 10.0.0.1:3128 or [fd00::1]:3128")
    if not 1 <= int(written) <= _LAST_PORT:
        raise UsageError(f"the port of {quoted(text)} is out of range: use 1 to {_LAST_PORT}")
    return int(written)


def exception(text: str) -> Destination:
    """Parse an exception of a fence: a destination that a sandbox may reach besides its proxies.

    The text is ``tcp:ADDR:PORT`` or ``udp:ADDR:PORT``, for example ``udp:10.0.0.1:53``. A prefix
    length may follow ADDR: ``tcp:10.0.0.0/8:443``, ``udp:[fd00::/16]:53``. PORT may be a range:
    ``tcp:10.0.0.1:8000-8100``. Raises UsageError if the text is invalid.
    """
    protocol, colon, rest = text.partition(":")
    if not colon or protocol not in {"tcp", "udp"}:
        raise UsageError(f"{quoted(text)} is no exception: write tcp:ADDR:PORT or udp:ADDR:PORT")
    host, colon, found = rest.rpartition(":")
    first, last = ports(found if colon else "", text)
    network = _network(host, text)
    return Destination(cast("Protocol", protocol), network, first, last)


def ports(written: str, text: str) -> tuple[int, int]:
    """Parse the port, or the range of ports, of the proxy or exception ``text``.

    Return the first and the last port. Raises UsageError if they are invalid.
    """
    found = _PORTS.fullmatch(written)
    if found is None:
        raise UsageError(
            f"{quoted(text)} is no exception: write tcp:10.0.0.1:443, tcp:10.0.0.0/8:8000-8100 or "
            "udp:[fd00::/16]:53"
        )
    first, last = int(found[1]), int(found[2] or found[1])
    if not 1 <= first <= last <= _LAST_PORT:
        raise UsageError(
            f"the ports of {quoted(text)} are out of range: use 1 to {_LAST_PORT}, lowest first"
        )
    return first, last


def _stored_exception(stored: object) -> Destination:
    match stored:
        case Destination():
            return stored
        case str():
            return exception(stored)
        # Stored by an earlier version, in which each exception was an endpoint.
        case {"protocol": str(protocol), "address": str(address), "port": int(port)}:
            host = f"[{address}]" if ":" in address else address
            return exception(f"{protocol}:{host}:{port}")
    raise ValueError("must be an exception, such as tcp:10.0.0.0/8:443")


def _network(host: str, text: str) -> Network:
    """Parse the address of an exception, with or without a prefix length."""
    is_bracketed = host.startswith("[") and host.endswith("]")
    before, slash, length = (host[1:-1] if is_bracketed else host).partition("/")
    address = _address(before, text, is_bracketed=is_bracketed)
    if not slash:
        network = ipaddress.ip_network(address)
    elif not _LENGTH.fullmatch(length) or int(length) > address.max_prefixlen:
        raise UsageError(
            f"{quoted(text)} has no valid prefix length: use 1 to {address.max_prefixlen}"
        )
    else:
        network = ipaddress.ip_network((address, int(length)), strict=False)
    if network.prefixlen == 0:
        raise UsageError(
            f"{quoted(text)} would open the fence to every address: let the sandbox use a proxy, "
            "or make the fence permissive, which refuses nothing"
        )
    if network.network_address != address:
        right = f"[{network}]" if network.version == 6 else str(network)
        raise UsageError(
            f"{quoted(text)} has an address inside of its network: write the network, {right}"
        )
    _refuse_no_hosts(network, text)
    return network


def _address(host: str, text: str, *, is_bracketed: bool) -> Address:
    try:
        address = ipaddress.ip_address(host)
    except ValueError as error:
        raise UsageError(
            f"{quoted(host)} in {quoted(text)} is no IP address: write one, "
            "such as 10.0.0.1 or [fd00::1]"
        ) from error
    if is_bracketed != isinstance(address, ipaddress.IPv6Address):
        raise UsageError(
            f"{quoted(text)} is ambiguous: write an IPv6 address in brackets, IPv4 without"
        )
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        raise UsageError(f"{quoted(text)} has a zone: a fence can't match an address by its zone")
    return address


def _refuse_no_hosts(network: Network, text: str) -> None:
    for each in _NO_HOSTS:
        if network.version != each.version or not network.overlaps(each):
            continue
        if network.prefixlen == network.max_prefixlen:
            raise UsageError(
                f"{quoted(text)} is not the address of one host: a fence can't allow it"
            )
        raise UsageError(
            f"{quoted(text)} contains {each}, which is no address of a host: give the networks "
            "that the sandbox needs"
        )
