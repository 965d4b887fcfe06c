"""The sockets of a network namespace, as /proc/net lists them.

Raw, ping and packet sockets are looked for here alone: of ping sockets netlink knows nothing, and
of raw ones only ``raw_diag`` does, a module that kernels lack and that says nothing more.
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

#: More sockets than this with one port are not looked through.
MOST_SOCKETS: Final = 256
#: Nor more text than this of one file: some 7,000 sockets.
_MOST_BYTES: Final = 1 << 20
_CHUNK: Final = 1 << 16
_MAPPED: Final = bytes(10) + b"\xff\xff"

IpVersion: TypeAlias = Literal[4, 6]
#: The protocols with ports, and how their files are called.
INET: Final = {
    socket.IPPROTO_TCP: "tcp",
    socket.IPPROTO_UDP: "udp",
    socket.IPPROTO_UDPLITE: "udplite",
}


class TooManySocketsError(OcsfNftError):
    """There are more sockets than can be looked through."""


class Socket(NamedTuple):
    """A socket, by what a table says of it.

    An address of IPv4 is told as one, also where the socket is one of IPv6. ``local_port`` is the
    protocol of a raw socket, and the id of a ping socket; a packet socket has neither address nor
    port. ``inode`` is 0 where no process has it. ``is_only_ipv6`` is None where nothing says so.
    """

    family: int
    protocol: int
    local: str
    local_port: int
    remote: str
    remote_port: int
    state: int
    inode: int
    uid: int
    is_only_ipv6: bool | None = None


class Files:
    """The files of one namespace; what is open stays that one's. For one thread at a time.

    ``deadline_ns`` is of time.monotonic_ns. All of it raises TooManySocketsError and OSError.
    """

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._open: dict[str, int | None] = {}

    def close(self) -> None:
        """Close them."""
        for descriptor in self._open.values():
            if descriptor is not None:
                os.close(descriptor)
        self._open.clear()

    def by_port(
        self, protocol: int, version: IpVersion, port: int, deadline_ns: int
    ) -> tuple[Socket, ...]:
        """All sockets of TCP, UDP or UDP-Lite that a packet of this version and port can be of."""
        found: list[Socket] = []
        for family, suffix in ((socket.AF_INET, ""), (socket.AF_INET6, "6")):
            if version == 6 and family == socket.AF_INET:
                continue
            for line in self._lines(f"{INET[protocol]}{suffix}", deadline_ns):
                told = _text_socket(line, family, protocol)
                if told.local_port == port:
                    found.append(told)
        if len(found) > MOST_SOCKETS:
            raise too_many()
        return tuple(found)

    def raw(self, version: IpVersion, deadline_ns: int) -> tuple[Socket, ...]:
        """All raw sockets of a family; any can send any protocol (``IP_HDRINCL``)."""
        return self._listed("raw", version, socket.IPPROTO_RAW, deadline_ns)

    def ping(self, version: IpVersion, identity: int, deadline_ns: int) -> tuple[Socket, ...]:
        """The ping sockets (``net/ipv4/ping.c``) that have this id."""
        protocol = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
        listed = self._listed("icmp", version, protocol, deadline_ns)
        return tuple(found for found in listed if found.local_port == identity)

    def packet(self, deadline_ns: int) -> tuple[Socket, ...]:
        """All packet sockets: ``packet_seq_show`` in ``net/packet/af_packet.c``."""
        return tuple(_packet_socket(line) for line in self._lines("packet", deadline_ns))

    def _listed(
        self, table: Literal["raw", "icmp"], version: IpVersion, protocol: int, deadline_ns: int
    ) -> tuple[Socket, ...]:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        lines = self._lines(table if version == 4 else f"{table}6", deadline_ns)
        return tuple(_text_socket(line, family, protocol) for line in lines)

    def _lines(self, name: str, deadline_ns: int) -> list[bytes]:
        """The lines of one table without its head; none where the kernel has no such table."""
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
    """An address in a table as text: one of IPv4 as such, though a socket of IPv6 has it."""
    if family == socket.AF_INET:
        return text_of(raw[:4])
    return text_of(raw[12:] if raw.startswith(_MAPPED) else raw)


def _text_socket(line: bytes, family: int, protocol: int) -> Socket:
    """A socket by a line of /proc/net/tcp and its likes (``get_tcp4_sock``, ``udp4_format_sock``).

    Slot, local, remote, state, queues, timer, retransmits, user, timeout, inode.
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
    """An address that is written as numbers of 32 bits in the machine's order."""
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    return b"".join(word.to_bytes(4, sys.byteorder) for word in words)


def _packet_socket(line: bytes) -> Socket:
    """Address, references, type, protocol, interface, running, memory, user, inode."""
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
    """One table of the thread's namespace; it stays that one's when the thread is gone."""
    try:
        return os.open(f"/proc/thread-self/net/{name}", os.O_RDONLY)
    except FileNotFoundError:
        return None


def too_many() -> TooManySocketsError:
    """The error to raise."""
    return TooManySocketsError("the sandbox has more sockets than can be looked through in time")
