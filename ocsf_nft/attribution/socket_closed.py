"""Listener for closed sockets, to check if the socket that sent a packet still has its port.

The sending socket still has the port if no socket with this port was closed since the packet.
"""

from __future__ import annotations

import errno
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Final, Self

from ocsf_nft import netlink
from ocsf_nft.attribution.sock_diag import NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY

if TYPE_CHECKING:
    from ocsf_nft.netns import Namespace

#: enum sknetlink_groups: TCP and UDP of IPv4, then of IPv6; one bit for each.
_GROUPS: Final = 0b1111
_TCP_GROUPS: Final = 0b0101
_PORT: Final = struct.Struct("!H")
_PORT_OFFSET: Final = 4  # of idiag_sport in struct inet_diag_msg

_SO_RCVBUFFORCE: Final = 33  # include/uapi/asm-generic/socket.h
_BUFFER_BYTES: Final = 4 << 20
_RECEIVE_BYTES: Final = 4096
#: Maximum number of notifications in one read, and the pause between reads. They limit the time
#: spent on a sandbox that closes sockets at a higher rate; its sockets are then not followed.
_MOST: Final = 512
PACE_SECONDS: Final = 0.02

#: The protocols with notifications; UDP-Lite, raw, ping and packet sockets have none.
WATCHED_PROTOCOLS: Final = frozenset({socket.IPPROTO_TCP, socket.IPPROTO_UDP})


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
        """Stop receiving notifications of closed sockets.

        After this call, :meth:`doubt` raises OSError.
        """
        with self._lock:  # another thread may be inside doubt
            self._socket.close()

    def fileno(self) -> int:
        """Return the descriptor of the socket with the notifications."""
        return self._socket.fileno()

    def read(self) -> None:
        """Read notifications, but not too many; the next call is due after ``PACE_SECONDS``.

        Any thread may call this. Raises OSError after the ``with`` body.
        """
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
                datagram, (sender, groups) = self._socket.recvfrom(_RECEIVE_BYTES)
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
                if kind == SOCK_DIAG_BY_FAMILY:
                    closed.append((protocol, _PORT.unpack_from(payload, _PORT_OFFSET)[0]))
        # Read the clock after all: no socket was closed later than its stored time.
        now_ns = _now_ns()
        for protocol, port in closed:
            self._last[protocol][port] = now_ns
        if is_dropped:
            self._dropped_ns = now_ns
        return is_all


def _now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _subscribe() -> socket.socket:
    # When the kernel frees a socket, it sends the port to listeners, which need no privilege
    # (``sock_diag_broadcast_destroy`` in ``net/core/sock_diag.c``).
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)
    try:
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        except PermissionError:  # in a user namespace: up to the limit for all users
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        sock.bind((0, _GROUPS))
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock
