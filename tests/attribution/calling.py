"""Model of a kernel: processes that share sockets, their packets, and the events about them.

As in ``capture.bpf.c``: if packets are refused, each one is reported after it was logged. Otherwise
a call of TCP, or of an unconnected socket, is reported before its packet, and no other call is.
Repeated calls are not reported for a while. Events without room are dropped.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ocsf_nft.attribution.bpf_capture import UNKNOWN_IMAGE, Call, ClosedSocket, ProcessImage
from ocsf_nft.attribution.packet_matching import LoggedRecord
from ocsf_nft.record import Origin, Record

if TYPE_CHECKING:
    from collections.abc import Callable

TCP, UDP, ICMP, RAW = 6, 17, 1, 255
SYN, ACK = 2, 16
SECOND: Final = 1_000_000_000
#: Start of the machine.
BOOTED_NS: Final = 1_767_225_600 * SECOND
NETNS: Final = 4711
#: Few targets and ports, so that they collide.
TARGETS: Final = (("203.0.113.7", 443), ("203.0.113.8", 443), ("203.0.113.7", 53))
PORTS: Final = (1, 2)
#: The most time from a packet to the read of its record, and from a call to its packet.
LATEST_NS: Final = 8 * SECOND
_TIMES: Final = 8
_AGAIN_NS: Final = SECOND // 2


def packed(address: str) -> bytes:
    return bytes(map(int, address.split(".")))


def image(number: int) -> ProcessImage:
    return ProcessImage(pid=number, started_ns=number * SECOND, execs=1)


def call(by: int, time_ns: int, **facts: Any) -> Call:
    """Return the call of a process that sends a datagram by an unconnected socket."""
    address, port = TARGETS[0]
    event = Call(
        time_ns=time_ns,
        socket=1,
        netns=NETNS,
        is_frame=False,
        protocol=UDP,
        is_connect=False,
        is_syn=False,
        is_any=False,
        has_more=False,
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
    return event._replace(**facts)


def record(read_ns: int, **facts: Any) -> Record:
    """Return the kernel's record of that datagram; ``read_ns`` is since the machine's start."""
    address, port = TARGETS[0]
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


def logged(*records: Record, now_ns: int, since_ns: int = 0) -> list[LoggedRecord]:
    """Return records that were read by now, and logged since ``since_ns``."""
    return [LoggedRecord(each, since_ns, now_ns, now_ns) for each in records]


@dataclass(eq=False)
class Socket:
    """A socket; ``holders`` are the numbers of its processes, ``target`` its connected target.

    ``port`` is 0 without a port. A socket that ``shares`` its port uses SO_REUSEPORT.
    """

    cookie: int
    protocol: int
    port: int
    opener: int
    holders: set[int]
    target: int | None = None
    opened_ns: int = 0
    shares: bool = False


class Sent(NamedTuple):
    """A logged packet, its time and its sender."""

    logged: LoggedRecord
    time_ns: int
    by: int


@dataclass(eq=False)
class _PendingCall:
    """A call in progress; ``finish`` ends it, before its packet is sent or after."""

    sock: Socket | None
    since_ns: int
    finish: Callable[[], None]
    is_sent: bool


@dataclass
class Kernel:
    """Events of one namespace.

    ``is_refused``: the fence refuses each packet, and the capture reports it.
    """

    is_refused: bool = True
    now_ns: int = 100 * SECOND
    sockets: list[Socket] = field(default_factory=list)
    events: list[Call | ClosedSocket] = field(default_factory=list)
    logged: deque[tuple[Record, int, int]] = field(default_factory=deque)
    #: Last time when all logged records had been read.
    empty_ns: int = 0
    #: Calls in progress.
    pending: list[_PendingCall] = field(default_factory=list)
    #: Number of the next calls without room.
    drops: int = 0
    has_dropped: bool = False
    #: Number of the next packets that are not logged.
    unlogged: int = 0
    #: Number of the next packets that can't be read when they are refused.
    unreadable: int = 0
    #: Records have the bytes of packets. Some of these are equal.
    has_bytes: bool = True
    _packets: itertools.count[int] = field(default_factory=itertools.count)
    _cookies: itertools.count[int] = field(default_factory=itertools.count)
    _repeated: dict[tuple[object, ...], list[int]] = field(default_factory=dict)
    _remembered: set[int] = field(default_factory=set)

    def wait(self, time_ns: int) -> None:
        """Wait; finish the calls that are in progress for too long."""
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
        """Give a UDP socket a port if it has none; return False if no port is free."""
        if sock.port == 0:
            sock.port = next((each for each in PORTS if self._is_free(UDP, each)), 0)
        return sock.port != 0

    def close(self, sock: Socket) -> None:
        if any(each.sock is sock for each in self.pending):
            return  # a call in progress uses it
        self.sockets.remove(sock)
        if not self.is_refused and sock.cookie in self._remembered:
            self._emit(ClosedSocket(self.now_ns, sock.cookie))

    def dial(self, by: int, port: int, target: int) -> Socket | None:
        """Connect a new TCP socket; its first packet follows, maybe later."""
        opened = self.open(by, TCP, port)
        if opened is not None:
            opened.target = target
            self._call(opened, by, target, is_syn=True)
            self._send(opened, by, target)
        return opened

    def connect(self, sock: Socket, by: int, target: int) -> None:
        """Connect a UDP socket; this sends nothing."""
        if sock.protocol == UDP:
            self._call(sock, by, target, is_connect=True, source_port=0)
            if self._has_port(sock):
                sock.target = target

    def disconnect(self, sock: Socket) -> None:
        """Disconnect a UDP socket (AF_UNSPEC): it loses its port and stays open; without event."""
        if sock.protocol == UDP and not any(each.sock is sock for each in self.pending):
            sock.target, sock.port = None, 0

    def send(self, sock: Socket, by: int, target: int | None = None) -> None:
        """Send a UDP datagram to a target; without one, to the connected target."""
        if sock.protocol != UDP or not self._has_port(sock):
            return
        if target is not None:
            self._call(sock, by, target)
        receiver = sock.target if target is None else target
        if receiver is not None:
            self._send(sock, by, receiver)

    def send_again(self, sock: Socket, by: int) -> None:
        """Send again on a TCP socket: its opener the first packet, another holder data."""
        if sock.protocol != TCP or sock.target is None:
            return
        if self.now_ns - sock.opened_ns > LATEST_NS:
            return
        if by == sock.opener:
            self._send(sock, by, sock.target)
        else:
            self._send(sock, by, sock.target, tcp_flags=ACK)

    def send_raw(self, by: int, protocol: int, port: int, target: int) -> None:
        """Send a packet made by hand: a SYN from any port, or a ping.

        The kernel does not report the sender of a SYN that is not refused, so it is not sent then.
        """
        if protocol == TCP and not self.is_refused:
            return
        made = Socket(0, protocol, port if protocol == TCP else 0, by, {by})
        self._send(made, by, target)

    def send_frame(self, by: int) -> None:
        self._send(Socket(0, RAW, 0, by, {by}), by, 0, rule="link")

    def skip_log(self) -> None:
        """Do not log the next packets."""
        self.unlogged += 1

    def make_unreadable(self) -> None:
        """Make the next packets unreadable when they are refused."""
        self.unreadable += 1

    def drop_call(self) -> None:
        """Drop one more of the next calls."""
        self.drops += 1

    def go_on(self, number: int) -> None:
        """Continue one of the calls in progress."""
        if self.pending:
            self._go_on(self.pending[number % len(self.pending)])

    def read(self, most: int) -> list[Sent]:
        """Return the next logged packets, after all calls until then were reported."""
        while self.pending:
            self.go_on(0)
        since_ns = self.empty_ns
        found = [self.logged.popleft() for _ in range(min(most, len(self.logged)))]
        if not self.logged:
            self.empty_ns = self.now_ns
        self.now_ns += 1000
        return [
            Sent(LoggedRecord(record, since_ns, self.now_ns, time_ns), time_ns, by)
            for record, time_ns, by in found
        ]

    @property
    def is_overdue(self) -> bool:
        return bool(self.logged) and self.now_ns - self.logged[0][1] > LATEST_NS // 2

    def _later(
        self, sock: Socket | None, finish: Callable[[], None], *, is_sent: bool = False
    ) -> None:
        self.pending.append(_PendingCall(sock, self.now_ns, finish, is_sent=is_sent))

    def _is_due(self, pending: _PendingCall, time_ns: int) -> bool:
        most_ns = SECOND // 2 if pending.is_sent else LATEST_NS // 2
        return self.now_ns + time_ns - pending.since_ns > most_ns

    def _go_on(self, pending: _PendingCall) -> None:
        self.pending.remove(pending)
        pending.finish()

    def _call(self, sock: Socket, by: int, target: int, **facts: Any) -> None:
        if not self.is_refused:
            self._emit(self._event(sock, by, target, **facts))

    def _send(self, sock: Socket, by: int, target: int, **facts: Any) -> None:
        """Send a packet, now or later."""

        def go_on() -> None:
            number = 1 + next(self._packets) % 5
            self._log(sock, by, target, captured_sum=number if self.has_bytes else None, **facts)
            if self.is_refused:
                refused = self._refused(sock, by, target, **facts)._replace(sum=number)
                self._later(sock, lambda: self._emit(refused), is_sent=True)

        self._later(sock, go_on)

    def _refused(self, sock: Socket, by: int, target: int, **facts: Any) -> Call:
        if facts.get("rule") == "link":
            return self._event(sock, by, target, is_frame=True)
        is_syn = sock.protocol == TCP and facts.get("tcp_flags", SYN) == SYN
        event = self._event(sock, by, target, is_syn=is_syn)
        if sock.protocol == TCP and not is_syn:  # the kernel does not know who wrote the data
            event = event._replace(image=UNKNOWN_IMAGE)
        if sock.protocol not in {TCP, UDP}:
            event = event._replace(source_port=0, destination_port=0)
        if self.unreadable:
            self.unreadable -= 1
            event = event._replace(is_any=True, source_port=0, destination_port=0)
        return event

    def _event(self, sock: Socket, by: int, target: int, **facts: Any) -> Call:
        address, port = TARGETS[target]
        event = call(
            by,
            self.now_ns,
            socket=sock.cookie,
            protocol=sock.protocol,
            source_port=sock.port,
            destination=packed(address),
            destination_port=port,
        )
        return event._replace(**facts)

    def _log(self, sock: Socket, by: int, target: int, **facts: Any) -> None:
        self.now_ns += 100
        if self.unlogged and self.is_refused:
            self.unlogged -= 1
            return
        address, port = TARGETS[target]
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

    def _emit(self, event: Call | ClosedSocket) -> None:
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
        if self.drops:
            self.drops, self.has_dropped = self.drops - 1, True
        else:
            self.events.append(event)
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
