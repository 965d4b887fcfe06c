"""Scans: many distinct flows of one user, of which one finding has all."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, TypeVar

from ocsf_nft.attempt import FanOut, ScanSender
from ocsf_nft.flow import Flow, flow
from ocsf_nft.flows.flow_counter import MAX_COUNT
from ocsf_nft.flows.incidents import LATEST, named
from ocsf_nft.flows.report_schedule import Schedule
from ocsf_nft.process import brief

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.attempt import Attempt
    from ocsf_nft.flow import CounterId, Key
    from ocsf_nft.flows.incidents import Opened
    from ocsf_nft.process import Process

T = TypeVar("T")

#: Maximum number of processes that a scan lists, and that all scans of a rule list. A scan that
#: grows is stored again and again. Each one lists one process at least.
SENDERS: Final = 32
_ALL_SENDERS: Final = 256
#: Number of distinct flows within ``WITHIN_NS`` that no ordinary program causes.
FLOWS: Final = 20
WITHIN_NS: Final = 60 * 1_000_000_000
_MAX_SAMPLE: Final = 10
#: Maximum number of distinct destinations and ports of a scan that are counted. The same for all
#: scans of a rule, but for the first ones of each. A larger number is reported as "at least".
_MAX_DISTINCT: Final = 4096
_ALL_DISTINCT: Final = 1 << 16
#: Maximum number of users with state. A process with a namespace may have thousands of user ids.
_MAX_USERS: Final = 1024
_Stage: TypeAlias = Literal["begun", "goes on", "ended"]
#: Pid and program of a process.
_SenderKey: TypeAlias = tuple[int, str | None]


@dataclass(slots=True)
class _Totals:
    """Numbers of processes and distinct values that are in memory for all users of one rule."""

    senders: int = 0
    distinct: int = 0


@dataclass(slots=True, eq=False)
class _UserActivity:
    """Distinct flows of one user since ``since_ns``, counted to detect a scan."""

    totals: _Totals
    identity: str
    since_ns: int
    last_ns: int
    #: Time of the first and the last flow by the clock of ``due``, from its next call on.
    begun_ns: int | None = None
    grew_ns: int | None = None
    flows: int = 0
    packets: int = 0
    destinations: set[str] = field(default_factory=set)
    ports: set[int] = field(default_factory=set)
    sample: list[Flow] = field(default_factory=list)
    windows: int = 0
    latest: tuple[str, ...] = ()
    senders: dict[_SenderKey, ScanSender] = field(default_factory=dict)
    #: Hashes of the keys of further processes: a program may have a path of 4 kB.
    others: set[int] = field(default_factory=set)
    unknown: int = 0
    schedule: Schedule | None = None
    is_reported: bool = True
    #: Totals reported before a restart. The addresses and ports themselves are not stored.
    before: FanOut | None = None
    #: Flows, packets and attempts at the last commit.
    stored: tuple[int, int, int] = (0, 0, 0)

    def add_sender(self, process: Process, flow: Flow) -> None:
        process = brief(process)
        key = process.pid, process.path
        known = self.senders.get(key)
        if known is not None:
            self.senders[key] = replace(known, attempts=known.attempts + 1)
        elif self._has_room_for_sender():
            self.senders[key] = ScanSender(process=process, attempts=1, flow=flow)
            self.totals.senders += 1
            self.is_reported = False
        else:
            self.add_distinct(self.others, hash(key))

    def _has_room_for_sender(self) -> bool:
        if self.others:  # the process may be one of them
            return False
        has_room = not self.senders or self.totals.senders < _ALL_SENDERS
        return has_room and len(self.senders) < SENDERS

    def add_distinct(self, values: set[T], value: T) -> None:
        """Add a value to one of the sets of distinct values, unless there are too many."""
        has_room = len(values) < FLOWS or self.totals.distinct < _ALL_DISTINCT
        if has_room and len(values) < _MAX_DISTINCT and value not in values:
            values.add(value)
            self.totals.distinct += 1

    def release(self) -> None:
        """Subtract what is in memory from the totals; call it when the activity is removed."""
        self.totals.senders -= len(self.senders)
        self.totals.distinct -= len(self.destinations) + len(self.ports) + len(self.others)


class FanOuts:
    """Detector of scans in the refused flows of one rule: one user tries many destinations."""

    def __init__(self, counter_id: CounterId, opened: Opened) -> None:
        """Create a detector; it adds changes of open scans to ``opened``."""
        self._counter_id = counter_id
        self._opened = opened
        self._activities: dict[int | None, _UserActivity] = {}
        self._totals = _Totals()

    def __bool__(self) -> bool:
        """Return True if there are flows of which a scan may consist."""
        return bool(self._activities)

    def add_flow(self, key: Key, time_ns: int) -> None:
        """Count the new flow ``key`` for its user; ``time_ns`` is since the epoch, UTC."""
        decoded = flow(key)
        found = self._activities.get(decoded.uid)
        if found is None:
            if len(self._activities) >= _MAX_USERS and not self._evict_one():
                return
            counter_id = self._counter_id
            identity = f"{counter_id.epoch}/{counter_id.name}/{decoded.uid}/{time_ns}"
            found = _UserActivity(self._totals, identity, time_ns, time_ns)
            self._activities[decoded.uid] = found
        found.flows += 1
        found.last_ns = max(time_ns, found.since_ns)
        found.grew_ns = None
        found.is_reported = False
        if decoded.destination is not None:
            found.add_distinct(found.destinations, decoded.destination)
        if decoded.port is not None:
            found.add_distinct(found.ports, decoded.port)
        if len(found.sample) < _MAX_SAMPLE:
            found.sample.append(decoded)

    def resume(self, before: FanOut) -> None:
        """Continue a scan that was open when the service stopped."""
        found = _UserActivity(self._totals, before.identity, before.start_ns, before.end_ns)
        self._activities[before.uid] = found
        found.flows, found.packets, found.windows = found.stored = (
            before.flows, before.packets, before.windows,
        )  # fmt: skip
        found.latest, found.unknown = before.latest, before.unknown
        found.senders = {(each.process.pid, each.process.path): each for each in before.senders}
        self._totals.senders += len(found.senders)
        found.sample = list(before.sample)
        found.before = before

    def count(self, uid: int | None, packets: int) -> None:
        """Add refused packets of the user ``uid``, if :meth:`add_flow` has counted a flow of it.

        ``uid`` is None if no socket sent the packets.
        """
        if found := self._activities.get(uid):
            found.packets = min(found.packets + packets, MAX_COUNT)

    def add_attempt(self, attempt: Attempt) -> None:
        """Note an attempt that is reported now, and the processes that were seen to send it.

        Attempts of a user without a counted flow are ignored.
        """
        record, by = attempt.record, attempt.attribution
        found = self._activities.get(record.uid)
        if found is None:
            return
        found.windows += 1
        found.latest = (*found.latest, record.origin.identity)[-LATEST:]
        sent = Flow(
            uid=record.uid, protocol=record.protocol,
            destination=record.destination, port=record.destination_port,
        )  # fmt: skip
        # With low confidence, a process only had a socket that may have sent a packet.
        seen = () if by is None or by.confidence == "low" else named(by)
        for each in seen:
            found.add_sender(each.process, sent)
        if not seen and attempt.aggregation is None:
            found.unknown += 1

    def due(self, now_ns: int, *, closing: bool = False) -> Iterator[FanOut]:
        """Yield each scan for which an event is due now.

        An event is due at the start of a scan, at intervals while it grows, and at its end.
        With ``closing``, all scans end now. ``now_ns`` is from a monotonic clock.
        """
        for uid, found in list(self._activities.items()):
            found.begun_ns = now_ns if found.begun_ns is None else found.begun_ns
            found.grew_ns = now_ns if found.grew_ns is None else found.grew_ns
            is_over = closing or now_ns - found.grew_ns >= WITHIN_NS
            stage = _stage(found, now_ns, is_over=is_over)
            if found.schedule is None:
                if is_over or now_ns - found.begun_ns > WITHIN_NS:
                    self._remove(uid)
                continue
            totals = found.flows, found.packets, found.windows
            if found.stored != totals:
                found.stored = totals
                self._opened[found.identity] = self._of(uid, found, "ended")
            if stage is not None:
                found.is_reported = True
                yield self._of(uid, found, stage)
            if is_over:
                self._remove(uid)
                self._opened[found.identity] = None
                is_stopped = now_ns - found.grew_ns < WITHIN_NS
                yield replace(self._of(uid, found, "ended"), is_stopped=is_stopped)

    def _evict_one(self) -> bool:
        for uid, found in self._activities.items():
            if found.flows < FLOWS:
                self._remove(uid)
                return True
        return False

    def _remove(self, uid: int | None) -> None:
        self._activities.pop(uid).release()

    def _of(self, uid: int | None, found: _UserActivity, stage: _Stage) -> FanOut:
        before = found.before
        least = (0, 0) if before is None else (before.destinations, before.ports)
        return FanOut(
            identity=found.identity,
            stage=stage,
            sandbox=self._counter_id.sandbox,
            rule=self._counter_id.rule,
            verdict=self._counter_id.verdict,
            uid=uid,
            flows=found.flows,
            destinations=max(len(found.destinations), least[0]),
            ports=max(len(found.ports), least[1]),
            packets=max(found.packets, found.flows),
            sample=tuple(found.sample),
            start_ns=found.since_ns,
            end_ns=found.last_ns,
            windows=found.windows,
            latest=found.latest,
            senders=tuple(found.senders.values()),
            unnamed=max(len(found.others), 0 if before is None else before.unnamed),
            unknown=found.unknown,
        )


def _stage(found: _UserActivity, now_ns: int, *, is_over: bool) -> _Stage | None:
    """Return the stage of the scan event that is due now, except for ``ended``; None without."""
    if found.schedule is None:
        # Too few flows for a scan.
        if found.before is None and found.flows < FLOWS:
            return None
        found.schedule = Schedule(now_ns)
        # A scan that no event has reported yet begins, even at its end.
        return "begun" if found.before is None else None
    if found.is_reported or is_over or now_ns < found.schedule.due_ns:
        return None
    found.schedule.mark_reported(now_ns)
    return "goes on"
