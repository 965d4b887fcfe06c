"""Names of a namespace's network interfaces, updated by the kernel's notifications.

An NFLOG record has only the index of an interface.
"""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING, Final

from ocsf_nft import netlink, rtnetlink
from ocsf_nft.errors import SourceError

if TYPE_CHECKING:
    import socket

    from ocsf_nft.netns import Namespace

_DATAGRAM_BYTES: Final = 1 << 16
#: Limits of the work per call, also if a process creates interfaces in a loop.
_NOTIFICATIONS_PER_CALL: Final = 64
_MAX_NAMES: Final = 4096
_DUMP_INTERVAL_NS: Final = 1_000_000_000


class InterfaceNames:
    """Table of the interface names of a network namespace, by the index of the interface.

    The name of a deleted interface stays in the table, because records of its packets may still
    arrive. The table has only the newest 4096 names.
    """

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._names: dict[int, str] = {}
        self._socket: socket.socket | None = None
        self._needs_dump = True
        self._dumped_ns = -_DUMP_INTERVAL_NS

    def open(self) -> None:
        """Subscribe to notifications of interface changes, and request a list of all interfaces.

        Raises SourceError if the notifications can't be read.
        """
        # A request for every name would be slow. A cache without notifications (RTNLGRP_LINK in
        # include/uapi/linux/rtnetlink.h) would be wrong after a rename.
        self._socket = self._namespace.call(rtnetlink.subscribe)
        self.refresh()

    def close(self) -> None:
        """End the subscription to notifications."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def name(self, index: int) -> str | None:
        """Return the name of the interface with this index, or None if the index is unknown.

        If the index is not in the table, :meth:`refresh` is called first.
        """
        found = self._names.get(index)
        if found is None:
            self.refresh()
            found = self._names.get(index)
        return found

    def refresh(self) -> None:
        """Read the kernel's new notifications of interface changes; never blocks.

        Raises SourceError if the notifications can't be read.
        """
        sock = self._socket
        if sock is None:
            return
        now = time.monotonic_ns()
        if self._needs_dump and now - self._dumped_ns >= _DUMP_INTERVAL_NS:
            self._dumped_ns = now
            self._needs_dump = not _request_dump(sock)
        for _ in range(_NOTIFICATIONS_PER_CALL):
            try:
                datagram, sender = sock.recvfrom(_DATAGRAM_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise SourceError(
                        f"the interfaces of {self._namespace} can't be watched: "
                        f"{os.strerror(error.errno or 0)}"
                    ) from error
                # Notifications were dropped, so any name may be stale.
                self._names.clear()
                self._needs_dump = True
                continue
            # A process with CAP_NET_ADMIN in the namespace can send to our port; the kernel's port
            # is 0.
            if sender[0] == 0:
                self._handle(memoryview(datagram))

    def _handle(self, datagram: memoryview) -> None:
        for kind, body in netlink.messages(datagram):
            if kind == netlink.NLMSG_ERROR:
                # EBUSY (net/netlink/af_netlink.c): the previous dump has not been read to its end.
                self._needs_dump = True
            link = rtnetlink.link(body) if kind == rtnetlink.RTM_NEWLINK else None
            if link is not None:
                self._names.pop(link.ifindex, None)
                self._names[link.ifindex] = link.name
        while len(self._names) > _MAX_NAMES:
            del self._names[next(iter(self._names))]


def _request_dump(sock: socket.socket) -> bool:
    request = netlink.message(
        rtnetlink.RTM_GETLINK, netlink.NLM_F_REQUEST | netlink.NLM_F_DUMP, rtnetlink.ALL_LINKS
    )
    try:
        sock.sendto(request, (0, 0))
    except OSError:
        return False
    return True
