"""A small kernel: processes that share sockets, what is told of their calls, and what is refused.

As in ``capture.bpf.c``: a call of TCP or of a socket that is not connected is told of before its
packet, any other one's after it; the same call again and again is silent for a while; and what
there is no room for is lost.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ocsf_nft.attribution.layout import Call, Closed, Image
from ocsf_nft.record import Origin, Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocsf_nft.record import Verdict

TCP, UDP, ICMP, RAW = 6, 17, 1, 255
SYN, ACK = 2, 16
SECOND: Final = 1_000_000_000
#: When the machine was started.
BOOTED_NS: Final = 1_767_225_600 * SECOND
NETNS: Final = 4711
#: Addresses and ports are few: so they collide.
PLACES: Final = (("203.0.113.7", 443), ("203.0.113.8", 443), ("203.0.113.7", 53))
PORTS: Final = (1, 2)
#: No record is read later, and no packet sent so long after its call.
LATEST_NS: Final = 8 * SECOND
_TIMES: Final = 8
_AGAIN_NS: Final = SECOND // 2


def packed(address: str) -> bytes:
    return bytes(map(int, address.split(".")))


def image(number: int) -> Image:
    return Image(pid=number, started_ns=number * SECOND, execs=1)


def call(by: int, time_ns: int, **facts: Any) -> Call:
    """A process sends a datagram by a socket that is not connected."""
    address, port = PLACES[0]
    told = Call(
        time_ns=time_ns,
        socket=1,
        netns=NETNS,
        is_frame=False,
        protocol=UDP,
        is_connect=False,
        is_refused=False,
        has_more=False,
        source=b"",
        source_port=PORTS[0],
        destination=packed(address),
        destination_port=port,
        image=image(by),
        tid=by,
        uid=1000,
        gid=1000,
        fsuid=1000,
        comm=b"x",
    )
    return told._replace(**facts)


def record(read_ns: int, **facts: Any) -> Record:
    """What the kernel logs of that datagram, and when that is read since the machine started."""
    address, port = PLACES[0]
    logged = Record(
        prefix="ocsf-nft:sb:egress:",
        sandbox="sb",
        rule="egress",
        protocol=UDP,
        source_port=PORTS[0],
        destination=address,
        destination_port=port,
        uid=1000,
        gid=1000,
        time_ns=BOOTED_NS + read_ns,
        received_ns=BOOTED_NS + read_ns,
        origin=Origin(
            transport="nflog",
            identity="record",
            log_source="nflog",
            log_format="nfnetlink_log",
            raw="",
        ),
    )
    return replace(logged, **facts)


@dataclass(eq=False)
class Socket:
    """``holders`` are the numbers of those who have it; ``place`` where it is connected to."""

    cookie: int
    protocol: int
    port: int
    opener: int
    holders: set[int]
    place: int | None = None
    opened_ns: int = 0


class Sent(NamedTuple):
    """A packet that was refused and logged, when, and who sent it."""

    record: Record
    time_ns: int
    by: int


@dataclass(eq=False)
class _Begun:
    """A call that goes on: what is still to happen in it, before its packet is sent or after."""

    sock: Socket | None
    since_ns: int
    what: Callable[[], None]
    is_sent: bool


@dataclass
class Kernel:
    """What happens in one namespace.

    ``is_seen``: what is refused is told of. Where it is not, nobody gets a port of UDP soon after
    another one.
    """

    is_seen: bool = True
    verdict: Verdict | None = None
    now_ns: int = 100 * SECOND
    sockets: list[Socket] = field(default_factory=list)
    told: list[Call | Closed] = field(default_factory=list)
    logged: deque[Sent] = field(default_factory=deque)
    #: Calls that have begun: what they do when they go on.
    pending: list[_Begun] = field(default_factory=list)
    #: Calls for which there is no room, of those that come next.
    loses: int = 0
    has_lost: bool = False
    _cookies: itertools.count[int] = field(default_factory=itertools.count)
    _repeated: dict[tuple[object, ...], list[int]] = field(default_factory=dict)
    _remembered: set[int] = field(default_factory=set)
    _held_ports: dict[int, int] = field(default_factory=dict)

    def wait(self, time_ns: int) -> None:
        """Nobody does anything; a call goes on at last, and is told of soon after its packet."""
        while due := [each for each in self.pending if self._is_due(each, time_ns)]:
            self._go_on(due[0])
        self.now_ns += time_ns

    def open(self, by: int, protocol: int, port: int) -> Socket | None:
        taken = {each.port for each in self.sockets if each.protocol == protocol}
        free_ns = self._held_ports.get(port, 0) + 3 * LATEST_NS if protocol == UDP else 0
        if port in taken or self.now_ns < free_ns:
            return None
        opened = Socket(next(self._cookies) + 1, protocol, port, by, {by}, opened_ns=self.now_ns)
        self.sockets.append(opened)
        return opened

    def close(self, sock: Socket) -> None:
        if any(each.sock is sock for each in self.pending):
            return  # whoever is calling has it
        self.sockets.remove(sock)
        if not self.is_seen and sock.protocol == UDP:
            self._held_ports[sock.port] = self.now_ns
        if sock.cookie in self._remembered:
            self._tell(Closed(self.now_ns, sock.cookie))

    def dial(self, by: int, port: int, place: int) -> Socket | None:
        """Connect a new socket of TCP: its first packet follows at once, or a bit later."""
        opened = self.open(by, TCP, port)
        if opened is not None:
            opened.place = place
            self._tell(self._call(opened, by, place))
            self._later(opened, lambda: self._log(TCP, port, by, place))
        return opened

    def connect(self, sock: Socket, by: int, place: int) -> None:
        """Of UDP: nothing is sent by that."""
        if sock.protocol == UDP:
            sock.place = place
            self._tell(self._call(sock, by, place, is_connect=True, source_port=0))

    def send(self, sock: Socket, by: int, place: int | None = None) -> None:
        """A datagram, to where the socket is connected if it is to no place."""
        if sock.protocol != UDP:
            return
        if place is not None:
            self._tell(self._call(sock, by, place))
        where = sock.place if place is None else place
        if where is None:
            return

        def go_on() -> None:
            self._log(UDP, sock.port, by, where)
            if sock.place is not None and self.is_seen:
                self._later(sock, lambda: self._refuse(sock, by, where), is_sent=True)

        self._later(sock, go_on)

    def send_again(self, sock: Socket, by: int) -> None:
        """Of TCP: its first packet by the kernel, or data by whoever has it."""
        if sock.protocol != TCP or sock.place is None:
            return
        if self.now_ns - sock.opened_ns > LATEST_NS:
            return
        flags = SYN if by == sock.opener else ACK
        self._log(TCP, sock.port, by, sock.place, tcp_flags=flags)

    def send_raw(self, by: int, protocol: int, port: int, place: int) -> None:
        """A packet that is made by hand: a SYN from any port, or a ping.

        Who sends a SYN is not told of where it is not refused, and so can't be known.
        """
        if protocol == TCP and not self.is_seen:
            return
        port, where = (port, place) if protocol == TCP else (0, place)
        self._log(protocol, port, by, where)
        made = self._call(None, by, where, protocol=protocol, source_port=0, destination_port=0)
        self._later(None, lambda: self._refuse(made, by, where), is_sent=True)

    def send_frame(self, by: int) -> None:
        self._log(RAW, 0, by, 0, rule="link")
        made = self._call(None, by, 0, is_frame=True, source_port=0)
        self._later(None, lambda: self._refuse(made, by, 0), is_sent=True)

    def lose(self) -> None:
        """There is no room for one more of the next calls."""
        self.loses += 1

    def go_on(self, number: int) -> None:
        """Go on with one of the calls that have begun."""
        if self.pending:
            self._go_on(self.pending[number % len(self.pending)])

    def read(self, most: int) -> list[Sent]:
        """The next packets that were logged; all calls until then are told."""
        while self.pending:
            self.go_on(0)
        found = [self.logged.popleft() for _ in range(min(most, len(self.logged)))]
        self.now_ns += 1000
        return [
            each._replace(record=replace(each.record, received_ns=BOOTED_NS + self.now_ns))
            for each in found
        ]

    @property
    def is_late(self) -> bool:
        return bool(self.logged) and self.now_ns - self.logged[0].time_ns > LATEST_NS // 2

    def _later(
        self, sock: Socket | None, what: Callable[[], None], *, is_sent: bool = False
    ) -> None:
        self.pending.append(_Begun(sock, self.now_ns, what, is_sent=is_sent))

    def _is_due(self, begun: _Begun, time_ns: int) -> bool:
        most_ns = SECOND // 2 if begun.is_sent else LATEST_NS // 2
        return self.now_ns + time_ns - begun.since_ns > most_ns

    def _go_on(self, begun: _Begun) -> None:
        self.pending.remove(begun)
        begun.what()

    def _call(self, sock: Socket | None, by: int, place: int, **facts: Any) -> Call:
        address, port = PLACES[place]
        own: dict[str, Any] = {"socket": 0}
        if sock is not None:
            own = {"socket": sock.cookie, "protocol": sock.protocol, "source_port": sock.port}
        own |= {"destination": packed(address), "destination_port": port}
        return call(by, self.now_ns, **(own | facts))

    def _refuse(self, of: Socket | Call, by: int, place: int) -> None:
        if not self.is_seen:
            return
        made = self._call(of, by, place) if isinstance(of, Socket) else of
        self._tell(made._replace(is_refused=True, time_ns=self.now_ns))

    def _log(self, protocol: int, port: int, by: int, place: int, **facts: Any) -> None:
        address, destination_port = PLACES[place]
        has_ports = protocol in {TCP, UDP}
        self.now_ns += 100
        logged = record(
            self.now_ns,
            protocol=protocol,
            source_port=port if has_ports else None,
            destination=address,
            destination_port=destination_port if has_ports else None,
            tcp_flags=SYN if protocol == TCP else None,
            verdict=self.verdict,
        )
        self.logged.append(Sent(replace(logged, **facts), self.now_ns, by))
        self.now_ns += 100

    def _tell(self, event: Call | Closed) -> None:
        self.now_ns += 100
        if isinstance(event, Call):
            event = event._replace(time_ns=self.now_ns)
            if event.protocol != TCP or event.is_refused:
                times = self._times(event)
                if times > _TIMES:
                    return
                event = event._replace(has_more=times == _TIMES)
            if event.socket:
                self._remembered.add(event.socket)
        # That a socket was connected is not lost where that is all that is told of it.
        if self.loses and (self.is_seen or not getattr(event, "is_connect", False)):
            self.loses, self.has_lost = self.loses - 1, True
        else:
            self.told.append(event)
        self.now_ns += 100

    def _times(self, event: Call) -> int:
        key = event._replace(time_ns=0)
        known = self._repeated.get(key)
        if known is None or event.time_ns - known[0] > _AGAIN_NS:
            known = self._repeated[key] = [event.time_ns, 0]
        known[1] += 1
        if known[1] == _TIMES:
            known[0] = event.time_ns
        return known[1]
