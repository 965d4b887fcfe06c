"""Reader of the socket tables of a network namespace in /proc/net.

TCP and UDP sockets are read here only if the kernel does not list them by netlink (``sock_diag``).
Raw, ping and packet sockets are always read here.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from ocsf_nft.errors import OcsfNftError
from ocsf_nft.ip_text import text_of

if TYPE_CHECKING:
    from ocsf_nft.netns import Namespace

#: Maximum number of sockets with one port; with more, the lookup fails.
MOST_SOCKETS: Final = 256
#: Maximum number of bytes of one file: about 7,000 sockets.
_MOST_BYTES: Final = 1 << 20
_CHUNK: Final = 1 << 16
_MAPPED: Final = bytes(10) + b"\xff\xff"

IpVersion: TypeAlias = Literal[4, 6]
#: The protocols with ports, and the names of their files.
INET: Final = {
    socket.IPPROTO_TCP: "tcp",
    socket.IPPROTO_UDP: "udp",
    socket.IPPROTO_UDPLITE: "udplite",
}


class TooManySocketsError(OcsfNftError):
    """Error: a lookup found too many sockets, or could not read all sockets in time."""


class Socket(NamedTuple):
    """Socket as listed in a socket table of the kernel."""

    family: int
    protocol: int
    #: ``::ffff:192.0.2.1`` appears as the IPv4 address 192.0.2.1; empty for a packet socket.
    local: str
    #: The IP protocol for a raw socket, the ICMP id for a ping socket, 0 for a packet socket.
    local_port: int
    remote: str
    remote_port: int
    state: int
    #: 0 if no process has the socket.
    inode: int
    uid: int
    #: None if the table does not show this property.
    is_only_ipv6: bool | None = None


class ProcNetFiles:
    """Reader of one network namespace's socket tables in /proc/net; for one thread at a time.

    A lookup raises TooManySocketsError if it finds too many sockets, or if it does not end before
    ``deadline_ns`` (time.monotonic_ns). Other errors: AbsentError (no namespace), UnsupportedError
    (no access to the namespace), OSError (unreadable table).
    """

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        #: Open files by table. An open file always shows the namespace in which it was opened.
        self._open: dict[str, int | None] = {}

    def close(self) -> None:
        """Close the open table files."""
        for descriptor in self._open.values():
            if descriptor is not None:
                os.close(descriptor)
        self._open.clear()

    def by_port(
        self, protocol: int, version: IpVersion, port: int, deadline_ns: int
    ) -> tuple[Socket, ...]:
        """Return the TCP, UDP or UDP-Lite sockets that can have sent a packet from this local port.

        ``version`` is the packet's IP version. For IPv4, the result includes IPv6 sockets, which
        can also send IPv4 packets.
        """
        found: list[Socket] = []
        for family, suffix in ((socket.AF_INET, ""), (socket.AF_INET6, "6")):
            if version == 6 and family == socket.AF_INET:
                continue
            for line in self._lines(f"{INET[protocol]}{suffix}", deadline_ns):
                entry = _text_socket(line, family, protocol)
                if entry.local_port == port:
                    found.append(entry)
        if len(found) > MOST_SOCKETS:
            raise too_many()
        return tuple(found)

    def raw(self, version: IpVersion, deadline_ns: int) -> tuple[Socket, ...]:
        """Return all raw sockets of an IP version.

        Each of these sockets may send packets of any protocol, because its process can set the
        option ``IP_HDRINCL``. Raises TooManySocketsError if the sockets can't be read before
        ``deadline_ns`` (time.monotonic_ns).
        """
        # Not by netlink: that needs the kernel module raw_diag, which many kernels lack.
        return self._listed("raw", version, socket.IPPROTO_RAW, deadline_ns)

    def ping(self, version: IpVersion, identity: int, deadline_ns: int) -> tuple[Socket, ...]:
        """Return the ping sockets (``net/ipv4/ping.c``) that send with the ICMP id ``identity``."""
        # Netlink does not list ping sockets.
        protocol = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
        listed = self._listed("icmp", version, protocol, deadline_ns)
        return tuple(found for found in listed if found.local_port == identity)

    def packet(self, deadline_ns: int) -> tuple[Socket, ...]:
        """Return all packet sockets."""
        return tuple(_packet_socket(line) for line in self._lines("packet", deadline_ns))

    def _listed(
        self, table: Literal["raw", "icmp"], version: IpVersion, protocol: int, deadline_ns: int
    ) -> tuple[Socket, ...]:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        lines = self._lines(table if version == 4 else f"{table}6", deadline_ns)
        return tuple(_text_socket(line, family, protocol) for line in lines)

    def _lines(self, name: str, deadline_ns: int) -> list[bytes]:
        """Return the lines of a table in /proc/net, without the header line.

        The result is empty if the kernel lacks the table.
        """
        if name not in self._open:
            self._open[name] = self._namespace.call(lambda: _open_table(name))
        descriptor = self._open[name]
        if descriptor is None:
            return []
        text = bytearray()
        while chunk := os.pread(descriptor, _CHUNK, len(text)):
            text += chunk
            if len(text) > _MOST_BYTES or time.monotonic_ns() > deadline_ns:
                raise too_many()
        return bytes(text).splitlines()[1:]


def address(family: int, raw: bytes) -> str:
    """Convert the bytes of an address in a socket table to text.

    An IPv6 address that contains an IPv4 address (``::ffff:192.0.2.1``) becomes the IPv4 address.
    """
    if family == socket.AF_INET:
        return text_of(raw[:4])
    return text_of(raw[12:] if raw.startswith(_MAPPED) else raw)


def _text_socket(line: bytes, family: int, protocol: int) -> Socket:
    """Parse a line of /proc/net/tcp or of a similar table, such as /proc/net/udp6.

    The kernel's functions ``get_tcp4_sock`` and ``udp4_format_sock`` print these fields: slot,
    local, remote, state, queues, timer, retransmits, user, timeout, inode.
    """
    fields = line.split()
    (local, local_port), (remote, remote_port) = (
        field.split(b":") for field in (fields[1], fields[2])
    )
    return Socket(
        family=family,
        protocol=protocol,
        local=address(family, _words(local)),
        local_port=int(local_port, 16),
        remote=address(family, _words(remote)),
        remote_port=int(remote_port, 16),
        state=int(fields[3], 16),
        inode=int(fields[9]),
        uid=int(fields[7]),
    )


def _words(text: bytes) -> bytes:
    """Convert an address in hexadecimal, as in /proc/net/tcp, to bytes in network order.

    Every group of eight digits is a 32-bit number in the machine's byte order.
    """
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    return b"".join(word.to_bytes(4, sys.byteorder) for word in words)


def _packet_socket(line: bytes) -> Socket:
    """Parse a line of /proc/net/packet, which the kernel's function ``packet_seq_show`` prints.

    Fields: address, references, type, protocol, interface, running, memory, user, inode.
    """
    fields = line.split()
    return Socket(
        family=socket.AF_PACKET,
        protocol=int(fields[3], 16),
        local="",
        local_port=0,
        remote="",
        remote_port=0,
        state=0,
        inode=int(fields[8]),
        uid=int(fields[7]),
    )


def _open_table(name: str) -> int | None:
    try:
        # The file can still be read after this thread has ended.
        return os.open(f"/proc/thread-self/net/{name}", os.O_RDONLY)
    except FileNotFoundError:
        return None


def too_many() -> TooManySocketsError:
    """Create the error to raise if a lookup finds more sockets than it can check in time."""
    return TooManySocketsError("the sandbox has more sockets than the lookup can check in time")
