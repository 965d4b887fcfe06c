"""Notices of rtnetlink about the surroundings of a fence, and the ports of their senders.

Layouts and numbers: ``include/uapi/linux/rtnetlink.h`` and ``if_link.h``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from ocsf_nft import netlink, rtnetlink

if TYPE_CHECKING:
    from ocsf_nft.netlink import Message
    from ocsf_nft.rtnetlink import Link

Area: TypeAlias = Literal["link", "tc", "route", "rule"]

_AREAS: Final[dict[int, Area]] = {
    16: "link", 17: "link", 24: "route", 25: "route", 32: "rule", 33: "rule", 36: "tc", 37: "tc",
    40: "tc", 41: "tc", 44: "tc", 45: "tc",
}  # fmt: skip
_OF_ROUTES: Final = frozenset({"link", "route", "rule"})
_INDEX: Final = struct.Struct("=4xi")
_IFINFOMSG_BYTES: Final = 16
_IFLA_NEW_NETNSID: Final = 45
#: Senders, and interfaces that were moved, that are remembered: a process can cause any number.
_MOST: Final = 64
#: Port of several senders, or of an unknown one: the kernel itself, or an ioctl.
_UNKNOWN: Final = 0
_MOST_MOVES: Final = 1_000


@dataclass(frozen=True, slots=True)
class Move:
    """Link that was moved into the namespace with the number ``target``."""

    link: Link
    target: int


class RouteNotices:
    """Notices since the last check, with the netlink ports of the sockets that caused them."""

    def __init__(self) -> None:
        #: Whether something may have changed since the last call of :meth:`clear`.
        self.has_news = False
        #: Whether a link or a route is among it.
        self.has_links = False
        #: Indexes of the fence's uplinks.
        self.uplinks: frozenset[int] = frozenset()
        #: Indexes of uplinks that were deleted.
        self.deleted: set[int] = set()
        #: Indexes of interfaces that were moved away, with the number of the other namespace.
        self.moved: dict[int, int] = {}
        #: Links that were moved away. A check removes them.
        self.moves: list[Move] = []
        self._ports: dict[tuple[Area, int], int] = {}
        #: Whether a sender is missing in ``_ports``.
        self._has_lost = False

    def take(self, message: Message) -> None:
        """Note a message of the kernel."""
        area = _AREAS.get(message.kind)
        if area is None:
            return
        self.has_news = True
        self.has_links |= area in {"link", "route"}
        if len(message.payload) < _INDEX.size:
            return
        (ifindex,) = _INDEX.unpack_from(message.payload)
        self._take_sender(area, ifindex if area in {"link", "tc"} else 0, message.port)
        if message.kind == rtnetlink.RTM_DELLINK:
            self._take_end(ifindex, message.payload)
        elif message.kind == rtnetlink.RTM_NEWLINK:
            self.deleted.discard(ifindex)
            self.moved.pop(ifindex, None)

    def _take_sender(self, area: Area, ifindex: int, port: int) -> None:
        key = area, ifindex
        if key in self._ports:
            if self._ports[key] != port:
                self._ports[key] = _UNKNOWN
        elif len(self._ports) < _MOST:
            self._ports[key] = port
        else:
            self._has_lost = True

    def _take_end(self, ifindex: int, payload: memoryview) -> None:
        found = dict(netlink.attributes(payload[_IFINFOMSG_BYTES:]))
        # A port of a bridge has such a message when it leaves the bridge.
        if payload[0]:
            return
        if _IFLA_NEW_NETNSID in found:
            (target,) = struct.unpack("=i", found[_IFLA_NEW_NETNSID])
            if ifindex in self.uplinks or len(self.moved) < _MOST:
                self.moved[ifindex] = target
            link = rtnetlink.link(payload)
            if link is not None and len(self.moves) < _MOST_MOVES:
                self.moves.append(Move(link, target))
        elif ifindex in self.uplinks:
            self.deleted.add(ifindex)

    def mark_dropped(self) -> None:
        """Note that the kernel has dropped notices."""
        self.has_news = self.has_links = self._has_lost = True

    def port(self, area: Area, ifindex: int = 0) -> int | None:
        """Return the netlink port of the only sender about an interface; None if it is unknown.

        The route to an address depends on links and on policy routing rules too.
        """
        if self._has_lost:
            return None
        found = (
            {port for (each, _), port in self._ports.items() if each in _OF_ROUTES}
            if area == "route"
            else {self._ports.get((area, ifindex), _UNKNOWN)}
        )
        return None if len(found) != 1 else found.pop() or None

    def clear(self) -> None:
        """Discard the senders after a check."""
        self.has_news = self._has_lost = False
        self._ports.clear()
