"""The sockets of a network namespace, as the kernel's tables have them.

TCP, UDP and UDP-Lite are asked for by netlink: ``include/uapi/linux/sock_diag.h`` and
``inet_diag.h``, ``net/ipv4/inet_diag.c``, ``tcp_diag.c``, ``udp_diag.c``. The kernel picks those
that have the port, so that the many others of a hostile sandbox are never handed over. Where
netlink doesn't answer, and for what it doesn't know, there are text files (:mod:`socket_files`).

A socket that has no port any more is in no table: what a reset has closed (``tcp_done``), unless
its process had chosen the port itself.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from ocsf_nft import netlink
from ocsf_nft.attribution import proc_net_sockets
from ocsf_nft.attribution.proc_net_sockets import Files, Socket, address, too_many
from ocsf_nft.netns import Namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.attribution.proc_net_sockets import IpVersion

NETLINK_SOCK_DIAG: Final = 4
SOCK_DIAG_BY_FAMILY: Final = 20
#: struct inet_diag_req_v2 without, and with, the struct inet_diag_sockid that ends it.
_REQUEST: Final = struct.Struct("=BBxxI")
_IDENTITY: Final = struct.Struct("!HH16s16s")
_ANY_COOKIE: Final = b"\xff" * 8  # INET_DIAG_NOCOOKIE, twice
#: struct inet_diag_msg: family, state, then from 4 the ports, and from 64 user and inode.
_MESSAGE_BYTES: Final = 72
_OWNER: Final = struct.Struct("=II")
_SKV6ONLY: Final = 11

_ALL_STATES: Final = 0xFFFFFFFF
#: A TCP socket that has a port and no connection (``TCP_BOUND_INACTIVE``, since Linux 6.8).
_BOUND_INACTIVE: Final = 1 << 13

_RECEIVE_BYTES: Final = 1 << 16
_TIMEOUT_SECONDS: Final = 1.0
_SIOCGIFINDEX: Final = 0x8933  # include/uapi/linux/sockios.h
_IFREQ: Final = struct.Struct("=16si20x")  # struct ifreq


class Tables:
    """The socket tables of one namespace; to be used by one thread at a time.

    What is open belongs to the namespace that it was opened in, and stays in it.
    """

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._pinned = -1
        self._socket: socket.socket | None = None
        self._sequence = 0
        #: What the text files say.
        self.files = Files(namespace)
        self._lacking: set[int] = set()
        #: How /proc calls the namespace.
        self.link = ""

    def __enter__(self) -> Self:
        """Find the namespace and hold on to it.

        Raises AbsentError when there is no such namespace, UnsupportedError when it can't be
        entered.
        """
        self._pinned, self.link = self._namespace.call(_pin)
        if self._namespace.path is not None:
            # What is opened later is opened in the same one, whatever becomes of its name.
            self._namespace = Namespace(Path(f"/proc/self/fd/{self._pinned}"))
            self.files = Files(self._namespace)
        return self

    def __exit__(self, *_: object) -> None:
        """Let it go."""
        self._forget()
        self.files.close()
        os.close(self._pinned)
        self._pinned = -1

    @property
    def namespace(self) -> Namespace:
        """The namespace itself, not whatever its path has come to mean."""
        return self._namespace

    def tcp(
        self,
        version: IpVersion,
        local: tuple[str, int],
        remote: tuple[str, int],
        *,
        device: str | None,
        deadline_ns: int,
    ) -> tuple[Socket, ...]:
        """The sockets that have, or had, this connection.

        Of a connection that was refused there is one only where its process chose the port by
        itself; its remote port may be 0 by then (``tcp_disconnect``). ``device`` is the one that
        the packet left by: a socket that is bound to it is found by no other. Raises
        TooManySocketsError, OSError.
        """
        wanted = (local[1], remote[0], remote[1])
        try:
            found = self._exact(version, local, remote, device)
            if found is not None and _connection(found) == wanted:
                return (found,)
            asked = self._dumped(
                socket.IPPROTO_TCP, version, local[1], _BOUND_INACTIVE, deadline_ns
            )
            sockets = tuple(asked)
        except FileNotFoundError:
            sockets = self.files.by_port(socket.IPPROTO_TCP, version, local[1], deadline_ns)
        return tuple(
            found
            for found in sockets
            if found.remote == remote[0] and found.remote_port in {remote[1], 0}
        )

    def by_port(
        self, protocol: int, version: IpVersion, port: int, *, deadline_ns: int
    ) -> tuple[Socket, ...]:
        """All UDP or UDP-Lite sockets that a packet of this version and port can have come from.

        Addresses say nothing against a socket: what it is bound and connected to, it can put aside
        for each packet (``sendto``, ``IP_PKTINFO``). Raises TooManySocketsError, OSError.
        """
        try:
            sockets = tuple(self._dumped(protocol, version, port, _ALL_STATES, deadline_ns))
        except FileNotFoundError:
            sockets = self.files.by_port(protocol, version, port, deadline_ns)
        # IPV6_V6ONLY can't be changed any more once there is a port (do_ipv6_setsockopt).
        return tuple(found for found in sockets if version == 6 or not found.is_only_ipv6)

    def _exact(
        self,
        version: IpVersion,
        local: tuple[str, int],
        remote: tuple[str, int],
        device: str | None,
    ) -> Socket | None:
        """The socket that a packet from ``remote`` to ``local`` would be given to: no list."""
        sock = self._diag(socket.IPPROTO_TCP)
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        identity = _IDENTITY.pack(
            local[1],
            remote[1],
            socket.inet_pton(family, local[0]),  # one of IPv4 is filled up with zeros
            socket.inet_pton(family, remote[0]),
        )
        index = 0 if device is None else _index(sock, device)
        payload = _request(family, socket.IPPROTO_TCP, _ALL_STATES, identity, index)
        self._ask(sock, netlink.NLM_F_REQUEST, payload)
        answer = next(self._answers(sock))
        if answer.kind == netlink.NLMSG_ERROR:
            try:
                netlink.raise_for_error(answer.payload)
            except FileNotFoundError:  # no such socket; or no tcp_diag, and the list says so
                return None
        return _inet_socket(answer.payload, socket.IPPROTO_TCP)

    def _dumped(
        self, protocol: int, version: IpVersion, port: int, states: int, deadline_ns: int
    ) -> Iterator[Socket]:
        # A socket of IPv6 sends to addresses of IPv4 as well, and not the other way round.
        families = (socket.AF_INET6,) if version == 6 else (socket.AF_INET, socket.AF_INET6)
        identity = _IDENTITY.pack(port, 0, b"", b"")
        number = 0
        for family in families:
            sock = self._diag(protocol)
            payload = _request(family, protocol, states, identity, 0)
            self._ask(sock, netlink.NLM_F_REQUEST | netlink.NLM_F_DUMP, payload)
            is_done = False
            while not is_done:
                for answer in self._answers(sock):
                    if answer.kind in {netlink.NLMSG_DONE, netlink.NLMSG_ERROR}:
                        is_done = True
                        self._raise_for_end(answer.payload, protocol)
                        break
                    number += 1
                    yield _inet_socket(answer.payload, protocol)
                if not is_done and (
                    number > proc_net_sockets.MOST_SOCKETS or time.monotonic_ns() > deadline_ns
                ):
                    self._forget()  # the kernel would go on with the list
                    raise too_many()

    def _raise_for_end(self, payload: memoryview, protocol: int) -> None:
        """Raise what the end of a list says: FileNotFoundError where the kernel has no such one."""
        # In DONE and in ERROR alike it begins with 0 or a negative errno (netlink_dump_done).
        code = int.from_bytes(payload[:4], sys.byteorder, signed=True)
        if code:
            if code == -errno.ENOENT:
                self._lacking.add(protocol)
            raise OSError(-code, os.strerror(-code))

    def _diag(self, protocol: int) -> socket.socket:
        """The netlink socket; raises FileNotFoundError where the kernel doesn't answer by it."""
        if protocol in self._lacking:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if self._socket is None:
            try:
                self._socket = self._namespace.call(_open_diag)
            except OSError as error:
                if error.errno not in {errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EPERM}:
                    raise
                self._lacking.update(proc_net_sockets.INET)
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from error
        return self._socket

    def _forget(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _ask(self, sock: socket.socket, flags: int, payload: bytes) -> None:
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        sock.send(netlink.message(SOCK_DIAG_BY_FAMILY, flags, payload, self._sequence))

    def _answers(self, sock: socket.socket) -> Iterator[netlink.Message]:
        """What the next datagram has to say to the last question."""
        while True:
            try:
                datagram, sender = sock.recvfrom(_RECEIVE_BYTES)
            except OSError:
                self._forget()
                raise
            found = [
                message
                for message in netlink.headed(memoryview(datagram))
                # Whoever has CAP_NET_ADMIN can send to us; the kernel is 0.
                if sender[0] == 0 and message.sequence == self._sequence
            ]
            if found:
                yield from found
                return


def _pin() -> tuple[int, str]:
    path = "/proc/thread-self/ns/net"
    return os.open(path, os.O_RDONLY), str(Path(path).readlink())


def _open_diag() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)
    sock.settimeout(_TIMEOUT_SECONDS)
    return sock


def _request(family: int, protocol: int, states: int, identity: bytes, ifindex: int) -> bytes:
    interface = struct.pack("=I", ifindex)
    return _REQUEST.pack(family, protocol, states) + identity + interface + _ANY_COOKIE


def _index(sock: socket.socket, device: str) -> int:
    """The number of a device of the socket's namespace; 0 where it is gone."""
    name = device.encode("utf-8", "surrogateescape")
    try:
        answer = fcntl.ioctl(sock, _SIOCGIFINDEX, _IFREQ.pack(name, 0))
    except OSError:
        return 0
    return int(_IFREQ.unpack(answer)[1])


def _connection(found: Socket) -> tuple[int, str, int]:
    return found.local_port, found.remote, found.remote_port


def _inet_socket(payload: memoryview, protocol: int) -> Socket:
    """A socket by a struct inet_diag_msg and its attributes."""
    family, state = payload[0], payload[1]
    local_port, remote_port, local, remote = _IDENTITY.unpack_from(payload, 4)
    uid, inode = _OWNER.unpack_from(payload, 64)
    only = dict(netlink.attributes(payload[_MESSAGE_BYTES:])).get(_SKV6ONLY)
    return Socket(
        family=family,
        protocol=protocol,
        local=address(family, local),
        local_port=local_port,
        remote=address(family, remote),
        remote_port=remote_port,
        state=state,
        inode=inode,
        uid=uid,
        is_only_ipv6=None if only is None else bool(only[0]),
    )
