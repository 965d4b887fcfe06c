"""Reports of BPF programs about refused packets: their storage, and their log records."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.attribution.bpf_capture import UNKNOWN_IMAGE, Call
from ocsf_nft.attribution.heavy_users import HeavyUsers
from ocsf_nft.attribution.packet_matching import (
    MOST_PROCESSES,
    SILENCE_NS,
    PacketKey,
    begins_connection,
    key_of_call,
    key_of_record,
    make_match,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ocsf_nft.attribution.bpf_capture import ProcessImage
    from ocsf_nft.attribution.packet_matching import LoggedRecord, Match

#: Maximum number of stored packets, some megabytes.
_MOST_STORED: Final = 8192
#: Maximum number of users without stored packets of whom evicted packets are remembered.
_MOST_EVICTED: Final = 1024
#: Maximum number of similar packets, of one process with one socket to one destination. The
#: kernel reports no more (``capture.bpf.c``: MAX_REPEATS).
_MOST_SIMILAR: Final = 8
#: Precision of a log's time stamps (``sources/boot.py``). The likely packets of a record
#: without bytes were reported after its time stamp, less this precision.
_SOON_NS: Final = 500_000_000


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
    keys: tuple[_Key, ...]
    #: The user id in all keys.
    user: int
    #: Checksum of the packet's bytes in the record; None if the record has no bytes.
    sum: int | None
    #: Earliest possible time of the record.
    since_ns: int
    #: Timestamp of the record, which may be inexact.
    stamp_ns: int

    def may_match(self, packet: Call) -> bool:
        # Without a protocol in the record, only its bytes can show that it is the same packet.
        has_packet_key = len(self.keys) > 1
        is_alike = self.sum in {None, packet.sum} or (has_packet_key and packet.sum == 0)
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


class _UserPackets:
    """Latest packets from the sockets of one user, with their senders."""

    def __init__(self, evicted_ns: int) -> None:
        self._by_key: OrderedDict[_Key, dict[ProcessImage, _SimilarPackets]] = OrderedDict()
        self._number = 0
        #: Some packets logged until this time are not stored here.
        self.evicted_ns = evicted_ns

    def __len__(self) -> int:
        return self._number

    def add(self, packet: Call) -> int:
        """Store a packet; return by how much the number of stored packets has grown."""
        before = self._number
        key = _key_of_call(packet)
        by_image = self._by_key.setdefault(key, {})
        self._by_key.move_to_end(key)
        if packet.image not in by_image:
            if len(by_image) > MOST_PROCESSES:
                self._evict(by_image.pop(next(iter(by_image))))
            by_image[packet.image] = _SimilarPackets()
        similar = by_image[packet.image]
        self._number += len(similar.calls) < _MOST_SIMILAR
        similar.add(packet)
        return self._number - before

    def evict_oldest(self) -> int:
        """Evict the packets of the least recently updated key; return their number."""
        before = self._number
        for each in self._by_key.popitem(last=False)[1].values():
            self._evict(each)
        return before - self._number

    def remove_old(self, before_ns: int) -> int:
        """Remove packets before ``before_ns``.

        Return the latest possible time of a packet that is missing from now on, or -1.
        """
        removed_ns = -1
        while self._by_key:
            similar = next(iter(self._by_key.values())).values()
            if any(call.time_ns > before_ns for each in similar for call in each.calls[-1:]):
                return removed_ns
            # Packets after the last of them may have been reported no more.
            removed_ns = max(removed_ns, before_ns, *(each.incomplete_ns for each in similar))
            self._number -= sum(len(each.calls) for each in similar)
            self._by_key.popitem(last=False)
        return removed_ns

    def candidates(self, query: _Query) -> Iterator[tuple[_Key, ProcessImage, list[Call]]]:
        for key in query.keys:
            for image, similar in self._by_key.get(key, {}).items():
                if calls := similar.candidates(query):
                    yield key, image, calls

    def is_incomplete(self, query: _Query) -> bool:
        """Return True if the packet of a query may be one that is never reported."""
        return any(
            similar.is_incomplete(query)
            for key in query.keys
            for similar in self._by_key.get(key, {}).values()
        )

    def number_of_likely(self, query: _Query) -> int:
        return sum(
            query.is_likely(each)
            for key in query.keys
            for similar in self._by_key.get(key, {}).values()
            for each in similar.calls
        )

    def remove_match(self, key: _Key, image: ProcessImage, query: _Query) -> int:
        """Remove the packet of a query; return the number of removed packets: 0 or 1."""
        by_image = self._by_key[key]
        similar = by_image[image]
        before = len(similar.calls)
        similar.remove_match(query)
        removed = before - len(similar.calls)
        self._number -= removed
        if not similar.calls:
            del by_image[image]
        if not by_image:
            del self._by_key[key]
        return removed

    def _evict(self, similar: _SimilarPackets) -> None:
        self._number -= len(similar.calls)
        for call in similar.calls:
            self.evicted_ns = max(self.evicted_ns, call.time_ns, similar.incomplete_ns)


class RefusedPackets:
    """Latest packets that the kernel refused in one network namespace, with their senders.

    If there are too many, the oldest of the user with the most packets are evicted: a flood evicts
    no packet of a user who sends few.
    """

    def __init__(self) -> None:
        #: Packets by user, and last the user of the latest packet.
        self._by_user: OrderedDict[int, _UserPackets] = OrderedDict()
        self._heavy = HeavyUsers(_MOST_STORED)
        self._number = 0
        #: The attribute ``evicted_ns`` of users without stored packets.
        self._evicted_ns: OrderedDict[int, int] = OrderedDict()
        #: Some packets logged until this time are not stored here.
        self._dropped_ns = -1
        #: Packets until this time were removed because of their age.
        self._removed_ns = -1

    def add(self, packet: Call) -> None:
        """Store a refused packet that the BPF program has reported."""
        user = packet.owner
        stored = self._by_user.get(user)
        if stored is None:
            stored = self._by_user[user] = _UserPackets(self._evicted_ns.pop(user, -1))
        self._by_user.move_to_end(user)
        self._number += stored.add(packet)
        self._heavy.note(user, stored)
        while self._number > _MOST_STORED:
            evicted = self._heavy.evicted(self._by_user)
            self._number -= self._by_user[evicted].evict_oldest()
            self._remove_if_empty(evicted)

    def remove_old(self, before_ns: int) -> None:
        """Remove packets before ``before_ns``: their records came long ago, or were not logged.

        The sender of a record with an earlier timestamp is uncertain from now on.
        """
        for user, stored in tuple(self._by_user.items()):
            before = len(stored)
            self._removed_ns = max(self._removed_ns, stored.remove_old(before_ns))
            self._number -= before - len(stored)
            self._remove_if_empty(user)
        if not self._by_user:
            self._by_user = OrderedDict()  # an empty one has the size of its largest content

    def note_dropped(self, now_ns: int) -> None:
        """Mark the senders of packets until half a second after ``now_ns`` as uncertain.

        Call this if the kernel dropped reports of the BPF program. A dropped report may be about a
        packet of another possible sender, or the last one before this sender's next packets are not
        reported.
        """
        self._dropped_ns = max(self._dropped_ns, now_ns + SILENCE_NS)

    def is_event_pending(self, logged: Sequence[LoggedRecord]) -> bool:
        """Return True if the BPF program has probably not yet reported all logged packets.

        ``logged`` has the log records of the packets. A report is probably still to come if there
        are more log records than stored reports of similar packets.
        """
        return any(query is not None for query in self._unreported(logged))

    def are_awaited(self, logged: Iterable[LoggedRecord]) -> Iterator[bool]:
        """Yield for each log record whether the report of its packet is still to come.

        It is if there are more log records so far than stored reports of similar packets, and if
        the BPF program reports each of these packets.
        """
        for query in self._unreported(logged):
            yield query is not None and not self._is_incomplete(query)

    def _unreported(self, logged: Iterable[LoggedRecord]) -> Iterator[_Query | None]:
        """Yield the query for each log record that has no stored report of its own, else None."""
        numbers: Counter[tuple[tuple[_Key, ...], int | None]] = Counter()
        for each in logged:
            query = _query(each)
            if query is None:
                yield None
                continue
            numbers[query.keys, query.sum] += 1
            is_lacking = numbers[query.keys, query.sum] > self._number_of_likely(query)
            yield query if is_lacking else None

    def matches(self, logged: Sequence[LoggedRecord]) -> Iterator[Match | None]:
        """Yield the possible senders of each log record's packet; None if they are unknown.

        ``logged`` must be in the order in which the kernel logged the records. Pass each record
        only once, because a packet belongs to only one record.
        """
        for each in logged:
            query = _query(each)
            yield None if query is None else self._match(query)

    def _match(self, query: _Query) -> Match | None:
        stored = self._by_user.get(query.user)
        if stored is None:
            return None
        found: dict[ProcessImage, Call] = {}
        keys = {}
        for key, image, calls in stored.candidates(query):
            found[image], keys[image] = _latest(calls), key
        is_sender = (
            UNKNOWN_IMAGE not in found
            and query.since_ns > max(self._dropped_ns, stored.evicted_ns)
            and query.stamp_ns > self._removed_ns
            and stored.number_of_likely(query) > 0
        )
        if len(found) == 1:
            ((image, key),) = keys.items()
            self._number -= stored.remove_match(key, image, query)
            self._remove_if_empty(query.user)
        found.pop(UNKNOWN_IMAGE, None)
        return make_match(found.values(), is_sender=is_sender)

    def _is_incomplete(self, query: _Query) -> bool:
        stored = self._by_user.get(query.user)
        return stored is not None and stored.is_incomplete(query)

    def _number_of_likely(self, query: _Query) -> int:
        stored = self._by_user.get(query.user)
        return 0 if stored is None else stored.number_of_likely(query)

    def _remove_if_empty(self, user: int) -> None:
        if self._by_user[user]:
            return
        self._evicted_ns[user] = self._by_user.pop(user).evicted_ns
        if len(self._evicted_ns) > _MOST_EVICTED:
            self._dropped_ns = max(self._dropped_ns, self._evicted_ns.popitem(last=False)[1])


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
    if record.uid is None or (packet is None and record.captured_sum is None):
        return None
    keys: tuple[_Key, ...] = (_Key(record.uid, _ANY),)
    if packet is not None:  # else the BPF program could not read the protocol either
        keys += (_Key(record.uid, packet, begins_connection(record)),)
    return _Query(keys, record.uid, record.captured_sum, logged.since_ns, logged.stamp_ns)
