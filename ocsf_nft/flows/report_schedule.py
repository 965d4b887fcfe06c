"""Schedule of a flow's events, and the log record that each event describes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.flows.reconciler import LAST_READINGS, MAX_CLOCK_DIFFERENCE_NS

if TYPE_CHECKING:
    from ocsf_nft.attempt import IncidentEnd
    from ocsf_nft.flow import Key
    from ocsf_nft.process import Attribution
    from ocsf_nft.record import Record

_SECOND: Final = 1_000_000_000
_FIRST_STEP_NS: Final = 1 * _SECOND
_LONGEST_STEP_NS: Final = 60 * _SECOND
#: Number of doublings after which the interval is longest.
_DOUBLINGS: Final = 6
#: A flow without a packet for this long is over.
OVER_NS: Final = 10 * _SECOND
#: Two readings show that a record's packet was counted elsewhere. The first of them may have begun
#: before the record came.
_YOUNG_READINGS: Final = LAST_READINGS + 1
#: Limit if no more readings succeed.
_YOUNG_NS: Final = 60 * _SECOND


class Schedule:
    """Schedule of the events about one flow; the interval doubles each time, up to 60 seconds.

    Create the schedule when an event is emitted, at ``now_ns``. ``times`` is the number of the
    flow's events so far, including this one.
    """

    __slots__ = ("_step_ns", "due_ns", "reported_ns")

    def __init__(self, now_ns: int, times: int = 1) -> None:
        self._step_ns = min(_FIRST_STEP_NS << min(times - 1, _DOUBLINGS), _LONGEST_STEP_NS)
        self.reported_ns = now_ns
        self.due_ns = now_ns + self._step_ns

    def mark_reported(self, now_ns: int) -> None:
        """Set the due time of the next event; ``now_ns`` is the time of the latest event."""
        self._step_ns = min(2 * self._step_ns, _LONGEST_STEP_NS)
        self.reported_ns = now_ns
        self.due_ns = now_ns + self._step_ns

    def is_due(self, now_ns: int, last_ns: int) -> bool:
        """Return True if the interval is over, or no packet came for 10 s after ``last_ns``."""
        return now_ns >= self.due_ns or now_ns - last_ns >= OVER_NS

    def is_over(self, now_ns: int, last_ns: int) -> bool:
        """Return True if the last packet (``last_ns``) and the last event are 10 s old, or more."""
        return now_ns - max(last_ns, self.reported_ns) >= OVER_NS


class AttributedRecord(NamedTuple):
    """Kernel log record, and the attribution of its packet to a process (None if unknown)."""

    record: Record
    attribution: Attribution | None


class FlowReport:
    """Due time of the next event about a flow's refused packets, and the flow's latest log record.

    Flows that share events have one common FlowReport, with ``key`` None. ``begun_ns`` is when the
    flow was first seen (monotonic clock).
    """

    __slots__ = (
        "_grew_ns", "_is_growing", "_is_of_old_clock", "_saved", "attribution", "end",
        "first_reading", "is_new", "key", "record", "schedule",
    )  # fmt: skip

    def __init__(
        self,
        key: Key | None = None,
        begun_ns: int | None = None,
        record: Record | None = None,
        attribution: Attribution | None = None,
    ) -> None:
        #: Key of the flow; None for an aggregate.
        self.key = key
        #: Time of the latest growth; set at the next query.
        self._grew_ns = begun_ns
        self._is_growing = False
        #: Sequence number of the flow's first counter reading; None if a log record came first.
        self.first_reading: int | None = None
        self.record = record
        #: Attribution of ``record``.
        self.attribution = attribution
        #: Whether no attempt has counted the record yet.
        self.is_new = record is not None
        #: Whether the clock was set back after the record's packet, so that its time seems later.
        self._is_of_old_clock = False
        #: Latest record of a packet that a reading has shown, until an attempt counts it.
        self._saved: AttributedRecord | None = None
        self.schedule: Schedule | None = None
        #: Totals of the incident so far; None if no attempt of one was reported.
        self.end: IncidentEnd | None = None

    @property
    def is_unlogged(self) -> bool:
        """Return True if the flow has no kernel log record and no event yet."""
        return self.record is None and self.schedule is None

    def is_young(self, reading: int, now_ns: int) -> bool:
        """Return True if a flow without a log record is too new for an event.

        It waits for three counter readings, at most 60 seconds. ``reading`` is the latest one.
        """
        # A packet with an incomplete header may be counted for this flow, but logged as another.
        # Then the other flow's event reports it, and it is later subtracted from this flow.
        first, begun_ns = self.first_reading, self._grew_ns
        if not self.is_unlogged or first is None or begun_ns is None:
            return False
        return reading - first < _YOUNG_READINGS and now_ns - begun_ns < _YOUNG_NS

    def awaits_record(self, wait_ns: int, now_ns: int) -> bool:
        """Return True if the flow has no log record yet, and is less than ``wait_ns`` old."""
        begun_ns = self._grew_ns
        return self.is_unlogged and begun_ns is not None and now_ns - begun_ns < wait_ns

    def add_record(self, record: Record, attribution: Attribution | None, last_ns: int) -> None:
        """Store a kernel log record as the flow's latest, and its packet's sending process.

        The next event counts packets up to ``last_ns``, and can have the previous record.
        """
        self._save_record(last_ns)
        self.record = record
        self.attribution = attribution
        self.is_new = True
        self._is_of_old_clock = False
        self.set_growing()

    def add_packets(self, last_ns: int) -> None:
        """Mark the flow as growing: a reading shows new packets, the last one at ``last_ns``."""
        self.set_growing()
        self._save_record(last_ns)

    def limit_times(self, now_ns: int) -> None:
        """Mark the time of the stored log record as invalid if this time is later than ``now_ns``.

        ``now_ns`` is the end of a reading (since the epoch): the wall clock was set back.
        """
        if self.record is not None and self.record.time_ns > now_ns:
            self._is_of_old_clock = True

    def new_record(self, since_ns: int, last_ns: int) -> AttributedRecord | None:
        """Return the newest log record of a packet between ``since_ns`` and ``last_ns``, or None.

        Only records that no event has reported are returned.
        """
        is_first = self.schedule is None and self.end is None
        earliest_ns = since_ns - MAX_CLOCK_DIFFERENCE_NS if is_first else since_ns
        found = [] if self._saved is None else [self._saved]
        if self.is_new and self.record is not None:
            found.append(AttributedRecord(self.record, self.attribution))
        fitting = (
            each
            for each in reversed(found)
            if each.record.time_ns >= earliest_ns and not self._is_later(each.record, last_ns)
        )
        return next(fitting, None)

    def add_uncertain_record(self, record: Record) -> None:
        """Store a log record that may be of another flow, unless a record is already stored.

        The record gets no attribution, because another process may have sent its packet.
        """
        self.record = self.record or record

    def set_growing(self) -> None:
        """Mark the flow as growing; the next call of :meth:`is_due` or :meth:`is_over` dates it."""
        self._is_growing = True

    def is_due(self, now_ns: int) -> bool:
        """Return True if the flow's unreported packets must be reported at ``now_ns``."""
        return self.schedule is None or self.schedule.is_due(now_ns, self._last_ns(now_ns))

    def is_over(self, now_ns: int) -> bool:
        """Return True if the flow's last packet and its last event are 10 s old, or more."""
        last_ns = self._last_ns(now_ns)
        if self.schedule is None:
            return now_ns - last_ns >= OVER_NS
        return self.schedule.is_over(now_ns, last_ns)

    def mark_reported(self, now_ns: int, last_ns: int) -> None:
        """Set the due time of the next event, after an event with its last packet at ``last_ns``.

        ``now_ns`` is from a monotonic clock, ``last_ns`` since the epoch.
        """
        # The record of a later packet stays stored for a later event.
        record = self.record
        self.is_new = self.is_new and record is not None and self._is_later(record, last_ns)
        self._saved = None
        if self.schedule is None:
            # The flow may have been reported before a restart.
            before = 0 if self.end is None else self.end.incident.windows
            self.schedule = Schedule(now_ns, before + 1)
        else:
            self.schedule.mark_reported(now_ns)

    def _save_record(self, last_ns: int) -> None:
        # The next event counts only packets up to `last_ns`, the last that a reading has shown.
        if self.is_new and self.record is not None and not self._is_later(self.record, last_ns):
            self._saved = AttributedRecord(self.record, self.attribution)

    def _is_later(self, record: Record, last_ns: int) -> bool:
        """Return True if a log record's packet was certainly refused after ``last_ns``."""
        if record.is_timed_when_read or (self._is_of_old_clock and record is self.record):
            return False
        return record.time_ns > last_ns + MAX_CLOCK_DIFFERENCE_NS

    def _last_ns(self, now_ns: int) -> int:
        if self._is_growing or self._grew_ns is None:
            self._grew_ns, self._is_growing = now_ns, False
        return self._grew_ns
