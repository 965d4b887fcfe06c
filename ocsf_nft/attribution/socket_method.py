"""The rung ``socket``: who has the socket that a packet came from, looked up afterwards.

For hosts where the kernel can't be asked who sends. A process is named where all of this holds:

- no socket that had the packet's port has ended since (:mod:`ended`): so the one that sent it is
  among those that have the port now, and whoever has taken the port after it is never named;
- they are one process's, which has opened them itself, and nobody who had them too is gone
  (:mod:`holders`);
- every process that can have them was looked at.

Where only the first holds, those that have the socket are told as ones that it may have been. A
raw, ping, packet or UDP-Lite socket doesn't say that it has ended: who has one now, of the
packet's user, may have sent it, and no more is said. Everything else is unknown, and that is most
of TCP: a refused connection's socket has lost its port by the time that anybody looks.

One case stays possible. A process sends, then gives up the port or its copy of the socket and
stays alive. Another process of the same user has the port when the record is read. A process does
so by ``connect`` to AF_UNSPEC, or a child closes an inherited socket. That needs milliseconds, but
a corked IPv6 datagram keeps its port for any time. So the confidence is at most medium.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from ocsf_nft.attribution import procfs
from ocsf_nft.attribution.sock_diag import Tables
from ocsf_nft.attribution.socket_closed import WATCHED, Ended
from ocsf_nft.attribution.socket_holders import holders
from ocsf_nft.errors import OcsfNftError
from ocsf_nft.process import Attribution, Process, Seen

if TYPE_CHECKING:
    from ocsf_nft.attribution.proc_net_sockets import Socket
    from ocsf_nft.attribution.program_hashes import Hashes
    from ocsf_nft.attribution.socket_holders import Holder, Scan
    from ocsf_nft.netns import Namespace
    from ocsf_nft.record import Record

#: How much later than its packet a record may be read: on the output hook the kernel gives no time.
_LATE_NS: Final = 5_000_000_000
#: How long a lookup may take, facts apart.
_BUDGET_NS: Final = 100_000_000
#: How long the kernel has to tell that a socket has ended that a table had no more.
_GRACE_SECONDS: Final = 0.003
#: So many of several are named.
_MOST_SEEN: Final = 16
_PORTS: Final = frozenset({socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_UDPLITE})
_PINGS: Final = frozenset({(4, socket.IPPROTO_ICMP), (6, socket.IPPROTO_ICMPV6)})


class _Watch(NamedTuple):
    """Whose end is watched: the sockets with one port."""

    ended: Ended
    protocol: int
    port: int

    def doubt(self, sent_ns: int) -> str | None:
        """Why the socket that sent a packet may not be one of those that have its port."""
        return self.ended.doubt(self.protocol, self.port, sent_ns, slack_ns=_LATE_NS)


class _Candidates(NamedTuple):
    """The sockets that a packet may have come from.

    ``what`` names them. ``watch`` is None where nobody tells when one of their kind ends.
    ``has_others``: a socket of another user might have been it too.
    """

    sockets: tuple[Socket, ...]
    what: str
    watch: _Watch | None = None
    has_others: bool = False


class SocketLookup:
    """Looks up who sent a packet, in one sandbox's namespace.

    To be opened before the source of its records is: it knows nothing of packets from before.
    """

    def __init__(self, namespace: Namespace, hashes: Hashes | None = None) -> None:
        self._tables = Tables(namespace)
        self._hashes = hashes
        self._ended: Ended | None = None
        self._since_ns = 0
        self._lock = threading.Lock()
        self._opened = contextlib.ExitStack()
        self._is_open = False

    def __enter__(self) -> Self:
        """Begin to watch. Raises AbsentError, UnsupportedError when the namespace isn't to be had.

        Takes a millisecond or two.
        """
        with contextlib.ExitStack() as opened:
            opened.enter_context(self._tables)
            # Without, nobody is named of whom that is needed.
            with contextlib.suppress(OSError):
                self._ended = opened.enter_context(Ended(self._tables.namespace))
            self._opened = opened.pop_all()
        self._since_ns = _now_ns()
        self._is_open = True
        return self

    def __exit__(self, *_: object) -> None:
        """Close the sockets of the namespace. A lookup in another thread ends without a result.

        Blocks for a tenth of a second at most, while such a lookup reads the namespace's sockets.
        """
        with self._lock:
            self._is_open = False
            self._opened.close()

    def attribution(self, record: Record) -> Attribution | str:
        """Who sent a packet; a string says in a sentence why nobody can be named.

        Blocks, for up to a tenth of a second, and beyond that for as long as a process can have
        those wait who ask for its facts (:func:`procfs.read`). Several threads may call it.
        """
        reason = _out_of_reach(record)
        if reason is not None:
            return reason
        try:
            return self._lookup(record)
        except OcsfNftError as error:
            return str(error)
        except OSError as error:
            return f"the sandbox's sockets can't be looked at: {error.strerror or error}"

    def _lookup(self, record: Record) -> Attribution | str:
        sent_ns = record.time_ns - (time.time_ns() - _now_ns())
        if sent_ns > _now_ns():
            return "the clock was set back since the packet was recorded"
        if sent_ns < self._since_ns:
            return "the packet is from before the sandbox's sockets were watched"
        deadline_ns = time.monotonic_ns() + _BUDGET_NS
        with self._lock:
            if not self._is_open:  # what is held on to may mean another namespace by now
                return "the sandbox's sockets are not watched any more"
            found = self._candidates(record, deadline_ns)
        if not found.sockets:
            return f"the sandbox has no {found.what} any more"
        inodes = {sock.inode for sock in found.sockets} - {0}
        if not inodes:
            return f"the {found.what} is closed: no process has it"
        looked_ns = time.monotonic_ns()
        if found.watch is not None and (doubt := found.watch.doubt(sent_ns)) is not None:
            return doubt
        scan = holders(inodes, self._tables.link, deadline_ns)
        # Who started after it was recorded has not sent it.
        having = [holder for holder in scan.holders if holder.started_ns <= sent_ns]
        if not having:
            return _nobody(found, scan)
        told = self._told(found, scan, having)
        if found.watch is None:
            return told
        elapsed = (time.monotonic_ns() - looked_ns) / 1e9
        time.sleep(max(0.0, _GRACE_SECONDS - elapsed))
        return found.watch.doubt(sent_ns) or told

    def _candidates(self, record: Record, deadline_ns: int) -> _Candidates:
        uid, version = record.uid, record.ip_version
        if record.rule == "link":
            sockets = self._tables.files.packet(deadline_ns)
            return _Candidates(_of_user(sockets, uid), "packet socket of the packet's user")
        if version is None or record.protocol is None:
            return _Candidates((), "socket that sends such packets")
        # Whoever has one writes what headers he likes, also those of another's socket.
        raw = _of_user(self._tables.files.raw(version, deadline_ns), uid)
        if record.protocol in _PORTS:
            return self._with_port(record, record.protocol, raw, deadline_ns)
        ping: tuple[Socket, ...] = ()
        identity = record.details.get("icmp_id")
        if (version, record.protocol) in _PINGS and isinstance(identity, int):
            ping = self._tables.files.ping(version, identity, deadline_ns)
        return _Candidates(_of_user(ping, uid) + raw, "ping or raw socket of the packet's user")

    def _with_port(
        self, record: Record, protocol: int, raw: tuple[Socket, ...], deadline_ns: int
    ) -> _Candidates:
        what = "socket of the packet's user with its port"
        version, port = record.ip_version, record.source_port
        if version is None or port is None:  # a fragment
            return _Candidates((), what)
        if protocol == socket.IPPROTO_TCP:
            what = "socket of the packet's user with its connection"
            sockets = self._tables.tcp(
                version,
                (record.source or "", port),
                (record.destination or "", record.destination_port or 0),
                device=record.out_interface,
                deadline_ns=deadline_ns,
            )
        else:
            sockets = self._tables.by_port(protocol, version, port, deadline_ns=deadline_ns)
        mine = _of_user(sockets, record.uid)
        watch = None
        if self._ended is not None and protocol in WATCHED:
            watch = _Watch(self._ended, protocol, port)
        if not mine:
            return _Candidates((), what)
        if raw:
            what = f"{what}, or a raw one"
        return _Candidates(mine + raw, what, watch, len(mine) < len(sockets))

    def _told(self, found: _Candidates, scan: Scan, having: list[Holder]) -> Attribution | str:
        if len(having) == 1 and self._is_it(found, scan, having[0]):
            process = self._process(having[0])
            if process is None:
                return "the process that had the packet's socket has ended"
            reason = "it has opened the socket with the packet's port, and nobody else has it"
            if scan.unseen is not None:
                reason = f"{reason}; but {scan.unseen}"
            return Attribution(rung="socket", sureness="medium", reason=reason, process=process)
        seen = tuple(
            Seen(process=self._process(holder) or Process(pid=holder.pid))
            for holder in having[:_MOST_SEEN]
        )
        return Attribution(
            rung="socket",
            sureness="low",
            reason=_why_several(found, scan, having),
            seen=seen,
            unnamed=len(having) - len(seen),
        )

    def _is_it(self, found: _Candidates, scan: Scan, holder: Holder) -> bool:
        """Whether the one process that has the socket is the one that used it."""
        return (
            found.watch is not None
            and not found.has_others
            and scan.missed is None
            and holder.doubt is None
            and holder.inodes == {sock.inode for sock in found.sockets}
        )

    def _process(self, holder: Holder) -> Process | None:
        return procfs.read(holder.pid, started_ns=holder.started_ns, hashes=self._hashes)


def _out_of_reach(record: Record) -> str | None:
    """Why no socket of the sandbox can have sent it; None where one can."""
    if record.rule not in {"egress", "link"}:
        return "what a sandbox forwards, or gets, is from no socket of it"
    if record.uid is None:
        return "no process's socket has sent the packet: the kernel did, or it was closed by then"
    return None


def _of_user(sockets: tuple[Socket, ...], uid: int | None) -> tuple[Socket, ...]:
    return tuple(sock for sock in sockets if sock.uid == uid)


def _nobody(found: _Candidates, scan: Scan) -> str:
    if scan.holders:
        return f"the {found.what} is had only by processes that started later than the packet"
    gap = scan.missed or scan.unseen
    return f"no process has the {found.what}" + ("" if gap is None else f", but {gap}")


def _why_several(found: _Candidates, scan: Scan, having: list[Holder]) -> str:
    if found.watch is None:
        who = "it has" if len(having) == 1 else "each of them has"
        return f"{who} a {found.what} now; the one that sent the packet may be gone"
    if len(having) > 1:
        return f"each of them has the {found.what}"
    (holder,) = having
    why = holder.doubt or scan.missed
    if why is None:
        why = "another socket may have sent the packet"
    return f"it has the {found.what}, but {why}"


def _now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
