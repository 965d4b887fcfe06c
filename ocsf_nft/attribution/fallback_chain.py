"""Attribution of log records to the processes that sent the packets, by the best method.

The methods, best first: ``capture`` (BPF programs saw the sender), ``socket`` (a process still has
the packet's socket open), ``user`` (only the user id is known), ``none``.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal, Self, TypeAlias, TypeVar

import structlog

from ocsf_nft.attribution import process_details
from ocsf_nft.attribution.bpf_capture import Capture, cookie
from ocsf_nft.attribution.capture_method import CaptureMethod
from ocsf_nft.attribution.program_hashes import ProgramHashes
from ocsf_nft.attribution.socket_lookups import LOOKUP_INACTIVE, SocketLookups, wait
from ocsf_nft.attribution.user_names import UserNames
from ocsf_nft.errors import OcsfNftError, UnsupportedError
from ocsf_nft.process import Attribution, Seen

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence

    from ocsf_nft.attribution.bpf_capture import ProcessImage
    from ocsf_nft.attribution.packet_matching import Match
    from ocsf_nft.netns import Namespace
    from ocsf_nft.process import Process
    from ocsf_nft.record import Record

_log = structlog.get_logger()
_T = TypeVar("_T")

#: The best method to be used.
TopMethod: TypeAlias = Literal["capture", "socket", "user"]
#: The kernel reports a refused packet microseconds after its record, so this delay is enough.
_EVENT_DELAY_SECONDS: Final = 0.001
_CHECK_SECONDS: Final = 1.0
#: Maximum number of reads at once: more than a ring holds, unless events are added meanwhile.
_MOST_READS: Final = 32
#: Number of records to process before other tasks get a turn: about a millisecond of work.
_SLICE: Final = 16
#: The rules that match packets from processes of the sandbox.
_PROCESS_RULES: Final = frozenset({"egress", "link"})

_NOT_SEEN: Final = "no process was seen to attempt this since the last report"
_ONE_SENDER_SEEN: Final = (
    "it sent one of the packets; the senders of the other packets were not seen"
)
_NO_PROCESS: Final = Attribution(
    method="none", reason="no process of the sandbox sent it by a socket"
)


class FallbackChain:
    """Finder of the process that sent each logged packet, by the best method that this host allows.

    ``sandboxes`` maps names to network namespaces. ``permissive`` has the names of sandboxes with a
    permissive fence. A lookup takes at most ``wait_seconds``. Program files of at most
    ``hashed_bytes`` bytes are hashed; 0 disables hashes.
    """

    def __init__(
        self,
        sandboxes: Mapping[str, Namespace],
        *,
        permissive: Collection[str] = (),
        top: TopMethod = "capture",
        wait_seconds: float = 0.05,
        hashed_bytes: int = 0,
    ) -> None:
        self._sandboxes = sandboxes
        self._permissive = permissive
        self._top = top
        #: Maximum time that a log record waits for its attribution.
        self.wait_seconds = wait_seconds
        self._names = UserNames()
        self._hashes = ProgramHashes(hashed_bytes) if hashed_bytes else None
        self._capture: CaptureMethod | None = None
        self._dropped = 0
        self._lookups = SocketLookups(sandboxes if top != "user" else {}, self._hashes)
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
        """Start the best attribution method that this host allows.

        The start never fails, because the attribution method ``user`` is always available.
        """
        if self._sandboxes and self._top != "user":
            opening = asyncio.ensure_future(self._open())
            try:
                await asyncio.shield(opening)
            except asyncio.CancelledError:
                await asyncio.wait([opening])
                await self.__aexit__()
                raise
        if self.reason is not None:
            _log.info("not every process can be named", method=self.method, reason=self.reason)
        if self._capture is not None:
            loop = asyncio.get_running_loop()
            for descriptor in self._capture.capture.descriptors:
                loop.add_reader(descriptor, self._read)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop the BPF programs and the socket lookups."""
        self._close_capture()
        await self._lookups.close()

    async def watch_capture(self, on_fallback: Callable[[str], Awaitable[None]]) -> None:
        """Wait until the attribution method ``capture`` fails, then call ``on_fallback``.

        The argument of ``on_fallback`` is the reason for the failure. If ``capture`` is not in use,
        return at once, and do not call ``on_fallback``.
        """
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
            await self._lookups.open()
            await on_fallback(self.reason or "")

    async def attributions(
        self, sandbox: str, records: Sequence[Record], since_ns: int
    ) -> list[Attribution]:
        """Return for each of ``records`` which process sent the logged packet, if known.

        Pass ``records`` in the order of the kernel's log. All were logged after ``since_ns``
        (CLOCK_BOOTTIME), so packets that BPF programs saw earlier are ignored.
        """
        if not records or sandbox not in self._sandboxes:
            return [_user_attribution(each, LOOKUP_INACTIVE) for each in records]
        deadline = asyncio.get_running_loop().time() + self.wait_seconds
        found = await self._capture_attributions(sandbox, records, since_ns, deadline)
        uncertain = [
            number
            for number, (record, known) in enumerate(zip(records, found, strict=True))
            if _is_sent(record) and (known is None or known.confidence == "low")
        ]
        looked_up = await self._lookups.attributions(
            sandbox, [records[each] for each in uncertain], deadline
        )
        for number, result in zip(uncertain, looked_up, strict=True):
            known = found[number]
            if isinstance(result, str):
                found[number] = known or _user_attribution(records[number], result)
            elif known is None or result.process is not None:
                found[number] = result
        attributions = [each or _NO_PROCESS for each in found]
        results = list(map(self._with_names, records, attributions))
        if self._names.missing:
            await self._resolve_names(deadline)
            results = list(map(self._with_names, records, attributions))
        return results

    def since_last(
        self, sandbox: str, record: Record, packets: int, began_ns: int
    ) -> Attribution | None:
        """Return the processes that sent a flow's packets since the previous call; None if unknown.

        ``record`` identifies the flow. Packets after ``began_ns`` (ns since 1970) are left for the
        next call. The confidence is high only if BPF programs saw exactly ``packets`` packets.
        """
        if self._capture is None or sandbox not in self._sandboxes:
            return None
        # The kernel's counters, which show ``packets``, were read from ``began_ns`` on.
        found = self._capture.since_last(sandbox, record, packets, began_ns)
        return None if found is None else self._with_names(record, found)

    def mark_reported(self, sandbox: str, record: Record, process: Process | None) -> None:
        """Exclude a packet from later results of :meth:`since_last`, because an event reports it.

        ``record`` is the packet's log record. ``process`` is the sender that the event names; None
        if the event names no sender.
        """
        if self._capture is not None and sandbox in self._sandboxes:
            self._capture.mark_reported(sandbox, record, process)

    def user_attribution(self, record: Record) -> Attribution:
        """Return an attribution to the user in ``record``, for a flow without a known process.

        The attribution method is ``none`` if ``record`` has no user, or if no process of the
        sandbox sent the record's packet.
        """
        return self._with_names(record, _user_attribution(record, _NOT_SEEN))

    def _with_names(self, record: Record, found: Attribution) -> Attribution:
        return replace(
            found,
            user_name=None if record.uid is None else self._names.cached("user", record.uid),
            group_name=None if record.gid is None else self._names.cached("group", record.gid),
        )

    async def _open(self) -> None:
        if self._top == "capture":
            await asyncio.to_thread(self._open_capture)
        if self._capture is None:
            await self._lookups.open()
        self._lookups.is_late = True

    def _open_capture(self) -> None:
        try:
            names = {name: cookie(each) for name, each in self._sandboxes.items()}
            self._lookups.cookies = names
            permissive = {names[each] for each in self._permissive if each in names}
            capture = self._start_capture(names.values(), permissive)
            try:
                self._capture = CaptureMethod(capture, names, self._names)
            except BaseException:
                capture.close()
                raise
        except OcsfNftError as error:
            self.reason = str(error)

    def _start_capture(self, cookies: Collection[int], permissive: Collection[int]) -> Capture:
        try:
            return Capture(cookies, permissive=permissive)
        except UnsupportedError as error:
            self.reason = str(error)
            # A kernel that does not describe its types (BTF): capture only system calls, without
            # process details.
            return Capture(cookies, permissive=permissive, knows_types=False)

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
        self, sandbox: str, records: Sequence[Record], since_ns: int, deadline: float
    ) -> list[Attribution | None]:
        captured = self._capture
        if captured is None:
            return [None] * len(records)
        # The record of an inbound packet may have the uid of its receiver: select sent packets.
        sent = [number for number, record in enumerate(records) if _is_sent(record)]
        sent_records = [records[number] for number in sent]
        await self.read_events()
        for begin in range(0, len(sent), _SLICE):
            if begin:
                await asyncio.sleep(0)
            if captured.is_event_pending(sandbox, sent_records[begin : begin + _SLICE]):
                await asyncio.sleep(_EVENT_DELAY_SECONDS)
                await self.read_events()
                break
        matches = await _in_slices(captured.matches(sandbox, sent_records, since_ns))
        found = await _in_slices(captured.attribution(sandbox, each) for each in matches)
        if self._names.missing:
            await self._resolve_names(deadline)
            found = await _in_slices(captured.attribution(sandbox, each) for each in matches)
        if self._hashes is not None:
            await self._add_hashes(captured, matches, found, deadline)
        by_number = dict(zip(sent, found, strict=True))
        return [by_number.get(number) for number in range(len(records))]

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


def limit_to_one_packet(known: Attribution) -> Attribution:
    """Weaken the attribution of one packet, to use it for a whole group of packets.

    The result names the process of ``known`` only as a possible sender, with low confidence.
    If ``known`` names no process as the sender, it is returned unchanged.
    """
    if known.process is None:
        return known
    return replace(
        known,
        confidence="low",
        reason=_ONE_SENDER_SEEN,
        process=None,
        seen=(Seen(process=known.process),),
    )


def _is_sent(record: Record) -> bool:
    return record.rule in _PROCESS_RULES and record.uid is not None


def _user_attribution(record: Record, reason: str) -> Attribution:
    if not _is_sent(record):
        return _NO_PROCESS
    return Attribution(method="user", confidence="high", reason=reason)
