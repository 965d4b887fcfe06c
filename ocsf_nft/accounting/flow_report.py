"""What is being told of: by itself, and together with others."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.accounting import incidents
from ocsf_nft.accounting.flow_quota import Quota
from ocsf_nft.accounting.open_incidents import OpenIncident
from ocsf_nft.accounting.report_schedule import OVER_NS, Schedule
from ocsf_nft.accounting.unaccounted import LAST_READINGS
from ocsf_nft.attempt import Aggregation
from ocsf_nft.flow import flow, lacks_port, without_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet

    from ocsf_nft.accounting.counter_id import CounterId
    from ocsf_nft.accounting.flow_counter import FlowCounter
    from ocsf_nft.accounting.open_incidents import OpenIncidents
    from ocsf_nft.accounting.priority import Priority
    from ocsf_nft.attempt import AggregationReason, Attempt, IncidentEnd
    from ocsf_nft.flow import Flow, Key
    from ocsf_nft.process import Attribution
    from ocsf_nft.record import Record

_MAX_SAMPLE: Final = 10
#: Attempts that have events of their own at the same time.
_MAX_REPORTS: Final = 4000
#: Those beside that go to a destination that is too grave to be told with others.
_MAX_PRIORITY_REPORTS: Final = 256
_MAX_PRIORITY_REPORTS_PER_USER: Final = 16
#: Two readings show of a record that its packet was counted elsewhere; the first of them may have
#: begun before the record came.
_YOUNG_READINGS: Final = LAST_READINGS + 1
#: Where nobody can read any more.
_YOUNG_NS: Final = 60 * 1_000_000_000
#: An element's idle time is in kernel ticks (10 ms). Times in a journal are wrong by up to 0.1 s.
_MAX_CLOCK_DIFFERENCE_NS: Final = 200_000_000
_IP: Final = frozenset({0x0800, 0x86DD})


class AttributedRecord(NamedTuple):
    """A record, and the process that sent its packet, where that is known."""

    record: Record
    attribution: Attribution | None


class FlowReport:
    """What is being told: when the next time is due, and the record that stands for it.

    Its moments are of a clock of their own: who sets the machine's can't keep it from being told.
    """

    __slots__ = (
        "_grew_ns", "_is_growing", "_shown", "attribution", "end", "first_reading", "is_new", "key",
        "record", "schedule",
    )  # fmt: skip

    def __init__(
        self,
        key: Key | None = None,
        begun_ns: int | None = None,
        record: Record | None = None,
        attribution: Attribution | None = None,
    ) -> None:
        #: What it is of; None for what is told together.
        self.key = key
        #: When there was last more of it; known when it is next asked for.
        self._grew_ns = begun_ns
        self._is_growing = False
        #: The number of the reading that showed it first; None where it was not the first to.
        self.first_reading: int | None = None
        self.record = record
        #: Who sent that one.
        self.attribution = attribution
        #: Whether the record has not been told yet.
        self.is_new = record is not None
        #: The latest record of a packet that a reading has shown, until an attempt is of it.
        self._shown: AttributedRecord | None = None
        self.schedule: Schedule | None = None
        #: What its streak comes to so far; None when nothing of one has been told.
        self.end: IncidentEnd | None = None

    @property
    def is_unlogged(self) -> bool:
        """Whether no record came of it, and nothing has been told."""
        return self.record is None and self.schedule is None

    def is_young(self, reading: int, now_ns: int) -> bool:
        """Whether a record that was told may still turn out to be of it, after so many readings.

        A short time says nothing of that: readings that are hard to make are far between.
        """
        first, begun_ns = self.first_reading, self._grew_ns
        if not self.is_unlogged or first is None or begun_ns is None:
            return False
        return reading - first < _YOUNG_READINGS and now_ns - begun_ns < _YOUNG_NS

    def add_record(self, record: Record, attribution: Attribution | None, last_ns: int) -> None:
        """Let a later record stand for it; ``last_ns`` is of the last packet that was read."""
        self._store_shown(last_ns)
        self.record = record
        self.attribution = attribution
        self.is_new = True
        self.set_growing()

    def add_packets(self, last_ns: int) -> None:
        """Take in that a reading showed more packets, the last one of ``last_ns``."""
        self.set_growing()
        self._store_shown(last_ns)

    def new_record(self, since_ns: int, last_ns: int) -> AttributedRecord | None:
        """Return the record without an attempt, if its packet is within the given times.

        An earlier record is late: an attempt has counted its packet. A later record's packet is not
        in the reading that showed the unreported packets: it waits for the next attempt.
        """
        is_first = self.schedule is None and self.end is None
        earliest_ns = since_ns - _MAX_CLOCK_DIFFERENCE_NS if is_first else since_ns
        found = [] if self._shown is None else [self._shown]
        if self.is_new and self.record is not None:
            found.append(AttributedRecord(self.record, self.attribution))
        fitting = (
            each
            for each in reversed(found)
            if each.record.time_ns >= earliest_ns and not _is_later(each.record, last_ns)
        )
        return next(fitting, None)

    def add_uncertain_record(self, record: Record) -> None:
        """Let a record stand for it that may be of another packet, and so of another sender."""
        self.record = self.record or record

    def set_growing(self) -> None:
        """There is more of it."""
        self._is_growing = True

    def is_due(self, now_ns: int) -> bool:
        """Whether to tell what is owed."""
        return self.schedule is None or self.schedule.is_due(now_ns, self._last_ns(now_ns))

    def is_over(self, now_ns: int) -> bool:
        """Whether nothing came for so long that the next packet begins a new attempt."""
        last_ns = self._last_ns(now_ns)
        if self.schedule is None:
            return now_ns - last_ns >= OVER_NS
        return self.schedule.is_over(now_ns, last_ns)

    def mark_reported(self, now_ns: int, last_ns: int) -> None:
        """Take in that an attempt was emitted, whose last packet was at ``last_ns``."""
        self.is_new = self.is_new and self.record is not None and _is_later(self.record, last_ns)
        self._shown = None
        if self.schedule is None:
            # It may have been told of before a restart.
            before = 0 if self.end is None else self.end.streak.windows
            self.schedule = Schedule(now_ns, before + 1)
        else:
            self.schedule.mark_reported(now_ns)

    def _store_shown(self, last_ns: int) -> None:
        """Keep the record, if a reading has shown its packet, beside those that follow."""
        if self.is_new and self.record is not None and not _is_later(self.record, last_ns):
            self._shown = AttributedRecord(self.record, self.attribution)

    def _last_ns(self, now_ns: int) -> int:
        if self._is_growing or self._grew_ns is None:
            self._grew_ns, self._is_growing = now_ns, False
        return self._grew_ns


def _is_later(record: Record, last_ns: int) -> bool:
    """Return whether the kernel logged a record's packet after a time, as far as is known."""
    return not record.is_timed_when_read and record.time_ns > last_ns + _MAX_CLOCK_DIFFERENCE_NS


class FlowReports(dict["Key", FlowReport]):
    """What is told by itself, and who may have more of that: a record is kept of each."""

    def __init__(self, counter_id: CounterId, opened: OpenIncidents, priority: Priority) -> None:
        """How ``priority`` weighs is said there."""
        super().__init__()
        self._whose = counter_id
        self._opened = opened
        self._priority = priority
        self._quota = Quota()
        #: What is told by itself because of its destination alone, and by whom.
        self._priority_users: dict[Key, int | None] = {}
        #: The latest of those that differ in the port alone.
        self._by_destination: dict[Key, Key] = {}

    def find(self, key: Key, record: Record) -> FlowReport | None:
        """What a record with this key is of, None where that is not told by itself.

        Where it lacks the port, another one's to the same destination: its packet may have been
        counted there, and told by now.
        """
        there = self._by_destination.get(key) if lacks_port(record) else None
        return self.get(key) or (None if there is None else self[there])

    def admits(self, key: Key, uid: int | None, destination: str | None, now_ns: int) -> bool:
        """Whether one more flow of a user is told by itself, and not with its others."""
        if len(self) - len(self._priority_users) < _MAX_REPORTS and self._quota.grants(uid, now_ns):
            return True
        if (
            destination not in self._priority.destinations
            or len(self._priority_users) >= _MAX_PRIORITY_REPORTS
        ):
            return False
        if (
            sum(other == uid for other in self._priority_users.values())
            >= _MAX_PRIORITY_REPORTS_PER_USER
        ):
            return False
        self._priority_users[key] = uid
        return True

    def __delitem__(self, key: Key) -> None:
        """Tell no more of a flow."""
        super().__delitem__(key)
        self._priority_users.pop(key, None)
        if self._by_destination.get(without_port(key)) == key:
            del self._by_destination[without_port(key)]

    def begin(
        self,
        key: Key,
        now_ns: int,
        record: Record | None = None,
        attribution: Attribution | None = None,
    ) -> FlowReport:
        """Tell of a flow by itself from now on."""
        report = self[key] = FlowReport(key, now_ns, record, attribution)
        self._by_destination[without_port(key)] = key
        return report

    def begin_unlogged(self, key: Key, now_ns: int, reading: int) -> FlowReport:
        """The same of a flow that a reading was the first to show."""
        report = self.begin(key, now_ns)
        report.first_reading = reading
        return report

    def resume(self, opened: OpenIncident) -> None:
        """Go on with a streak that was told of before a restart: more of it is told at once."""
        report = self[opened.key] = FlowReport(opened.key, record=opened.end.record)
        self._by_destination[without_port(opened.key)] = opened.key
        report.is_new = False
        report.end = opened.end

    def mark_reported(
        self, report: FlowReport, attempt: Attempt, now_ns: int, last_ns: int
    ) -> Attempt:
        """Take down what is told; the same, with the streak that it goes on with."""
        report.mark_reported(now_ns, last_ns)
        key = report.key
        if key is None or attempt.aggregation is not None:
            return attempt
        report.end = end = incidents.extend_incident(
            report.end, key, attempt, self._priority.is_finding
        )
        self._opened.update(OpenIncident(self._whose, key, end))
        return dataclasses.replace(attempt, streak=end.streak)

    def pop_ended(
        self, unreported: AbstractSet[Key], now_ns: int, *, closing: bool
    ) -> Iterator[IncidentEnd]:
        """The streaks that are over, and all of them when ``closing``.

        What is over is forgotten: the next packet of it begins something new.
        """
        for key, report in list(self.items()):
            is_over = key not in unreported and report.is_over(now_ns)
            if is_over:
                del self[key]
            end = report.end
            if end is not None and (is_over or closing):
                report.end = None
                self._opened.close(end.streak.identity)
                yield end


class FlowAggregate:
    """What is told together: how much is owed, of how many flows, some of which are named."""

    __slots__ = ("counter", "flows", "report", "sample")

    def __init__(self, counter: FlowCounter) -> None:
        self.counter = counter
        self.flows = 0
        self.sample: list[Flow] = []
        self.report = FlowReport()

    def add(self, flow: Flow) -> None:
        """One more flow is told with the others."""
        self.flows += 1
        if len(self.sample) < _MAX_SAMPLE:
            self.sample.append(flow)

    def take(self, reason: AggregationReason) -> Aggregation:
        """What to say of it; the flows that are told next are counted anew."""
        aggregation = Aggregation(
            reason=reason, flows=self.flows or None, sample=tuple(self.sample)
        )
        self.flows = 0
        self.sample = []
        return aggregation


def has_no_slot(key: Key) -> bool:
    """Whether an element holds the packets of flows that found no place of their own."""
    return key.kind == "others" and flow(key).ethertype in _IP
