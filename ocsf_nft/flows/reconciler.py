"""Counters of one firewall rule, and which of their packets no event reports yet."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.flow import KINDS, Count, Key, fallback_keys
from ocsf_nft.flows.counter_table import CounterTable
from ocsf_nft.flows.flow_counter import ELEMENT_TIMEOUT_MS, FlowCounter
from ocsf_nft.flows.unlogged_flows import UnloggedFlows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from ocsf_nft.flow import Element, Kind, Reading, RuleReading

#: Readings that must lack the same packets before these count as evicted. One reading may omit some
#: elements, and the next one others. At the end, when nothing is refused any more, two suffice.
READINGS: Final = 8
LAST_READINGS: Final = 2
#: Elements processed before other tasks get a turn: about a millisecond of work.
_SLICE: Final = 500
#: Longest time between two readings of the flows while only new flows come, each with a log record.
_UNREAD_MS: Final = 5_000
#: Time after the first expiry of an element until the flows are read: many expire one by one.
_EXPIRED_MS: Final = 10_000
#: Largest difference of the times of one packet, from its record and from its element: idle times
#: are in kernel ticks (10 ms), and times in a journal are wrong by up to 0.1 s.
MAX_CLOCK_DIFFERENCE_NS: Final = 200_000_000
#: The wall clock was set back if it lost more than this between two readings.
_CLOCK_NS: Final = 50_000_000
#: Far more elements than a set has room for (accounting.nft): another process empties it
#: repeatedly.
_CROWDED: Final = 1 << 16


class Grown(NamedTuple):
    """Counter that a reading shows with ``packets`` new packets; ``is_new`` if it is a new one."""

    key: Key
    counter: FlowCounter
    packets: int
    is_new: bool


class Reconciler:
    """Counters of one firewall rule: each refused packet is unreported in one of them, or reported.

    Most packets are in the counter of their flow, an element of an nftables set. ``overflow`` has
    the packets for which no set had a free slot. ``evicted`` has those whose element the kernel
    evicted before a reading.

    An event may report a packet from its log record before a reading shows the packet. Then the
    flow is ``unread``, and its counter has a negative number of unreported packets. If readings
    lack its element, the kernel has counted the packet in another counter, and the negative number
    moves there.
    """

    def __init__(self, begun_ns: int) -> None:
        """Create counters without packets; no packet was counted before ``begun_ns`` (Unix)."""
        self.entries: dict[Kind, CounterTable] = {kind: CounterTable() for kind in KINDS}
        self.overflow = FlowCounter(since_ns=begun_ns)
        self.evicted = FlowCounter(since_ns=begun_ns)
        #: The kernel's total at the last reading, and the part of it that was in elements.
        self.refused = Count()
        self.in_sets = Count()
        #: Records that the kernel had logged by the last reading.
        self.logged = 0
        #: Start of the last reading: packets that it lacks came later.
        self.read_ns = self.ended_ns = begun_ns
        #: Start of the last reading of the flows.
        self._flows_read_ns = begun_ns
        #: Number of readings in this run.
        self.readings = 0
        #: Keys of counters that changed since the last commit.
        self.touched: set[Key] = set()
        self.unreported: set[Key] = set()
        #: Flows reported by a record; no reading has shown yet which counter has the packet.
        self.unread: set[Key] = set()
        #: Whether an unread flow may be missing in so many readings that its packet is moved.
        self._has_missed = False
        #: Unread flows with packets that the counters have, as their total shows.
        self.explained: frozenset[Key] = frozenset()
        #: Unread flows with packets that the rule's earlier counters may have counted.
        self.inherited: set[Key] = set()
        #: Reported packets of inherited flows that the counters here have counted.
        self.adopted_packets = 0
        #: Time by the monotonic clock from which the flows must be read, because elements have
        #: expired in the kernel; None if there are no elements.
        self.expiry_ms: int | None = None
        #: Start of the last reading by the monotonic clock; None if it had packets without a place.
        self._settled_ms: int | None = None
        #: Wall clock minus monotonic clock, in ns, at the last reading, and its last change.
        self._clock_ns: int | None = None
        self._step_ns = 0
        #: Packets that only the rule's total has, in the latest readings.
        self._lacked: deque[Count] = deque(maxlen=READINGS)

    def entry(self, key: Key) -> FlowCounter | None:
        """Return the counter of the flow ``key``; None if there is none.

        After the next commit, ask for it again: this object may be an old copy then.
        """
        return self.entries[key.kind].get(key.data)

    def add_unread(self, key: Key, since_ns: int) -> FlowCounter:
        """Create the counter of a flow that a record reports before any reading shows it."""
        counter = self.entries[key.kind][key.data] = FlowCounter(since_ns=since_ns)
        self.unread.add(key)
        return counter

    def take_over(self, before: Reconciler) -> None:
        """Move the unread flows of the rule's old counters here: the new ones may count them.

        An event has reported their packets. This prevents a second report. It is not needed if the
        old counters certainly have the packets.
        """
        self._clock_ns = before._clock_ns
        for key in list(before.unread):
            if key in before.explained:
                before.drop(key)
                continue
            counter = before.entry(key)
            # If two readings lack it, another one of the old counters has its packet.
            if counter is None or counter.missed >= LAST_READINGS:
                continue
            self.entries[key.kind][key.data] = counter
            counter.is_aggregated, counter.missed = False, 0
            self.unread.add(key)
            self.inherited.add(key)
            self.touched.add(key)
            before.drop(key)

    def restore(self, key: Key, counter: FlowCounter) -> None:
        """Add the counter of the flow ``key``, as read from the state database."""
        self.entries[key.kind][key.data] = counter
        if counter.unreported_packets > 0:
            self.unreported.add(key)
        elif counter.is_unread:
            self.unread.add(key)
        else:
            self.rest(key)

    def rest(self, key: Key) -> None:
        """Save memory of a counter, if nothing is to be reported."""
        self.entries[key.kind].rest(key.data, self._flows_read_ns)

    def clear_touched(self) -> None:
        """Forget which counters have changed, as all changes are stored."""
        self.touched.clear()
        for table in self.entries.values():
            table.tidy()

    def drop(self, key: Key) -> None:
        """Remove the counter of the flow ``key``."""
        del self.entries[key.kind][key.data]
        self.touched.add(key)
        self.unread.discard(key)
        self.inherited.discard(key)

    def check_clock(self, reading: Reading) -> bool:
        """Return True if the wall clock was set back before ``reading``, and reduce later times."""
        clock_ns = reading.began_ns - reading.began_ms * 1_000_000
        self._step_ns = 0 if self._clock_ns is None else clock_ns - self._clock_ns
        self._clock_ns = clock_ns
        was_set = self._step_ns < -_CLOCK_NS
        if not was_set and reading.began_ns >= self.read_ns:
            return False
        for table in self.entries.values():
            for counter in table.active():
                counter.limit_times(reading.began_ns)
        return True

    def observe(self, found: RuleReading, reading: Reading) -> Iterator[Sequence[Grown]]:
        """Process the part of ``reading`` that is of this rule; yield the grown counters in steps.

        The caller can run other tasks between the steps.
        """
        if found.elements is not None:
            yield from self._observe_flows(found.elements, reading)
        if self.overflow.grow(*found.overflow):
            # The kernel gives no time for this counter.
            self.overflow.last_ns = reading.began_ns
        self._lacked.append(_minus(found.refused_before, self.in_sets, found.overflow))
        self.refused, self.logged = found.refused, found.logged
        self.read_ns, self.ended_ns = reading.began_ns, reading.ended_ns
        self._settled_ms = None if self._without_place else reading.began_ms
        self.readings += 1
        # An empty set has the size of its largest content.
        self.unreported, self.unread = self.unreported or set(), self.unread or set()

    def _observe_flows(
        self, found: Mapping[Kind, Sequence[Element]], reading: Reading
    ) -> Iterator[Sequence[Grown]]:
        expires_ms: list[int] = []
        for kind, table in self.entries.items():
            elements = iter(found.get(kind, ()))
            shown: set[bytes] = set()
            while some := tuple(islice(elements, _SLICE)):
                shown.update(element.data for element in some)
                grown = [self._update(Key(kind, each.data), each, reading) for each in some]
                # The oldest last packet: an element with an idle time.
                idle_ms = min(max(element.idle_ms for element in some), ELEMENT_TIMEOUT_MS)
                expires_ms.append(reading.began_ms - idle_ms + ELEMENT_TIMEOUT_MS)
                yield [each for each in grown if each is not None]
            missing = iter([data for data in table if data not in shown])
            while some_missing := tuple(islice(missing, _SLICE)):
                for data in some_missing:
                    missing_ms = self._mark_missing(Key(kind, data), reading)
                    expires_ms += [] if missing_ms is None else [missing_ms]
                yield ()
            table.tidy()
        self._flows_read_ns = reading.began_ns
        self.expiry_ms = min(expires_ms) + _EXPIRED_MS if expires_ms else None

    def _update(self, key: Key, element: Element, reading: Reading) -> Grown | None:
        if self.entries[key.kind].rests(element, reading):
            return None
        counter = self.entry(key)
        is_new = counter is None
        if counter is None:
            if not element.packets:  # made by another process: the fence counts a packet at once
                return None
            counter = self.entries[key.kind][key.data] = FlowCounter(since_ns=self.read_ns)
        self.unread.discard(key)
        if key in self.inherited:
            self._adopt(key, counter, element, reading)
        before = counter.unreported_bytes
        fresh = counter.update(element, reading, self.read_ns, self._settled_ms)
        octets = counter.unreported_bytes - before
        if fresh or octets:
            self.in_sets = Count(self.in_sets.packets + fresh, self.in_sets.bytes + octets)
            self.touched.add(key)
        if fresh:
            self.unreported.add(key)
        else:
            self.rest(key)
        return Grown(key, counter, fresh, is_new) if fresh or is_new else None

    def _adopt(self, key: Key, counter: FlowCounter, element: Element, reading: Reading) -> None:
        # The reported packet of an inherited flow is in these counters, or in the old ones.
        self.inherited.discard(key)
        last_ns = reading.began_ns - self._step_ns - element.idle_ms * 1_000_000
        is_later = last_ns > counter.last_ns + MAX_CLOCK_DIFFERENCE_NS
        if counter.missed or (element.packets == 1 and is_later):  # all packets here came later
            counter.mark_reported(counter.unreported_packets, counter.unreported_bytes)
        else:
            self.adopted_packets -= counter.unreported_packets

    def _mark_missing(self, key: Key, reading: Reading) -> int | None:
        """Note that ``reading`` lacks a flow; return when its element expires.

        The time is by the monotonic clock, in ms; None if the flow was removed: that happens after
        two such readings, if all is reported, and its element has expired or the set is crowded.
        """
        counter = self.entry(key)
        if counter is None:
            return None
        counter.is_shown = False
        if key in self.unread:
            # Its packet came before the reading, so another element counted it. Two readings must
            # lack it, because the kernel may omit an element while it enlarges its table.
            counter.missed += counter.last_ns < reading.began_ns
            self._has_missed |= counter.missed >= LAST_READINGS
        elif counter.unreported_packets < 1 and (
            counter.may_have_expired(reading) or len(self.entries[key.kind]) > _CROWDED
        ):
            counter.missed += 1
            if counter.missed > 1 and counter.unreported_packets:
                self.unread.add(key)
                self._has_missed = True
            elif counter.missed > 1:
                self.drop(key)
                return None
        self.rest(key)
        return counter.expires_ms or reading.began_ms

    @property
    def _without_place(self) -> int:
        # Packets that are in no element, nor in overflow, nor in evicted.
        seen = self.in_sets.packets + self.overflow.seen_packets + self.evicted.seen_packets
        return self.refused.packets - seen

    def is_settled(self, now_ms: int) -> bool:
        """Return True if another reading of the flows is needed only if log records or totals grow.

        This is so if each packet of the total has its place, and no flow has expired long before
        ``now_ms`` (monotonic). The first reading of a run is always needed. So is one from time to
        time while log records come, because a process could have forged them.
        """
        if self._settled_ms is None or self._without_place:
            return False
        has_expired = self.expiry_ms is not None and self.expiry_ms <= now_ms
        is_old = now_ms - self._settled_ms >= _UNREAD_MS
        return not has_expired and not (self.unread and (is_old or self.unreported))

    def is_active(self) -> bool:
        """Return True if a packet may have to be reported without a new packet."""
        return bool(
            self.unreported
            or self.unread
            or self.overflow.unreported_packets > 0
            or self.evicted.unreported_packets > 0
            or self._without_place > 0
        )

    def find_evicted(self, *, closing: bool) -> bool:
        """Add packets to ``evicted`` that no other counter has; return True if there are any.

        Each of the last eight readings must show them in the rule's total. With ``closing``, two
        readings are enough.
        """
        sure = self._surely_evicted(LAST_READINGS if closing else READINGS)
        if sure.packets <= 0:
            return False
        known = self.evicted
        known.grow(known.seen_packets + sure.packets, max(known.seen_bytes + sure.bytes, 0))
        known.last_ns = self.read_ns
        return True

    def _surely_evicted(self, readings: int) -> Count:
        if len(self._lacked) < readings:
            return Count()
        # A reading may miss some flows, so that its number is too high.
        least = min(list(self._lacked)[-readings:])
        known = self.evicted
        return Count(max(0, least.packets - known.seen_packets), least.bytes - known.seen_bytes)

    def pending_packets(self, more: Iterable[FlowCounter]) -> int:
        """Return how many packets the kernel had counted at the last reading, but no event reports.

        ``more`` are counters with unreported packets that were taken out of the counters here.
        """
        found = (self.entry(key) for key in self.unreported)
        counters = [
            *(each for each in found if each is not None),
            self.overflow,
            self.evicted,
            *more,
        ]
        # Packets that were reported and not read yet do not reduce the others' number.
        unreported = sum(max(each.unreported_packets, 0) for each in counters)
        # The rule's total, which is read last, has packets that came during the reading, and those
        # of deleted elements. The next readings show which, and all of them are reported.
        return unreported + max(0, self._without_place)

    def unread_packets(self) -> int:
        """Return how many packets events have reported that no reading has shown yet.

        Those of inherited flows are left out.
        """
        found = (self.entry(key) for key in self.unread - self.inherited)
        return sum(max(0, -each.unreported_packets) for each in found if each is not None)

    def other_counters(self, key: Key) -> list[tuple[Key | None, FlowCounter]]:
        """Return other counters that may have counted packets of the flow ``key``, likeliest first.

        ``overflow`` and ``evicted`` come last, with the key None.
        """
        found = [(each, there) for each in fallback_keys(key) if (there := self.entry(each))]
        return [*found, (None, self.overflow), (None, self.evicted)]

    def move_records(self, is_unlogged: Callable[[Key], bool], *, closing: bool) -> None:
        """Avoid a second report of packets logged as one flow, but counted as another.

        This happens, for example, if the set has no free slot for the first flow. An event of the
        first flow reports the packets, so the second flow's counter is reduced. ``is_unlogged``
        returns True for a flow without a log record. With ``closing``, a counter with too few
        packets is reduced.
        """
        if not self._has_missed:
            return
        self._has_missed = False
        unlogged: UnloggedFlows | None = None
        for key in list(self.unread):
            counter = self.entry(key)
            if counter is None or counter.missed < LAST_READINGS:
                continue
            self._has_missed = True  # a later call looks at the rest again
            packets = -counter.unreported_packets
            if key in self.inherited:
                self._settle_inherited(key, counter, packets)
                continue
            unlogged = unlogged or UnloggedFlows(
                (each, there)
                for each in self.unreported
                if (there := self.entry(each)) is not None and is_unlogged(each)
            )
            candidates = [*self.other_counters(key), *unlogged.find(packets, key)]
            enough = (each for each in candidates if each[1].unreported_packets >= packets)
            # At the end, or after eight readings: take the first of the other counters. Before
            # that, a later call searches again if no counter has enough packets.
            is_last = closing or counter.missed > READINGS
            other_key, other = next(enough, candidates[0] if is_last else (None, None))
            if other is not None:
                self._move(key, counter, other_key, other)

    def _settle_inherited(self, key: Key, counter: FlowCounter, packets: int) -> None:
        """Remove an inherited flow that these counters lack: the earlier ones have its packets.

        But if its set has no free slot, another element here has them.
        """
        for other_key, other in self.other_counters(key):
            if other_key is not None and other.unreported_packets >= packets:
                self.adopted_packets += packets
                self._move(key, counter, other_key, other)
                return
        self.drop(key)

    def _move(
        self, key: Key, counter: FlowCounter, other_key: Key | None, other: FlowCounter
    ) -> None:
        unreported = Count(counter.unreported_packets, counter.unreported_bytes)
        other.grow_by(unreported, other.last_ns)
        self.touched.update(() if other_key is None else (other_key,))
        self.drop(key)


def _minus(total: Count, *parts: Count) -> Count:
    return Count(
        total.packets - sum(each.packets for each in parts),
        total.bytes - sum(each.bytes for each in parts),
    )
