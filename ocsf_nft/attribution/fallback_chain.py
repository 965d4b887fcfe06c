"""Attribution of log records to the processes that sent the packets, by the best method.

The methods, best first: ``capture`` (BPF programs saw the sender), ``socket`` (a process still has
the packet's socket open), ``user`` (only the user id is known), ``none``.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Self, TypeAlias, TypeVar

import structlog

from ocsf_nft.attribution import process_details, user_method
from ocsf_nft.attribution.bpf_capture import Capture, cookie
from ocsf_nft.attribution.capture_method import CaptureMethod
from ocsf_nft.attribution.program_hashes import ProgramHashes
from ocsf_nft.attribution.socket_lookups import (
    LOOKUP_INACTIVE,
    AttachedNamespace,
    SocketLookups,
    wait,
)
from ocsf_nft.attribution.user_names import UserNames
from ocsf_nft.errors import OcsfNftError, UnsupportedError
from ocsf_nft.process import as_candidate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from ocsf_nft.attribution.bpf_capture import ProcessImage
    from ocsf_nft.attribution.packet_matching import Match
    from ocsf_nft.netns import Namespace
    from ocsf_nft.process import Attribution, Process
    from ocsf_nft.record import Record

_log = structlog.get_logger()
_T = TypeVar("_T")

#: The best method to be used.
TopMethod: TypeAlias = Literal["capture", "socket", "user"]
#: The kernel usually reports a refused packet microseconds after its record.
_EVENT_DELAY_SECONDS: Final = 0.001
_CHECK_SECONDS: Final = 1.0
#: Maximum number of reads at once: more than a ring holds, unless events are added meanwhile.
_MOST_READS: Final = 32
#: Number of records to process before other tasks get a turn: about a millisecond of work.
_SLICE: Final = 16
_NOT_SEEN: Final = "no process was seen to attempt this since the last report"
_NOT_SEEN_SENDING: Final = (
    "it has the packet's socket, but the kernel did not see it send the packet"
)


class LoadedCapture(NamedTuple):
    """Capture that is loaded into the kernel, if any, and the reason for its limits."""

    capture: Capture | None
    #: Reason why the capture is missing, or sees only system calls.
    reason: str | None = None


def load_capture() -> LoadedCapture:
    """Load the BPF programs of the capture; needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN."""
    reason = None
    try:
        try:
            return LoadedCapture(Capture())
        except UnsupportedError as error:
            reason = str(error)
            # A kernel that does not describe its types (BTF): capture only system calls, without
            # process details.
            return LoadedCapture(Capture(knows_types=False), reason)
    except OcsfNftError as error:
        return LoadedCapture(None, str(error))


class FallbackChain:
    """Finder of the process that sent each logged packet, by the best method that this host allows.

    A lookup takes at most ``wait_seconds``. Program files of at most ``hashed_bytes`` bytes are
    hashed; 0 disables hashes. ``loaded`` is the result of an earlier :func:`load_capture`; without
    it, the start loads the capture.
    """

    def __init__(
        self,
        *,
        top: TopMethod = "capture",
        wait_seconds: float = 0.05,
        hashed_bytes: int = 0,
        loaded: LoadedCapture | None = None,
    ) -> None:
        self._top = top
        self._loaded = loaded
        #: Attached namespaces.
        self._attached: set[AttachedNamespace] = set()
        self._starting: asyncio.Future[None] | None = None
        self._is_started = asyncio.Event()
        #: Maximum time that a log record waits for its attribution.
        self.wait_seconds = wait_seconds
        self._names = UserNames()
        self._hashes = ProgramHashes(hashed_bytes) if hashed_bytes else None
        self._capture: CaptureMethod | None = None
        self._dropped = 0
        self._lookups = SocketLookups(self._hashes)
        #: Query of the name service; only one runs at a time.
        self._asking: asyncio.Future[None] | None = None
        #: Reason why the requested top method is not in use; None if it is in use.
        self.reason: str | None = None

    @property
    def method(self) -> TopMethod:
        """Return the best attribution method that is in use now, for example ``socket``."""
        if self._capture is not None:
            return "capture"
        return "socket" if self._lookups.opened else "user"

    @property
    def dropped(self) -> int:
        """Return how many events of the BPF programs the kernel dropped because of full buffers."""
        return self._dropped if self._capture is None else sum(self._capture.dropped)

    async def __aenter__(self) -> Self:
        """Return the chain; :meth:`start` or the first :meth:`attach` starts it."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop the BPF programs and the socket lookups."""
        if self._starting is not None and not self._starting.done():
            await asyncio.wait([self._starting])
        self._close_capture()
        await self._lookups.close()

    async def start(self) -> None:
        """Start the best attribution method that this host allows.

        The start never fails, because the attribution method ``user`` is always available. A second
        call does nothing.
        """
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._start())
        await asyncio.shield(self._starting)

    async def attach(
        self, namespace: Namespace, *, is_permissive: bool = False
    ) -> AttachedNamespace:
        """Find the senders of packets in a network namespace from now on.

        ``is_permissive`` is true if the namespace's fence accepts the packets that it logs. An
        error leaves the attribution method ``user`` for this namespace.
        """
        attached = AttachedNamespace(namespace)
        if self._top == "user":
            return attached
        await self.start()
        if self._capture is not None:
            with contextlib.suppress(OcsfNftError):  # the namespace is missing
                attached.cookie = await asyncio.to_thread(cookie, namespace)
        self._attached.add(attached)
        self._lookups.add(attached)
        if not self._watch(attached, is_permissive=is_permissive):
            await self._lookups.open(attached, is_late=False)
        return attached

    async def detach(self, attached: AttachedNamespace) -> None:
        """Stop finding the senders of packets in a namespace; a second call does nothing."""
        self._attached.discard(attached)
        # A successor may be attached to the same namespace.
        is_last = all(each.cookie != attached.cookie for each in self._attached)
        if self._capture is not None and attached.cookie is not None and is_last:
            self._capture.unwatch(attached.cookie)
        await self._lookups.remove(attached)

    async def set_permissive(self, attached: AttachedNamespace, *, is_permissive: bool) -> None:
        """Note that the fence of a namespace accepts the packets that it logs, or refuses them."""
        if attached in self._attached and not self._watch(attached, is_permissive=is_permissive):
            await self._lookups.open(attached, is_late=True)

    def _watch(self, attached: AttachedNamespace, *, is_permissive: bool) -> bool:
        """Let the capture report the senders in a namespace; return False if it can't."""
        if self._capture is None or attached.cookie is None:
            return False
        try:
            self._capture.watch(attached.cookie, is_permissive=is_permissive)
        except UnsupportedError as error:
            attached.reason = str(error)
            _log.info("not every process can be named", method="socket", reason=attached.reason)
            return False
        attached.reason = None
        return True

    async def watch_capture(self, on_fallback: Callable[[str], Awaitable[None]]) -> None:
        """Wait until the attribution method ``capture`` fails, then call ``on_fallback``.

        The argument of ``on_fallback`` is the reason for the failure. If the chain starts without
        ``capture``, do not call ``on_fallback``.
        """
        await self._is_started.wait()
        initial = self.method
        while self.method == "capture":
            await asyncio.sleep(_CHECK_SECONDS)
            try:
                if self._capture is not None:
                    self._capture.capture.check()
            except UnsupportedError as error:
                self._fall_back(error)
            await self.read_events()
        if initial == "capture":
            for attached in tuple(self._attached):
                await self._lookups.open(attached, is_late=True)
            await on_fallback(self.reason or "")

    async def attributions(
        self, attached: AttachedNamespace | None, records: Sequence[Record], since_ns: int
    ) -> list[Attribution]:
        """Return for each of ``records`` which process sent the logged packet, if known.

        Pass ``records`` in the order of the kernel's log. All were logged after ``since_ns``
        (CLOCK_BOOTTIME), so packets that BPF programs saw earlier are ignored.
        """
        if not records or attached is None or attached not in self._attached:
            return [user_method.user_attribution(each, LOOKUP_INACTIVE) for each in records]
        deadline = asyncio.get_running_loop().time() + self.wait_seconds
        found = await self._capture_attributions(attached, records, since_ns, deadline)
        uncertain = [
            number
            for number, (record, known) in enumerate(zip(records, found, strict=True))
            if user_method.is_sent(record) and (known is None or known.confidence == "low")
        ]
        looked_up = await self._lookups.attributions(
            attached, [records[each] for each in uncertain], deadline
        )
        for number, result in zip(uncertain, looked_up, strict=True):
            known, record = found[number], records[number]
            if isinstance(result, str):
                found[number] = known or user_method.user_attribution(record, result)
                continue
            # A raw socket can send from any port, and the capture has seen no sender.
            is_candidate = record.protocol != socket.IPPROTO_TCP and self._reports_packets(attached)
            by_socket = as_candidate(result, _NOT_SEEN_SENDING) if is_candidate else result
            if known is None or by_socket.process is not None:
                found[number] = by_socket
        attributions = [each or user_method.NO_PROCESS for each in found]
        results = list(map(self._with_names, records, attributions))
        if self._names.missing:
            await self._resolve_names(deadline)
            results = list(map(self._with_names, records, attributions))
        return results

    def _reports_packets(self, attached: AttachedNamespace) -> bool:
        captured, netns = self._capture, attached.cookie
        return captured is not None and netns is not None and captured.reports_packets(netns)

    def since_last(
        self, attached: AttachedNamespace | None, record: Record, packets: int, began_ns: int
    ) -> Attribution | None:
        """Return the processes that sent a flow's packets since the previous call; None if unknown.

        ``record`` identifies the flow. Packets after ``began_ns`` (ns since 1970) are left for the
        next call. The confidence is high only if BPF programs saw exactly ``packets`` packets.
        """
        netns = None if attached is None else attached.cookie
        if self._capture is None or netns is None or not self._capture.is_watched(netns):
            return None
        # The kernel's counters, which show ``packets``, were read from ``began_ns`` on.
        found = self._capture.since_last(netns, record, packets, began_ns)
        return None if found is None else self._with_names(record, found)

    def mark_reported(
        self, attached: AttachedNamespace | None, record: Record, process: Process | None
    ) -> None:
        """Exclude a packet from later results of :meth:`since_last`, because an event reports it.

        ``record`` is the packet's log record. ``process`` is the sender that the event names; None
        if the event names no sender.
        """
        netns = None if attached is None else attached.cookie
        if self._capture is not None and netns is not None and self._capture.is_watched(netns):
            self._capture.mark_reported(netns, record, process)

    async def described(self, process: Process, at_ns: int) -> Process:
        """Do the same as :meth:`ProcessSnapshots.described`, if the capture works."""
        await self.read_events()
        if self._capture is None:
            return process
        return self._capture.snapshots.described(process, at_ns)

    def user_attribution(self, record: Record) -> Attribution:
        """Return an attribution to the user in ``record``, for a flow without a known process.

        The attribution method is ``none`` if ``record`` has no user, or if no process of the
        sandbox sent the record's packet.
        """
        return self._with_names(record, user_method.user_attribution(record, _NOT_SEEN))

    def _with_names(self, record: Record, found: Attribution) -> Attribution:
        return replace(
            found,
            user_name=None if record.uid is None else self._names.cached("user", record.uid),
            group_name=None if record.gid is None else self._names.cached("group", record.gid),
        )

    async def _start(self) -> None:
        if self._top == "capture":
            await asyncio.to_thread(self._open_capture)
        if self.reason is not None:
            _log.info("not every process can be named", method=self.method, reason=self.reason)
        if self._capture is not None:
            loop = asyncio.get_running_loop()
            for descriptor in self._capture.capture.descriptors:
                loop.add_reader(descriptor, self._read)
        self._is_started.set()

    def _open_capture(self) -> None:
        capture, self.reason = self._loaded or load_capture()
        self._loaded = None
        if capture is None:
            return
        try:
            self._capture = CaptureMethod(capture, self._names)
        except OcsfNftError as error:
            capture.close()
            self.reason = str(error)
        except BaseException:
            capture.close()
            raise

    def _read(self) -> bool:
        """Read some of the new events of the BPF programs; return True if there may be more."""
        try:
            return self._capture is not None and self._capture.read_events()
        except UnsupportedError as error:
            self._fall_back(error)
            return False

    def _fall_back(self, error: UnsupportedError) -> None:
        self._close_capture()
        self.reason = str(error)
        _log.error("processes are not captured any more", reason=self.reason)

    def _close_capture(self) -> None:
        self._dropped = self.dropped
        captured, self._capture = self._capture, None
        if captured is not None:
            for descriptor in captured.capture.descriptors:
                asyncio.get_running_loop().remove_reader(descriptor)
            captured.capture.close()

    async def read_events(self) -> None:
        """Read new events of the BPF programs, at most some thousands."""
        for _ in range(_MOST_READS):
            if not self._read():
                return
            await asyncio.sleep(0)
        # An unread event may name another sender of any packet so far.
        if self._capture is not None:
            self._capture.note_dropped()

    async def _capture_attributions(
        self,
        attached: AttachedNamespace,
        records: Sequence[Record],
        since_ns: int,
        deadline: float,
    ) -> list[Attribution | None]:
        captured, netns = self._capture, attached.cookie
        if captured is None or netns is None or not captured.is_watched(netns):
            return [None] * len(records)
        # The record of an inbound packet may have the uid of its receiver: select sent packets.
        sent = [number for number, record in enumerate(records) if user_method.is_sent(record)]
        sent_records = [records[number] for number in sent]
        await self.read_events()
        for begin in range(0, len(sent), _SLICE):
            if begin:
                await asyncio.sleep(0)
            if captured.is_event_pending(netns, sent_records[begin : begin + _SLICE]):
                await asyncio.sleep(_EVENT_DELAY_SECONDS)
                await self.read_events()
                await self._wait_for_reports(captured, netns, sent_records, deadline)
                break
        matches = await _in_slices(captured.matches(netns, sent_records, since_ns))
        found = await _in_slices(captured.attribution(netns, each) for each in matches)
        if self._names.missing:
            await self._resolve_names(deadline)
            found = await _in_slices(captured.attribution(netns, each) for each in matches)
        if self._hashes is not None:
            await self._add_hashes(captured, matches, found, deadline)
        by_number = dict(zip(sent, found, strict=True))
        return [by_number.get(number) for number in range(len(records))]

    async def _wait_for_reports(
        self, captured: CaptureMethod, netns: int, records: Sequence[Record], deadline: float
    ) -> None:
        """Wait for reports that are still to come, for at most half of ``wait_seconds``."""
        loop, delay = asyncio.get_running_loop(), _EVENT_DELAY_SECONDS
        until = deadline - self.wait_seconds / 2  # the lookups of sockets need the rest
        while self._capture is captured and loop.time() + delay <= until:
            if not any(await _in_slices(captured.are_awaited(netns, records))):
                return
            await asyncio.sleep(delay)
            await self.read_events()
            delay *= 2

    async def _add_hashes(
        self,
        captured: CaptureMethod,
        matches: Sequence[Match | None],
        found: list[Attribution | None],
        deadline: float,
    ) -> None:
        # The programs that the senders ran, by the numbers of the packets.
        images = {
            number: match.calls[0].image
            for number, (match, by) in enumerate(zip(matches, found, strict=True))
            if match is not None and by is not None and by.process is not None
        }
        read: dict[ProcessImage, Process | None] = dict.fromkeys(images.values())

        def read_all(until: float) -> None:
            for image in read:
                if time.monotonic() < until:
                    read[image] = process_details.read(
                        image.pid, started_ns=image.started_ns, hashes=self._hashes
                    )

        await self._lookups.run_in_thread(read_all, deadline)
        # Any process that has run another program meanwhile has a new event by now.
        await self.read_events()
        for number, image in images.items():
            by, seen = found[number], read[image]
            if seen is None or by is None or by.process is None:
                continue
            # Exec events may be missing for a process that left the sandbox: compare the paths.
            if captured.snapshots.is_latest(image) and seen.path == by.process.path:
                found[number] = replace(by, process=replace(by.process, sha256=seen.sha256))

    async def _resolve_names(self, deadline: float) -> None:
        if self._asking is None or self._asking.done():
            self._asking = asyncio.ensure_future(asyncio.to_thread(self._names.resolve))
        await wait(self._asking, deadline)


async def _in_slices(results: Iterable[_T]) -> list[_T]:
    """Collect results, and let other tasks run between them."""
    found: list[_T] = []
    for each in results:
        found.append(each)
        if len(found) % _SLICE == 0:
            await asyncio.sleep(0)
    return found
