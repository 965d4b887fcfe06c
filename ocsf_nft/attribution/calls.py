"""Whose call a refused packet was: calls and records, joined by the socket that they name.

Two processes may have the same port one after the other, and a record has no time of its own on its
way out. So a packet's moment is enclosed: records come in the order of their packets, and none is
before the call that it was made by, or after its socket was closed. A call is a candidate for a
record where its packet can be of that time; where those of several processes can, all of them are.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict, defaultdict, deque
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from ocsf_nft.attribution.layout import Call, Closed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.record import Record

_T = TypeVar("_T")

#: No packet is sent (again) so long after its call, and no record read so long after its packet.
_LATEST_NS: Final = 10 * 1_000_000_000
#: Calls that are kept, some megabytes, and for how long.
_KEPT: Final = 8192
_KEPT_NS: Final = 2 * _LATEST_NS
#: How long more of a call is not told (``capture.bpf.c``: AGAIN).
_SILENCE_NS: Final = 500_000_000
#: A refused packet is logged before its call is told, and not so long before.
_LATE_NS: Final = 1_000_000_000
_FOREVER: Final = 1 << 63
#: Of more processes, that it may have been any of them says nothing.
_MOST: Final = 16
_SYN: Final = 0x02
_ACK: Final = 0x10
_TCP: Final = 6
#: UDP and UDP-Lite: each packet of a socket that is not connected is told of before it is sent.
_TOLD_WHERE_NOT_CONNECTED: Final = frozenset({17, 136})
#: The rules that refuse frames, which name no socket.
_OF_FRAMES: Final = frozenset({"link"})


class _Key(NamedTuple):
    """What a call and the record of its packet have in common; None of a frame."""

    protocol: int | None
    source_port: int = 0
    destination: bytes = b""
    destination_port: int = 0


class Moment(NamedTuple):
    """The time that a packet was sent in."""

    since_ns: int
    until_ns: int


class _Made:
    """A call that was made. Its packet is not from before ``since_ns`` or after ``until_ns``.

    It is made before its packet, and its socket closed after that; where it is told of as refused,
    the packet is a bit older.
    """

    __slots__ = ("call", "since_ns", "until_ns")

    def __init__(self, call: Call, connected_ns: int | None) -> None:
        """``connected_ns`` is when its socket was connected, where that was told."""
        self.call = call
        self.since_ns, self.until_ns = call.time_ns, _FOREVER
        if call.is_refused:
            self.since_ns = call.time_ns - _LATE_NS if connected_ns is None else connected_ns
            self.until_ns = call.time_ns + _SILENCE_NS * call.has_more

    def closed(self, time_ns: int) -> None:
        """Its socket was closed."""
        self.until_ns = min(self.until_ns, time_ns)

    def may_be_of(self, moment: Moment) -> bool:
        """Whether a packet of that time may be this call's."""
        return self.since_ns <= moment.until_ns and self.until_ns >= moment.since_ns


class Match(NamedTuple):
    """The calls that a packet may be of: the latest of each process.

    ``is_sender``: it is one of them that sent it. Else it may be somebody else who has one of their
    sockets, or whose call was not told.
    """

    calls: tuple[Call, ...]
    is_sender: bool


class Calls:
    """The latest calls in one network namespace; times are of CLOCK_BOOTTIME.

    ``sees_refusals``: what is sent by a connected socket is told too, where it is refused.
    """

    def __init__(self, *, sees_refusals: bool) -> None:
        self._sees_refusals = sees_refusals
        self._order: deque[_Made] = deque()
        self._by_key: defaultdict[_Key, list[_Made]] = defaultdict(list)
        self._by_socket: defaultdict[int, list[_Made]] = defaultdict(list)
        #: When sockets were connected last. One that was closed since never comes again.
        self._connected: OrderedDict[int, int] = OrderedDict()
        #: No packet whose record comes from now on is from before this.
        self._since_ns = 0
        #: Of packets before this, not all calls are here.
        self._forgotten_ns = 0

    def add(self, told: Call | Closed) -> None:
        """Take in a call, or the end of a socket."""
        if isinstance(told, Closed):
            for made in self._by_socket.get(told.socket, ()):
                made.closed(told.time_ns)
            return
        made = _Made(told, self._connected.get(told.socket))
        self._order.append(made)
        self._by_key[_key_of_call(told)].append(made)
        if told.socket:
            self._by_socket[told.socket].append(made)
        if told.is_connect:
            self._connected[told.socket] = told.time_ns
            self._connected.move_to_end(told.socket)
        while len(self._order) > _KEPT or told.time_ns - self._order[0].call.time_ns > _KEPT_NS:
            self._forget(self._order.popleft())
        while len(self._connected) > _KEPT:
            self._connected.popitem(last=False)

    def lose(self, now_ns: int) -> None:
        """Some calls before now were not told: nobody knows whose, and packets may still come."""
        self._forgotten_ns = now_ns + _LATEST_NS

    def moments(self, records: Sequence[Record], booted_ns: int, now_ns: int) -> list[Moment]:
        """When the packet of each record was sent.

        The records are in the kernel's order, after those that were asked for before, and all calls
        until now are here. ``booted_ns`` is when the machine was started (epoch), by the clock as
        it is set now.
        """
        since, read = [], []
        #: The calls of which one is known to have sent the packet, where that is known.
        found: list[Sequence[_Made]] = []
        for record in records:
            # The clock may have been set since it was read.
            read_ns = min(record.received_ns - booted_ns, now_ns)
            self._since_ns = max(self._since_ns, read_ns - _LATEST_NS)
            since.append(self._since_ns)
            read.append(read_ns)
            made = self._made_of(_key_of_record(record), Moment(self._since_ns, read_ns))
            is_known = self._is_told(record) and self._is_sure(record, made, self._since_ns)
            found.append(made if is_known else ())
            earliest_ns = min((each.since_ns for each in found[-1]), default=0)
            self._since_ns = max(self._since_ns, earliest_ns)
        return list(map(Moment, since, _not_after(found, read)))

    def match(self, record: Record, moment: Moment) -> Match | None:
        """What a record may be of; None where no call of it is known."""
        key = _key_of_record(record)
        if key is None:
            return None
        made = self._made_of(key, moment)
        if made:
            return _matched(made, is_sender=self._is_sure(record, made, moment.since_ns))
        # A socket gets its port after it was connected.
        return _matched(self._made(key._replace(source_port=0), moment), is_sender=False)

    def _made_of(self, key: _Key | None, moment: Moment) -> list[_Made]:
        """The calls that a record's packet may be of."""
        if key is None:
            return []
        made = self._made(key, moment)
        if key.protocol == _TCP:  # a raw socket sends it from any port, and it is not told which
            made += self._made(_Key(_TCP, 0, key.destination), moment)
        return made

    def _made(self, key: _Key, moment: Moment) -> list[_Made]:
        return [each for each in self._by_key.get(key, ()) if each.may_be_of(moment)]

    def _is_sure(self, record: Record, made: Sequence[_Made], since_ns: int) -> bool:
        """Whether it was one of these, and nobody who is not told of."""
        if since_ns < self._forgotten_ns:
            return False
        if record.protocol == _TCP:
            return (record.tcp_flags or 0) & (_SYN | _ACK) == _SYN
        if self._is_told(record):
            return True
        # By a socket that is connected, others may have sent it. By another socket too, which had
        # the same port some seconds before or after: that can't be known.
        is_told = record.protocol in _TOLD_WHERE_NOT_CONNECTED
        return is_told and all(each.call.socket not in self._connected for each in made)

    def _is_told(self, record: Record) -> bool:
        """Whether all are told of who send packets like this."""
        is_seen = self._sees_refusals and record.verdict != "permit"
        return record.protocol == _TCP or is_seen

    def _forget(self, made: _Made) -> None:
        call = made.call
        if len(self._order) >= _KEPT:  # not because it was old
            until_ns = min(made.until_ns, call.time_ns + _LATEST_NS)
            self._forgotten_ns = max(self._forgotten_ns, until_ns)
        _take_out(self._by_key, _key_of_call(call), made)
        _take_out(self._by_socket, call.socket, made)


def _take_out(table: dict[_T, list[_Made]], key: _T, made: _Made) -> None:
    kept = table.get(key, [])
    if made in kept:
        kept.remove(made)
    if not kept:
        table.pop(key, None)


def _matched(made: Sequence[_Made], *, is_sender: bool) -> Match | None:
    """The calls of as many processes as it is of any use to name."""
    latest = {each.call.image: each.call for each in made}
    if not 0 < len(latest) <= _MOST:
        return None
    return Match(tuple(latest.values()), is_sender)


def _not_after(found: Sequence[Sequence[_Made]], read: Sequence[int]) -> list[int]:
    """None was sent after it was read, or after those that came later were."""
    latest, times = _FOREVER, []
    for made, read_ns in zip(reversed(found), reversed(read), strict=True):
        latest = min(latest, read_ns)
        times.append(latest)
        latest = min(latest, max((each.until_ns for each in made), default=_FOREVER))
    return times[::-1]


def _key_of_call(call: Call) -> _Key:
    if call.is_frame:
        return _Key(None)
    return _Key(
        call.protocol,
        0 if call.is_connect else call.source_port,
        call.destination,
        call.destination_port,
    )


def _key_of_record(record: Record) -> _Key | None:
    """None where no process has sent its packet, or nobody can tell by what socket."""
    if record.uid is None:
        return None
    if record.rule in _OF_FRAMES:
        return _Key(None)
    if record.protocol is None:
        return None
    return _Key(
        record.protocol,
        record.source_port or 0,
        b"" if record.destination is None else ipaddress.ip_address(record.destination).packed,
        record.destination_port or 0,
    )
