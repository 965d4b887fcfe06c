"""Watch over frames that left a sandbox by a way that its fence did not see."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from ocsf_nft.errors import SourceError, UnsupportedError
from ocsf_nft.fence.frame_balance import FrameBalance
from ocsf_nft.fence.sent_frames import NotComparableError, SegmentingError, SentFrames
from ocsf_nft.flow import Count
from ocsf_nft.ocsf.bypass_events import fence_bypassed, gate_blocked
from ocsf_nft.ocsf.enums import Severity
from ocsf_nft.ocsf.finding_parts import FENCE_BYPASSED
from ocsf_nft.service.shielded import run_in_pool
from ocsf_nft.state.change import Change

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from ocsf_nft.service.event_rendering import Reporter
    from ocsf_nft.service.fence_monitor import FenceMonitor

_log = structlog.get_logger()

#: Pause between two readings. Frames that bypass the fence are reported after two of them.
_PAUSE_SECONDS: Final = 2.0
#: Pause after the first reading. The comparison is exact after a pause without traffic: one that is
#: longer than a busy machine takes to send the frames that have passed the fence.
_FIRST_PAUSE_SECONDS: Final = 0.25


_RESET: Final = (
    "the counters of the fence were set to zero, so frames that bypassed it just before are unknown"
)


class _Comparison(NamedTuple):
    """Result of a comparison."""

    #: Frames that have bypassed the fence; None if there are none.
    unseen: Count | None = None
    #: Reason why nothing could be compared.
    reason: str | None = None
    #: Change by another process that weakens the comparison.
    weakening: str | None = None


class BypassWatch:
    """Task that compares the frames which a sandbox has sent with those that passed its fence.

    It also reports the frames that the last gate has stopped.
    """

    def __init__(
        self,
        monitor: FenceMonitor,
        reporter: Reporter,
        pool: Executor | None = None,
        *,
        compares: bool = True,
    ) -> None:
        """Create the watch; nothing is read before :meth:`run`.

        ``monitor`` is the started monitor of the fence. ``pool`` has the threads that read
        counters; None for asyncio's. Without ``compares`` it only reports stopped frames: the
        host's fence of a VM judges each frame that arrives.
        """
        self._compares = compares
        self._monitor = monitor
        self._reporter = reporter
        self._pool = pool
        self._frames: SentFrames | None = None
        self._balance = FrameBalance()
        #: Whether the frames were compared, until a change that is reported.
        self._was_compared = False
        self._read_ns = time.time_ns()
        #: Frames that have bypassed the fence since the watch began.
        self.unseen = Count()
        #: Reason why the frames can't be compared now; None if they are compared.
        self.not_compared: str | None = None

    @property
    def is_exact(self) -> bool:
        """Return True if each further frame that bypasses the fence will be reported.

        Until there is a reading without traffic, up to 256 of them may not be.
        """
        return self._balance.is_exact

    async def run(self) -> None:
        """Compare the frames until cancelled, and emit an event about those that differ.

        Raises DeliveryError if an event can't be stored.
        """
        pause = _FIRST_PAUSE_SECONDS
        try:
            while True:
                was_exact = self.is_exact
                await self._compare()
                if was_exact and not self.is_exact:
                    pause = _FIRST_PAUSE_SECONDS
                await asyncio.sleep(pause)
                pause = min(2 * pause, _PAUSE_SECONDS)
        finally:
            self._close()

    async def _compare(self) -> None:
        since_ns, now_ns = self._read_ns, time.time_ns()
        stopped = await run_in_pool(self._pool, self._monitor.gate.stopped)
        # Once the fence is removed by `ocsf-nft remove`, the gate stops what a fence would have
        # refused, until it is detached.
        if stopped.packets and self._monitor.has_record:
            await self._report_stopped(stopped, since_ns, now_ns)
        if not self._compares:
            self._read_ns = now_ns
            return
        found = await run_in_pool(self._pool, self._read_or_reason)
        self._note(found.reason)
        if found.weakening is not None:
            await self._monitor.surroundings.report_no_comparison(found.weakening)
        if found.reason is not None:
            self._close()
            return
        self._read_ns = now_ns
        if found.unseen is not None:
            await self._report(found.unseen, since_ns, time.time_ns())

    def _read_or_reason(self) -> _Comparison:
        """Return the unseen frames, or the reason why there is no reading.

        An error must not leave the thread: it would come before the cancellation of the task, and
        the task would go on.
        """
        try:
            return self._read()
        except SegmentingError as error:
            was_compared, self._was_compared = self._was_compared, False
            return _Comparison(reason=str(error), weakening=str(error) if was_compared else None)
        except (NotComparableError, SourceError, UnsupportedError) as error:
            return _Comparison(reason=str(error))

    def _read(self) -> _Comparison:
        monitor = self._monitor
        installed = monitor.reports.installed
        if self._frames is None:
            self._frames = SentFrames(
                monitor.namespace_socket, installed.around, monitor.counters_now
            )
        if (reading := self._frames.read()) is None:
            return _Comparison()
        unseen = self._balance.observe(reading)
        if unseen is not None:
            self._frames.check_offload()
        self._was_compared = True
        return _Comparison(unseen, weakening=_RESET if self._balance.was_reset else None)

    def _close(self) -> None:
        if self._frames is not None:
            self._frames.close()
            self._frames = None

    def _note(self, reason: str | None) -> None:
        if reason is not None and reason != self.not_compared:
            _log.warning(
                "sent frames can't be compared with the fence's counters",
                sandbox=self._monitor.name, reason=reason,
            )  # fmt: skip
        self.not_compared = reason

    async def _report_stopped(self, stopped: Count, since_ns: int, until_ns: int) -> None:
        name, reporter = self._monitor.name, self._reporter
        around = self._monitor.reports.installed.around
        event = gate_blocked(
            reporter.context(name),
            sandbox=name,
            uplinks=around.uplinks or around.links,
            frames=stopped,
            since_ns=since_ns,
            until_ns=until_ns,
        )
        lines = reporter.findings.lines(event, FENCE_BYPASSED, name, severity=Severity.MEDIUM)
        await reporter.commit(Change(events=lines))
        _log.warning("the last gate stopped frames", sandbox=name, frames=stopped.packets)

    async def _report(self, unseen: Count, since_ns: int, until_ns: int) -> None:
        total = self.unseen
        self.unseen = Count(total.packets + unseen.packets, total.bytes + unseen.bytes)
        name, reporter = self._monitor.name, self._reporter
        event = fence_bypassed(
            reporter.context(name),
            sandbox=name,
            uplinks=self._monitor.reports.installed.around.uplinks,
            frames=unseen,
            total=self.unseen,
            since_ns=since_ns,
            until_ns=until_ns,
        )
        lines = reporter.findings.lines(event, FENCE_BYPASSED, name, severity=Severity.HIGH)
        await reporter.commit(Change(events=lines))
        _log.error("frames bypassed the fence", sandbox=name, frames=unseen.packets)
