"""Whose a refused packet was, where the kernel tells of each packet that is refused who sent it.

It tells so just after the packet was logged, if it was: most of a flood are not. So a packet that
was told explains one record, and one that was logged before it. Who sends by another one's socket,
or from its port, is told of by himself. Where nobody knows who sent one, that is told too.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.attribution.layout import NOBODY, Call
from ocsf_nft.attribution.match import FRAME, Way, match, way_of, way_of_call

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ocsf_nft.attribution.layout import Closed, Image
    from ocsf_nft.attribution.match import Logged, Match
    from ocsf_nft.record import Record

#: Packets that are kept, some megabytes.
_KEPT: Final = 8192
#: Of one process with one socket to one place, and processes that send such packets.
_KEPT_ALIKE: Final = 16
_KEPT_PROCESSES: Final = 64
#: How long more of a packet is not told (``capture.bpf.c``: AGAIN).
_SILENCE_NS: Final = 500_000_000
#: A packet is told microseconds after it was logged: those before were others.
_SOON_NS: Final = 1_000_000
_TCP: Final = 6
_SYN: Final = 0x02
_ACK: Final = 0x10


class _Key(NamedTuple):
    """What a packet and its record have in common."""

    owner: int
    way: Way
    is_syn: bool = False


#: Of packets that may be any.
_ANY: Final = _Key(-1, FRAME)


class _Sent:
    """Packets alike, of one process, that may still be one of those that were logged."""

    __slots__ = ("calls", "silent_ns")

    def __init__(self) -> None:
        self.calls: deque[Call] = deque(maxlen=_KEPT_ALIKE)
        #: Until when there may be more that are not told.
        self.silent_ns = 0

    def add(self, call: Call) -> None:
        self.calls.append(call)
        if call.has_more:
            self.silent_ns = call.time_ns + _SILENCE_NS

    def since(self, since_ns: int) -> list[Call]:
        """Those that may have been logged after that."""
        if self.silent_ns >= since_ns:
            return list(self.calls)
        return [each for each in self.calls if each.time_ns >= since_ns]

    def spend(self) -> int:
        """One of them is that of a record, and so of no other one; how many are left."""
        if self.calls[-1].has_more:
            return len(self.calls)
        # The latest: what is left then is not taken for one that is told of later.
        gone = self.calls.pop()
        if any(each.tid != gone.tid for each in self.calls):  # it may have been another one
            for _ in range(len(self.calls)):
                self.calls.append(self.calls.popleft()._replace(tid=0))
        return len(self.calls)


class Refusals:
    """The latest packets that were refused in one network namespace; times are CLOCK_BOOTTIME's."""

    def __init__(self) -> None:
        self._by_key: OrderedDict[_Key, dict[Image, _Sent]] = OrderedDict()
        self._kept = 0
        #: Of the packets that were logged until then, not all are here.
        self._forgotten_ns = -1

    def add(self, told: Call | Closed) -> None:
        """Take in a packet that was refused; that its socket was closed since is the same."""
        if not isinstance(told, Call):
            return
        key = _key_of_call(told)
        alike = self._by_key.setdefault(key, {})
        self._by_key.move_to_end(key)
        if told.image not in alike:
            if len(alike) >= _KEPT_PROCESSES:
                self._forget(alike.pop(next(iter(alike))))
            alike[told.image] = _Sent()
        sent = alike[told.image]
        self._kept += len(sent.calls) < _KEPT_ALIKE
        sent.add(told)
        while self._kept > _KEPT:
            for each in self._by_key.popitem(last=False)[1].values():
                self._forget(each)

    def lose(self, now_ns: int) -> None:
        """Some packets before now were not told."""
        self._forgotten_ns = now_ns

    def is_late(self, logged: Sequence[Logged]) -> bool:
        """Whether a packet of one of these is still to be told of."""
        wanted: Counter[_Key] = Counter()
        for each in logged:
            key = _key_of_record(each.record)
            if key is not None:
                wanted[key] += 1
                if wanted[key] > self._told_since(key, each.until_ns - _SOON_NS):
                    return True
        return False

    def matches(self, logged: Sequence[Logged]) -> Iterator[Match | None]:
        """What each of some records may be of, in the kernel's order; None where nobody was told.

        A packet is of one record alone, so none is to be asked for twice.
        """
        for each in logged:
            key = _key_of_record(each.record)
            yield None if key is None else self._match(key, each.since_ns)

    def _match(self, key: _Key, since_ns: int) -> Match | None:
        found: dict[Image, Call] = {}
        keys = {}
        for each in (_ANY, key):
            for image, sent in self._by_key.get(each, {}).items():
                if calls := sent.since(since_ns):
                    found[image], keys[image] = _latest(calls), each
        if len(found) == 1:
            ((image, of),) = keys.items()
            self._spend(of, image)
        is_sender = NOBODY not in found and since_ns > self._forgotten_ns
        found.pop(NOBODY, None)
        return match(found.values(), is_sender=is_sender)

    def _told_since(self, key: _Key, since_ns: int) -> int:
        alike = [sent for each in (key, _ANY) for sent in self._by_key.get(each, {}).values()]
        if any(sent.silent_ns >= since_ns for sent in alike):
            return _KEPT
        return sum(len(sent.since(since_ns)) for sent in alike)

    def _spend(self, key: _Key, image: Image) -> None:
        alike = self._by_key[key]
        sent = alike[image]
        before = len(sent.calls)
        left = sent.spend()
        self._kept -= before - left
        if not left:
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
    return _ANY if call.is_any else _Key(call.owner, way_of_call(call), call.is_syn)


def _key_of_record(record: Record) -> _Key | None:
    way = way_of(record)
    if way is None or record.uid is None:
        return None
    flags = (record.tcp_flags or 0) if record.protocol == _TCP else 0
    return _Key(record.uid, way, flags & (_SYN | _ACK) == _SYN)
