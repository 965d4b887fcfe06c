"""Detection of log records that a fence did not log, by the kernel's counters of logged packets.

A program with CAP_NET_ADMIN over the network namespace can log any packet with the fence's prefix.
The fence counts each packet that it logs. So if there are more records than that, some are forged.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ocsf_nft.flow import Reading
    from ocsf_nft.flows.rule_account import RuleAccount

#: Readings that must all show too many records. The kernel counts a packet after it has logged it,
#: and may be interrupted in between.
_READINGS: Final = 3
#: Records that come so soon after the counters were created may be of the counters before.
_LATE_NS: Final = 2_000_000_000
#: Time without a record after which all records of packets that were logged before have come, and
#: the number of such times that must follow one another.
_CALM_NS: Final = 1_000_000_000
_CALM_TIMES: Final = 2


class ReceivedRecords(NamedTuple):
    """Number of records of each rule that were received before a reading of the counters."""

    #: By the rule's name and the epoch of its counters.
    numbers: Mapping[tuple[str, str], int]
    #: Stored results of :meth:`UncountedRecords.dropped`; 0 without one.
    dropped: Mapping[tuple[str, str], int]
    #: False while other records are being processed.
    is_settled: bool


def received_records(rules: Mapping[str, RuleAccount], *, is_settled: bool) -> ReceivedRecords:
    """Return how many records the accounts of rules have received until now."""
    accounts = {(name, each.counter_id.epoch): each for name, each in rules.items()}
    return ReceivedRecords(
        {key: each.received for key, each in accounts.items()},
        {key: each.dropped_records for key, each in accounts.items()},
        is_settled,
    )


@dataclass(slots=True)
class _Rule:
    #: When the counters were created in place of others; earlier if there were none.
    since_ns: int
    #: Logged packets without a record that are known: their records were dropped. More records than
    #: the other packets have are forged. Known forged records are subtracted.
    dropped: int
    #: Logged packets at the last reading.
    logged: int = 0
    #: Logged packets without a record, in the latest readings.
    missing: deque[int] = field(default_factory=lambda: deque(maxlen=_READINGS))
    #: Number of received records. Since it is the same: the begin of the latest calm time, and the
    #: logged packets without a record at the begins of the latest ones.
    received: int = -1
    calm_since_ns: int = 0
    calm_missing: deque[int] = field(default_factory=lambda: deque(maxlen=_CALM_TIMES))

    def observe(self, received: int, logged: int, now_ns: int, *, is_settled: bool) -> int:
        """Return how many more records are known to be forged."""
        missing = logged - received
        if logged < self.logged:  # another process has reset the counter: begin again
            self.since_ns, self.dropped, self.received = now_ns, missing, -1
            self.missing.clear()
        self.logged = logged
        if now_ns - self.since_ns < _LATE_NS:
            self.dropped = min(self.dropped, missing)
            return 0
        self.missing.append(missing)
        most = max(self.missing)
        if len(self.missing) == _READINGS and most < self.dropped:
            forged, self.dropped = self.dropped - most, most
            self.missing.clear()
            return forged
        self._note_calm(received, missing, now_ns, is_settled=is_settled)
        return 0

    def _note_calm(self, received: int, missing: int, now_ns: int, *, is_settled: bool) -> None:
        if received != self.received or not is_settled:
            self.received, self.calm_since_ns = received, now_ns
            self.calm_missing.clear()
            self.calm_missing.append(missing)
        elif now_ns - self.calm_since_ns >= _CALM_NS:
            self.calm_since_ns = now_ns
            if len(self.calm_missing) == _CALM_TIMES:
                # Their records would have come by now.
                self.dropped = max(self.dropped, self.calm_missing[0])
            self.calm_missing.append(missing)


class UncountedRecords:
    """Records of one sandbox that its fence did not log, by rule."""

    def __init__(self) -> None:
        self._rules: dict[tuple[str, str], _Rule] = {}

    def dropped(self, rule: str, epoch: str) -> int | None:
        """Return how many records of a rule are known as dropped, minus those known as forged.

        Give it to the next run with the same counters: it then reports no forged record again.
        Return None if the counters were not observed.
        """
        found = self._rules.get((rule, epoch))
        return None if found is None else found.dropped

    def observe(self, received: ReceivedRecords, reading: Reading, now_ns: int) -> dict[str, int]:
        """Return how many more forged records a reading of the counters shows, by rule.

        ``received`` are the records before the reading began. ``now_ns`` is the present time by the
        monotonic clock.
        """
        found: dict[str, int] = {}
        self._rules = {
            (name, epoch): each
            for (name, epoch), each in self._rules.items()
            # A reading may leave a rule out.
            if reading.epochs.get(name, epoch) == epoch
        }
        for key in reading.epochs.items():
            name, epoch = key
            if key not in self._rules:
                was_renewed = any(
                    each == name and other != epoch for each, other in received.numbers
                )
                since_ns = now_ns if was_renewed else now_ns - _LATE_NS
                self._rules[key] = _Rule(since_ns, received.dropped.get(key, 0))
            number = received.numbers.get(key)
            if number is not None:
                forged = self._rules[key].observe(
                    number, reading.rules[name].logged, now_ns, is_settled=received.is_settled
                )
                if forged:
                    found[name] = forged
        return found
