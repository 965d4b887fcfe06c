"""Events about the faults of a service: when a fault begins, lasts, and is cleared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from ocsf_nft.ocsf import operational_events

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.service.event_rendering import Reporter
    from ocsf_nft.service.health import Fault

_log = structlog.get_logger()

#: Pause until the first event that a fault lasts; each further pause is twice the one before.
_FIRST_PAUSE_NS: Final = 60 * 10**9
_MAX_PAUSE_NS: Final = 3600 * 10**9
#: A fault that begins again so soon after its end has its first event only if it lasts a pause.
_AGAIN_NS: Final = 600 * 10**9


@dataclass(slots=True)
class _Lasting:
    """Fault that lasts, and the times of its events."""

    fault: Fault
    since_ns: int
    pause_ns: int
    next_ns: int
    has_event: bool = False


class FaultEvents:
    """Events about the faults of a service: one at the begin, one at the end, few in between."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._lasting: dict[str, _Lasting] = {}
        #: Faults that were cleared, and when (monotonic).
        self._cleared: dict[str, int] = {}

    async def update(self, faults: Sequence[Fault], now_ns: int, monotonic_ns: int) -> None:
        """Emit the events that are due if a service has ``faults`` now, and no others.

        ``now_ns`` is the time in ns since the epoch (UTC), and ``monotonic_ns`` that of
        :func:`time.monotonic_ns`. If another event reports the begin of a fault, its first event
        here comes after a minute. Then its end has an event too. The same is true of a fault that
        begins again within ten minutes. The end of the service is not the end of a fault.
        """
        self._cleared = {
            subject: at_ns
            for subject, at_ns in self._cleared.items()
            if monotonic_ns < at_ns + _AGAIN_NS
        }
        present = {each.subject: each for each in faults}
        for subject in self._lasting.keys() - present.keys():
            await self._clear(self._lasting[subject], now_ns)
            del self._lasting[subject]
            self._cleared[subject] = monotonic_ns
        for subject, fault in present.items():
            lasting = self._lasting.get(subject)
            if lasting is None:
                pause_ns = _FIRST_PAUSE_NS
                lasting = _Lasting(fault, now_ns, pause_ns, monotonic_ns + pause_ns)
                if not fault.is_reported and subject not in self._cleared:
                    await self._emit(lasting, now_ns)
                self._lasting[subject] = lasting
            elif monotonic_ns >= lasting.next_ns:
                lasting.fault = fault
                await self._emit(lasting, now_ns)
                lasting.pause_ns = min(2 * lasting.pause_ns, _MAX_PAUSE_NS)
                lasting.next_ns = monotonic_ns + lasting.pause_ns

    async def _clear(self, lasting: _Lasting, now_ns: int) -> None:
        if lasting.has_event:
            await self._emit(lasting, now_ns, is_cleared=True)

    async def _emit(self, lasting: _Lasting, now_ns: int, *, is_cleared: bool = False) -> None:
        # The event comes first: standard error may be a pipe without a reader.
        subject, cause, sandbox, _ = lasting.fault
        event = operational_events.fault(
            self._reporter.context(), subject=subject, cause=cause, sandbox=sandbox,
            since_ns=lasting.since_ns, now_ns=now_ns, is_cleared=is_cleared,
        )  # fmt: skip
        await self._reporter.emit(event)
        lasting.has_event = True
        seconds = max(0, now_ns - lasting.since_ns) // 10**9
        if is_cleared:
            _log.info("fault cleared", fault=subject, seconds=seconds)
        else:
            _log.warning("fault", fault=subject, reason=cause, seconds=seconds)
