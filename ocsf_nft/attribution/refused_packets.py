"""Whose a refused packet was, where the kernel tells of each packet that is refused who sent it.

It tells so just after the packet was logged, if it was: most of a flood are not. So a packet that
was told explains one record, that of the same bytes where the record has them, which was logged
before it. Who sends by another one's socket, or from its port, is told of by himself. Where nobody
knows who sent one, that is told too.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.attribution.bpf_layout import NOBODY, Call
from ocsf_nft.attribution.call_match import MOST, Way, match, way_of, way_of_call

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ocsf_nft.attribution.bpf_layout import Image
    from ocsf_nft.attribution.call_match import Logged, Match
    from ocsf_nft.record import Record

#: Packets that are kept, some megabytes.
_KEPT: Final = 8192
#: Of one process, with one socket to one place: more are not told (``capture.bpf.c``: TIMES).
_KEPT_ALIKE: Final = 8
#: How long more of a packet is not told (``capture.bpf.c``: AGAIN).
_SILENCE_NS: Final = 500_000_000
#: Where a record has no bytes, its packet is one that was told after it was logged, as far as the
#: stamp of a log can say when that was (``sources/boot_clock.py``).
_SOON_NS: Final = 500_000_000
_TCP: Final = 6
_SYN: Final = 0x02
_ACK: Final = 0x10


class _Key(NamedTuple):
    """What a packet and its record have in common."""

    owner: int
    way: Way
    is_syn: bool = False


#: Of packets that may be any of a user.
_ANY: Final = Way(-1)


class _Asked(NamedTuple):
    """What a record says of its packet: not logged before ``since_ns``, about at ``stamp_ns``."""

    key: _Key
    sum: int | None
    since_ns: int
    stamp_ns: int

    @property
    def keys(self) -> tuple[_Key, _Key]:
        """Where it is looked for, the more exact one last."""
        return _Key(self.key.owner, _ANY), self.key

    def may_be(self, packet: Call) -> bool:
        """Whether it may have been that one."""
        is_alike = self.sum is None or packet.sum in {0, self.sum}
        return is_alike and packet.time_ns >= self.since_ns

    def is_likely(self, packet: Call) -> bool:
        """Whether it is one that it may be by its bytes or, without these, was of about then."""
        has_bytes = self.sum is not None and packet.sum != 0
        return self.may_be(packet) and (has_bytes or packet.time_ns >= self.stamp_ns - _SOON_NS)


class _Sent:
    """Packets alike, of one process, that may still be one of those that were logged."""

    __slots__ = ("calls", "silent_ns")

    def __init__(self) -> None:
        self.calls: deque[Call] = deque()
        #: Until when there may be more that are not here.
        self.silent_ns = -1

    def add(self, call: Call) -> None:
        if len(self.calls) == _KEPT_ALIKE:
            self.silent_ns = max(self.silent_ns, self.calls.popleft().time_ns)
        self.calls.append(call)
        if call.has_more:
            self.silent_ns = call.time_ns + _SILENCE_NS

    def is_silent(self, asked: _Asked) -> bool:
        """Whether it may have been one that is not here."""
        return self.silent_ns >= asked.since_ns

    def of(self, asked: _Asked) -> list[Call]:
        """Those that it may have been; all of them, where it may have been another one."""
        return [each for each in self.calls if self.is_silent(asked) or asked.may_be(each)]

    def spend(self, asked: _Asked) -> None:
        """One of those is that of a record, and so of no other one."""
        if self.is_silent(asked):
            return
        found = self.of(asked)
        # The first: who is told of later than that may have sent what comes.
        self.calls.remove(found[0])
        if any(each.tid != found[0].tid for each in found):  # it may have been another one
            self.calls = deque(each._replace(tid=0) for each in self.calls)


class Refusals:
    """The latest packets that were refused in one network namespace; times are CLOCK_BOOTTIME's."""

    def __init__(self) -> None:
        self._by_key: OrderedDict[_Key, dict[Image, _Sent]] = OrderedDict()
        self._kept = 0
        #: Of the packets that were logged until then, not all are here.
        self._forgotten_ns = -1

    def add(self, packet: Call) -> None:
        """Take in a packet that was refused."""
        key = _key_of_call(packet)
        alike = self._by_key.setdefault(key, {})
        self._by_key.move_to_end(key)
        if packet.image not in alike:
            if len(alike) > MOST:
                self._forget(alike.pop(next(iter(alike))))
            alike[packet.image] = _Sent()
        sent = alike[packet.image]
        self._kept += len(sent.calls) < _KEPT_ALIKE
        sent.add(packet)
        while self._kept > _KEPT:
            for each in self._by_key.popitem(last=False)[1].values():
                self._forget(each)

    def lose(self, now_ns: int) -> None:
        """Some packets before now were not told."""
        self._forgotten_ns = now_ns

    def is_late(self, logged: Sequence[Logged]) -> bool:
        """Whether a packet of one of these is still to be told of."""
        wanted: Counter[tuple[_Key, int | None]] = Counter()
        for each in logged:
            asked = _asked(each)
            if asked is not None:
                wanted[asked.key, asked.sum] += 1
                if wanted[asked.key, asked.sum] > self._told(asked):
                    return True
        return False

    def matches(self, logged: Sequence[Logged]) -> Iterator[Match | None]:
        """What each of some records may be of, in the kernel's order; None where nobody was told.

        A packet is of one record alone, so none is to be asked for twice.
        """
        for each in logged:
            asked = _asked(each)
            yield None if asked is None else self._match(asked)

    def _match(self, asked: _Asked) -> Match | None:
        found: dict[Image, Call] = {}
        keys = {}
        for key in asked.keys:
            for image, sent in self._by_key.get(key, {}).items():
                if calls := sent.of(asked):
                    found[image], keys[image] = _latest(calls), key
        is_sender = (
            NOBODY not in found and asked.since_ns > self._forgotten_ns and self._told(asked) > 0
        )
        if len(found) == 1:
            ((image, key),) = keys.items()
            self._spend(key, image, asked)
        found.pop(NOBODY, None)
        return match(found.values(), is_sender=is_sender)

    def _told(self, asked: _Asked) -> int:
        """How many packets were told that it is likely to be."""
        return sum(
            asked.is_likely(each)
            for key in asked.keys
            for sent in self._by_key.get(key, {}).values()
            for each in sent.calls
        )

    def _spend(self, key: _Key, image: Image, asked: _Asked) -> None:
        alike = self._by_key[key]
        sent = alike[image]
        before = len(sent.calls)
        sent.spend(asked)
        self._kept -= before - len(sent.calls)
        if not sent.calls:
            del alike[image]
        if not alike:
            del self._by_key[key]

    def _forget(self, sent: _Sent) -> None:
        self._kept -= len(sent.calls)
        for call in sent.calls:
            self._forgotten_ns = max(self._forgotten_ns, call.time_ns, sent.silent_ns)


def _latest(calls: Sequence[Call]) -> Call:
    """The latest; where it is one of several threads, of none of them."""
    latest = calls[-1]
    return latest if all(each.tid == latest.tid for each in calls) else latest._replace(tid=0)


def _key_of_call(call: Call) -> _Key:
    if call.is_any:
        return _Key(call.owner, _ANY)
    return _Key(call.owner, way_of_call(call), call.is_syn)


def _key_of_record(record: Record) -> _Key | None:
    way = way_of(record)
    if way is None or record.uid is None:
        return None
    flags = (record.tcp_flags or 0) if record.protocol == _TCP else 0
    return _Key(record.uid, way, flags & (_SYN | _ACK) == _SYN)


def _asked(logged: Logged) -> _Asked | None:
    key = _key_of_record(logged.record)
    if key is None:
        return None
    return _Asked(key, logged.record.captured_sum, logged.since_ns, logged.stamp_ns)
