"""Attribution method ``capture``: finds the sender of a logged packet with the help of BPF.

BPF programs in the kernel (the capture) report refused packets and system calls, each with its
process. This module compares these capture events with log records.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from ocsf_nft import clocks
from ocsf_nft.attribution.bpf_capture import Call, ProcessSnapshot
from ocsf_nft.attribution.flow_callers import FlowProcesses, flow_target
from ocsf_nft.attribution.packet_matching import LoggedRecord
from ocsf_nft.attribution.process_snapshots import ProcessSnapshots
from ocsf_nft.attribution.refused_packets import RefusedPackets
from ocsf_nft.attribution.send_calls import SendCalls
from ocsf_nft.process import Attribution, Seen

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ocsf_nft.attribution.bpf_capture import Capture, CaptureEvent, Dropped
    from ocsf_nft.attribution.packet_matching import Match
    from ocsf_nft.attribution.user_names import UserNames
    from ocsf_nft.process import Process
    from ocsf_nft.record import Record

#: Reports are removed when they are so old: their records and counts came long before. And how
#: often that is checked.
_STORED_NS: Final = 120 * 1_000_000_000
_CLEAN_NS: Final = 10 * 1_000_000_000

#: A report comes no later than this after its log record.
_LATE_NS: Final = 1_000_000_000

_SENT: Final = "the kernel saw it send the packet"
_SEVERAL: Final = "the kernel saw each of them send a packet that may be this one"
_CALLED: Final = "the kernel saw it make a call that may have sent the packet"
_HAD_SOCKET: Final = (
    "it had a socket that may have sent the packet; other processes may have had that socket too, "
    "or there was no room to report some calls"
)
_SENT_ALL: Final = "the kernel saw it send each of the packets"
_SENT_ALONE: Final = (
    "the kernel saw only this process attempt this since the last report, but maybe not each packet"
)
_SENT_TOGETHER: Final = "the kernel saw them send the packets"
_SENT_SOME: Final = (
    "the kernel saw them attempt this since the last report, but maybe not all of the senders"
)


class _Namespace:
    """Reports of BPF programs about the processes that send packets in one network namespace."""

    def __init__(self, *, is_refused: bool) -> None:
        self.began_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        #: True if each report is about a refused packet; otherwise, each one is about a system call
        #: that may have sent a packet.
        self.is_refused = is_refused
        self.events: RefusedPackets | SendCalls = RefusedPackets() if is_refused else SendCalls()
        self.flows = FlowProcesses()


class CaptureMethod:
    """Finder of the processes that sent logged packets, by events of BPF programs (the capture).

    A network namespace is identified by its number in the kernel (cookie). Methods that find
    processes are for watched namespaces only: see :meth:`watch`.
    """

    def __init__(self, capture: Capture, names: UserNames) -> None:
        self.capture = capture
        self.snapshots = ProcessSnapshots(names, capture.describe_again)
        self._watched: dict[int, _Namespace] = {}
        self.dropped: Dropped = capture.dropped()
        self._cleaned_ns = 0

    def watch(self, netns: int, *, is_permissive: bool) -> None:
        """Find the senders of packets in a namespace from now on.

        ``is_permissive`` is true if the namespace's fence accepts the packets that it logs; another
        call may change it. Raises UnsupportedError if the capture can't watch the namespace.
        """
        is_refused = self.capture.watch(netns, is_permissive=is_permissive)
        watched = self._watched.get(netns)
        if watched is None or watched.is_refused != is_refused:
            self._watched[netns] = _Namespace(is_refused=is_refused)

    def unwatch(self, netns: int) -> None:
        """Stop finding the senders of packets in a namespace, if it is watched."""
        if self._watched.pop(netns, None) is not None:
            self.capture.unwatch(netns)

    def is_watched(self, netns: int) -> bool:
        """Return True if senders of packets in a namespace can be found."""
        return netns in self._watched

    def reports_packets(self, netns: int) -> bool:
        """Return True if the capture reports each refused packet in a namespace, if it has room."""
        watched = self._watched.get(netns)
        return watched is not None and watched.is_refused

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
        for each in self._watched.values():
            each.events.remove_old(now_ns - _STORED_NS)
            each.flows.remove_old(now_ns - _STORED_NS)

    def note_dropped(self) -> None:
        """Mark earlier senders as uncertain: events were dropped, or can't be read in time."""
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        for each in self._watched.values():
            each.events.note_dropped(now_ns)

    def _add(self, event: CaptureEvent) -> None:
        if isinstance(event, ProcessSnapshot):
            self.snapshots.add(event)
        elif isinstance(event, Call):
            watched = self._watched.get(event.netns)
            if watched is not None:
                watched.events.add(event)
                watched.flows.add(event)
        else:
            # The kernel numbers sockets for the whole host: no two namespaces share a number.
            for watched in self._watched.values():
                if isinstance(watched.events, SendCalls):
                    watched.events.mark_closed(event)

    def is_event_pending(self, netns: int, records: Sequence[Record]) -> bool:
        """Return True if BPF programs will probably soon report who sent a packet in ``records``.

        The kernel logs a refused packet a moment before a BPF program reports the packet's sender.
        If the result is True, wait a moment and call :meth:`read_events`.
        """
        # Only reports of refused packets follow the log record; a system call comes before it.
        events = self._watched[netns].events
        return isinstance(events, RefusedPackets) and events.is_event_pending(_logged(records, 0))

    def are_awaited(self, netns: int, records: Sequence[Record]) -> Iterator[bool]:
        """Yield for each log record whether a report of its packet is still to come.

        Pass the records in the order of the kernel's log. The kernel may interrupt the sender
        between the log record and the report, or the host of a virtual machine may.
        """
        watched = self._watched[netns]
        events, booted_ns = watched.events, _booted_ns()
        if not isinstance(events, RefusedPackets):
            yield from (False for _ in records)
            return
        since_ns = max(watched.began_ns, time.clock_gettime_ns(time.CLOCK_BOOTTIME) - _LATE_NS)
        for record, is_awaited in zip(
            records, events.are_awaited(_logged(records, 0)), strict=True
        ):
            is_new = record.time_ns - booted_ns >= since_ns and record.verdict != "permit"
            yield is_new and is_awaited

    def matches(
        self, netns: int, records: Sequence[Record], since_ns: int
    ) -> Iterator[Match | None]:
        """Yield for each log record a match (BPF events that may be about its packet), or None.

        Pass each record once, in the order of the kernel's log. The kernel must have logged all
        records after ``since_ns`` (CLOCK_BOOTTIME). First call :meth:`read_events` until it returns
        False.
        """
        watched = self._watched[netns]
        began_ns = watched.began_ns + _booted_ns()
        is_refused = watched.is_refused
        logged = _logged(records, since_ns)
        for record, match in zip(records, watched.events.matches(logged), strict=True):
            # An old log has records from before the capture began. The capture does not report
            # an accepted packet if it reports only refused ones.
            is_before = record.time_ns < began_ns
            is_accepted = is_refused and record.verdict == "permit"
            yield None if is_before or is_accepted else match

    def attribution(self, netns: int, match: Match | None) -> Attribution | None:
        """Return the attribution of a packet to the processes in its match; None without a match.

        ``match`` is the result of :meth:`matches` for the packet's log record.
        """
        if match is None:
            return None
        is_refused = self._watched[netns].is_refused
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
        self, netns: int, record: Record, packets: int, began_ns: int
    ) -> Attribution | None:
        """Return the processes that sent a flow's packets since the previous call; None if unknown.

        ``record`` was made from the flow's kernel counter, which shows ``packets`` new packets. The
        reading of the counter began at ``began_ns`` (ns since the epoch).
        """
        target = flow_target(record)
        if target is None:
            return None
        state = self._watched[netns]
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
        # The confidence is high only if the capture saw one process send all new packets.
        is_all = state.is_refused and times == packets and not unnamed and not is_mixed
        if len(seen) == 1 and not unnamed:
            return Attribution(
                method="capture",
                confidence="high" if is_all else "medium",
                reason=_SENT_ALL if is_all else _SENT_ALONE,
                process=seen[0].process,
                seen=() if is_all else seen,
            )
        return Attribution(
            method="capture",
            confidence="high" if is_all else "medium",
            reason=_SENT_TOGETHER if is_all else _SENT_SOME,
            seen=seen,
            unnamed=unnamed,
        )

    def mark_reported(self, netns: int, record: Record, process: Process | None) -> None:
        """Exclude a packet from later results of :meth:`since_last`: an event reports it."""
        target = flow_target(record)
        if target is not None:
            pid = None if process is None else process.pid
            self._watched[netns].flows.remove_reported(target, pid)


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
