"""Destinations that sockets of UDP are connected to.

No program of a cgroup reports what a process sends by a connected socket, and none knows the port
of one. The socket may even give its port up and stay open (``connect`` to AF_UNSPEC). So a packet
to such a destination may be of that socket, whoever has the packet's port.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocsf_nft.attribution.match import Way

#: The most connections of open sockets, and the most destinations of closed ones, that are stored.
_MOST: Final = 8192


class Connected:
    """Destinations of the connected sockets of one network namespace.

    Times are of CLOCK_BOOTTIME. A socket keeps each destination until it is closed.
    """

    def __init__(self) -> None:
        self._ways: dict[int, set[Way]] = {}
        self._connections = 0
        self._open: dict[Way, set[int]] = {}
        #: When the last socket with a destination was closed; the latest last.
        self._closed: OrderedDict[Way, int] = OrderedDict()
        self._evicted_ns = 0
        self._lost_ns = 0
        #: Whether each connected socket is known.
        self.is_complete = True

    def renew(self, connected: Iterable[tuple[int, Way]], since_ns: int) -> None:
        """Take in all sockets that are connected, by their cookies, as listed since a time.

        Sockets that were closed, or gave their port up, before that time are not among them.
        """
        if since_ns <= self._lost_ns:
            return
        self.is_complete, self._evicted_ns = True, since_ns
        for socket, way in connected:
            self.add(socket, way)

    def add(self, socket: int, way: Way) -> None:
        """Take in that a socket is connected; ``way`` has no source port."""
        if not self.is_complete or way in self._ways.get(socket, ()):
            return
        if self._connections == _MOST:
            self.lose()
            return
        self._connections += 1
        self._ways.setdefault(socket, set()).add(way)
        self._open.setdefault(way, set()).add(socket)

    def close(self, socket: int, time_ns: int) -> None:
        """Take in that a socket is closed; one that is not known was not connected."""
        ways: Iterable[Way] = self._ways.pop(socket, ())
        for way in ways:
            self._connections -= 1
            sockets = self._open[way]
            sockets.remove(socket)
            if not sockets:
                del self._open[way]
            self._closed[way] = max(time_ns, self._closed.pop(way, 0))
        while len(self._closed) > _MOST:
            self._evicted_ns = max(self._evicted_ns, self._closed.popitem(last=False)[1])

    def lose(self, until_ns: int = 0) -> None:
        """Sockets were connected that are not known, until a time."""
        self.is_complete, self._lost_ns = False, max(self._lost_ns, until_ns)
        self._connections = 0
        self._ways.clear()
        self._open.clear()

    def may_have_sent(self, way: Way, since_ns: int) -> bool:
        """Return True if a connected socket may have sent a packet since a time.

        ``way`` is the packet's, without its source port.
        """
        if not self.is_complete or way in self._open:
            return True
        return max(self._evicted_ns, self._closed.get(way, 0)) >= since_ns
