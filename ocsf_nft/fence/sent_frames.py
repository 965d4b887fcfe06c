"""Reader of the frames that have passed a fence, and of those that its uplinks have sent."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from array import array
from typing import TYPE_CHECKING, Final, TypeAlias

from ocsf_nft import rtnetlink
from ocsf_nft.errors import SourceError
from ocsf_nft.fence.frame_balance import FrameReading
from ocsf_nft.fence.spec import TABLE, TableId
from ocsf_nft.flow import Count
from ocsf_nft.netns import call_beside
from ocsf_nft.rtnetlink import RouteSocket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ocsf_nft.fence.rule_counters import NamedCounter
    from ocsf_nft.fence.spec import Surroundings
    from ocsf_nft.rtnetlink import Link

    CountersNow: TypeAlias = Callable[[TableId, Sequence[str]], list[NamedCounter] | None]

#: Interfaces that count a frame as sent once for each frame that the netdev egress hook has seen.
#: Hardware counts the segments of a large packet.
_EXACT_KINDS: Final = frozenset({"veth", "macvlan"})
_TABLE: Final = TableId("netdev", TABLE)
# include/uapi/linux/sockios.h, include/uapi/linux/ethtool.h, include/uapi/linux/if.h
_SIOCETHTOOL: Final = 0x8946
_ETHTOOL_GTSO: Final = 0x1E
_IFREQ: Final = struct.Struct("@16sP16x")
#: Attempts to ask for an interface by its name, which another process may change at any time.
_RENAMES: Final = 16


class NotComparableError(Exception):
    """Error: the sent frames can't be compared with those that the fence let through.

    The text is the reason.
    """


class SegmentingError(NotComparableError):
    """Error: an uplink counts the segments of a large packet, since its offload is off."""


class SentFrames:
    """Reader of the counters of one fence's uplinks. All methods block; one thread at a time.

    Needs CAP_NET_ADMIN over the sandbox's namespace, and CAP_SYS_ADMIN to enter it.
    """

    def __init__(
        self, beside: socket.socket, around: Surroundings, counters_now: CountersNow
    ) -> None:
        """Open a socket to read the uplinks in ``around``, of the namespace of ``beside``.

        If the host's ends of the uplinks are known, what they have received is read: this goes on
        if an uplink is moved to another namespace. ``counters_now`` is
        :meth:`NftMonitor.counters_now` of the sandbox's namespace. Raises NotComparableError if an
        uplink is missing, or counts frames in another way, and SourceError if the kernel does not
        answer.
        """
        self._beside = beside
        self._counters_now = counters_now
        ends = [each.ifindex for each in around.host.ends if each.is_uplink]
        #: Host's ends of the uplinks, if all of them are known.
        self._ends = ends if len(ends) == len(around.uplink_indexes) else []
        #: Frames that the uplinks have dropped, at the last reading.
        self._dropped = 0
        with contextlib.ExitStack() as opened:
            try:
                links = call_beside(beside, lambda: _links_at(around.uplink_indexes))
                self._indexes = [link.ifindex for link in _comparable(links, around)]
                self._inside = call_beside(beside, RouteSocket)
                opened.callback(self._inside.close)
                self._outside = RouteSocket()
                opened.callback(self._outside.close)
            except OSError as error:
                raise _unreadable(error) from error
            self.check_offload()
            opened.pop_all()

    def close(self) -> None:
        """Close the sockets."""
        self._inside.close()
        self._outside.close()

    def read(self) -> FrameReading | None:
        """Return a reading of all counters; None if the fence or a counter changes meanwhile.

        Raises NotComparableError if the fence or an uplink is missing, and SourceError.
        """
        try:
            before = self._counters_now(_TABLE, ("seen_link", "stopped_link"))
            sent = self._sent()
            # In the reverse order, so that no frame counts as stopped but not as seen.
            later = self._counters_now(_TABLE, ("stopped_link", "seen_link"))
        except FileNotFoundError as error:
            raise NotComparableError("the fence's counters are missing") from error
        except OSError as error:
            if error.errno == errno.ENODEV:
                raise NotComparableError("an interface is missing") from error
            raise _unreadable(error) from error
        if before is None or later is None:
            return None
        seen, stopped = before
        stopped_later, seen_later = later
        handles = (*seen.handles, *stopped.handles)
        passed_before, passed_after = _passed(seen, stopped), _passed(seen_later, stopped_later)
        was_replaced = handles != (*seen_later.handles, *stopped_later.handles)
        # A reset between the two readings. The next one shows it, or the frames before the reset
        # seem to have bypassed the fence: each is a finding.
        was_reset = passed_after.packets < passed_before.packets
        if was_replaced or was_reset:
            return None
        return FrameReading(
            epoch=(*handles, *self._ends, *self._indexes),
            passed_before=passed_before,
            sent=sent,
            passed_after=passed_after,
        )

    def check_offload(self) -> None:
        """Raise SegmentingError if the segmentation offload of an uplink is off.

        If an uplink has left the namespace, its frames pass no fence any more: its offload does not
        matter if the host's ends are known. Otherwise raises NotComparableError. Also raises
        SourceError.
        """

        def ask() -> str | None:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                for index in self._indexes:
                    try:
                        name = _without_offload(sock, index)
                    except OSError as error:
                        if error.errno != errno.ENODEV or not self._ends:
                            raise
                    else:
                        if name is not None:
                            return name
            return None

        try:
            name = call_beside(self._beside, ask)
        except OSError as error:
            if error.errno == errno.ENODEV:
                raise NotComparableError("an interface is missing") from error
            raise _unreadable(error) from error
        if name is not None:
            raise SegmentingError(f"segmentation offload of the interface {name} is off")

    def _sent(self) -> Count:
        """Return the sent frames; and those that an uplink dropped, with no bytes.

        The kernel drops a frame that it can't send after the frame has passed the fence: one with a
        wrong GSO header, for example. A process with CAP_NET_RAW can send such frames. If they did
        not count, each of them would hide one that has bypassed the fence.
        """
        try:
            uplinks = list(map(self._inside.statistics, self._indexes))
        except OSError as error:
            # The host's ends are still here if an uplink has left the namespace.
            if error.errno != errno.ENODEV or not self._ends:
                raise
            uplinks = []
        # Another interface may have the index of one that has left.
        self._dropped = max(self._dropped, sum(each.tx_dropped for each in uplinks))
        if self._ends:
            ends = map(self._outside.statistics, self._ends)
            sent = [(each.rx_packets, each.rx_bytes) for each in ends]
        else:
            sent = [(each.tx_packets, each.tx_bytes) for each in uplinks]
        packets, sizes = zip(*sent, strict=True)
        return Count(sum(packets) + self._dropped, sum(sizes))


def _without_offload(sock: socket.socket, ifindex: int) -> str | None:
    """Return the name of an interface whose segmentation offload is off; None if it is on.

    Raises OSError with ENODEV if the interface is missing.
    """
    for _ in range(_RENAMES):
        name = _name_of(ifindex)
        value = array("I", [_ETHTOOL_GTSO, 0])
        address, _ = value.buffer_info()
        try:
            fcntl.ioctl(sock, _SIOCETHTOOL, _IFREQ.pack(os.fsencode(name), address))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            continue  # renamed since then
        return None if value[1] else name
    raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))


def _name_of(ifindex: int) -> str:
    """Return the present name of an interface; raises OSError with ENODEV if it is missing."""
    try:
        return socket.if_indextoname(ifindex)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV)) from error
        raise


def _links_at(indexes: Iterable[int]) -> list[Link]:
    # Not all links of the namespace: its owner may add any number.
    found = map(rtnetlink.link_at, indexes)
    return [link for link in found if link is not None]


def _comparable(links: Iterable[Link], around: Surroundings) -> list[Link]:
    indexes = set(around.uplink_indexes)
    found = [link for link in links if link.ifindex in indexes]
    if around.missing or not found or len(found) < len(indexes):
        raise NotComparableError(f"an uplink is missing: {', '.join(around.missing) or 'unknown'}")
    for link in found:
        if link.kind not in _EXACT_KINDS:
            kind = "hardware" if link.kind is None else f"of the type {link.kind}"
            raise NotComparableError(f"the interface {link.name} is {kind}")
    return found


def _passed(seen: NamedCounter, stopped: NamedCounter) -> Count:
    return Count(seen.total.packets - stopped.total.packets, seen.total.bytes - stopped.total.bytes)


def _unreadable(error: OSError) -> SourceError:
    return SourceError(f"the frames of interfaces can't be counted: {error.strerror or error}")
