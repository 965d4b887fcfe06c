"""Matching of log records with the system calls that may have sent the logged packets.

This module is used if the kernel reports no refused packets to BPF programs. For example, a
permissive fence refuses no packets.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from ocsf_nft.attribution.packet_matching import (
    SILENCE_NS,
    PacketKey,
    begins_connection,
    key_of_call,
    key_of_record,
    make_match,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ocsf_nft.attribution.bpf_capture import Call, ClosedSocket
    from ocsf_nft.attribution.packet_matching import LoggedRecord, Match
    from ocsf_nft.record import Record

_T = TypeVar("_T")

#: Maximum time from a call until its packet is sent (again), and from a packet until its record is
#: read.
_LATEST_NS: Final = 10 * 1_000_000_000
#: Maximum number of stored calls, some megabytes, and the maximum time to store one.
_MOST_STORED: Final = 8192
_STORED_NS: Final = 2 * _LATEST_NS
#: Maximum number of calls of one protocol, port and destination that are checked.
_MOST_ALIKE: Final = 64
_FOREVER: Final = 1 << 63
#: With one of these, a packet's destination may differ from that of its call (IPV6_RTHDR).
_REROUTING: Final = frozenset({"extension_headers", "ip_options"})


@dataclass(slots=True, eq=False)
class _StoredCall:
    """System call that sends packets."""

    call: Call
    #: Time at which its socket was closed.
    until_ns: int = _FOREVER


class SendCalls:
    """Store of the latest system calls that send packets in one network namespace."""

    def __init__(self) -> None:
        self._order: deque[_StoredCall] = deque()
        self._by_key: defaultdict[PacketKey, list[_StoredCall]] = defaultdict(list)
        self._by_socket: defaultdict[int, list[_StoredCall]] = defaultdict(list)
        #: Earliest time of a packet that has no record yet.
        self._since_ns = 0
        #: For packets before this time, some calls are not stored here.
        self._evicted_ns = 0

    def mark_closed(self, closed: ClosedSocket) -> None:
        """Attribute no packet that is sent later to a system call on a closed socket."""
        for stored in self._by_socket.get(closed.socket, ()):
            stored.until_ns = min(stored.until_ns, closed.time_ns)

    def add(self, call: Call) -> None:
        """Store a system call that sends a packet.

        Calls more than 20 s older than ``call`` are removed. If more than 8192 calls are
        stored, the oldest is removed.
        """
        if call.is_any:
            self.note_dropped(call.time_ns)
        stored = _StoredCall(call)
        self._order.append(stored)
        self._by_key[key_of_call(call)].append(stored)
        if call.socket:
            self._by_socket[call.socket].append(stored)
        while len(self._order) > _MOST_STORED:
            self._evict(self._order.popleft())
        self.remove_old(call.time_ns - _STORED_NS)

    def remove_old(self, before_ns: int) -> None:
        """Remove the calls before ``before_ns``."""
        while self._order and self._order[0].call.time_ns < before_ns:
            self._evict(self._order.popleft())

    def note_dropped(self, now_ns: int) -> None:
        """Mark the senders of all packets sent before ``now_ns`` + 10.5 s as uncertain.

        Call this if BPF programs have dropped reports of system calls. The kernel may still send
        packets of these system calls for about 10 s after ``now_ns``.
        """
        # For example, the kernel sends TCP retransmissions later.
        self._evicted_ns = max(self._evicted_ns, now_ns + SILENCE_NS + _LATEST_NS)

    def matches(self, logged: Sequence[LoggedRecord]) -> Iterator[Match | None]:
        """Yield, for each log record, the system calls that may have sent the logged packet.

        Yields None if no system call fits, or if those of more than 16 processes fit. First store
        all system calls with :meth:`add`. Pass each log record only once, in the order in which the
        kernel logged the packets.
        """
        for each, times in zip(logged, self._sending_times(logged), strict=True):
            yield self._match(each.record, *times)

    def _sending_times(self, logged: Sequence[LoggedRecord]) -> Iterator[tuple[int, int]]:
        """Return the earliest and the latest possible sending time of each packet."""
        # NFLOG gives no time for an outbound packet. But records come in the order of their
        # packets, and a packet is sent after its call, and before its socket is closed.
        since = []
        #: For each record: calls, one of which certainly sent the packet; empty if uncertain.
        found: list[Sequence[_StoredCall]] = []
        for record, since_ns, until_ns, _ in logged:
            self._since_ns = max(self._since_ns, since_ns, until_ns - _LATEST_NS)
            since.append(self._since_ns)
            calls = self._candidates(key_of_record(record), self._since_ns, until_ns)
            found.append(calls if self._is_complete(record, self._since_ns) else ())
            earliest_ns = min((each.call.time_ns for each in found[-1]), default=0)
            self._since_ns = max(self._since_ns, earliest_ns)
        until = _latest_times(found, [each.until_ns for each in logged])
        return zip(since, until, strict=True)

    def _match(self, record: Record, since_ns: int, until_ns: int) -> Match | None:
        key = key_of_record(record)
        if key is None:
            return None
        found = self._candidates(key, since_ns, until_ns)
        if found and self._is_complete(record, since_ns):
            return make_match((each.call for each in found), is_sender=True)
        # The key of a call on a socket that has no port yet.
        connected = self._candidates(key._replace(source_port=0), since_ns, until_ns)
        calls = [each.call for each in (*connected, *found)]
        # If there are too many, use only those known to have sent from this port.
        return make_match(calls, is_sender=False) or make_match(
            calls[len(connected) :], is_sender=False
        )

    def _candidates(self, key: PacketKey | None, since_ns: int, until_ns: int) -> list[_StoredCall]:
        if key is None:
            return []
        alike = self._by_key.get(key, [])[-_MOST_ALIKE:]
        return [
            each for each in alike if each.call.time_ns <= until_ns and each.until_ns >= since_ns
        ]

    def _is_complete(self, record: Record, since_ns: int) -> bool:
        """Return True if the stored calls that fit a record certainly include the sender's call.

        Certainty is possible only for the first packet of a TCP connection. ``since_ns`` is the
        earliest possible time of the packet.
        """
        key = key_of_record(record)
        # With too many similar calls, the packet may be of one that is not checked.
        if key is None or len(self._by_key.get(key, ())) >= _MOST_ALIKE:
            return False
        # The BPF programs do not see when a connected socket sends, nor the later parts of a corked
        # datagram. Or a socket gives up its port and stays open (``connect`` to AF_UNSPEC), and
        # another socket sends from this port.
        is_first = begins_connection(record)
        return is_first and since_ns >= self._evicted_ns and _REROUTING.isdisjoint(record.details)

    def _evict(self, stored: _StoredCall) -> None:
        call = stored.call
        if len(self._order) >= _MOST_STORED:  # evicted for space, not for its age
            until_ns = min(stored.until_ns, call.time_ns + _LATEST_NS)
            self._evicted_ns = max(self._evicted_ns, until_ns)
        _remove(self._by_key, key_of_call(call), stored)
        _remove(self._by_socket, call.socket, stored)


def _remove(table: dict[_T, list[_StoredCall]], key: _T, stored: _StoredCall) -> None:
    calls = table.get(key, [])
    if stored in calls:
        calls.remove(stored)
    if not calls:
        table.pop(key, None)


def _latest_times(found: Sequence[Sequence[_StoredCall]], read: Sequence[int]) -> list[int]:
    """Return the latest possible sending time of each packet, in ns of CLOCK_BOOTTIME.

    Packets are in the order in which they were sent. For each packet, ``found`` has all system
    calls that may have sent the packet. If not all of them are known, ``found`` has an empty
    sequence for the packet. ``read`` has the times at which the packets' log records were read.
    """
    latest, times = _FOREVER, []
    for calls, read_ns in zip(reversed(found), reversed(read), strict=True):
        latest = min(latest, read_ns)
        times.append(latest)
        # One of the calls sent this packet, so earlier packets left before the last socket closed.
        latest = min(latest, max((each.until_ns for each in calls), default=_FOREVER))
    return times[::-1]
