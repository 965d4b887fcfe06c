"""Processes that sent the packets of each flow, as BPF programs report them.

They are for events that report many packets at once, from the kernel's counters.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.attribution.bpf_capture import UNKNOWN_IMAGE, Call
from ocsf_nft.attribution.heavy_users import HeavyUsers
from ocsf_nft.attribution.packet_matching import key_of_record

if TYPE_CHECKING:
    from ocsf_nft.attribution.bpf_capture import ProcessImage
    from ocsf_nft.record import Record

#: Maximum numbers of flows, and of processes of each: they limit the memory that a sandbox fills.
_FLOWS: Final = 2048
_PROCESSES: Final = 32
#: Number of latest calls of a flow that are stored with their times.
_RECENT: Final = 64


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


class _Callers:
    """Processes that sent packets: the latest call of each, and the number of its calls."""

    __slots__ = ("latest", "unnamed", "youngest_ns")

    def __init__(self) -> None:
        #: Ordered by the latest calls.
        self.latest: dict[ProcessImage, tuple[Call, int]] = {}
        self.unnamed = 0
        #: Start of the youngest of all processes.
        self.youngest_ns = 0

    def add(self, call: Call) -> None:
        image = call.image
        before, times = self.latest.pop(image, (None, 0))
        if before is None and len(self.latest) >= _PROCESSES:
            del self.latest[next(iter(self.latest))]
            # Any other process may be one that was evicted before.
            if self.unnamed == 0 or image.started_ns > self.youngest_ns:
                self.unnamed += 1
        self.latest[image] = call if before is None else _later(before, call), times + 1
        self.youngest_ns = max(self.youngest_ns, image.started_ns)

    def remove_one(self, image: ProcessImage) -> None:
        call, times = self.latest.get(image, (None, 0))
        if call is not None and times > 1:
            self.latest[image] = call, times - 1
        else:
            self.latest.pop(image, None)

    def note_later(self, call: Call) -> None:
        """Note the facts of a later call of one of the processes, without counting the call."""
        before, times = self.latest.get(call.image, (None, 0))
        if before is not None:
            self.latest[call.image] = _later(before, call), times


class _Flow:
    """State of one flow: the calls that sent its packets.

    There are thousands of flows with one call. So the callers are computed only if they are asked
    for, or if there are many calls.
    """

    __slots__ = ("earlier", "is_mixed", "recent", "used_ns")

    def __init__(self) -> None:
        self.recent: list[Call] = []
        #: Callers of the calls before those in ``recent``; None if there are none.
        self.earlier: _Callers | None = None
        self.is_mixed = False
        #: Time of the latest change (CLOCK_BOOTTIME).
        self.used_ns = 0

    def add(self, call: Call) -> None:
        if len(self.recent) >= _RECENT:
            self.earlier = self.earlier or _Callers()
            self.earlier.add(self.recent.pop(0))
        self.recent.append(call)

    def image_of(self, pid: int | None) -> ProcessImage | None:
        earlier = () if self.earlier is None else self.earlier.latest
        images = (*earlier, *(each.image for each in self.recent))
        return next((each for each in images if each.pid == pid), None)

    def remove_one(self, image: ProcessImage) -> None:
        """Remove the latest call of a process, but not the facts that only this call shows.

        It may be another call of the process that an event has reported.
        """
        found = [index for index, each in enumerate(self.recent) if each.image == image]
        if not found:
            if self.earlier is not None:
                self.earlier.remove_one(image)
            return
        removed = self.recent.pop(found.pop())
        if found:
            before = self.recent[found[-1]]
            self.recent[found[-1]] = _later(before, removed)._replace(time_ns=before.time_ns)
        elif self.earlier is not None:
            self.earlier.note_later(removed)

    def split_after(self, began_ns: int, ended_ns: int) -> _Flow:
        """Move packets after ``began_ns`` to a new flow object, and return the new object.

        The kernel's packet counters were read from ``began_ns`` to ``ended_ns``. A packet sent
        meanwhile may be counted or not: it makes the new object uncertain (``is_mixed``).
        """
        rest = _Flow()
        rest.recent = [each for each in self.recent if each.time_ns > began_ns]
        self.recent = [each for each in self.recent if each.time_ns <= began_ns]
        if len(rest.recent) == _RECENT:  # there were more than these
            self.is_mixed = rest.is_mixed = True
        # The counters may or may not include the packets of calls during the reading.
        rest.is_mixed |= any(each.time_ns <= ended_ns for each in rest.recent)
        return rest

    def callers(self) -> FlowCallers:
        """Return the processes that made the calls. They are computed once, as the last step."""
        found = self.earlier or _Callers()
        for call in self.recent:
            found.add(call)
        return FlowCallers(tuple(found.latest.values()), found.unnamed, self.is_mixed)

    @property
    def is_reported(self) -> bool:
        """Return True if events report all calls."""
        earlier = self.earlier
        has_earlier = earlier is not None and bool(earlier.latest or earlier.unnamed)
        return not (self.recent or has_earlier or self.is_mixed)


def _later(before: Call, call: Call) -> Call:
    """Return the later call of a process, without its thread if the earlier one has another."""
    return call if before.tid == call.tid else call._replace(tid=0)


class FlowProcesses:
    """Processes that sent packets, for each of the latest flows of one sandbox.

    If there are too many, the user with the most flows loses the oldest.
    """

    def __init__(self) -> None:
        #: Flows by user, and last the user of the latest change.
        self._by_user: OrderedDict[int, OrderedDict[FlowTarget, _Flow]] = OrderedDict()
        self._heavy = HeavyUsers(_FLOWS)
        self._number = 0

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
        flows = self._by_user.get(target.uid)
        found = None if flows is None else flows.get(target)
        if found is None:
            found = _Flow()
        found.used_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._store(target, found)
        while self._number > _FLOWS:
            evicted = self._heavy.evicted(self._by_user)
            self._remove(next(iter(self._by_user[evicted])))
        return found

    def _store(self, target: FlowTarget, flow: _Flow) -> None:
        flows = self._by_user.setdefault(target.uid, OrderedDict())
        self._by_user.move_to_end(target.uid)
        self._number += target not in flows
        flows[target] = flow
        flows.move_to_end(target)
        self._heavy.note(target.uid, flows)

    def _remove(self, target: FlowTarget) -> _Flow | None:
        flows = self._by_user.get(target.uid)
        if flows is None or target not in flows:
            return None
        self._number -= 1
        flow = flows.pop(target)
        if not flows:
            del self._by_user[target.uid]
        return flow

    def take(self, target: FlowTarget, began_ns: int, ended_ns: int) -> FlowCallers:
        """Remove and return the processes that sent a flow's packets until ``began_ns``.

        Later packets stay stored. The kernel's packet counters were read from ``began_ns`` to
        ``ended_ns`` (CLOCK_BOOTTIME). Packets sent meanwhile may be counted or not: they make the
        next result uncertain.
        """
        flow = self._remove(target)
        if flow is None:
            return FlowCallers()
        rest = flow.split_after(began_ns, ended_ns)
        if rest.recent:
            rest.used_ns = flow.used_ns
            self._store(target, rest)
        return flow.callers()

    def remove_old(self, before_ns: int) -> None:
        """Remove the flows without a change after ``before_ns`` (CLOCK_BOOTTIME)."""
        for flows in tuple(self._by_user.values()):
            for target, flow in tuple(flows.items()):
                if flow.used_ns > before_ns:
                    break
                self._remove(target)
        if not self._by_user:
            self._by_user = OrderedDict()  # an empty one has the size of its largest content

    def remove_reported(self, target: FlowTarget, pid: int | None) -> None:
        """Subtract a packet of process ``pid`` from a flow, because an event reports that packet.

        If ``pid`` is None, or the flow has no packet of this process, nothing is subtracted. Then
        the next result of :meth:`take` for this flow is marked as uncertain.
        """
        flow = self._flow(target)
        image = flow.image_of(pid)
        if image is None:
            flow.is_mixed = True
            return
        flow.remove_one(image)
        if flow.is_reported:  # it must not evict a flow with unreported calls
            self._remove(target)


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
