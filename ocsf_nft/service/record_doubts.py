"""Doubts about the log records of one sandbox, after some of them were forged."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import structlog

from ocsf_nft.flows.uncounted_records import UncountedRecords
from ocsf_nft.ocsf import operational_events
from ocsf_nft.ocsf.enums import Severity
from ocsf_nft.ocsf.finding_parts import RECORDS_NOT_COUNTED
from ocsf_nft.process import Seen

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ocsf_nft.flow import Reading
    from ocsf_nft.flows.rule_account import RuleAccount
    from ocsf_nft.flows.uncounted_records import ReceivedRecords
    from ocsf_nft.process import Attribution
    from ocsf_nft.service.event_rendering import Reporter

_log = structlog.get_logger()

#: Records are doubted for so long after the last forged one.
DOUBT_NS: Final = 600 * 1_000_000_000
#: Shortest time between two events.
_PAUSE_NS: Final = 60 * 1_000_000_000
_REASON: Final = "log records of this sandbox are forged, so this one may be"


class RecordDoubts:
    """Forged log records of one sandbox: their event, and the doubts about all later records."""

    def __init__(self, sandbox: str, reporter: Reporter) -> None:
        self._sandbox = sandbox
        self._reporter = reporter
        self._records = UncountedRecords()
        #: Forged records without an event, by the name of the account.
        self._unreported = Counter[str]()
        self._since_ns = self._reported_ns = 0
        #: Time by the monotonic clock until which records are doubted.
        self.until_ns = 0

    def observe(
        self, received: ReceivedRecords, reading: Reading, rules: Mapping[str, RuleAccount]
    ) -> list[bytes]:
        """Compare the records with a reading of the counters; return an event about forged ones.

        ``received`` are the records before the reading began. There is one event a minute at most;
        the result has no line otherwise. Its numbers are added to the accounts ``rules``: store
        both in one transaction, so that no other run reports the same records.
        """
        now_ns = time.monotonic_ns()
        found = self._records.observe(received, reading, now_ns)
        if found:
            self.until_ns = now_ns + DOUBT_NS
            if not self._unreported:
                self._since_ns = reading.began_ns
            self._unreported.update(found)
        is_due = not self._reported_ns or now_ns - self._reported_ns >= _PAUSE_NS
        lines = []
        if self._unreported and is_due:
            self._reported_ns = now_ns
            lines = self._report(rules)
        self._note(rules)
        return lines

    def close(self, rules: Mapping[str, RuleAccount]) -> list[bytes]:
        """Return an event about forged records that no event has reported, as :meth:`observe`."""
        lines = self._report(rules) if self._unreported else []
        self._note(rules)
        return lines

    def forged(self, rules: Mapping[str, RuleAccount]) -> Counter[str]:
        """Return the numbers of all known forged records, by the name of the firewall rule."""
        found = Counter[str]()
        for name, account in rules.items():
            found[account.counter_id.rule] += account.forged_records + self._unreported[name]
        return found

    def _note(self, rules: Mapping[str, RuleAccount]) -> None:
        for name, account in rules.items():
            dropped = self._records.dropped(name, account.counter_id.epoch)
            if dropped is not None:  # after a kill, the next run finds the unreported records
                account.dropped_records = dropped + self._unreported[name]

    def _report(self, rules: Mapping[str, RuleAccount]) -> list[bytes]:
        forged, self._unreported = dict(self._unreported), Counter()
        for name, number in forged.items():
            if name in rules:
                rules[name].forged_records += number
        until_ns = time.time_ns()
        event = operational_events.records_not_counted(
            self._reporter.context(self._sandbox),
            sandbox=self._sandbox,
            rules=forged,
            since_ns=min(self._since_ns, until_ns),
            until_ns=until_ns,
        )
        _log.warning("log records are forged", sandbox=self._sandbox, records=sum(forged.values()))
        return self._reporter.findings.lines(
            event, RECORDS_NOT_COUNTED, self._sandbox, severity=Severity.HIGH
        )

    def weakened(self, known: Attribution) -> Attribution:
        """Return the attribution of a record with a low confidence, while records are doubted.

        A process is only a possible sender then. A packet that the kernel saw itself is not
        doubted.
        """
        if time.monotonic_ns() >= self.until_ns:
            return known
        if known.method == "capture" and known.confidence == "high":
            return known  # the kernel saw the process send this packet, and refused it
        seen = known.seen if known.process is None else (Seen(process=known.process),)
        return replace(
            known, confidence="low", reason=_REASON, process=None, seen=seen, is_doubted=True
        )
