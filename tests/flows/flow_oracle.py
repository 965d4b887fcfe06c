"""Oracle of one flow: the refused packets, and the attempts that may count them.

The oracle shares no code and no state with the account. It stores every packet, and the state of
the flow's element at each reading.

The account cannot assign a packet to its flow when no reading and no record shows the packet. It
reports such packets as evicted. This happens when an element expires between two readings. If the
kernel made a new element meanwhile, the count does not always show it (``_is_surely_new``). So a
flow's sum has two bounds. Both are equal as long as no element expired between two readings.

A record may be read only after the element of its packet expired, if the service was stopped for 10
minutes. Then the account may assign its packet to a new element, or count it as evicted. Only the
sum of all flows is exact then (``has_late_record``). The bytes of a record without a length are
reported with the next packets. If the element expires before these, they are not
(``has_exact_bytes``).

Allowed slack of an attempt's window:

- The end may be late by the duration of the reading. An element has the age of its last packet, and
  only the end of the whole reading is known.
- The start may be as early as the end of the previous attempt. It may also be as early as the
  beginning of the previous reading, if that had the element without these packets.
- The start may not be later than the first packet, with two exceptions. The previous attempt may
  end late, and windows are disjoint. A record that is emitted at once may overtake an earlier
  packet without a record: the next window counts that earlier packet.
- If the wall clock was set since the previous attempt, the start is only not after the end. The end
  is the time of the last packet, by the clock as it was set at the reading.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from ocsf_nft.attempt import Attempt
    from ocsf_nft.flow import Reading

ELEMENT_TIMEOUT_MS: Final = 600_000
#: An element with an unchanged count is a new one if its idle time fell by more than this.
RENEWED_MS: Final = ELEMENT_TIMEOUT_MS // 2
#: A flow without a packet for this long has ended: all of its packets are reported.
OVER_MS: Final = 10_000
#: A record that is this little later than a reading may be that of a packet in the reading.
CLOCKS_APART_NS: Final = 200_000_000
#: The account treats two times that are this close as times of one clock.
CLAMP_NS: Final = 12_000_000_000


class Sent(NamedTuple):
    """One refused packet: its time by the kernel's clock and by the wall clock, and its length."""

    at_ms: int
    time_ns: int
    bytes: int
    clock_settings: int


class Shown(NamedTuple):
    """The range of packets that an element counted when it was read, and its idle time."""

    first: int
    end: int
    idle_ms: int


@dataclass
class FlowOracle:
    """All packets of one flow, and their state: shown by a reading, counted by an attempt."""

    packets: list[Sent] = field(default_factory=list)
    #: The element in the latest reading that had it.
    shown: Shown | None = None
    #: Packets that a reading showed and no attempt counted, oldest first.
    unreported: list[int] = field(default_factory=list)
    #: Packets that a record reported before a reading showed them.
    ahead: set[int] = field(default_factory=set)
    #: Packets that an attempt has counted.
    done: set[int] = field(default_factory=set)
    #: The fewest and the most packets that attempts of this flow may count in total.
    least: int = 0
    most: int = 0
    counted: int = 0
    counted_bytes: int = 0
    unsaid_bytes: int = 0
    #: Bytes of records that stand for shorter packets, until an attempt from the counter.
    borrowed_bytes: int = 0
    #: Whether each packet was shown in time, so that windows and bytes are exact.
    is_exact: bool = True
    has_exact_bytes: bool = True
    has_late_record: bool = False
    #: The earliest and the latest end that the window of unreported packets may have.
    end_ns: tuple[int, int] = (0, 0)
    end_settings: int = 0
    #: The kernel's time of the first report after the latest reading with new packets.
    asked_ms: int | None = None
    #: The end of the previous attempt, and how often the clock had been set by then.
    before_ns: int = 0
    before_settings: int = 0
    #: The longest time by which that end may be late.
    before_late_ns: int = 0
    #: The start of the latest reading, and the clock's settings, if it had the element.
    read: tuple[int, int] | None = None
    #: The same for the reading before the one that showed the oldest unreported packet.
    quiet_ns: int = 0
    quiet_settings: int = 0
    #: The latest time of a packet that was emitted by its own record.
    overtaken_ns: int = 0

    def show(
        self, number: int, now_ms: int, reading: Reading, ended_ms: int, clock_settings: int
    ) -> None:
        """Process a reading that reached this flow after ``number`` packets were sent."""
        shown = self._alive(number, now_ms)
        previous, self.read = (
            self.read,
            None if shown is None else (reading.began_ns, clock_settings),
        )
        if shown is None:
            return
        before, self.shown = self.shown, shown
        if before is not None and shown.first == before.first:
            new = range(before.end, shown.end)
            is_sure = True
        else:
            self.has_exact_bytes &= not self.unsaid_bytes
            new = range(shown.first, shown.end)
            is_sure = self._is_surely_new(before, shown)
        if not new:
            return
        if not self.unreported and not self.ahead and previous is not None:
            self.quiet_ns, self.quiet_settings = previous
        self._count(new, before, is_sure=is_sure)
        self.asked_ms = None
        low_ns = reading.ended_ns - (ended_ms - self.packets[shown.end - 1].at_ms) * 1_000_000
        self.end_settings = clock_settings
        self.end_ns = low_ns, reading.ended_ns - shown.idle_ms * 1_000_000

    def _count(self, new: range, before: Shown | None, *, is_sure: bool) -> None:
        unread = [packet for packet in self.ahead if packet < new.start]
        if unread:
            # Their element expired before a reading. The account subtracts them from the new one.
            self.is_exact = False
            self.ahead.difference_update(unread)
        self.most += len(new) - len(self.ahead.intersection(new))
        least = len(new) - len(unread) - len(self.ahead.intersection(new))
        if not is_sure and before is not None:
            self.is_exact = False
            least -= min(before.end - before.first, len(new))
        self.least += least
        self.unreported += [packet for packet in new if packet not in self.ahead]
        self.ahead.difference_update(new)

    def _alive(self, number: int, now_ms: int) -> Shown | None:
        if not number or now_ms - self.packets[number - 1].at_ms >= ELEMENT_TIMEOUT_MS:
            return None
        first = number - 1
        while (
            first and self.packets[first].at_ms - self.packets[first - 1].at_ms < ELEMENT_TIMEOUT_MS
        ):
            first -= 1
        return Shown(first, number, now_ms - self.packets[number - 1].at_ms)

    @staticmethod
    def _is_surely_new(before: Shown | None, shown: Shown) -> bool:
        """Return whether the counts alone show that the element is a new one."""
        if before is None:
            return True
        packets, packets_before = shown.end - shown.first, before.end - before.first
        if packets != packets_before:
            return packets < packets_before
        return before.idle_ms - shown.idle_ms > RENEWED_MS

    def note_record(self, number: int, now_ms: int) -> None:
        """Note that the record of packet ``number`` is read now."""
        if now_ms - self.packets[number].at_ms >= ELEMENT_TIMEOUT_MS:
            self.has_late_record = True
            self.is_exact = False

    def check_sum(self) -> None:
        """Check that attempts count no more packets than were shown of this flow."""
        assert self.has_late_record or self.counted <= self.most

    def check_recorded(self, attempt: Attempt, number: int) -> None:
        """Check an attempt that was made from the record of packet ``number``."""
        packet = self.packets[number]
        assert attempt.packets == 1
        assert attempt.start_ns == attempt.end_ns == attempt.record.time_ns == packet.time_ns
        self.counted += 1
        # The record of a frame has no length: its bytes are counted in the next attempt.
        self.counted_bytes += packet.bytes if attempt.bytes is None else attempt.bytes
        self.unsaid_bytes += packet.bytes if attempt.bytes is None else 0
        assert self.has_late_record or number not in self.done
        if number not in self.unreported and self.unreported and self.is_exact:
            assert packet.time_ns <= self.end_ns[1] + CLOCKS_APART_NS
            number = self.unreported[0]
            self.borrowed_bytes += packet.bytes - self.packets[number].bytes
        self.done.add(number)
        if number in self.unreported:
            self.unreported.remove(number)
        else:
            self.ahead.add(number)
            self.least += 1
            self.most += 1
        self.check_sum()
        self.overtaken_ns = max(self.overtaken_ns, packet.time_ns)
        self.before_ns, self.before_settings = packet.time_ns, packet.clock_settings

    def check_counted(self, attempt: Attempt) -> None:
        """Check an attempt that was made from a counter."""
        counted = self.unreported[: attempt.packets]
        del self.unreported[: attempt.packets]
        self.done.update(counted)
        self.counted += attempt.packets
        self.check_sum()
        assert attempt.bytes is not None
        self.counted_bytes += attempt.bytes - self.unsaid_bytes
        self.unsaid_bytes = 0
        due_bytes = sum(self.packets[number].bytes for number in counted)
        self.borrowed_bytes = max(0, self.borrowed_bytes - due_bytes)
        if not self.is_exact:
            return
        packets = [self.packets[number] for number in counted]
        assert len(packets) == attempt.packets
        low_ns, high_ns = self.end_ns
        was_set = not self.end_settings == self.before_settings == packets[0].clock_settings
        if not low_ns <= attempt.end_ns <= high_ns:
            # Packets that end within seconds of the previous attempt get its end as their time.
            assert attempt.start_ns == attempt.end_ns
            assert high_ns < attempt.end_ns < high_ns + CLAMP_NS
            assert was_set or attempt.end_ns == self.before_ns
        if not was_set:
            assert self.before_ns <= attempt.start_ns
            if self.quiet_settings == self.end_settings:
                assert self.quiet_ns <= attempt.start_ns
            first_ns = packets[0].time_ns + self.before_late_ns
            assert attempt.start_ns <= max(first_ns, self.overtaken_ns)
        self.before_late_ns = high_ns - low_ns
        if attempt.end_ns <= high_ns:
            self.before_settings = self.end_settings
        self.before_ns = attempt.end_ns

    def restart(self) -> None:
        """Clear the idle time of the element, which a service loses when it restarts."""
        if self.shown is not None:
            self.shown = self.shown._replace(idle_ms=0)
        self.asked_ms = self.read = None

    def check_report_in_time(self, now_ms: int) -> None:
        """Check that a flow that ended 10 s before a report, or earlier, is fully reported."""
        if self.asked_ms is None:
            self.asked_ms = now_ms
        assert not self.unreported or not self.is_exact or now_ms - self.asked_ms < OVER_MS
