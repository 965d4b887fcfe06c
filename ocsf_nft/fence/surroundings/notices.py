"""Notices of rtnetlink about the surroundings of a fence, and the ports of their senders.

Layouts and numbers: ``include/uapi/linux/rtnetlink.h`` and ``if_link.h``.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from ocsf_nft import netlink, rtnetlink

if TYPE_CHECKING:
    from ocsf_nft.netlink import Message

Area: TypeAlias = Literal["link", "tc", "route", "rule"]

_AREAS: Final[dict[int, Area]] = {
    16: "link", 17: "link", 24: "route", 25: "route", 32: "rule", 33: "rule", 36: "tc", 37: "tc",
    40: "tc", 41: "tc", 44: "tc", 45: "tc",
}  # fmt: skip
_INDEX: Final = struct.Struct("=4xi")
_IFINFOMSG_BYTES: Final = 16
_IFLA_NEW_NETNSID: Final = 45
#: Senders that are remembered: a process can cause any number of notices.
_MOST_SENDERS: Final = 64


class RouteNotices:
    """Notices since the last check, with the netlink ports of the sockets that caused them."""

    def __init__(self) -> None:
        #: Whether something may have changed since the last call of :meth:`clear`.
        self.has_news = False
        #: Whether a link or a route is among it.
        self.has_links = False
        #: Indexes of interfaces that were deleted, and of those that were moved away, with the
        #: number of the other namespace.
        self.deleted: set[int] = set()
        self.moved: dict[int, int] = {}
        self._ports: dict[tuple[Area, int], int] = {}

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
        if message.port and len(self._ports) < _MOST_SENDERS:
            self._ports[area, ifindex if area in {"link", "tc"} else 0] = message.port
        if message.kind == rtnetlink.RTM_DELLINK:
            self._take_end(ifindex, message.payload)
        elif message.kind == rtnetlink.RTM_NEWLINK:
            self.deleted.discard(ifindex)
            self.moved.pop(ifindex, None)

    def _take_end(self, ifindex: int, payload: memoryview) -> None:
        found = dict(netlink.attributes(payload[_IFINFOMSG_BYTES:]))
        # A port of a bridge has such a message when it leaves the bridge.
        if payload[0]:
            return
        if len(self.moved) < _MOST_SENDERS and _IFLA_NEW_NETNSID in found:
            self.moved[ifindex] = struct.unpack("=i", found[_IFLA_NEW_NETNSID])[0]
        elif len(self.deleted) < _MOST_SENDERS:
            self.deleted.add(ifindex)

    def mark_dropped(self) -> None:
        """Note that the kernel has dropped notices."""
        self.has_news = self.has_links = True

    def port(self, area: Area, ifindex: int = 0) -> int | None:
        """Return the netlink port of the last sender about an interface, or None."""
        return self._ports.get((area, ifindex))

    @property
    def ports(self) -> set[int]:
        """Return the netlink ports of all senders since the last check."""
        return {*self._ports.values()}

    def clear(self) -> None:
        """Discard the senders after a check."""
        self.has_news = False
        self._ports.clear()
