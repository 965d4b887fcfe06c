"""Whose call a refused packet was, where calls are told and not which packets are refused.

Calls and records are joined by the socket that they name. Two processes may have the same port one
after the other, and a record has no time of its own on its way out. So a packet's moment is
enclosed: records come in the order of their packets, and none is before the call that it was made
by, or after its socket was closed. A call is a candidate for a record where its packet can be of
that time; where those of several processes can, all of them are.

No program reports a packet that a process sends by a connected socket, or writes by itself. Nor is
the port of a connected socket known. After such a socket is closed, the next one may get its port.
So a sender is uncertain if a socket that was connected to the same address was closed just before.
"""

from __future__ import annotations

import bisect
from collections import OrderedDict, defaultdict, deque
from operator import itemgetter
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from ocsf_nft.attribution.match import Way, match, way_of, way_of_call

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ocsf_nft.attribution.layout import Call, Closed
    from ocsf_nft.attribution.match import Logged, Match
    from ocsf_nft.record import Record

_T = TypeVar("_T")

#: No packet is sent (again) so long after its call, and no record read so long after its packet.
_LATEST_NS: Final = 10 * 1_000_000_000
#: Calls that are kept, some megabytes, and for how long.
_KEPT: Final = 8192
_KEPT_NS: Final = 2 * _LATEST_NS
#: Of one protocol, port and place so many are looked at.
_MOST_ALIKE: Final = 64
#: The most closed sockets that are checked for one packet.
_MOST_CLOSED: Final = 256
_FOREVER: Final = 1 << 63
_SYN: Final = 0x02
_ACK: Final = 0x10
_TCP: Final = 6
#: UDP and UDP-Lite: each packet of a socket that is not connected is told of before it is sent.
_TOLD_WHERE_NOT_CONNECTED: Final = frozenset({17, 136})


class _Moment(NamedTuple):
    """The time that a packet was sent in."""

    since_ns: int
    until_ns: int


class _Made:
    """A call that was made: its packet is not from before it, or after its socket was closed."""

    __slots__ = ("call", "until_ns")

    def __init__(self, call: Call) -> None:
        self.call = call
        self.until_ns = _FOREVER

    def closed(self, time_ns: int) -> None:
        """Its socket was closed."""
        self.until_ns = min(self.until_ns, time_ns)

    def may_be_of(self, moment: _Moment) -> bool:
        """Whether a packet of that time may be this call's."""
        return self.call.time_ns <= moment.until_ns and self.until_ns >= moment.since_ns


class Calls:
    """The latest calls in one network namespace; times are of CLOCK_BOOTTIME."""

    def __init__(self) -> None:
        self._order: deque[_Made] = deque()
        self._by_way: defaultdict[Way, list[_Made]] = defaultdict(list)
        self._by_socket: defaultdict[int, list[_Made]] = defaultdict(list)
        #: Sockets that were connected, the latest last.
        self._connected: OrderedDict[int, None] = OrderedDict()
        #: Closed sockets that had been connected: the time, and the destination if it is known.
        self._freed: list[tuple[int, Way | None]] = []
        #: No packet whose record comes from now on is from before this.
        self._since_ns = 0
        #: Of packets before this, not all calls are here.
        self._forgotten_ns = 0

    def close(self, closed: Closed) -> None:
        """Take in the end of a socket."""
        known = self._by_socket.get(closed.socket, ())
        for made in known:
            made.closed(closed.time_ns)
        ways: set[Way | None] = {way_of_call(made.call) for made in known if made.call.is_connect}
        if not ways and (not known or closed.socket in self._connected):
            ways.add(None)  # its connect was forgotten
        for way in ways:
            bisect.insort(self._freed, (closed.time_ns, way), key=_TIME)
        if len(self._freed) > 2 * _KEPT:
            self._forgotten_ns = max(self._forgotten_ns, self._freed[_KEPT - 1][0])
            del self._freed[:_KEPT]

    def add(self, told: Call) -> None:
        """Take in a call."""
        if told.is_any:
            self.lose(told.time_ns)
        made = _Made(told)
        self._order.append(made)
        self._by_way[way_of_call(told)].append(made)
        if told.socket:
            self._by_socket[told.socket].append(made)
        if told.is_connect:
            self._connected[told.socket] = None
            self._connected.move_to_end(told.socket)
        while len(self._order) > _KEPT or told.time_ns - self._order[0].call.time_ns > _KEPT_NS:
            self._forget(self._order.popleft())
        while len(self._connected) > _KEPT:
            self._connected.popitem(last=False)

    def lose(self, now_ns: int) -> None:
        """Some calls before now were not told: nobody knows whose, and packets may still come."""
        self._forgotten_ns = now_ns + _LATEST_NS

    def matches(self, logged: Sequence[Logged]) -> Iterator[Match | None]:
        """What each of some records may be of; None where no call of it is known.

        The records are in the kernel's order, after those that were asked for before, and all calls
        until now are here.
        """
        moments = self._moments(logged)
        for each, moment in zip(logged, moments, strict=True):
            yield self._match(each.record, moment)

    def _moments(self, logged: Sequence[Logged]) -> list[_Moment]:
        """When the packet of each was sent."""
        since = []
        #: The calls of which one is known to have sent the packet, where that is known.
        found: list[Sequence[_Made]] = []
        for record, since_ns, until_ns, _ in logged:
            self._since_ns = max(self._since_ns, since_ns, until_ns - _LATEST_NS)
            since.append(self._since_ns)
            made = self._made(way_of(record), _Moment(self._since_ns, until_ns))
            # Only of TCP it is told who sends in the order in which they do.
            is_known = record.protocol == _TCP and self._is_sure(record, made, self._since_ns)
            found.append(made if is_known else ())
            earliest_ns = min((each.call.time_ns for each in found[-1]), default=0)
            self._since_ns = max(self._since_ns, earliest_ns)
        return list(map(_Moment, since, _not_after(found, [each.until_ns for each in logged])))

    def _match(self, record: Record, moment: _Moment) -> Match | None:
        way = way_of(record)
        if way is None:
            return None
        if made := self._made(way, moment):
            return match(
                (each.call for each in made),
                is_sender=self._is_sure(record, made, moment.since_ns),
            )
        made = self._made(_without_port(way), moment)
        return match((each.call for each in made), is_sender=False)

    def _made(self, way: Way | None, moment: _Moment) -> list[_Made]:
        if way is None:
            return []
        alike = self._by_way.get(way, [])[-_MOST_ALIKE:]
        return [each for each in alike if each.may_be_of(moment)]

    def _is_sure(self, record: Record, made: Sequence[_Made], since_ns: int) -> bool:
        """Whether it was one of these, as far as is told."""
        if since_ns < self._forgotten_ns or len(made) == _MOST_ALIKE:
            return False
        if record.protocol == _TCP:
            return (record.tcp_flags or 0) & (_SYN | _ACK) == _SYN
        if record.protocol not in _TOLD_WHERE_NOT_CONNECTED:
            return False
        # By a socket that is connected, others may have sent it.
        if any(each.call.socket in self._connected for each in made):
            return False
        latest_ns = max((each.call.time_ns for each in made), default=0)
        return not self._may_be_of_closed(way_of(record), since_ns, latest_ns)

    def _may_be_of_closed(self, way: Way | None, since_ns: int, until_ns: int) -> bool:
        """Return True if a socket that was connected to the same address was closed in that time.

        It may have sent the packet: the socket that has the port now got it afterwards.
        """
        if way is None:
            return True
        before = bisect.bisect_right(self._freed, until_ns, key=_TIME)
        first = bisect.bisect_left(self._freed, since_ns, hi=before, key=_TIME)
        if before - first > _MOST_CLOSED:
            return True
        wanted = {None, _without_port(way)}
        return any(place in wanted for _, place in self._freed[first:before])

    def _forget(self, made: _Made) -> None:
        call = made.call
        if len(self._order) >= _KEPT:  # not because it was old
            until_ns = min(made.until_ns, call.time_ns + _LATEST_NS)
            self._forgotten_ns = max(self._forgotten_ns, until_ns)
        _take_out(self._by_way, way_of_call(call), made)
        _take_out(self._by_socket, call.socket, made)


#: The time of an entry.
_TIME: Final = itemgetter(0)


def _without_port(way: Way) -> Way:
    """Return the way of a call that connects: its socket gets a port afterwards."""
    return way._replace(source_port=0)


def _take_out(table: dict[_T, list[_Made]], key: _T, made: _Made) -> None:
    kept = table.get(key, [])
    if made in kept:
        kept.remove(made)
    if not kept:
        table.pop(key, None)


def _not_after(found: Sequence[Sequence[_Made]], read: Sequence[int]) -> list[int]:
    """None was sent after it was read, or after those that came later were."""
    latest, times = _FOREVER, []
    for made, read_ns in zip(reversed(found), reversed(read), strict=True):
        latest = min(latest, read_ns)
        times.append(latest)
        latest = min(latest, max((each.until_ns for each in made), default=_FOREVER))
    return times[::-1]
