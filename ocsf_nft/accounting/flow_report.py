"""What is being told of: by itself, and together with others."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.accounting import incidents
from ocsf_nft.accounting.flow_quota import Quota
from ocsf_nft.accounting.open_incidents import OpenStreak
from ocsf_nft.accounting.report_schedule import OVER_NS, Schedule
from ocsf_nft.accounting.unaccounted import LAST_READINGS
from ocsf_nft.attempt import Merged
from ocsf_nft.flow import flow, lacks_port, without_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet

    from ocsf_nft.accounting.counter_id import Whose
    from ocsf_nft.accounting.flow_counter import Counted
    from ocsf_nft.accounting.open_incidents import Opened
    from ocsf_nft.accounting.priority import Gravity
    from ocsf_nft.attempt import Attempt, Ended, Merger
    from ocsf_nft.flow import Flow, Key
    from ocsf_nft.process import Attribution
    from ocsf_nft.record import Record

_SAMPLE: Final = 10
#: Attempts that have events of their own at the same time.
_TELLINGS: Final = 4000
#: Those beside that go to a destination that is too grave to be told with others.
_RIGHTS: Final = 256
_RIGHTS_OF_A_USER: Final = 16
#: Two readings show of a record that its packet was counted elsewhere; the first of them may have
#: begun before the record came.
_YOUNG_READINGS: Final = LAST_READINGS + 1
#: Where nobody can read any more.
_YOUNG_NS: Final = 60 * 1_000_000_000
#: An element's idle time is in kernel ticks (10 ms). Times in a journal are wrong by up to 0.1 s.
_CLOCKS_APART_NS: Final = 200_000_000
_IP: Final = frozenset({0x0800, 0x86DD})


class NamedRecord(NamedTuple):
    """A record, and the process that sent its packet, where that is known."""

    record: Record
    attribution: Attribution | None


class Telling:
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
        self._shown: NamedRecord | None = None
        self.schedule: Schedule | None = None
        #: What its streak comes to so far; None when nothing of one has been told.
        self.end: Ended | None = None

    @property
    def is_unheard(self) -> bool:
        """Whether no record came of it, and nothing has been told."""
        return self.record is None and self.schedule is None

    def is_young(self, reading: int, now_ns: int) -> bool:
        """Whether a record that was told may still turn out to be of it, after so many readings.

        A short time says nothing of that: readings that are hard to make are far between.
        """
        first, begun_ns = self.first_reading, self._grew_ns
        if not self.is_unheard or first is None or begun_ns is None:
            return False
        return reading - first < _YOUNG_READINGS and now_ns - begun_ns < _YOUNG_NS

    def logged(self, record: Record, attribution: Attribution | None, last_ns: int) -> None:
        """Let a later record stand for it; ``last_ns`` is of the last packet that was read."""
        self._keep_shown(last_ns)
        self.record = record
        self.attribution = attribution
        self.is_new = True
        self.grew()

    def shown(self, last_ns: int) -> None:
        """Take in that a reading showed more packets, the last one of ``last_ns``."""
        self.grew()
        self._keep_shown(last_ns)

    def new_record(self, since_ns: int, last_ns: int) -> NamedRecord | None:
        """Return the record without an attempt, if its packet is within the given times.

        An earlier record is late: an attempt has counted its packet. A later record's packet is not
        in the reading that showed the unreported packets: it waits for the next attempt.
        """
        is_first = self.schedule is None and self.end is None
        earliest_ns = since_ns - _CLOCKS_APART_NS if is_first else since_ns
        found = [] if self._shown is None else [self._shown]
        if self.is_new and self.record is not None:
            found.append(NamedRecord(self.record, self.attribution))
        fitting = (
            each
            for each in reversed(found)
            if each.record.time_ns >= earliest_ns and not _is_later(each.record, last_ns)
        )
        return next(fitting, None)

    def overheard(self, record: Record) -> None:
        """Let a record stand for it that may be of another packet, and so of another sender."""
        self.record = self.record or record

    def grew(self) -> None:
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

    def told(self, now_ns: int, last_ns: int) -> None:
        """Take in that an attempt was emitted, whose last packet was at ``last_ns``."""
        self.is_new = self.is_new and self.record is not None and _is_later(self.record, last_ns)
        self._shown = None
        if self.schedule is None:
            # It may have been told of before a restart.
            before = 0 if self.end is None else self.end.streak.windows
            self.schedule = Schedule(now_ns, before + 1)
        else:
            self.schedule.told(now_ns)

    def _keep_shown(self, last_ns: int) -> None:
        """Keep the record, if a reading has shown its packet, beside those that follow."""
        if self.is_new and self.record is not None and not _is_later(self.record, last_ns):
            self._shown = NamedRecord(self.record, self.attribution)

    def _last_ns(self, now_ns: int) -> int:
        if self._is_growing or self._grew_ns is None:
            self._grew_ns, self._is_growing = now_ns, False
        return self._grew_ns


def _is_later(record: Record, last_ns: int) -> bool:
    """Return whether the kernel logged a record's packet after a time, as far as is known."""
    return not record.is_timed_when_read and record.time_ns > last_ns + _CLOCKS_APART_NS


class Tellings(dict["Key", Telling]):
    """What is told by itself, and who may have more of that: a record is kept of each."""

    def __init__(self, whose: Whose, opened: Opened, gravity: Gravity) -> None:
        """How ``gravity`` weighs is said there."""
        super().__init__()
        self._whose = whose
        self._opened = opened
        self._gravity = gravity
        self._quota = Quota()
        #: What is told by itself because of its destination alone, and by whom.
        self._by_right: dict[Key, int | None] = {}
        #: The latest of those that differ in the port alone.
        self._by_destination: dict[Key, Key] = {}

    def of(self, key: Key, record: Record) -> Telling | None:
        """What a record with this key is of, None where that is not told by itself.

        Where it lacks the port, another one's to the same destination: its packet may have been
        counted there, and told by now.
        """
        there = self._by_destination.get(key) if lacks_port(record) else None
        return self.get(key) or (None if there is None else self[there])

    def take(self, key: Key, uid: int | None, destination: str | None, now_ns: int) -> bool:
        """Whether one more flow of a user is told by itself, and not with its others."""
        if len(self) - len(self._by_right) < _TELLINGS and self._quota.grants(uid, now_ns):
            return True
        if destination not in self._gravity.destinations or len(self._by_right) >= _RIGHTS:
            return False
        if sum(other == uid for other in self._by_right.values()) >= _RIGHTS_OF_A_USER:
            return False
        self._by_right[key] = uid
        return True

    def __delitem__(self, key: Key) -> None:
        """Tell no more of a flow."""
        super().__delitem__(key)
        self._by_right.pop(key, None)
        if self._by_destination.get(without_port(key)) == key:
            del self._by_destination[without_port(key)]

    def begin(
        self,
        key: Key,
        now_ns: int,
        record: Record | None = None,
        attribution: Attribution | None = None,
    ) -> Telling:
        """Tell of a flow by itself from now on."""
        telling = self[key] = Telling(key, now_ns, record, attribution)
        self._by_destination[without_port(key)] = key
        return telling

    def begin_unheard(self, key: Key, now_ns: int, reading: int) -> Telling:
        """The same of a flow that a reading was the first to show."""
        telling = self.begin(key, now_ns)
        telling.first_reading = reading
        return telling

    def resume(self, opened: OpenStreak) -> None:
        """Go on with a streak that was told of before a restart: more of it is told at once."""
        telling = self[opened.key] = Telling(opened.key, record=opened.end.record)
        self._by_destination[without_port(opened.key)] = opened.key
        telling.is_new = False
        telling.end = opened.end

    def told(self, telling: Telling, attempt: Attempt, now_ns: int, last_ns: int) -> Attempt:
        """Take down what is told; the same, with the streak that it goes on with."""
        telling.told(now_ns, last_ns)
        key = telling.key
        if key is None or attempt.merged is not None:
            return attempt
        telling.end = end = incidents.grown(telling.end, key, attempt, self._gravity.is_finding)
        self._opened.goes_on(OpenStreak(self._whose, key, end))
        return dataclasses.replace(attempt, streak=end.streak)

    def ended(self, owing: AbstractSet[Key], now_ns: int, *, closing: bool) -> Iterator[Ended]:
        """The streaks that are over, and all of them when ``closing``.

        What is over is forgotten: the next packet of it begins something new.
        """
        for key, telling in list(self.items()):
            is_over = key not in owing and telling.is_over(now_ns)
            if is_over:
                del self[key]
            end = telling.end
            if end is not None and (is_over or closing):
                telling.end = None
                self._opened.ends(end.streak.identity)
                yield end


class Pot:
    """What is told together: how much is owed, of how many flows, some of which are named."""

    __slots__ = ("counted", "flows", "sample", "telling")

    def __init__(self, counted: Counted) -> None:
        self.counted = counted
        self.flows = 0
        self.sample: list[Flow] = []
        self.telling = Telling()

    def add(self, flow: Flow) -> None:
        """One more flow is told with the others."""
        self.flows += 1
        if len(self.sample) < _SAMPLE:
            self.sample.append(flow)

    def merged(self, why: Merger) -> Merged:
        """What to say of it; the flows that are told next are counted anew."""
        merged = Merged(why=why, flows=self.flows or None, sample=tuple(self.sample))
        self.flows = 0
        self.sample = []
        return merged


def is_unplaced(key: Key) -> bool:
    """Whether an element holds the packets of flows that found no place of their own."""
    return key.kind == "others" and flow(key).ethertype in _IP
