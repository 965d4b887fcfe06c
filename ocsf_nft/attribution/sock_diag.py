"""Sockets of a network namespace, by netlink (``sock_diag``): its tables, and closed sockets.

Raw, ping and packet sockets are read from /proc/net instead, and so are all sockets if the kernel
lacks ``sock_diag``. A TCP or UDP socket that has no local port is not found.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from ocsf_nft import netlink
from ocsf_nft.attribution import proc_net_sockets
from ocsf_nft.attribution.proc_net_sockets import ProcNetFiles, Socket, TooManySocketsError
from ocsf_nft.netns import Namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.attribution.proc_net_sockets import IpVersion

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
#: struct inet_diag_req_v2 without, and with, its last field, a struct inet_diag_sockid.
_REQUEST: Final = struct.Struct("=BBxxI")
_IDENTITY: Final = struct.Struct("!HH16s16s")
_ANY_COOKIE: Final = b"\xff" * 8  # INET_DIAG_NOCOOKIE, twice
#: struct inet_diag_msg: family and state; the ports from offset 4, user and inode from offset 64.
_MESSAGE_BYTES: Final = 72
_OWNER: Final = struct.Struct("=II")
_SKV6ONLY: Final = 11

_ALL_STATES: Final = 0xFFFFFFFF
#: A TCP socket with a port and no connection (``TCP_BOUND_INACTIVE``, since Linux 6.8).
_BOUND_INACTIVE: Final = 1 << 13

_RECEIVE_BYTES: Final = 1 << 16
_TIMEOUT_SECONDS: Final = 1.0
_SIOCGIFINDEX: Final = 0x8933  # include/uapi/linux/sockios.h
_IFREQ: Final = struct.Struct("=16si20x")  # struct ifreq

#: enum sknetlink_groups: TCP and UDP of IPv4, then of IPv6; one bit for each.
_GROUPS: Final = 0b1111
_TCP_GROUPS: Final = 0b0101
_PORT: Final = struct.Struct("!H")
_PORT_OFFSET: Final = 4  # of idiag_sport in struct inet_diag_msg

_BUFFER_BYTES: Final = 4 << 20
_NOTICE_BYTES: Final = 4096
#: Maximum number of notifications in one read, and the pause between reads. They limit the time
#: spent on a sandbox that closes sockets at a higher rate; its sockets are then not followed.
_MOST: Final = 512
PACE_SECONDS: Final = 0.02

#: The protocols with notifications; UDP-Lite, raw, ping and packet sockets have none.
WATCHED_PROTOCOLS: Final = frozenset({socket.IPPROTO_TCP, socket.IPPROTO_UDP})


class SocketTables:
    """Reader of the kernel's socket tables of one network namespace; for one thread at a time."""

    def __init__(self, namespace: Namespace) -> None:
        #: After :meth:`__enter__`, the opened namespace, even if its path leads to another one.
        self.namespace = namespace
        self._pinned = -1
        self._socket: socket.socket | None = None
        self._sequence = 0
        #: The text files of the namespace.
        self.files = ProcNetFiles(namespace)
        #: Protocols that netlink does not support.
        self._unsupported: set[int] = set()
        #: Name of the namespace in /proc.
        self.link = ""

    def __enter__(self) -> Self:
        """Open the network namespace.

        Raises AbsentError if there is no such namespace, UnsupportedError if it can't be entered.
        """
        self._pinned, self.link = self.namespace.call(_pin)
        if self.namespace.path is not None:
            # Later descriptors must be of the same namespace, even if its path is replaced.
            self.namespace = Namespace(Path(f"/proc/self/fd/{self._pinned}"))
            self.files = ProcNetFiles(self.namespace)
        return self

    def __exit__(self, *_: object) -> None:
        """Release the network namespace and close all descriptors."""
        self._close_socket()
        self.files.close()
        os.close(self._pinned)
        self._pinned = -1

    def tcp(
        self,
        version: IpVersion,
        local: tuple[str, int],
        remote: tuple[str, int],
        *,
        device: str | None,
        deadline_ns: int,
    ) -> tuple[Socket, ...]:
        """Return the TCP sockets that may have sent a packet from ``local`` to ``remote``.

        If the connection has a socket, only this socket is returned. After a refused connection,
        all sockets that still have the local port and the remote address are returned. ``device``
        is the packet's network device. If it is None, sockets bound to a device may be missing.
        Raises TooManySocketsError for too many sockets, or if ``deadline_ns`` (time.monotonic_ns)
        passes; OSError for other failures.
        """
        try:
            found = self._exact_match(version, local, remote, device)
            if found is not None:
                return (found,)
            dump = self._dump(socket.IPPROTO_TCP, version, local[1], _BOUND_INACTIVE, deadline_ns)
            sockets = tuple(dump)
        except FileNotFoundError:
            sockets = self.files.by_port(socket.IPPROTO_TCP, version, local[1], deadline_ns)
        # After a refused connection, a socket keeps its port only if its process chose the port
        # with bind (tcp_done). The kernel may clear the remote port (tcp_disconnect).
        return tuple(
            found
            for found in sockets
            if found.remote == remote[0] and found.remote_port in {remote[1], 0}
        )

    def by_port(
        self, protocol: int, version: IpVersion, port: int, *, deadline_ns: int
    ) -> tuple[Socket, ...]:
        """Return all sockets with the local port ``port`` that can send packets of an IP version.

        ``protocol`` is the number of UDP or UDP-Lite. Raises TooManySocketsError for too many
        sockets, or if ``deadline_ns`` (time.monotonic_ns) passes; OSError for other failures.
        """
        try:
            sockets = tuple(self._dump(protocol, version, port, _ALL_STATES, deadline_ns))
        except FileNotFoundError:
            sockets = self.files.by_port(protocol, version, port, deadline_ns)
        # Addresses are not compared: a process can choose both for each packet (``sendto``,
        # ``IP_PKTINFO``).
        # IPV6_V6ONLY can't change once the socket has a port (do_ipv6_setsockopt).
        return tuple(found for found in sockets if version == 6 or not found.is_only_ipv6)

    def _exact_match(
        self,
        version: IpVersion,
        local: tuple[str, int],
        remote: tuple[str, int],
        device: str | None,
    ) -> Socket | None:
        """Return the TCP socket with this connection; None if there is none."""
        sock = self._diag(socket.IPPROTO_TCP)
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        identity = _IDENTITY.pack(
            local[1],
            remote[1],
            socket.inet_pton(family, local[0]),  # struct pads an IPv4 address with zeros
            socket.inet_pton(family, remote[0]),
        )
        index = 0 if device is None else _index(sock, device)
        # Fast: the kernel looks up one socket, and does not list the table.
        payload = _request(family, socket.IPPROTO_TCP, _ALL_STATES, identity, index)
        self._send_request(sock, netlink.NLM_F_REQUEST, payload)
        answer = self._answers(sock)[0]
        if answer.kind == netlink.NLMSG_ERROR:
            try:
                netlink.raise_for_error(answer.payload)
            except FileNotFoundError:  # no such socket; or no tcp_diag, then the dump raises
                return None
        # A listening socket too would receive packets from ``remote``.
        found = _inet_socket(answer.payload)
        is_same = (found.local_port, found.remote, found.remote_port) == (local[1], *remote)
        return found if is_same else None

    def _dump(
        self, protocol: int, version: IpVersion, port: int, states: int, deadline_ns: int
    ) -> Iterator[Socket]:
        # An IPv6 socket can also send to IPv4 addresses, but not the other way round.
        families = (socket.AF_INET6,) if version == 6 else (socket.AF_INET, socket.AF_INET6)
        # The kernel returns only sockets with this port (``net/ipv4/inet_diag.c``, ``tcp_diag.c``,
        # ``udp_diag.c``).
        identity = _IDENTITY.pack(port, 0, b"", b"")
        number = 0
        for family in families:
            sock = self._diag(protocol)
            payload = _request(family, protocol, states, identity, 0)
            self._send_request(sock, netlink.NLM_F_REQUEST | netlink.NLM_F_DUMP, payload)
            is_done = False
            while not is_done:
                for answer in self._answers(sock):
                    is_done = answer.kind in {netlink.NLMSG_DONE, netlink.NLMSG_ERROR}
                    if is_done:
                        try:  # both begin with 0 or a negative errno (netlink_dump_done)
                            netlink.raise_for_error(answer.payload)
                        except FileNotFoundError:  # the kernel can't list this protocol's sockets
                            self._unsupported.add(protocol)
                            raise
                        break
                    number += 1
                    yield _inet_socket(answer.payload)
                if not is_done and (
                    number > proc_net_sockets.MOST_SOCKETS or time.monotonic_ns() > deadline_ns
                ):
                    self._close_socket()  # otherwise the kernel continues the dump
                    raise TooManySocketsError

    def _diag(self, protocol: int) -> socket.socket:
        """Return the netlink socket; raise FileNotFoundError if it can't list ``protocol``."""
        if self._socket is None and protocol not in self._unsupported:
            try:
                self._socket = self.namespace.call(_open_diag)
            except OSError as error:
                if error.errno not in {errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EPERM}:
                    raise
                self._unsupported.update(proc_net_sockets.INET)
        if self._socket is None or protocol in self._unsupported:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return self._socket

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send_request(self, sock: socket.socket, flags: int, payload: bytes) -> None:
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        sock.send(netlink.message(_SOCK_DIAG_BY_FAMILY, flags, payload, self._sequence))

    def _answers(self, sock: socket.socket) -> list[netlink.Message]:
        """Wait for the next datagram that answers the last request; return its messages."""
        while True:
            try:
                datagram, sender = sock.recvfrom(_RECEIVE_BYTES)
            except OSError:
                self._close_socket()
                raise
            found = [
                message
                for message in netlink.messages_with_headers(memoryview(datagram))
                # The kernel is 0: another process can send before the socket is connected.
                if sender[0] == 0 and message.sequence == self._sequence
            ]
            if found:
                return found


class ClosedSockets:
    """Listener for the kernel's notifications of closed sockets in a network namespace.

    The kernel stores the notifications during the ``with`` body; call :meth:`read` when the socket
    is readable. All times are of CLOCK_BOOTTIME.
    """

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._lock = threading.Lock()
        #: Time of the last closed socket of each port, by protocol.
        self._last: dict[int, dict[int, int]] = {protocol: {} for protocol in WATCHED_PROTOCOLS}
        #: Last time when the kernel dropped notifications.
        self._dropped_ns: int | None = None

    def __enter__(self) -> Self:
        """Start to listen for closed sockets in the network namespace.

        Raises AbsentError if the namespace does not exist, UnsupportedError if it can't be entered,
        and OSError if the kernel does not report closed sockets.
        """
        self._socket = self._namespace.call(_subscribe)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop receiving notifications; after this call, the other methods raise OSError."""
        with self._lock:  # another thread may be inside doubt
            self._socket.close()

    def fileno(self) -> int:
        """Return the descriptor of the socket with the notifications."""
        return self._socket.fileno()

    def read(self) -> None:
        """Read notifications, but not too many; the next call is due after ``PACE_SECONDS``."""
        with self._lock:
            self._drain()

    def doubt(self, protocol: int, port: int, since_ns: int) -> str | None:
        """Return the reason why the socket that sent a packet may be closed.

        The packet was sent from ``port`` at ``since_ns`` or later, after :meth:`__enter__`.
        ``protocol`` is one of :data:`WATCHED_PROTOCOLS`. Return None if the kernel reported all
        closed sockets since then, and none had this port.
        """
        with self._lock:
            is_all = self._drain()
            last_ns = self._last[protocol].get(port)
            dropped_ns = self._dropped_ns
        if last_ns is not None and last_ns >= since_ns:
            return "a socket that had the packet's port was closed"
        if not is_all or (dropped_ns is not None and dropped_ns >= since_ns):
            return "the sandbox closes so many sockets that not each is reported"
        # Not detected: a socket gives up its port and stays open (``connect`` to AF_UNSPEC).
        return None

    def _drain(self) -> bool:
        """Read notifications of closed sockets; return False if some may still be unread."""
        closed: list[tuple[int, int]] = []
        is_dropped = is_all = False
        for _ in range(_MOST):
            try:
                datagram, (sender, groups) = self._socket.recvfrom(_NOTICE_BYTES)
            except BlockingIOError:
                is_all = True
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                is_dropped = True
                continue
            if sender != 0:  # any process with CAP_NET_ADMIN can send here; the kernel is 0
                continue
            protocol = socket.IPPROTO_TCP if groups & _TCP_GROUPS else socket.IPPROTO_UDP
            for kind, payload in netlink.messages(memoryview(datagram)):
                if kind == _SOCK_DIAG_BY_FAMILY and len(payload) >= _PORT_OFFSET + _PORT.size:
                    closed.append((protocol, _PORT.unpack_from(payload, _PORT_OFFSET)[0]))
        # Read the clock after all: no socket was closed later than its stored time.
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        for protocol, port in closed:
            self._last[protocol][port] = now_ns
        if is_dropped:
            self._dropped_ns = now_ns
        return is_all


def _pin() -> tuple[int, str]:
    path = "/proc/thread-self/ns/net"
    return os.open(path, os.O_RDONLY), str(Path(path).readlink())


def _open_diag() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
    try:
        # To the kernel's port: a process with CAP_NET_ADMIN in the namespace could send without an
        # end, and so stop all lookups.
        sock.connect((0, 0))
        sock.settimeout(_TIMEOUT_SECONDS)
    except BaseException:
        sock.close()
        raise
    return sock


def _subscribe() -> socket.socket:
    # When the kernel frees a socket, it sends the port to listeners, which need no privilege
    # (``sock_diag_broadcast_destroy`` in ``net/core/sock_diag.c``).
    return netlink.subscribe(_NETLINK_SOCK_DIAG, _GROUPS, _BUFFER_BYTES)


def _request(family: int, protocol: int, states: int, identity: bytes, ifindex: int) -> bytes:
    interface = struct.pack("=I", ifindex)
    return _REQUEST.pack(family, protocol, states) + identity + interface + _ANY_COOKIE


def _index(sock: socket.socket, device: str) -> int:
    """Return the index of a network device in the namespace of ``sock``; 0 if it is not found."""
    name = device.encode("utf-8", "surrogateescape")
    try:
        answer = fcntl.ioctl(sock, _SIOCGIFINDEX, _IFREQ.pack(name, 0))
    except OSError:
        return 0
    return int(_IFREQ.unpack(answer)[1])


def _inet_socket(payload: memoryview) -> Socket:
    """Decode a socket that the kernel describes by struct inet_diag_msg and its attributes.

    Raises OSError if the description is cut.
    """
    if len(payload) < _MESSAGE_BYTES:
        raise OSError(errno.EBADMSG, "the kernel's description of a socket is cut")
    local_port, remote_port, _, remote = _IDENTITY.unpack_from(payload, 4)
    uid, inode = _OWNER.unpack_from(payload, 64)
    only = dict(netlink.attributes(payload[_MESSAGE_BYTES:])).get(_SKV6ONLY)
    return Socket(
        inode=inode,
        uid=uid,
        local_port=local_port,
        remote=proc_net_sockets.address(remote[:4] if payload[0] == socket.AF_INET else remote),
        remote_port=remote_port,
        is_only_ipv6=any(only) if only else None,
    )
