"""Attribution method ``socket``: search for the process that has the socket of a refused packet.

The search begins after the packet was sent, so the sender is often unknown or only a possible one.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from ocsf_nft import clocks
from ocsf_nft.attribution import process_details
from ocsf_nft.attribution.sock_diag import WATCHED_PROTOCOLS, ClosedSockets, SocketTables
from ocsf_nft.attribution.socket_holders import find_holders
from ocsf_nft.errors import OcsfNftError
from ocsf_nft.process import Attribution, Process, Seen

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocsf_nft.attribution.proc_net_sockets import Socket
    from ocsf_nft.attribution.program_hashes import ProgramHashes
    from ocsf_nft.attribution.socket_holders import Holder, Scan
    from ocsf_nft.netns import Namespace
    from ocsf_nft.record import Record

#: Maximum time from a packet until its record is read: the output hook's records have no time.
_LATE_NS: Final = 5_000_000_000
#: Maximum time for a lookup, without the time to read process details.
_BUDGET_NS: Final = 100_000_000
#: Time for the kernel to notify of a closed socket that a table no longer had.
_GRACE_SECONDS: Final = 0.003
#: Part of the elapsed time that process lookups may take, so that they can't slow the service.
_SHARE: Final = 0.25
_MOST_SECONDS: Final = 1.0
#: Maximum number of processes that are named if there are several.
_MOST_SEEN: Final = 16
_PORTS: Final = frozenset({socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_UDPLITE})
_PINGS: Final = frozenset({(4, socket.IPPROTO_ICMP), (6, socket.IPPROTO_ICMPV6)})


class _Candidates(NamedTuple):
    """Sockets that may have sent a packet: all belong to the user (UID) that sent the packet."""

    sockets: tuple[Socket, ...]
    #: Name in messages, for example "ping or raw socket of the packet's user".
    description: str
    #: Returns why a socket with the packet's port may be closed since a time; None if closed
    #: sockets can't be detected.
    closed_since: Callable[[int], str | None] | None = None
    #: True if a socket of another user has the packet's port too.
    has_others: bool = False


class TimeBudget:
    """Limit of the time for process lookups: at most a quarter of the elapsed time.

    Unused time is saved for later lookups, but never more than one second.
    """

    def __init__(self) -> None:
        self._left, self._at = _MOST_SECONDS, time.monotonic()

    def has_time_left(self) -> bool:
        """Return True if the budget has time for another lookup."""
        self.spend(0)
        return self._left > 0

    def spend(self, seconds: float) -> None:
        """Subtract the duration of a lookup, in seconds, from the budget."""
        now = time.monotonic()
        self._left = min(self._left + (now - self._at) * _SHARE, _MOST_SECONDS) - seconds
        self._at = now


class SocketLookup:
    """Lookup of the processes that sent a sandbox's refused packets, by a search for their sockets.

    It can't find the senders of packets that were sent before it is open. Open it before the source
    of the log records, or with ``is_late``: then no record of an earlier packet that is read later
    gets a process.
    """

    def __init__(
        self, namespace: Namespace, hashes: ProgramHashes | None = None, *, is_late: bool = False
    ) -> None:
        self._margin_ns = _LATE_NS if is_late else 0
        self.tables = SocketTables(namespace)
        self._hashes = hashes
        #: Listener for closed sockets; None if the kernel does not report them.
        self.closed: ClosedSockets | None = None
        self._since_ns = 0
        #: Several threads may call :meth:`attribution`.
        self._lock = threading.Lock()
        self._opened = contextlib.ExitStack()
        self._is_open = False

    def __enter__(self) -> Self:
        """Start to watch the sandbox's sockets; the call takes one or two milliseconds.

        Raises AbsentError or UnsupportedError if the sandbox's network namespace is not available.
        """
        with contextlib.ExitStack() as opened:
            opened.enter_context(self.tables)
            # Without it, no process is named if the check for closed sockets is needed.
            with contextlib.suppress(OSError):
                self.closed = opened.enter_context(ClosedSockets(self.tables.namespace))
            self._opened = opened.pop_all()
        self._since_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + self._margin_ns
        self._is_open = True
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching the sandbox's sockets; blocks for at most a tenth of a second.

        After this call, :meth:`attribution` names no process.
        """
        with self._lock:
            self._is_open = False
            self._opened.close()

    def attribution(self, record: Record) -> Attribution | str:
        """Return the process that sent the packet of a log record, or several possible senders.

        A socket of the sandbox must have sent the packet. Return a text with the reason if no
        process can be named. A call normally takes at most 0.1 s, but a hostile sender can delay
        the result.
        """
        try:
            return self._lookup(record)
        except OcsfNftError as error:
            return str(error)
        except OSError as error:
            return f"the sandbox's sockets can't be read: {error.strerror or error}"

    def _lookup(self, record: Record) -> Attribution | str:
        sent_ns = record.time_ns - clocks.epoch_of(time.CLOCK_BOOTTIME)
        if sent_ns > time.clock_gettime_ns(time.CLOCK_BOOTTIME):
            return "the clock was set back since the packet was recorded"
        if sent_ns < self._since_ns:
            return "the packet is from before the sandbox's sockets were watched"
        deadline_ns = time.monotonic_ns() + _BUDGET_NS
        with self._lock:
            if not self._is_open:  # descriptors may be of another namespace by now
                return "the sandbox's sockets are no longer watched"
            found = self._candidates(record, deadline_ns)
        # This is so for most TCP packets: the socket of a refused connection has no port any more.
        if not found.sockets:
            return f"the sandbox no longer has a {found.description}"
        inodes = {sock.inode for sock in found.sockets} - {0}
        if not inodes:
            return f"the {found.description} is closed: no process has it"
        read_ns = time.monotonic_ns()
        closed_since, earliest_ns = found.closed_since, sent_ns - _LATE_NS
        if closed_since is not None and (doubt := closed_since(earliest_ns)) is not None:
            return doubt
        scan = find_holders(inodes, self.tables.link, deadline_ns)
        # A process that started after the packet did not send it.
        holders = [holder for holder in scan.holders if holder.started_ns <= sent_ns]
        if not holders:
            return _reason_without_holder(found, scan)
        result = self._attribution(found, scan, holders)
        # The kernel sends no notification when a raw, ping, packet or UDP-Lite socket is closed, so
        # the result has only possible senders.
        if closed_since is None:
            return result
        elapsed = (time.monotonic_ns() - read_ns) / 1e9
        time.sleep(max(0.0, _GRACE_SECONDS - elapsed))
        return closed_since(earliest_ns) or result

    def _candidates(self, record: Record, deadline_ns: int) -> _Candidates:
        uid, version = record.uid, record.ip_version
        if record.rule == "link":
            sockets = self.tables.files.packet(deadline_ns)
            return _Candidates(_of_user(sockets, uid), "packet socket of the packet's user")
        if version is None or record.protocol is None:
            return _Candidates((), "socket that sends such packets")
        # A process with a raw socket writes any header, also that of another socket.
        raw = _of_user(self.tables.files.raw(version, deadline_ns), uid)
        if record.protocol in _PORTS:
            return self._with_port(record, record.protocol, raw, deadline_ns)
        ping: tuple[Socket, ...] = ()
        identity = record.details.get("icmp_id")
        if (version, record.protocol) in _PINGS and isinstance(identity, int):
            ping = self.tables.files.ping(version, identity, deadline_ns)
        return _Candidates(_of_user(ping, uid) + raw, "ping or raw socket of the packet's user")

    def _with_port(
        self, record: Record, protocol: int, raw: tuple[Socket, ...], deadline_ns: int
    ) -> _Candidates:
        description = "socket of the packet's user with its port"
        version, port = record.ip_version, record.source_port
        if version is None or port is None:  # a fragment
            return _Candidates((), description)
        if protocol == socket.IPPROTO_TCP:
            description = "socket of the packet's user with its connection"
            sockets = self.tables.tcp(
                version,
                (record.source or "", port),
                (record.destination or "", record.destination_port or 0),
                device=record.out_interface,
                deadline_ns=deadline_ns,
            )
        else:
            sockets = self.tables.by_port(protocol, version, port, deadline_ns=deadline_ns)
        users = _of_user(sockets, record.uid)
        if not users:
            return _Candidates((), description)
        closed_since = None
        if self.closed is not None and protocol in WATCHED_PROTOCOLS:
            closed_since = partial(self.closed.doubt, protocol, port)
        if raw:
            description = f"{description}, or a raw one"
        return _Candidates(users + raw, description, closed_since, len(users) < len(sockets))

    def _attribution(
        self, found: _Candidates, scan: Scan, holders: list[Holder]
    ) -> Attribution | str:
        if len(holders) == 1 and self._is_sender(found, scan, holders[0]):
            process = self._process(holders[0])
            if process is None:
                return "the process that had the packet's socket has ended"
            reason = "it opened the socket with the packet's port, and no other process has it"
            if scan.unseen is not None:
                reason = f"{reason}; but {scan.unseen}"
            # Not high: the sender may have given up the port without closing the socket, by
            # ``connect`` to AF_UNSPEC or as a child with an inherited socket. Then this process may
            # have taken the port.
            return Attribution(method="socket", confidence="medium", reason=reason, process=process)
        # Otherwise, each process with such a socket is a possible sender.
        seen = tuple(
            Seen(process=self._process(holder) or Process(pid=holder.pid))
            for holder in holders[:_MOST_SEEN]
        )
        return Attribution(
            method="socket",
            confidence="low",
            reason=_reason_for_several(found, scan, holders),
            seen=seen,
            unnamed=len(holders) - len(seen),
        )

    def _is_sender(self, found: _Candidates, scan: Scan, holder: Holder) -> bool:
        # A process is named as the sender only if all of this is true: no socket with the packet's
        # port was closed since the packet (the caller checks it), only this process has the sockets
        # with the port, it opened them, and every process that can have them was checked. No other
        # holder started before the packet.
        return (
            found.closed_since is not None
            and not found.has_others
            and scan.missed is None
            and holder.doubt is None
            and holder.inodes == {sock.inode for sock in found.sockets}
        )

    def _process(self, holder: Holder) -> Process | None:
        # The holder can delay the read of its arguments (userfaultfd).
        return process_details.read(holder.pid, started_ns=holder.started_ns, hashes=self._hashes)


def _of_user(sockets: tuple[Socket, ...], uid: int | None) -> tuple[Socket, ...]:
    return tuple(sock for sock in sockets if sock.uid == uid)


def _reason_without_holder(found: _Candidates, scan: Scan) -> str:
    if scan.holders:
        return f"only processes that started after the packet have the {found.description}"
    gap = scan.missed or scan.unseen
    return f"no process has the {found.description}" + ("" if gap is None else f", but {gap}")


def _reason_for_several(found: _Candidates, scan: Scan, holders: list[Holder]) -> str:
    if found.closed_since is None:
        subject = "it has" if len(holders) == 1 else "each of them has"
        return f"{subject} a {found.description} now; the sender may have ended"
    if len(holders) > 1:
        return f"each of them has the {found.description}"
    (holder,) = holders
    why = holder.doubt or scan.missed
    if why is None:
        why = "another socket may have sent the packet"
    return f"it has the {found.description}, but {why}"
