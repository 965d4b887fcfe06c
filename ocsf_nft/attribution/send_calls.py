"""Matching of log records with the system calls that may have sent the logged packets.

This module is used if the kernel reports no refused packets to BPF programs. For example, a
permissive fence refuses no packets.
"""

from __future__ import annotations

from collections import defaultdict, deque
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from ocsf_nft.attribution.packet_key import PacketKey, key_of_call, key_of_record, make_match

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ocsf_nft.attribution.bpf_layout import Call, ClosedSocket
    from ocsf_nft.attribution.packet_key import LoggedRecord, Match
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
#: The BPF programs report no call of a process for so long after its budget is spent
#: (``capture.bpf.c``: PAUSE_NS).
_SILENCE_NS: Final = 500_000_000
_FOREVER: Final = 1 << 63
_SYN: Final = 0x02
_ACK: Final = 0x10
_TCP: Final = 6
#: With one of these, a packet's destination may differ from that of its call (IPV6_RTHDR).
_REROUTING: Final = frozenset({"extension_headers", "ip_options"})


class _TimeRange(NamedTuple):
    """Time range in which a packet was sent (CLOCK_BOOTTIME)."""

    since_ns: int
    until_ns: int


class _StoredCall:
    """System call that sends packets; ``until_ns`` is the time at which its socket was closed."""

    __slots__ = ("call", "until_ns")

    def __init__(self, call: Call) -> None:
        self.call = call
        self.until_ns = _FOREVER

    def mark_closed(self, time_ns: int) -> None:
        self.until_ns = min(self.until_ns, time_ns)

    def may_send_in(self, time_range: _TimeRange) -> bool:
        return self.call.time_ns <= time_range.until_ns and self.until_ns >= time_range.since_ns


class SendCalls:
    """Store of the latest system calls that send packets in one network namespace.

    The stored calls are used to find the process that sent a packet. All times are of
    CLOCK_BOOTTIME.
    """

    def __init__(self) -> None:
        self._order: deque[_StoredCall] = deque()
        self._by_key: defaultdict[PacketKey, list[_StoredCall]] = defaultdict(list)
        self._by_socket: defaultdict[int, list[_StoredCall]] = defaultdict(list)
        #: Earliest time of a packet whose record is still to come.
        self._since_ns = 0
        #: For packets before this time, some calls are not stored here.
        self._evicted_ns = 0

    def mark_closed(self, closed: ClosedSocket) -> None:
        """Store the time at which a socket was closed.

        A packet that was sent after this time is not attributed to a system call on the socket.
        """
        for stored in self._by_socket.get(closed.socket, ()):
            stored.mark_closed(closed.time_ns)

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
        while (
            len(self._order) > _MOST_STORED
            or call.time_ns - self._order[0].call.time_ns > _STORED_NS
        ):
            self._evict(self._order.popleft())

    def note_dropped(self, now_ns: int) -> None:
        """Mark the senders of all packets sent before ``now_ns`` + 10.5 s as uncertain.

        Call this if BPF programs have dropped reports of system calls. The kernel may still send
        packets of these system calls for about 10 s after ``now_ns``.
        """
        # For example, the kernel sends TCP retransmissions later.
        self._evicted_ns = max(self._evicted_ns, now_ns + _SILENCE_NS + _LATEST_NS)

    def matches(self, logged: Sequence[LoggedRecord]) -> Iterator[Match | None]:
        """Yield, for each log record, the system calls that may have sent the logged packet.

        Yields None if no system call fits, or if those of more than 16 processes fit. First store
        all system calls with :meth:`add`. Pass each log record only once, in the order in which the
        kernel logged the packets.
        """
        time_ranges = self._time_ranges(logged)
        for each, time_range in zip(logged, time_ranges, strict=True):
            yield self._match(each.record, time_range)

    def _time_ranges(self, logged: Sequence[LoggedRecord]) -> list[_TimeRange]:
        # NFLOG gives no time for an outbound packet. But records come in the order of their
        # packets, and a packet is sent after its call, and before its socket is closed.
        since = []
        #: For each record: calls, one of which certainly sent the packet; empty if uncertain.
        found: list[Sequence[_StoredCall]] = []
        for record, since_ns, until_ns, _ in logged:
            self._since_ns = max(self._since_ns, since_ns, until_ns - _LATEST_NS)
            since.append(self._since_ns)
            calls = self._candidates(key_of_record(record), _TimeRange(self._since_ns, until_ns))
            found.append(calls if self._is_complete(record, self._since_ns) else ())
            earliest_ns = min((each.call.time_ns for each in found[-1]), default=0)
            self._since_ns = max(self._since_ns, earliest_ns)
        until = _latest_times(found, [each.until_ns for each in logged])
        return list(map(_TimeRange, since, until))

    def _match(self, record: Record, time_range: _TimeRange) -> Match | None:
        key = key_of_record(record)
        if key is None:
            return None
        found = self._candidates(key, time_range)
        if found and self._is_complete(record, time_range.since_ns):
            return make_match((each.call for each in found), is_sender=True)
        connected = self._candidates(_without_port(key), time_range)
        calls = [each.call for each in (*connected, *found)]
        # If there are too many, use only those known to have sent from this port.
        return make_match(calls, is_sender=False) or make_match(
            calls[len(connected) :], is_sender=False
        )

    def _candidates(self, key: PacketKey | None, time_range: _TimeRange) -> list[_StoredCall]:
        if key is None:
            return []
        alike = self._by_key.get(key, [])[-_MOST_ALIKE:]
        return [each for each in alike if each.may_send_in(time_range)]

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
        is_first = record.protocol == _TCP and (record.tcp_flags or 0) & (_SYN | _ACK) == _SYN
        return is_first and since_ns >= self._evicted_ns and _REROUTING.isdisjoint(record.details)

    def _evict(self, stored: _StoredCall) -> None:
        call = stored.call
        if len(self._order) >= _MOST_STORED:  # evicted for space, not for its age
            until_ns = min(stored.until_ns, call.time_ns + _LATEST_NS)
            self._evicted_ns = max(self._evicted_ns, until_ns)
        _remove(self._by_key, key_of_call(call), stored)
        _remove(self._by_socket, call.socket, stored)


def _without_port(key: PacketKey) -> PacketKey:
    """Return ``key`` with source port 0: the key of a call on a socket that has no port yet."""
    return key._replace(source_port=0)


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
