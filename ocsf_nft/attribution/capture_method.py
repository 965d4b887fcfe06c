"""Attribution method ``capture``: finds the sender of a logged packet with the help of BPF.

BPF programs in the kernel (the capture) report refused packets and system calls, each with its
process. This module compares these capture events with log records. For events that report many
packets at once, it stores the processes that sent the packets of each flow.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft import clocks
from ocsf_nft.attribution.bpf_capture import UNKNOWN_IMAGE, Call, ProcessSnapshot
from ocsf_nft.attribution.packet_matching import LoggedRecord, RefusedPackets, key_of_record
from ocsf_nft.attribution.process_snapshots import ProcessSnapshots
from ocsf_nft.attribution.send_calls import SendCalls
from ocsf_nft.process import Attribution, Seen

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ocsf_nft.attribution.bpf_capture import Capture, CaptureEvent, Dropped, ProcessImage
    from ocsf_nft.attribution.packet_matching import Match
    from ocsf_nft.attribution.user_names import UserNames
    from ocsf_nft.process import Process
    from ocsf_nft.record import Record

#: Maximum numbers of flows, and of processes of each: they limit the memory that a sandbox fills.
_FLOWS: Final = 2048
_PROCESSES: Final = 32
#: Reports are removed when they are so old: their records and counts came long before. And how
#: often that is checked.
_STORED_NS: Final = 120 * 1_000_000_000
_CLEAN_NS: Final = 10 * 1_000_000_000
#: Number of latest calls that are stored with their times.
_RECENT: Final = 64

_SENT: Final = "the kernel saw it send the packet"
_SEVERAL: Final = "the kernel saw each of them send a packet that may be this one"
_CALLED: Final = "the kernel saw it make a call that may have sent the packet"
_HAD_SOCKET: Final = (
    "it had a socket that may have sent the packet; other processes may have had that socket too, "
    "or there was no room to report some calls"
)
_SENT_ALL: Final = "the kernel saw it send each of the packets"
_SENT_TOGETHER: Final = "the kernel saw them send the packets"
_SENT_SOME: Final = (
    "the kernel saw them attempt this since the last report, but maybe not all of the senders"
)


class FlowTarget(NamedTuple):
    """Key of a flow; the destination is packed: 4 bytes for IPv4, 16 bytes for IPv6."""

    uid: int
    protocol: int
    destination: bytes
    port: int


class FlowCallers(NamedTuple):
    """Processes that sent a flow's packets between two readings of the kernel's counters."""

    #: For each of at most 32 processes: its latest call, and the number of its calls.
    calls: tuple[tuple[Call, int], ...] = ()
    #: Minimum number of further processes that sent packets.
    unnamed: int = 0
    #: True if the numbers of calls are uncertain: another event may report some of the packets.
    is_mixed: bool = False


class _Flow:
    """State of one flow: the processes that sent its packets."""

    __slots__ = ("is_mixed", "latest", "recent", "unnamed", "used_ns", "youngest_ns")

    def __init__(self) -> None:
        #: Latest call of each process, and the number of its calls; ordered by the latest calls.
        self.latest: dict[ProcessImage, tuple[Call, int]] = {}
        #: Latest calls. A list needs a tenth of a deque's memory, and there are thousands of flows.
        self.recent: list[Call] = []
        self.unnamed = 0
        #: Start of the youngest of all processes.
        self.youngest_ns = 0
        self.is_mixed = False
        #: Time of the latest change (CLOCK_BOOTTIME).
        self.used_ns = 0

    def add(self, call: Call) -> None:
        image = call.image
        del self.recent[: -_RECENT + 1]
        self.recent.append(call)
        before, times = self.latest.pop(image, (None, 0))
        if before is None and len(self.latest) >= _PROCESSES:
            del self.latest[next(iter(self.latest))]
            # Any other process may be one that was evicted before.
            if self.unnamed == 0 or image.started_ns > self.youngest_ns:
                self.unnamed += 1
        if before is not None and before.tid != call.tid:
            call = call._replace(tid=0)  # several threads of it
        self.latest[image] = call, times + 1
        self.youngest_ns = max(self.youngest_ns, image.started_ns)

    def remove_one(self, image: ProcessImage) -> None:
        call, times = self.latest.get(image, (None, 0))
        if call is not None and times > 1:
            self.latest[image] = call, times - 1
        else:
            self.latest.pop(image, None)
        removed = next((each for each in reversed(self.recent) if each.image == image), None)
        if removed is not None:
            self.recent.remove(removed)

    def split_after(self, began_ns: int, ended_ns: int) -> _Flow:
        """Move packets after ``began_ns`` to a new flow object, and return the new object.

        The kernel's packet counters were read from ``began_ns`` to ``ended_ns``. A packet sent
        meanwhile may be counted or not: it makes the new object uncertain (``is_mixed``).
        """
        rest = _Flow()
        later = [each for each in self.recent if each.time_ns > began_ns]
        if len(later) == _RECENT:  # there were more than these
            self.is_mixed = rest.is_mixed = True
        # The counters may or may not include the packets of calls during the reading.
        rest.is_mixed |= any(each.time_ns <= ended_ns for each in later)
        for call in later:
            self.remove_one(call.image)
            rest.add(call)
        return rest


class FlowProcesses:
    """Processes that sent packets, for each of the latest flows of one sandbox."""

    def __init__(self) -> None:
        self._flows: OrderedDict[FlowTarget, _Flow] = OrderedDict()

    def add(self, call: Call) -> None:
        """Store the process that sent a packet, under the packet's flow.

        ``call`` is a BPF program's report of a refused packet, or of a sending system call. Reports
        of connect calls, link-layer frames, and unknown processes or destinations are ignored.
        """
        if call.is_connect or call.is_any or call.is_frame or call.image == UNKNOWN_IMAGE:
            return
        target = FlowTarget(call.owner, call.protocol, call.destination, call.destination_port)
        self._flow(target).add(call)

    def _flow(self, target: FlowTarget) -> _Flow:
        found = self._flows.get(target)
        if found is None:
            found = self._flows[target] = _Flow()
        found.used_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._flows.move_to_end(target)
        while len(self._flows) > _FLOWS:
            self._flows.popitem(last=False)
        return found

    def take(self, target: FlowTarget, began_ns: int, ended_ns: int) -> FlowCallers:
        """Remove and return the processes that sent a flow's packets until ``began_ns``.

        Later packets stay stored. The kernel's packet counters were read from ``began_ns`` to
        ``ended_ns`` (CLOCK_BOOTTIME). Packets sent meanwhile may be counted or not: they make the
        next result uncertain.
        """
        flow = self._flows.pop(target, None)
        if flow is None:
            return FlowCallers()
        rest = flow.split_after(began_ns, ended_ns)
        if rest.latest:
            rest.used_ns = flow.used_ns
            self._flows[target] = rest
        return FlowCallers(tuple(flow.latest.values()), flow.unnamed, flow.is_mixed)

    def remove_old(self, before_ns: int) -> None:
        """Remove the flows without a change after ``before_ns`` (CLOCK_BOOTTIME)."""
        while self._flows:
            target, flow = next(iter(self._flows.items()))
            if flow.used_ns > before_ns:
                return
            del self._flows[target]
        self._flows = OrderedDict()  # an empty one has the size of its largest content

    def remove_reported(self, target: FlowTarget, pid: int | None) -> None:
        """Subtract a packet of process ``pid`` from a flow, because an event reports that packet.

        If ``pid`` is None, or the flow has no packet of this process, nothing is subtracted. Then
        the next result of :meth:`take` for this flow is marked as uncertain.
        """
        flow = self._flow(target)
        image = next((each for each in flow.latest if each.pid == pid), None)
        if image is None:
            flow.is_mixed = True
            return
        flow.remove_one(image)
        if not flow.latest and not flow.unnamed and not flow.is_mixed:
            # All calls of the flow are reported. It must not evict a flow with unreported calls.
            del self._flows[target]


def flow_target(record: Record) -> FlowTarget | None:
    """Return the key of the flow to which the packet of a log record belongs.

    Return None if the record lacks a user, a protocol or a destination. Also return None if a
    rule for link-layer frames logged the packet.
    """
    # The counters identify a frame by its link-layer header, which the capture does not report.
    key = key_of_record(record)
    if record.uid is None or key is None or key.protocol is None or not key.destination:
        return None
    return FlowTarget(record.uid, key.protocol, key.destination, key.destination_port)


class _Sandbox:
    """Reports of BPF programs about the processes that send packets in one sandbox."""

    def __init__(self, *, is_refused: bool) -> None:
        #: True if each report is about a refused packet; otherwise, each one is about a system call
        #: that may have sent a packet.
        self.is_refused = is_refused
        self.events: RefusedPackets | SendCalls = RefusedPackets() if is_refused else SendCalls()
        self.flows = FlowProcesses()


class CaptureMethod:
    """Finder of the processes that sent logged packets, by events of BPF programs (the capture).

    ``sandboxes`` maps sandbox names to the kernel's numbers (cookies) of their network namespaces.
    """

    def __init__(self, capture: Capture, sandboxes: Mapping[str, int], names: UserNames) -> None:
        self.capture = capture
        self.snapshots = ProcessSnapshots(names)
        self._by_netns = {
            number: _Sandbox(is_refused=number in capture.refused) for number in sandboxes.values()
        }
        self._by_name = {name: self._by_netns[number] for name, number in sandboxes.items()}
        self.dropped: Dropped = capture.dropped()
        self._cleaned_ns = 0
        self._began_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def read_events(self) -> bool:
        """Read some of the new capture events; return True if there may be more.

        Takes some milliseconds at most. Raises UnsupportedError if the events can't be read.
        """
        events, has_more = self.capture.read()
        dropped = self.capture.dropped()
        if dropped.calls > self.dropped.calls:
            self.note_dropped()
        if dropped.processes > self.dropped.processes:
            self.snapshots.note_dropped()
        self.dropped = dropped
        for event in events:
            self._add(event)
        self._remove_old()
        return has_more

    def _remove_old(self) -> None:
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        passed_ns = now_ns - self._cleaned_ns
        if passed_ns < _CLEAN_NS:
            return
        self._cleaned_ns = now_ns
        if passed_ns > _STORED_NS // 2:  # after a stop: records of old packets may still come
            return
        for each in self._by_netns.values():
            each.events.remove_old(now_ns - _STORED_NS)
            each.flows.remove_old(now_ns - _STORED_NS)

    def note_dropped(self) -> None:
        """Mark earlier senders as uncertain: events were dropped, or can't be read in time."""
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        for each in self._by_netns.values():
            each.events.note_dropped(now_ns)

    def _add(self, event: CaptureEvent) -> None:
        if isinstance(event, ProcessSnapshot):
            self.snapshots.add(event)
        elif isinstance(event, Call):
            sandbox = self._by_netns.get(event.netns)
            if sandbox is not None:
                sandbox.events.add(event)
                sandbox.flows.add(event)
        else:
            # The kernel numbers sockets for the whole host: no two namespaces share a number.
            for sandbox in self._by_netns.values():
                if isinstance(sandbox.events, SendCalls):
                    sandbox.events.mark_closed(event)

    def is_event_pending(self, sandbox: str, records: Sequence[Record]) -> bool:
        """Return True if BPF programs will probably soon report who sent a packet in ``records``.

        The kernel logs a refused packet a moment before a BPF program reports the packet's sender.
        If the result is True, wait a moment and call :meth:`read_events`.
        """
        # Only reports of refused packets follow the log record; a system call comes before it.
        events = self._by_name[sandbox].events
        return isinstance(events, RefusedPackets) and events.is_event_pending(_logged(records, 0))

    def matches(
        self, sandbox: str, records: Sequence[Record], since_ns: int
    ) -> Iterator[Match | None]:
        """Yield for each log record a match (BPF events that may be about its packet), or None.

        Pass each record once, in the order of the kernel's log. The kernel must have logged all
        records after ``since_ns`` (CLOCK_BOOTTIME). First call :meth:`read_events` until it returns
        False.
        """
        began_ns = self._began_ns + _booted_ns()
        is_refused = self._by_name[sandbox].is_refused
        logged = _logged(records, since_ns)
        for record, match in zip(
            records, self._by_name[sandbox].events.matches(logged), strict=True
        ):
            # An old log has records from before the capture began. The capture does not report
            # an accepted packet if it reports only refused ones.
            is_before = record.time_ns < began_ns
            is_accepted = is_refused and record.verdict == "permit"
            yield None if is_before or is_accepted else match

    def attribution(self, sandbox: str, match: Match | None) -> Attribution | None:
        """Return the attribution of a packet to the processes in its match; None without a match.

        ``match`` is the result of :meth:`matches` for the packet's log record.
        """
        if match is None:
            return None
        is_refused = self._by_name[sandbox].is_refused
        processes = [self.snapshots.process(call) for call in match.calls]
        if match.is_sender and len(processes) == 1:
            return Attribution(
                method="capture",
                confidence="high" if is_refused else "medium",
                reason=_SENT if is_refused else _CALLED,
                process=processes[0],
                sent_ns=match.calls[0].time_ns + _booted_ns() if is_refused else None,
            )
        is_seen = match.is_sender and is_refused
        return Attribution(
            method="capture",
            confidence="medium" if is_seen else "low",
            reason=_SEVERAL if is_seen else _HAD_SOCKET,
            seen=tuple(Seen(process=each) for each in processes),
        )

    def since_last(
        self, sandbox: str, record: Record, packets: int, began_ns: int
    ) -> Attribution | None:
        """Return the processes that sent a flow's packets since the previous call; None if unknown.

        ``record`` was made from the flow's kernel counter, which shows ``packets`` new packets. The
        reading of the counter began at ``began_ns`` (ns since the epoch).
        """
        target = flow_target(record)
        if target is None:
            return None
        state = self._by_name[sandbox]
        booted_ns = _booted_ns()
        # Packets sent between the start and the end of the reading may or may not be counted.
        calls, unnamed, is_mixed = state.flows.take(
            target, began_ns - booted_ns, record.received_ns - booted_ns
        )
        if not calls:
            return None
        seen = tuple(
            Seen(process=self.snapshots.process(call), calls=times) for call, times in calls
        )
        times = sum(times for _, times in calls)
        # A sender is named only if the capture saw a single process send all new packets.
        is_all = state.is_refused and times == packets and not unnamed and not is_mixed
        if is_all and len(seen) == 1:
            process = seen[0].process
            return Attribution(
                method="capture", confidence="high", reason=_SENT_ALL, process=process
            )
        return Attribution(
            method="capture",
            confidence="high" if is_all else "medium",
            reason=_SENT_TOGETHER if is_all else _SENT_SOME,
            seen=seen,
            unnamed=unnamed,
        )

    def mark_reported(self, sandbox: str, record: Record, process: Process | None) -> None:
        """Exclude a packet from later results of :meth:`since_last`: an event reports it."""
        target = flow_target(record)
        if target is not None:
            pid = None if process is None else process.pid
            self._by_name[sandbox].flows.remove_reported(target, pid)


def _logged(records: Sequence[Record], since_ns: int) -> list[LoggedRecord]:
    booted_ns, now_ns = _booted_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    logged = []
    for record in records:
        # The wall clock may have been changed since the record was made.
        until_ns = min(record.received_ns - booted_ns, now_ns)
        stamp_ns = min(record.time_ns - booted_ns, until_ns)
        logged.append(LoggedRecord(record, since_ns, until_ns, stamp_ns))
    return logged


def _booted_ns() -> int:
    return clocks.epoch_of(time.CLOCK_BOOTTIME)
