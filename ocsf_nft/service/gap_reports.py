"""Events about gaps in the counts of one sandbox."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, get_args

import structlog

from ocsf_nft.flow import Mode
from ocsf_nft.flows.codec import READ_TIME_SECONDS
from ocsf_nft.flows.flow_counter import MAX_COUNT
from ocsf_nft.ocsf import operational_events
from ocsf_nft.ocsf.enums import Severity
from ocsf_nft.ocsf.finding_parts import COLLECTION
from ocsf_nft.record import Gap
from ocsf_nft.service.reading_schedule import IDLE_SECONDS
from ocsf_nft.state.change import Change, DroppedRecords

if TYPE_CHECKING:
    from ocsf_nft.flow import Reading
    from ocsf_nft.flows.sandbox_account import SandboxAccount
    from ocsf_nft.ocsf.event_base import Event
    from ocsf_nft.service.event_rendering import Reporter

_log = structlog.get_logger()

_READ_AGAIN: Final = "the counters are read again"
#: Longest normal delay of a reading; a longer one is reported.
_LATE_NS: Final = 5 * 1_000_000_000


class GapReports:
    """Reports that the counts of one sandbox were read late, or may be incomplete.

    ``has_position`` is true if the kernel's log is read on from a stored position.
    """

    def __init__(self, account: SandboxAccount, reporter: Reporter, *, has_position: bool) -> None:
        self._account = account
        self._reporter = reporter
        self._has_position = has_position
        self._is_first = True

    async def report_pause(self, reading: Reading, late_seconds: float) -> None:
        """Emit an event if the counters were not read for too long before ``reading``.

        Call it before the account observes ``reading``, which began ``late_seconds`` too late.
        """
        since_ns = self._account.read_ns
        is_first, self._is_first = self._is_first, False
        if since_ns is None:
            return
        # A process with privileges in the namespace can write any number into the counters, and
        # reset them.
        unread = self._account.unread_since(reading)
        refused, allowed = (max(0, min(unread[mode], MAX_COUNT // 2)) for mode in get_args(Mode))
        # A log with a position is read from there. Records of other sources are dropped during a
        # pause. The last reading of an earlier run may have been the first of a long pause.
        has_dropped = is_first and not self._has_position and refused + allowed
        late_ns = round(late_seconds * 1_000_000_000)
        if is_first:
            pause = 0.0 if any(unread.values()) else IDLE_SECONDS + READ_TIME_SECONDS
            late_ns = reading.began_ns - since_ns - round(pause * 1_000_000_000)
        if late_ns < _LATE_NS and not has_dropped:
            return
        event = operational_events.collection_gap(
            self._reporter.context(self._account.sandbox),
            sandbox=self._account.sandbox,
            packets=refused + allowed,
            allowed=allowed,
            since_ns=since_ns,
            until_ns=reading.began_ns,
            reason="ocsf-nft was not running, or was delayed",
            processed_ns=time.time_ns(),
        )
        # A restart of the service is ordinary. While it runs, no reading is late without a reason.
        severity = Severity.MEDIUM if is_first else Severity.HIGH
        await self._emit(event, "reader", severity if refused + allowed else None)
        _log.warning(
            "the counters were not read in time", sandbox=self._account.sandbox, refused=refused,
            allowed=allowed,
        )  # fmt: skip

    @property
    def is_first(self) -> bool:
        """Return True before the first reading of this run."""
        return self._is_first

    async def report(
        self, reason: str, *, is_finding: bool = True, lasts: bool | None = None
    ) -> None:
        """Emit an event that counts of the sandbox may be incomplete, and why.

        Without ``is_finding``, another finding has the same cause. With ``lasts``, that is so until
        :meth:`report_end`.
        """
        sandbox, now_ns = self._account.sandbox, time.time_ns()
        gap = Gap(
            transport="counters",
            reason=f"sandbox {sandbox}: {reason}",
            dropped=None,
            since_ns=min(self._account.read_ns or now_ns, now_ns),
            until_ns=now_ns,
        )
        context = self._reporter.context(sandbox)
        event = operational_events.records_dropped(context, gap, processed_ns=now_ns)
        severity = Severity.HIGH if is_finding else None
        await self._emit(event, gap.transport, severity, lasts=lasts)
        _log.warning("counts may be incomplete", sandbox=sandbox, reason=reason)

    async def report_end(self) -> None:
        """Emit the last event of an open finding, because the counters are read again."""
        lines = self._reporter.findings.end(
            COLLECTION, self._account.sandbox, _READ_AGAIN, time_ns=time.time_ns()
        )
        if lines:
            await self._reporter.commit(Change(events=lines))

    async def _emit(
        self,
        event: Event,
        transport: str,
        severity: Severity | None,
        *,
        lasts: bool | None = None,
    ) -> None:
        """Store an event, with a finding of ``severity`` unless it is None."""
        sandbox = self._account.sandbox
        lines = [event.to_json()]
        if severity is not None:
            lines = self._reporter.findings.lines(
                event, COLLECTION, sandbox, severity=severity, lasts=lasts
            )
        dropped = [(sandbox, DroppedRecords(transport, 1, 0))]
        await self._reporter.commit(Change(events=lines, dropped=dropped))
