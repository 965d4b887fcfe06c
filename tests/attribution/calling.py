"""A small kernel: processes that share sockets, what they send, and what is told of that.

As in ``capture.bpf.c``: where packets are refused each of them is told of, after it was logged if
it was. Where they are not, a call of TCP or of a socket that is not connected is told of before its
packet, and none of any other one. The same again and again is silent for a while, and what there is
no room for is lost.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ocsf_nft.attribution.bpf_layout import NOBODY, Call, Closed, Image
from ocsf_nft.attribution.call_match import Logged
from ocsf_nft.record import Origin, Record

if TYPE_CHECKING:
    from collections.abc import Callable

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
        is_syn=False,
        is_any=False,
        has_more=False,
        source=b"",
        source_port=PORTS[0],
        destination=packed(address),
        destination_port=port,
        image=image(by),
        tid=by,
        uid=1000,
        gid=1000,
        owner=1000,
        comm=b"x",
        sum=0,
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


def logged(*records: Record, now_ns: int, since_ns: int = 0) -> list[Logged]:
    """Some records that were read by now, and logged since."""
    return [Logged(each, since_ns, now_ns, now_ns) for each in records]


@dataclass(eq=False)
class Socket:
    """``holders`` are the numbers of those who have it; ``place`` where it is connected to.

    ``port`` is 0 where it has none; one that ``shares`` has it beside others (SO_REUSEPORT).
    """

    cookie: int
    protocol: int
    port: int
    opener: int
    holders: set[int]
    place: int | None = None
    opened_ns: int = 0
    shares: bool = False


class Sent(NamedTuple):
    """A packet that was logged, when, and who sent it."""

    logged: Logged
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

    ``is_refused``: the fence refuses each packet, and the capture reports it.
    """

    is_refused: bool = True
    now_ns: int = 100 * SECOND
    sockets: list[Socket] = field(default_factory=list)
    told: list[Call | Closed] = field(default_factory=list)
    logged: deque[tuple[Record, int, int]] = field(default_factory=deque)
    #: When all that was logged had been read.
    empty_ns: int = 0
    #: Calls that have begun: what they do when they go on.
    pending: list[_Begun] = field(default_factory=list)
    #: Calls for which there is no room, of those that come next.
    loses: int = 0
    has_lost: bool = False
    #: Packets that are not logged, of those that come next.
    unlogged: int = 0
    #: Packets that can't be read when they are refused, of those that come next.
    strange: int = 0
    #: Whether records have the bytes of packets. Some of these are the same.
    has_bytes: bool = True
    _packets: itertools.count[int] = field(default_factory=itertools.count)
    _cookies: itertools.count[int] = field(default_factory=itertools.count)
    _repeated: dict[tuple[object, ...], list[int]] = field(default_factory=dict)
    _remembered: set[int] = field(default_factory=set)

    def wait(self, time_ns: int) -> None:
        """Nobody does anything; a call goes on at last, and is told of soon after its packet."""
        while due := [each for each in self.pending if self._is_due(each, time_ns)]:
            self._go_on(due[0])
        self.now_ns += time_ns

    def open(self, by: int, protocol: int, port: int, *, shares: bool = False) -> Socket | None:
        if not self._is_free(protocol, port, shares=shares):
            return None
        opened = Socket(next(self._cookies) + 1, protocol, port, by, {by}, shares=shares)
        opened.opened_ns = self.now_ns
        self.sockets.append(opened)
        return opened

    def _is_free(self, protocol: int, port: int, *, shares: bool = False) -> bool:
        having = [each for each in self.sockets if (each.protocol, each.port) == (protocol, port)]
        return all(shares and each.shares for each in having)

    def _has_port(self, sock: Socket) -> bool:
        """Give a socket of UDP a port where it has none; False where none is left."""
        if sock.port == 0:
            sock.port = next((each for each in PORTS if self._is_free(UDP, each)), 0)
        return sock.port != 0

    def close(self, sock: Socket) -> None:
        if any(each.sock is sock for each in self.pending):
            return  # whoever is calling has it
        self.sockets.remove(sock)
        if not self.is_refused and sock.cookie in self._remembered:
            self._tell(Closed(self.now_ns, sock.cookie))

    def dial(self, by: int, port: int, place: int) -> Socket | None:
        """Connect a new socket of TCP: its first packet follows at once, or a bit later."""
        opened = self.open(by, TCP, port)
        if opened is not None:
            opened.place = place
            self._call(opened, by, place, is_syn=True)
            self._send(opened, by, place)
        return opened

    def connect(self, sock: Socket, by: int, place: int) -> None:
        """Of UDP: nothing is sent by that."""
        if sock.protocol == UDP:
            self._call(sock, by, place, is_connect=True, source_port=0)
            if self._has_port(sock):
                sock.place = place

    def disconnect(self, sock: Socket) -> None:
        """Of UDP, to AF_UNSPEC: it gives up its port and stays open; nothing is told of that."""
        if sock.protocol == UDP and not any(each.sock is sock for each in self.pending):
            sock.place, sock.port = None, 0

    def send(self, sock: Socket, by: int, place: int | None = None) -> None:
        """A datagram, to where the socket is connected if it is to no place."""
        if sock.protocol != UDP or not self._has_port(sock):
            return
        if place is not None:
            self._call(sock, by, place)
        where = sock.place if place is None else place
        if where is not None:
            self._send(sock, by, where)

    def send_again(self, sock: Socket, by: int) -> None:
        """Of TCP: its first packet by the kernel, or data by whoever has it."""
        if sock.protocol != TCP or sock.place is None:
            return
        if self.now_ns - sock.opened_ns > LATEST_NS:
            return
        if by == sock.opener:
            self._send(sock, by, sock.place)
        else:
            self._send(sock, by, sock.place, tcp_flags=ACK)

    def send_raw(self, by: int, protocol: int, port: int, place: int) -> None:
        """A packet that is made by hand: a SYN from any port, or a ping.

        Who sends a SYN is not told of where it is not refused.
        """
        if protocol == TCP and not self.is_refused:
            return
        made = Socket(0, protocol, port if protocol == TCP else 0, by, {by})
        self._send(made, by, place)

    def send_frame(self, by: int) -> None:
        self._send(Socket(0, RAW, 0, by, {by}), by, 0, rule="link")

    def lose_log(self) -> None:
        """The next packets are not logged."""
        self.unlogged += 1

    def disguise(self) -> None:
        """The next packets can't be read when they are refused."""
        self.strange += 1

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
        since_ns = self.empty_ns
        found = [self.logged.popleft() for _ in range(min(most, len(self.logged)))]
        if not self.logged:
            self.empty_ns = self.now_ns
        self.now_ns += 1000
        return [
            Sent(Logged(record, since_ns, self.now_ns, time_ns), time_ns, by)
            for record, time_ns, by in found
        ]

    @property
    def is_late(self) -> bool:
        return bool(self.logged) and self.now_ns - self.logged[0][1] > LATEST_NS // 2

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

    def _call(self, sock: Socket, by: int, place: int, **facts: Any) -> None:
        if not self.is_refused:
            self._tell(self._event(sock, by, place, **facts))

    def _send(self, sock: Socket, by: int, place: int, **facts: Any) -> None:
        """Send a packet, now or later."""

        def go_on() -> None:
            number = 1 + next(self._packets) % 5
            self._log(sock, by, place, captured_sum=number if self.has_bytes else None, **facts)
            if self.is_refused:
                refused = self._refused(sock, by, place, **facts)._replace(sum=number)
                self._later(sock, lambda: self._tell(refused), is_sent=True)

        self._later(sock, go_on)

    def _refused(self, sock: Socket, by: int, place: int, **facts: Any) -> Call:
        if facts.get("rule") == "link":
            return self._event(sock, by, place, is_frame=True)
        is_syn = sock.protocol == TCP and facts.get("tcp_flags", SYN) == SYN
        told = self._event(sock, by, place, is_syn=is_syn)
        if sock.protocol == TCP and not is_syn:  # whoever wrote it
            told = told._replace(image=NOBODY)
        if sock.protocol not in {TCP, UDP}:
            told = told._replace(source_port=0, destination_port=0)
        if self.strange:
            self.strange -= 1
            told = told._replace(is_any=True, source_port=0, destination_port=0)
        return told

    def _event(self, sock: Socket, by: int, place: int, **facts: Any) -> Call:
        address, port = PLACES[place]
        told = call(
            by,
            self.now_ns,
            socket=sock.cookie,
            protocol=sock.protocol,
            source_port=sock.port,
            destination=packed(address),
            destination_port=port,
        )
        return told._replace(**facts)

    def _log(self, sock: Socket, by: int, place: int, **facts: Any) -> None:
        self.now_ns += 100
        if self.unlogged and self.is_refused:
            self.unlogged -= 1
            return
        address, port = PLACES[place]
        has_ports = sock.protocol in {TCP, UDP}
        logged = record(
            self.now_ns,
            protocol=sock.protocol,
            source_port=sock.port if has_ports else None,
            destination=address,
            destination_port=port if has_ports else None,
            tcp_flags=SYN if sock.protocol == TCP else None,
        )
        self.logged.append((replace(logged, **facts), self.now_ns, by))
        self.now_ns += 100

    def _tell(self, event: Call | Closed) -> None:
        self.now_ns += 100
        if isinstance(event, Call):
            event = event._replace(time_ns=self.now_ns)
            if event.protocol != TCP or self.is_refused:
                times = self._times(event)
                if times > _TIMES:
                    return
                event = event._replace(has_more=times == _TIMES)
            if event.socket:
                self._remembered.add(event.socket)
        if self.loses:
            self.loses, self.has_lost = self.loses - 1, True
        else:
            self.told.append(event)
        self.now_ns += 100

    def _times(self, event: Call) -> int:
        key = event._replace(time_ns=0, sum=0)
        known = self._repeated.get(key)
        if known is None or event.time_ns - known[0] > _AGAIN_NS:
            known = self._repeated[key] = [event.time_ns, 0]
        known[1] += 1
        if known[1] == _TIMES:
            known[0] = event.time_ns
        return known[1]
