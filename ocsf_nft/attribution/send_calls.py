"""Whose call a refused packet was, where calls are told and not which packets are refused.

Calls and records are joined by the socket that they name. Two processes may have the same port one
after the other, and a record has no time of its own on its way out. So a packet's moment is
enclosed: records come in the order of their packets, and none is before the call that it was made
by, or after its socket was closed. A call is a candidate for a record where its packet can be of
that time; where those of several processes can, all of them are.

The kernel reports the first packet of each TCP connection before it sends it, with its port. The
sender of another protocol's packet stays uncertain. No BPF program sees a packet of a connected
socket, or the rest of a corked datagram. A socket may also give its port up and stay open
(``connect`` to AF_UNSPEC). Such a record lists each process that may have sent the packet.
"""

from __future__ import annotations

from collections import defaultdict, deque
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from ocsf_nft.attribution.call_match import Way, match, way_of, way_of_call

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ocsf_nft.attribution.bpf_layout import Call, Closed
    from ocsf_nft.attribution.call_match import Logged, Match
    from ocsf_nft.record import Record

_T = TypeVar("_T")

#: No packet is sent (again) so long after its call, and no record read so long after its packet.
_LATEST_NS: Final = 10 * 1_000_000_000
#: Calls that are kept, some megabytes, and for how long.
_KEPT: Final = 8192
_KEPT_NS: Final = 2 * _LATEST_NS
#: Of one protocol, port and place so many are looked at.
_MOST_ALIKE: Final = 64
#: The BPF programs report no call of a process for so long after its budget is spent
#: (``capture.bpf.c``: AGAIN).
_SILENCE_NS: Final = 500_000_000
_FOREVER: Final = 1 << 63
_SYN: Final = 0x02
_ACK: Final = 0x10
_TCP: Final = 6
#: With one of these, a packet's destination may differ from that of its call (IPV6_RTHDR).
_REROUTING: Final = frozenset({"extension_headers", "ip_options"})


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
        #: No packet whose record comes from now on is from before this.
        self._since_ns = 0
        #: Of packets before this, not all calls are here.
        self._forgotten_ns = 0

    def close(self, closed: Closed) -> None:
        """Take in the end of a socket."""
        for made in self._by_socket.get(closed.socket, ()):
            made.closed(closed.time_ns)

    def add(self, told: Call) -> None:
        """Take in a call."""
        if told.is_any:
            self.lose(told.time_ns)
        made = _Made(told)
        self._order.append(made)
        self._by_way[way_of_call(told)].append(made)
        if told.socket:
            self._by_socket[told.socket].append(made)
        while len(self._order) > _KEPT or told.time_ns - self._order[0].call.time_ns > _KEPT_NS:
            self._forget(self._order.popleft())

    def lose(self, now_ns: int) -> None:
        """Take in that calls before now are missing; their packets may be sent and read later."""
        self._forgotten_ns = max(self._forgotten_ns, now_ns + _SILENCE_NS + _LATEST_NS)

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
            found.append(made if self._is_sure(record, self._since_ns) else ())
            earliest_ns = min((each.call.time_ns for each in found[-1]), default=0)
            self._since_ns = max(self._since_ns, earliest_ns)
        return list(map(_Moment, since, _not_after(found, [each.until_ns for each in logged])))

    def _match(self, record: Record, moment: _Moment) -> Match | None:
        way = way_of(record)
        if way is None:
            return None
        made = self._made(way, moment)
        if made and self._is_sure(record, moment.since_ns):
            return match((each.call for each in made), is_sender=True)
        connected = self._made(_without_port(way), moment)
        calls = [each.call for each in (*connected, *made)]
        # Of too many, those alone that are known to have sent from this port.
        return match(calls, is_sender=False) or match(calls[len(connected) :], is_sender=False)

    def _made(self, way: Way | None, moment: _Moment) -> list[_Made]:
        if way is None:
            return []
        alike = self._by_way.get(way, [])[-_MOST_ALIKE:]
        return [each for each in alike if each.may_be_of(moment)]

    def _is_sure(self, record: Record, since_ns: int) -> bool:
        """Return True if every call that may have made a packet, sent since a time, is known."""
        way = way_of(record)
        # Of too many alike, it may be of one that is not checked.
        if way is None or len(self._by_way.get(way, ())) >= _MOST_ALIKE:
            return False
        is_first = record.protocol == _TCP and (record.tcp_flags or 0) & (_SYN | _ACK) == _SYN
        return is_first and since_ns >= self._forgotten_ns and _REROUTING.isdisjoint(record.details)

    def _forget(self, made: _Made) -> None:
        call = made.call
        if len(self._order) >= _KEPT:  # not because it was old
            until_ns = min(made.until_ns, call.time_ns + _LATEST_NS)
            self._forgotten_ns = max(self._forgotten_ns, until_ns)
        _take_out(self._by_way, way_of_call(call), made)
        _take_out(self._by_socket, call.socket, made)


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
