"""The account of one rule: what the kernel refused by it, and what has been told of that."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from ocsf_nft.accounting import counter_attempt
from ocsf_nft.accounting.flow_counter import Counted
from ocsf_nft.accounting.flow_report import NamedRecord, Pot, Tellings, is_unplaced
from ocsf_nft.accounting.open_incidents import OpenStreak
from ocsf_nft.accounting.overflow_flows import Folded
from ocsf_nft.accounting.scan_detection import FanOuts
from ocsf_nft.accounting.unaccounted import LAST_READINGS, READINGS, Remainder
from ocsf_nft.accounting.unlogged_flows import Unheard
from ocsf_nft.attempt import Attempt, Merged
from ocsf_nft.flow import KINDS, Count, Flow, Key, coarser, flow, keys, user_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ocsf_nft.accounting.counter_id import Whose
    from ocsf_nft.accounting.flow_report import Telling
    from ocsf_nft.accounting.open_incidents import Open, Opened
    from ocsf_nft.accounting.priority import Gravity
    from ocsf_nft.attempt import Ended, FanOut, Merger
    from ocsf_nft.flow import Element, Kind, RuleReading
    from ocsf_nft.process import Attribution
    from ocsf_nft.record import Record

#: An attempt with who made it, where more is known of that than one record of it tells.
Attributed: TypeAlias = "Callable[[Attempt], Attempt]"
#: Elements taken in before other tasks get a turn: about a millisecond of work.
_SLICE: Final = 500
#: A record comes this soon after its packet, or is lost.
_LATE_NS: Final = 60 * 1_000_000_000
#: Far more than a set has room for (accounting.nft): somebody empties it again and again.
_CROWDED: Final = 1 << 16
#: The rules whose packets come from a user of the sandbox.
_OUTBOUND: Final = frozenset(
    {"egress", "forward", "link", "guard", "vm-forward", "vm-input", "vm-link"}
)


class RuleAccount:
    """Takes in records and readings, and gives out attempts: each packet in one, none in two.

    All that it is asked must be asked in one thread. ``now_ns`` says when to tell, by any clock
    that is not set: never is it told. The times of records and readings are since the epoch, UTC.
    """

    def __init__(
        self,
        whose: Whose,
        opened: Opened,
        *,
        begun_ns: int,
        gravity: Gravity,
        attributed: Attributed,
    ) -> None:
        """No packet is from before ``begun_ns``."""
        self.epoch = whose.epoch
        self.entries: dict[Kind, dict[bytes, Counted]] = {kind: {} for kind in KINDS}
        #: The kernel's own total when it was last read, and what was found in elements of it.
        self.refused = Count()
        self.placed = Count()
        self.reported = 0
        #: Of ``reported``, what was told without saying which flow it was of.
        self.overflowed = 0
        #: When the last reading began: what it hadn't came later.
        self.read_ns = self._ended_ns = begun_ns
        self.overflow = Pot(Counted(since_ns=begun_ns))
        self.forgotten = Pot(Counted(since_ns=begun_ns))
        self.many: dict[int | None, Pot] = {}
        #: What has changed since it was last kept.
        self.touched: set[Key] = set()
        #: What is kept under the rule's name; None when it is not of these counters.
        self.kept: Mapping[str, Any] | None = None
        #: Records that were written, by the last reading, and those of them that were received.
        self.logged = self.received = 0
        self._owing: set[Key] = set()
        self.whose = whose
        self._tellings = Tellings(whose, opened, gravity)
        self._folded = Folded(self.many)
        #: Told on the word of a record; no reading has shown yet where it was counted.
        self._unread: set[Key] = set()
        #: What a record is of that may have been told with others, and the readings until then.
        self._waiting: dict[Key, int] = {}
        #: Until then a record may come of what was told with others.
        self.named_from_ns = 0
        self._readings = 0
        self._remainder = Remainder()
        #: Packets that came during the last reading.
        self._passing = 0
        self._is_outbound = whose.rule in _OUTBOUND
        self._attributed = attributed
        self._fan_outs = FanOuts(whose, opened)

    def record(
        self, record: Record, now_ns: int, attribution: Attribution | None = None
    ) -> Attempt | None:
        """Take in what the kernel logged, and who did it; the attempt if it is the first of one."""
        self.received += 1
        key = keys(record)[0]
        telling = self._tellings.of(key, record)
        counted = self._entry(key)
        if telling is not None:
            if telling.key == key:
                telling.logged(record, attribution, 0 if counted is None else counted.last_ns)
            else:
                telling.overheard(record)
            return None
        if key in self._folded or not self._tellings.take(
            key, record.uid, record.destination, now_ns
        ):
            return None
        telling = self._tellings.begin(key, now_ns, record, attribution)
        if counted is not None and (
            counted.owed_packets < 1
            or telling.new_record(counted.since_ns, counted.last_ns) is None
        ):
            # Whether a reading has had its packet, the next one shows.
            return None
        if counted is None and now_ns < self.named_from_ns:
            # So it does where its packet may have been told without its name.
            self._waiting[key] = self._readings
            return None
        if counted is None:
            counted = self.entries[key.kind][key.data] = Counted(since_ns=record.time_ns)
            self._unread.add(key)
            if self._is_outbound:
                self._fan_outs.saw(key, record.received_ns)
        counted.last_ns = max(counted.last_ns, record.time_ns)
        return self._of_record(key, counted, telling, NamedRecord(record, attribution), now_ns)

    def take_over(self, before: RuleAccount) -> None:
        """Take on what was told on the word of records that no counter of before showed."""
        for key in list(before._unread):
            counted = before.entries[key.kind][key.data]
            self.entries[key.kind][key.data] = counted
            self._unread.add(key)
            self.touched.add(key)
            self.reported -= counted.owed_packets
            before._drop(key)

    def restore(self, key: Key, counted: Counted) -> None:
        """Take up a counter where it was left."""
        self.entries[key.kind][key.data] = counted
        if counted.owed_packets > 0:
            self._owing.add(key)
        elif counted.is_unread:
            self._unread.add(key)

    def resume(self, opened: Open) -> None:
        """Go on with a streak or a fan-out that was open before a restart."""
        if isinstance(opened, OpenStreak):
            self._tellings.resume(opened)
        else:
            self._fan_outs.resume(opened)

    def observe(self, reading: RuleReading, began_ns: int, ended_ns: int) -> Iterator[None]:
        """Take in the counters; yields now and then, so that other work is not held up."""
        if began_ns < self.read_ns:
            self._follow_the_clock_back(began_ns)
        for kind in KINDS:
            elements = iter(reading.elements.get(kind, ()))
            there: set[bytes] = set()
            while some := tuple(islice(elements, _SLICE)):
                for element in some:
                    there.add(element.data)
                    self._take(Key(kind, element.data), element, ended_ns)
                yield
            missing = iter([data for data in self.entries[kind] if data not in there])
            while some_missing := tuple(islice(missing, _SLICE)):
                for data in some_missing:
                    self._miss(Key(kind, data), began_ns)
                yield
        self._balance(reading, began_ns)
        self.refused, self.logged = reading.refused, reading.logged
        self._passing = reading.refused.packets - reading.refused_before.packets
        self.read_ns, self._ended_ns = began_ns, ended_ns
        self._readings += 1
        # Whoever asks for the balance now must not find what readings have shown already.
        self._move(closing=False)

    def fold(self, now_ns: int) -> Iterator[None]:
        """Put together what is to be told together; yields now and then, as :meth:`observe` does.

        :meth:`due` does it too for what is left: tens of thousands of flows take long.
        """
        owing = iter(list(self._owing))
        while some := tuple(islice(owing, _SLICE)):
            for key in some:
                counted = self._entry(key)
                if counted is not None and counted.owed_packets > 0 and not is_unplaced(key):
                    self._telling(key, counted, now_ns)
            yield

    def due(self, now_ns: int, *, closing: bool) -> Iterator[Attempt | FanOut | Ended]:
        """What is to be told now; all that is owed, when ``closing``."""
        self._find_what_was_forgotten(closing=closing)
        self._move(closing=closing)
        yield from self._due_of_waiting(now_ns)
        for key in sorted(self._owing):
            yield from self._due(key, now_ns, closing=closing)
        for pot, uid, why in self._pots():
            if pot.counted.owed_packets > self._held(why) and (
                closing or pot.telling.is_due(now_ns)
            ):
                who = Flow(uid=uid, protocol=None)
                yield self._tell(pot.counted, None, who, pot.telling, now_ns, pot.merged(why))
            elif why == "many" and pot.telling.is_over(now_ns):
                del self.many[uid]
        yield from self._tellings.ended(self._owing, now_ns, closing=closing)
        yield from self._fan_outs.due(now_ns, closing=closing)

    def in_flight(self) -> int:
        """Packets that the kernel has counted, in a counter or just now, and nobody has told."""
        counters = [each for kind in self.entries.values() for each in kind.values()]
        counters += [pot.counted for pot, _, _ in self._pots()]
        seen = self.placed.packets + self.overflow.counted.seen_packets
        unseen = self.refused.packets - seen - self.forgotten.counted.seen_packets
        # What was told and not read yet is no debt of the others.
        forgotten = self._remainder.beyond(self.forgotten.counted, LAST_READINGS).packets
        return sum(max(each.owed_packets, 0) for each in counters) + max(
            0, min(unseen, self._passing + forgotten)
        )

    def _pots(self) -> tuple[tuple[Pot, int | None, Merger], ...]:
        """What is told together: of whom, and why."""
        return (
            (self.overflow, None, "unplaced"),
            (self.forgotten, None, "forgotten"),
            *((pot, uid, "many") for uid, pot in self.many.items()),
        )

    def _entry(self, key: Key) -> Counted | None:
        return self.entries[key.kind].get(key.data)

    def _take(self, key: Key, element: Element, ended_ns: int) -> None:
        counted = self._entry(key)
        if counted is None:
            counted = self.entries[key.kind][key.data] = Counted(since_ns=self.read_ns)
            if self._is_outbound and not is_unplaced(key):
                self._fan_outs.saw(key, ended_ns)
        self._unread.discard(key)
        before = counted.owed_bytes
        fresh = counted.take(element, ended_ns, self.read_ns)
        if fresh:
            self.placed = Count(
                self.placed.packets + fresh, self.placed.bytes + counted.owed_bytes - before
            )
            self._owing.add(key)
            self.touched.add(key)
            if telling := self._tellings.get(key):
                telling.shown(counted.last_ns)
            if self._is_outbound:
                self._fan_outs.count(user_of(key), fresh)

    def _follow_the_clock_back(self, began_ns: int) -> None:
        """Limit times in the future to ``began_ns``, after the wall clock was set back."""
        for kind in KINDS:
            for counted in self.entries[kind].values():
                counted.follow_the_clock_back(began_ns)

    def _miss(self, key: Key, began_ns: int) -> None:
        """Take in that a reading had no such element."""
        counted = self.entries[key.kind][key.data]
        counted.is_shown = False
        if counted.is_unread:
            # Its packet came before the reading, so it was counted elsewhere. Twice, because the
            # kernel may leave out an element while it makes its table larger.
            counted.missed += counted.last_ns < began_ns
        elif counted.owed_packets < 1 and (
            began_ns > counted.expires_ns or len(self.entries[key.kind]) > _CROWDED
        ):
            counted.missed += 1
            if counted.missed > 1 and counted.owed_packets:
                self._unread.add(key)
            elif counted.missed > 1:
                self._drop(key)

    def _move(self, *, closing: bool) -> None:
        """Take what was told on a record's word off where its packet was counted instead."""
        unheard: Unheard | None = None
        for key in list(self._unread):
            counted = self._entry(key)
            if counted is None or counted.missed < LAST_READINGS:
                continue
            unheard = unheard or Unheard(self._unheard())
            packets = -counted.owed_packets
            there = [*self._elsewhere(key), *unheard.owing(packets, key)]
            enough = (each for each in there if each[1].owed_packets >= packets)
            is_last = closing or counted.missed > READINGS
            where, other = next(enough, there[0] if is_last else (None, None))
            if other is not None:
                owed = Count(counted.owed_packets, counted.owed_bytes)
                other.grow_by(owed, other.last_ns)
                self.touched.update(() if where is None else (where,))
                self._drop(key)

    def _elsewhere(self, key: Key) -> list[tuple[Key | None, Counted]]:
        """The counters, and their keys, that may have counted what has no element of its own."""
        found = [(each, there) for each in coarser(key) if (there := self._entry(each))]
        return [*found, (None, self.overflow.counted), (None, self.forgotten.counted)]

    def _unheard(self) -> Iterator[tuple[Key, Counted]]:
        for key in self._owing:
            telling, counted = self._tellings.get(key), self._entry(key)
            if counted is not None and (telling is None or telling.is_unheard):
                yield key, counted

    def _drop(self, key: Key) -> None:
        del self.entries[key.kind][key.data]
        self.touched.add(key)
        self._folded.forget(key)
        self._unread.discard(key)

    def _balance(self, reading: RuleReading, began_ns: int) -> None:
        """Take in what found no place, and what is in none of the counters that were read."""
        if self.overflow.counted.grow(*reading.overflow):
            self.overflow.counted.last_ns = began_ns
            self.overflow.telling.grew()
        self._remainder.add(reading.refused_before, self.placed, reading.overflow)

    def _find_what_was_forgotten(self, *, closing: bool) -> None:
        """Owe what nobody had read before the kernel forgot it."""
        sure = self._remainder.beyond(
            self.forgotten.counted, LAST_READINGS if closing else READINGS
        )
        if sure.packets > 0:
            known = self.forgotten.counted
            known.grow(known.seen_packets + sure.packets, max(known.seen_bytes + sure.bytes, 0))
            known.last_ns = self.read_ns
            self.forgotten.telling.grew()

    def _due_of_waiting(self, now_ns: int) -> Iterator[Attempt]:
        """Tell by itself what a record is of, where its packet has not been told yet."""
        for key, readings in list(self._waiting.items()):
            telling = self._tellings.get(key)
            record = None if telling is None else telling.record
            if telling is None or record is None or self._entry(key) is not None:
                del self._waiting[key]
                continue
            for where, counted in self._elsewhere(key):
                if counted.owed_packets > len(self._unread):
                    del self._waiting[key]
                    named = NamedRecord(record, telling.attribution)
                    yield self._of_record(where, counted, telling, named, now_ns)
                    break
            else:
                if self._readings - readings >= LAST_READINGS:
                    del self._waiting[key], self._tellings[key]

    def _due(self, key: Key, now_ns: int, *, closing: bool) -> Iterator[Attempt]:
        counted = self._entry(key)
        if counted is None or counted.owed_packets < 1:
            self._owing.discard(key)
            return
        if is_unplaced(key) and counted.owed_packets <= self._held("unplaced"):
            return
        telling = self._telling(key, counted, now_ns)
        if telling is None:
            return
        # It may be what a record was told of that leads elsewhere.
        is_waiting = bool(self._unread) and telling.is_young(self._readings, now_ns)
        if closing or (telling.is_due(now_ns) and not is_waiting):
            self._owing.discard(key)
            named = telling.new_record(counted.since_ns, counted.last_ns)
            if named is not None and counted.owed_packets == 1:
                yield self._of_record(key, counted, telling, named, now_ns)
            else:
                merged = Merged(why="unplaced") if is_unplaced(key) else None
                yield self._tell(counted, key, flow(key), telling, now_ns, merged)

    def _telling(self, key: Key, counted: Counted, now_ns: int) -> Telling | None:
        """How a flow is told; None when it is told with others, by now."""
        telling = self._tellings.get(key)
        if telling is None and key not in self._folded:
            what = flow(key)
            if is_unplaced(key) or self._tellings.take(key, what.uid, what.destination, now_ns):
                telling = self._tellings.begin_unheard(key, now_ns, self._readings)
        if telling is None:
            self._folded.add(key, counted)
            self._owing.discard(key)
            self.touched.add(key)
        return telling

    def _of_record(
        self, key: Key | None, counted: Counted, telling: Telling, named: NamedRecord, now_ns: int
    ) -> Attempt:
        attempt = Attempt.of(named.record, named.attribution)
        counted.told(1, attempt.bytes or 0)
        counted.since_ns = named.record.time_ns
        last_ns = max(counted.last_ns, named.record.time_ns)
        return self._told(key, telling, attempt, now_ns, last_ns)

    def _tell(  # noqa: PLR0913, PLR0917 - what is told, how, and in whose words
        self,
        counted: Counted,
        key: Key | None,
        what: Flow,
        telling: Telling,
        now_ns: int,
        merged: Merged | None,
    ) -> Attempt:
        held = 0 if merged is None else self._held(merged.why)
        named = telling.new_record(counted.since_ns, counted.last_ns)
        attempt = counter_attempt.attempt(
            self.whose,
            counted,
            key,
            what,
            packets=counted.owed_packets - held,
            number=self.reported,
            read_ns=self._ended_ns,
            specimen=telling.record if named is None else named.record,
            attribution=None if named is None else named.attribution,
            merged=merged,
        )
        if merged is not None:
            self.overflowed += attempt.packets
            if merged.why != "many":
                self.named_from_ns = now_ns + _LATE_NS
        if key is not None and held:
            self._owing.add(key)
        return self._told(key, telling, attempt, now_ns, counted.last_ns)

    def _told(
        self, key: Key | None, telling: Telling, attempt: Attempt, now_ns: int, last_ns: int
    ) -> Attempt:
        self.reported += attempt.packets
        if key is not None:
            self.touched.add(key)
        return self._tellings.told(telling, self._attributed(attempt), now_ns, last_ns)

    def _held(self, why: Merger) -> int:
        """Packets that may have been told already, and are not to be told with others before."""
        return 0 if why == "many" else len(self._unread)
