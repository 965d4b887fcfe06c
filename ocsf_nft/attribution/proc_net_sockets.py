"""Reader of the socket tables of a network namespace in /proc/net.

TCP and UDP sockets are read here only if the kernel does not list them by netlink (``sock_diag``).
Raw, ping and packet sockets are always read here.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from ocsf_nft.errors import OcsfNftError
from ocsf_nft.ip_text import text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

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

    def __init__(self) -> None:
        super().__init__("the sandbox has more sockets than the lookup can check in time")


class Socket(NamedTuple):
    """Socket as listed in a socket table of the kernel."""

    #: 0 if no process has the socket.
    inode: int
    uid: int
    #: The IP protocol for a raw socket, the ICMP id for a ping socket, 0 for a packet socket.
    local_port: int = 0
    #: ``::ffff:192.0.2.1`` appears as the IPv4 address 192.0.2.1; empty for a packet socket.
    remote: str = ""
    remote_port: int = 0
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
        for suffix in ("6",) if version == 6 else ("", "6"):
            lines = self._lines(f"{INET[protocol]}{suffix}", deadline_ns)
            found += [sock for sock in _sockets(_inet_socket, lines) if sock.local_port == port]
        if len(found) > MOST_SOCKETS:
            raise TooManySocketsError
        return tuple(found)

    def raw(self, version: IpVersion, deadline_ns: int) -> tuple[Socket, ...]:
        """Return all raw sockets of an IP version.

        Each of these sockets may send packets of any protocol, because its process can set the
        option ``IP_HDRINCL``. Raises TooManySocketsError if the sockets can't be read before
        ``deadline_ns`` (time.monotonic_ns).
        """
        # Not by netlink: that needs the kernel module raw_diag, which many kernels lack.
        lines = self._lines("raw" if version == 4 else "raw6", deadline_ns)
        return tuple(_sockets(_inet_socket, lines))

    def ping(self, version: IpVersion, identity: int, deadline_ns: int) -> tuple[Socket, ...]:
        """Return the ping sockets (``net/ipv4/ping.c``) that send with the ICMP id ``identity``."""
        # Netlink does not list ping sockets.
        lines = self._lines("icmp" if version == 4 else "icmp6", deadline_ns)
        return tuple(sock for sock in _sockets(_inet_socket, lines) if sock.local_port == identity)

    def packet(self, deadline_ns: int) -> tuple[Socket, ...]:
        """Return all packet sockets."""
        return tuple(_sockets(_packet_socket, self._lines("packet", deadline_ns)))

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
                raise TooManySocketsError
        return bytes(text).splitlines()[1:]


def address(packed: bytes) -> str:
    """Convert an address of 4 or 16 bytes in a socket table to text.

    An IPv6 address that contains an IPv4 address (``::ffff:192.0.2.1``) becomes the IPv4 address.
    """
    return text_of(packed[12:] if packed.startswith(_MAPPED) else packed)


def _sockets(parse: Callable[[bytes], Socket], lines: Iterable[bytes]) -> Iterator[Socket]:
    """Parse the lines of a table with sockets; raises OSError for an invalid line."""
    try:
        yield from map(parse, lines)
    except (ValueError, IndexError, OverflowError) as error:
        raise OSError(errno.EBADMSG, "a line of a socket table in /proc/net is invalid") from error


def _inet_socket(line: bytes) -> Socket:
    """Parse a line of /proc/net/tcp or of a similar table, such as /proc/net/udp6.

    The kernel's functions ``get_tcp4_sock`` and ``udp4_format_sock`` print these fields: slot,
    local, remote, state, queues, timer, retransmits, user, timeout, inode.
    """
    fields = line.split()
    remote, remote_port = fields[2].split(b":")
    return Socket(
        inode=int(fields[9]),
        uid=int(fields[7]),
        local_port=int(fields[1].split(b":")[1], 16),
        remote=address(_words(remote)),
        remote_port=int(remote_port, 16),
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
    return Socket(inode=int(fields[8]), uid=int(fields[7]))


def _open_table(name: str) -> int | None:
    try:
        # The file can still be read after this thread has ended.
        return os.open(f"/proc/thread-self/net/{name}", os.O_RDONLY)
    except FileNotFoundError:
        return None
