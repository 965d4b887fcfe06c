"""Which sockets have ended: what lets one that is still there be told from one that took its port.

The kernel tells whoever listens of each TCP and UDP socket of a namespace that is freed, with the
port that it had (``sock_diag_broadcast_destroy`` in ``net/core/sock_diag.c``, called by
``__sk_free``). Where none with a packet's port has ended since the packet, the socket that sent it
is still one of those that have the port. Listening needs no privilege, and costs the sandbox about
two microseconds a socket that it closes.

It is told of by a work queue: microseconds after, usually. Nothing is told of UDP-Lite, raw, ping
and packet sockets, nor of one that gives up its port and lives on (``connect`` to AF_UNSPEC).
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Final, Self

from ocsf_nft import netlink
from ocsf_nft.attribution.sock_diag import NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY

if TYPE_CHECKING:
    from ocsf_nft.netns import Namespace

#: enum sknetlink_groups: TCP and UDP of IPv4, then those of IPv6; a bit for each.
_GROUPS: Final = 0b1111
_TCP_GROUPS: Final = 0b0101
_PORT: Final = struct.Struct("!H")
_PORT_OFFSET: Final = 4  # of idiag_sport in struct inet_diag_msg

_SO_RCVBUFFORCE: Final = 33  # include/uapi/asm-generic/socket.h
_BUFFER_BYTES: Final = 4 << 20
_RECEIVE_BYTES: Final = 4096
#: So many are read at once, and so long is waited in between: a sandbox that ends more of them
#: than that is not followed, and takes no more time than that.
_MOST: Final = 512
_PACE_SECONDS: Final = 0.02

#: What is told of.
WATCHED: Final = frozenset({socket.IPPROTO_TCP, socket.IPPROTO_UDP})


class Ended:
    """Listens, in a thread of its own, until it is closed. Times are of CLOCK_BOOTTIME."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._lock = threading.Lock()
        #: When the last one with a port has ended, by protocol.
        self._last: dict[int, dict[int, int]] = {protocol: {} for protocol in WATCHED}
        self._blind_ns: int | None = None
        self._since_ns = 0

    def __enter__(self) -> Self:
        """Begin. Raises AbsentError, UnsupportedError, and OSError where the kernel can't."""
        self._socket = self._namespace.call(_subscribe)
        self._since_ns = _now_ns()
        self._stop = os.eventfd(0)
        self._thread = threading.Thread(target=self._listen, name="ended-sockets", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the thread and close the socket. :meth:`doubt` raises OSError from then on."""
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        os.close(self._stop)
        with self._lock:  # another thread may be in the middle of a call of doubt
            self._socket.close()

    def doubt(self, protocol: int, port: int, since_ns: int, *, slack_ns: int = 0) -> str | None:
        """Why a socket that had the port at that time may have ended; None where none has.

        ``protocol`` is one of :data:`WATCHED`. The time may be up to ``slack_ns`` too late.
        """
        with self._lock:
            is_all = self._drain()
            last_ns = self._last[protocol].get(port)
            blind_ns = self._blind_ns
        if since_ns < self._since_ns:
            return "the packet is from before the sandbox's sockets were watched"
        since_ns -= slack_ns
        if last_ns is not None and last_ns >= since_ns:
            return "a socket that had the packet's port has ended"
        if not is_all or (blind_ns is not None and blind_ns >= since_ns):
            return "so many sockets of the sandbox end that not each is told of"
        return None

    def _listen(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        while not any(descriptor == self._stop for descriptor, _ in poll.poll()):
            with self._lock:
                self._drain()
            select.select([self._stop], [], [], _PACE_SECONDS)

    def _drain(self) -> bool:
        """Take in what there is; False where there is more than is read at once."""
        ended: list[tuple[int, int]] = []
        is_blind = is_all = False
        for _ in range(_MOST):
            try:
                datagram, (sender, groups) = self._socket.recvfrom(_RECEIVE_BYTES)
            except BlockingIOError:
                is_all = True
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                is_blind = True
                continue
            if sender != 0:  # whoever has CAP_NET_ADMIN can send to us; the kernel is 0
                continue
            protocol = socket.IPPROTO_TCP if groups & _TCP_GROUPS else socket.IPPROTO_UDP
            for kind, payload in netlink.messages(memoryview(datagram)):
                if kind == SOCK_DIAG_BY_FAMILY:
                    ended.append((protocol, _PORT.unpack_from(payload, _PORT_OFFSET)[0]))
        # After all of them: none has ended later than is noted.
        now_ns = _now_ns()
        for protocol, port in ended:
            self._last[protocol][port] = now_ns
        if is_blind:
            self._blind_ns = now_ns
        return is_all


def _now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _subscribe() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)
    try:
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        except PermissionError:  # in a user namespace: as much as everybody may have
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        sock.bind((0, _GROUPS))
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock
