"""Matching of log records with reports of BPF programs, to find who sent a logged packet.

Each report is a :class:`Call`: a system call that sends or connects, or a packet that the kernel
refused. A BPF program reports a refused packet after the kernel has logged it. In a flood, the
kernel logs only some of the packets, so many reports have no log record. All times are of
CLOCK_BOOTTIME, in ns.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.attribution.bpf_capture import UNKNOWN_IMAGE, Call
from ocsf_nft.ip_text import packed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ocsf_nft.attribution.bpf_capture import ProcessImage
    from ocsf_nft.record import Record

#: With more candidate processes, an attribution has no value.
_MOST: Final = 16
#: The BPF programs report no call or similar packet of a process for so long after its budget is
#: spent (``capture.bpf.c``: PAUSE_NS).
SILENCE_NS: Final = 500_000_000
#: The rules that refuse frames, which name no socket.
_FRAME_RULES: Final = frozenset({"link"})
_TCP: Final = 6
_SYN: Final = 0x02
_ACK: Final = 0x10
#: Maximum number of stored packets, some megabytes.
_MOST_STORED: Final = 8192
#: Maximum number of similar packets, of one process with one socket to one destination. The
#: kernel reports no more (``capture.bpf.c``: MAX_REPEATS).
_MOST_SIMILAR: Final = 8
#: Precision of a log's time stamps (``sources/boot.py``). The likely packets of a record
#: without bytes were reported after its time stamp, less this precision.
_SOON_NS: Final = 500_000_000


class PacketKey(NamedTuple):
    """Protocol, ports and destination of a packet, to compare a log record with a BPF event.

    A missing port is 0.
    """

    #: None for a link-layer frame.
    protocol: int | None
    source_port: int = 0
    #: Address in 4 bytes (IPv4) or 16 bytes (IPv6), or empty.
    destination: bytes = b""
    destination_port: int = 0


#: Key of every frame: its record has no protocol or address to compare.
_FRAME_KEY: Final = PacketKey(None)


class LoggedRecord(NamedTuple):
    """Log record that the kernel logged between ``since_ns`` and ``until_ns``.

    ``stamp_ns`` is the log record's timestamp, which may be inexact.
    """

    record: Record
    since_ns: int
    until_ns: int
    stamp_ns: int


class Match(NamedTuple):
    """Possible senders of a logged packet, found among the reports of BPF programs."""

    #: Latest call of each process.
    calls: tuple[Call, ...]
    #: True if one of these processes certainly sent the packet.
    is_sender: bool


def make_match(calls: Iterable[Call], *, is_sender: bool) -> Match | None:
    """Return the possible senders of one packet, with the latest BPF report of each process.

    ``calls`` has the oldest report first. ``is_sender`` is true if one of these processes certainly
    sent the packet. Return None if there is no process, or more than 16.
    """
    latest = {each.image: each for each in calls}
    return Match(tuple(latest.values()), is_sender) if 0 < len(latest) <= _MOST else None


def key_of_record(record: Record) -> PacketKey | None:
    """Return the key to compare the packet of a log record with reports of BPF programs.

    Return None if no comparison is possible: no socket sent the packet (the record has no user id),
    or the protocol of an IP packet is unknown.
    """
    if record.uid is None:  # no socket sent the packet
        return None
    if record.rule in _FRAME_RULES:
        return _FRAME_KEY
    if record.protocol is None:
        return None
    return PacketKey(
        record.protocol,
        record.source_port or 0,
        packed(record.destination) or b"",
        record.destination_port or 0,
    )


def begins_connection(record: Record) -> bool:
    """Return True if the packet of a log record is the first of a TCP connection."""
    return record.protocol == _TCP and (record.tcp_flags or 0) & (_SYN | _ACK) == _SYN


def key_of_call(call: Call) -> PacketKey:
    """Return the key to compare a report of BPF programs with log records.

    ``call`` is the report of a refused packet or of a system call. For the system call ``connect``,
    the key has source port 0, because the socket gets its port later.
    """
    if call.is_frame:
        return _FRAME_KEY
    return PacketKey(
        call.protocol,
        0 if call.is_connect else call.source_port,
        call.destination,
        call.destination_port,
    )


class _Key(NamedTuple):
    """Key to find a log record's packet among the packets that the BPF program reported.

    ``owner`` is the user id of the socket. ``packet`` has protocol, ports and destination.
    ``is_syn`` is true for a packet that begins a TCP connection.
    """

    owner: int
    packet: PacketKey
    is_syn: bool = False


#: Key of packets that may be any packet of a user, for example because the header is unreadable.
_ANY: Final = PacketKey(-1)


class _Query(NamedTuple):
    """Query for a log record's packet among the packets that the BPF program reported."""

    #: The packet may be stored under each of these keys. The first has only the user id, for
    #: packets of which the BPF program reported no details.
    keys: tuple[_Key, _Key]
    #: Checksum of the packet's bytes in the record; None if the record has no bytes.
    sum: int | None
    #: Earliest possible time of the record.
    since_ns: int
    #: Timestamp of the record, which may be inexact.
    stamp_ns: int

    def may_match(self, packet: Call) -> bool:
        is_alike = self.sum is None or packet.sum in {0, self.sum}
        return is_alike and packet.time_ns >= self.since_ns

    def is_likely(self, packet: Call) -> bool:
        has_bytes = self.sum is not None and packet.sum != 0
        is_soon = packet.time_ns >= self.stamp_ns - _SOON_NS
        return self.may_match(packet) and (has_bytes or is_soon)


class _SimilarPackets:
    """Latest packets of one process with the same ``_Key`` that the BPF program reported."""

    __slots__ = ("calls", "incomplete_ns")

    def __init__(self) -> None:
        self.calls: list[Call] = []
        #: Until this time, there may be packets that are not stored here.
        self.incomplete_ns = -1

    def add(self, call: Call) -> None:
        if len(self.calls) == _MOST_SIMILAR:
            self.incomplete_ns = max(self.incomplete_ns, self.calls.pop(0).time_ns)
        self.calls.append(call)
        if call.has_more:
            self.incomplete_ns = call.time_ns + SILENCE_NS

    def is_incomplete(self, query: _Query) -> bool:
        """Return True if the packet of ``query`` may be missing here."""
        return self.incomplete_ns >= query.since_ns

    def candidates(self, query: _Query) -> list[Call]:
        # If the packet may not be stored here, the sender of these may also have sent that packet.
        return [each for each in self.calls if self.is_incomplete(query) or query.may_match(each)]

    def remove_match(self, query: _Query) -> None:
        if self.is_incomplete(query):  # the packet that fits may be of another record
            return
        found = self.candidates(query)
        # Remove the first: later packets may match later records.
        self.calls.remove(found[0])
        if any(each.tid != found[0].tid for each in found):  # another thread's may be the right one
            self.calls = [each._replace(tid=0) for each in self.calls]


class RefusedPackets:
    """Latest packets that the kernel refused in one network namespace, with their senders."""

    def __init__(self) -> None:
        self._by_key: OrderedDict[_Key, dict[ProcessImage, _SimilarPackets]] = OrderedDict()
        self._number = 0
        #: Some packets logged until this time are not stored here.
        self._evicted_ns = -1
        #: Packets until this time were removed because of their age.
        self._removed_ns = -1

    def add(self, packet: Call) -> None:
        """Store a refused packet that the BPF program has reported."""
        key = _key_of_call(packet)
        by_image = self._by_key.setdefault(key, {})
        self._by_key.move_to_end(key)
        if packet.image not in by_image:
            if len(by_image) > _MOST:
                self._evict(by_image.pop(next(iter(by_image))))
            by_image[packet.image] = _SimilarPackets()
        similar = by_image[packet.image]
        self._number += len(similar.calls) < _MOST_SIMILAR
        similar.add(packet)
        while self._number > _MOST_STORED:
            for each in self._by_key.popitem(last=False)[1].values():
                self._evict(each)

    def remove_old(self, before_ns: int) -> None:
        """Remove packets before ``before_ns``: their records came long ago, or were not logged.

        The sender of a record with an earlier timestamp is uncertain from now on.
        """
        while self._by_key:
            similar = next(iter(self._by_key.values())).values()
            if any(call.time_ns > before_ns for each in similar for call in each.calls[-1:]):
                return
            # Packets after the last of them may have been reported no more.
            until_ns = max(before_ns, *(each.incomplete_ns for each in similar))
            self._removed_ns = max(self._removed_ns, until_ns)
            self._number -= sum(len(each.calls) for each in similar)
            self._by_key.popitem(last=False)
        self._by_key = OrderedDict()  # an empty one has the size of its largest content

    def note_dropped(self, now_ns: int) -> None:
        """Mark the senders of packets before ``now_ns`` as uncertain.

        Call this if the kernel dropped reports of the BPF program. A dropped report may be about a
        packet of another possible sender.
        """
        self._evicted_ns = max(self._evicted_ns, now_ns)

    def is_event_pending(self, logged: Sequence[LoggedRecord]) -> bool:
        """Return True if the BPF program has probably not yet reported all logged packets.

        ``logged`` has the log records of the packets. A report is probably still to come if there
        are more log records than stored reports of similar packets.
        """
        numbers: Counter[tuple[tuple[_Key, _Key], int | None]] = Counter()
        for each in logged:
            query = _query(each)
            if query is not None:
                numbers[query.keys, query.sum] += 1
                if numbers[query.keys, query.sum] > self._number_of_likely(query):
                    return True
        return False

    def matches(self, logged: Sequence[LoggedRecord]) -> Iterator[Match | None]:
        """Yield the possible senders of each log record's packet; None if they are unknown.

        ``logged`` must be in the order in which the kernel logged the records. Pass each record
        only once, because a packet belongs to only one record.
        """
        for each in logged:
            query = _query(each)
            yield None if query is None else self._match(query)

    def _match(self, query: _Query) -> Match | None:
        found: dict[ProcessImage, Call] = {}
        keys = {}
        for key in query.keys:
            for image, similar in self._by_key.get(key, {}).items():
                if calls := similar.candidates(query):
                    found[image], keys[image] = _latest(calls), key
        is_sender = (
            UNKNOWN_IMAGE not in found
            and query.since_ns > self._evicted_ns
            and query.stamp_ns > self._removed_ns
            and self._number_of_likely(query) > 0
        )
        if len(found) == 1:
            ((image, key),) = keys.items()
            self._remove_match(key, image, query)
        found.pop(UNKNOWN_IMAGE, None)
        return make_match(found.values(), is_sender=is_sender)

    def _number_of_likely(self, query: _Query) -> int:
        return sum(
            query.is_likely(each)
            for key in query.keys
            for similar in self._by_key.get(key, {}).values()
            for each in similar.calls
        )

    def _remove_match(self, key: _Key, image: ProcessImage, query: _Query) -> None:
        by_image = self._by_key[key]
        similar = by_image[image]
        before = len(similar.calls)
        similar.remove_match(query)
        self._number -= before - len(similar.calls)
        if not similar.calls:
            del by_image[image]
        if not by_image:
            del self._by_key[key]

    def _evict(self, similar: _SimilarPackets) -> None:
        self._number -= len(similar.calls)
        for call in similar.calls:
            self._evicted_ns = max(self._evicted_ns, call.time_ns, similar.incomplete_ns)


def _latest(calls: Sequence[Call]) -> Call:
    latest = calls[-1]
    # The tid 0: several threads sent the packets.
    return latest if all(each.tid == latest.tid for each in calls) else latest._replace(tid=0)


def _key_of_call(call: Call) -> _Key:
    if call.is_any:
        return _Key(call.owner, _ANY)
    return _Key(call.owner, key_of_call(call), call.is_syn)


def _query(logged: LoggedRecord) -> _Query | None:
    record = logged.record
    packet = key_of_record(record)
    if packet is None or record.uid is None:
        return None
    keys = _Key(record.uid, _ANY), _Key(record.uid, packet, begins_connection(record))
    return _Query(keys, record.captured_sum, logged.since_ns, logged.stamp_ns)
