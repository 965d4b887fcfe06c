"""The names of a namespace's network interfaces, kept current by the kernel's own notices.

NFLOG tells interfaces by index. Asking for a name when a record is read would be slow under load,
and a cache of answers would be wrong after a rename; so this subscribes to link notifications
(RTNLGRP_LINK, include/uapi/linux/rtnetlink.h) and reads those that came before each use.
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
#: Work bounds: whoever creates interfaces in a loop costs us this much per call and no more.
_NOTICES_PER_CALL: Final = 64
_NAMES_KEPT: Final = 4096
_DUMP_INTERVAL_NS: Final = 1_000_000_000


class Links:
    """Interface names by index; lives as long as its context.

    The name of a deleted interface stays known: records of it may still be on their way, and the
    kernel doesn't reuse an index on its own. At most 4096 names are kept, the newest.
    """

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._names: dict[int, str] = {}
        self._socket: socket.socket | None = None
        self._dump_wanted = True
        self._dumped_ns = -_DUMP_INTERVAL_NS

    def open(self) -> None:
        """Subscribe, and learn the interfaces that exist; raises SourceError."""
        self._socket = self._namespace.call(rtnetlink.subscribe)
        self.refresh()

    def close(self) -> None:
        """Unsubscribe."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def name(self, index: int) -> str | None:
        """The name of the interface, None when there has been none with this index."""
        found = self._names.get(index)
        if found is None:
            self.refresh()
            found = self._names.get(index)
        return found

    def refresh(self) -> None:
        """Take in what changed; never blocks."""
        sock = self._socket
        if sock is None:
            return
        now = time.monotonic_ns()
        if self._dump_wanted and now - self._dumped_ns >= _DUMP_INTERVAL_NS:
            self._dumped_ns = now
            self._dump_wanted = not _asked_for_all(sock)
        for _ in range(_NOTICES_PER_CALL):
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
                # Notices were lost, so any name may be stale.
                self._names.clear()
                self._dump_wanted = True
                continue
            # Whoever has CAP_NET_ADMIN in the namespace can send to our port; the kernel is 0.
            if sender[0] == 0:
                self._take(memoryview(datagram))

    def _take(self, datagram: memoryview) -> None:
        for kind, body in netlink.messages(datagram):
            if kind == netlink.NLMSG_ERROR:
                # EBUSY (net/netlink/af_netlink.c): the dump before this one is not read yet.
                self._dump_wanted = True
            link = rtnetlink.link(body) if kind == rtnetlink.RTM_NEWLINK else None
            if link is not None:
                self._names.pop(link.ifindex, None)
                self._names[link.ifindex] = link.name
        while len(self._names) > _NAMES_KEPT:
            del self._names[next(iter(self._names))]


def _asked_for_all(sock: socket.socket) -> bool:
    """Ask for a dump, whose answer comes as notices do; False when it can't be asked for."""
    request = netlink.message(
        rtnetlink.RTM_GETLINK, netlink.NLM_F_REQUEST | netlink.NLM_F_DUMP, rtnetlink.ALL_LINKS
    )
    try:
        sock.sendto(request, (0, 0))
    except OSError:
        return False
    return True
