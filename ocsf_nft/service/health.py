"""Faults of a running service, for its health check and for events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from ocsf_nft.ocsf import operational_events
from ocsf_nft.ocsf.enums import Severity
from ocsf_nft.ocsf.finding_parts import COLLECTION, COUNTER_MISMATCH
from ocsf_nft.state.change import Change

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ocsf_nft.ocsf.finding_parts import FindingKind
    from ocsf_nft.service.event_rendering import Reporter
    from ocsf_nft.service.run import Service
    from ocsf_nft.service.sandbox import Sandbox

_log = structlog.get_logger()

#: An account with a reading that is overdue for this long is stuck.
_STUCK_SECONDS: Final = 30.0
#: Pause until the first event that a fault lasts; each further pause is twice the one before.
_FIRST_PAUSE_NS: Final = 60 * 10**9
_MAX_PAUSE_NS: Final = 3600 * 10**9
#: A fault that begins again so soon after its end has its first event only if it lasts a pause.
_AGAIN_NS: Final = 600 * 10**9
_CLEARED: Final = "the fault was cleared"


class Fault(NamedTuple):
    """Fault that lasts until it is cleared."""

    #: What is wrong, the same text as long as the fault lasts.
    subject: str
    #: Why, or for how long; this may change.
    cause: str
    #: Sandbox of the fault; None if it is a fault of the service.
    sandbox: str | None = None
    #: Whether another event reports the begin of the fault.
    is_reported: bool = False
    #: Kind of the finding about the fault, if its events have one.
    kind: FindingKind | None = None

    def __str__(self) -> str:
        """Return a sentence about the fault."""
        return f"{self.subject}: {self.cause}"


def stuck(service: Service) -> tuple[Fault, ...]:
    """Return a fault for each sandbox with a reading of its counters that is over 30 s late.

    A restart of the service may help. The result is empty while events can't be stored.
    """
    # While events can't be stored, for example on a full disk, a restart would not help.
    return () if service.retrier.fault is not None else tuple(_stuck(service))


def faults(service: Service) -> tuple[Fault, ...]:
    """Return the faults of fences, of their counters and of the event storage, for people.

    Of a sandbox, only the first cause is included. Sinks that are down are not: see :func:`down`.
    """
    return (
        *stuck(service),
        *(fault for each in service.sandboxes for fault in list(_of_sandbox(each))[:1]),
        *_of_storage(service),
    )


def down(service: Service) -> tuple[Fault, ...]:
    """Return a fault for each sink that accepts no events now."""
    return tuple(
        Fault(f"sink {each.name} is down", each.fault)
        for each in service.delivery.sinks
        if each.fault is not None
    )


def all_faults(service: Service) -> tuple[Fault, ...]:
    """Return all faults: no fault hides another one."""
    return (
        *_stuck(service),
        *(fault for each in service.sandboxes for fault in _of_sandbox(each)),
        *_mismatches(service),
        *_of_storage(service),
        *down(service),
    )


def _mismatches(service: Service) -> Iterator[Fault]:
    # No fault for /readyz: nothing can make counts match again that another process has changed.
    for each in service.sandboxes:
        mismatch = None if each.watched is None else each.watched.account.mismatch.fault
        if mismatch is not None:
            subject = f"the counts of sandbox {each.name} don't match"
            yield Fault(subject, mismatch, each.name, kind=COUNTER_MISMATCH)


def _stuck(service: Service) -> Iterator[Fault]:
    for each in service.sandboxes:
        if each.watched is None:
            continue
        seconds = each.watched.account.schedule.late_seconds
        if each.failure is None and seconds > _STUCK_SECONDS:
            yield Fault(
                f"the counters of sandbox {each.name} are not read",
                f"they should have been read {seconds:.0f} s ago",
                each.name,
                kind=COLLECTION,
            )


def _of_sandbox(sandbox: Sandbox) -> Iterator[Fault]:
    """Yield the faults of a sandbox, the first cause first."""
    name, watched = sandbox.name, sandbox.watched
    if watched is None:
        if sandbox.failure is not None:
            subject = f"sandbox {name} can't be watched"
            yield Fault(subject, sandbox.failure, name, kind=COLLECTION)
        return
    if sandbox.failure is not None:
        subject = f"sandbox {name} is no longer watched"
        yield Fault(subject, sandbox.failure, name, is_reported=True, kind=COLLECTION)
    for subject, cause in (
        (f"the fence of sandbox {name} is not active", watched.monitor.reports.fault),
        (f"the counters of sandbox {name} can't be read", watched.account.fault),
    ):
        if cause is not None:
            yield Fault(subject, cause, name, is_reported=True)
    names = watched.names
    if names.failure is not None:
        subject = f"the addresses of host names of sandbox {name} can't be replaced"
        yield Fault(subject, names.failure, name)
    for host, cause in names.faults():
        yield Fault(f"host name {host} of sandbox {name} is not fully resolved", cause, name)


def _of_storage(service: Service) -> Iterator[Fault]:
    for subject, cause in (
        ("events can't be stored", service.retrier.fault),
        ("events can't be delivered", service.delivery.fault),
        ("checkpoints can't be stored", service.delivery.storage_fault),
    ):
        if cause is not None:
            yield Fault(subject, cause)


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
            ended = self._lasting.pop(subject)
            if ended.has_event:
                await self._emit(ended, now_ns, is_cleared=True)
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

    async def _emit(self, lasting: _Lasting, now_ns: int, *, is_cleared: bool = False) -> None:
        # The event comes first: standard error may be a pipe without a reader.
        subject, cause, sandbox, _, kind = lasting.fault
        event = operational_events.fault(
            self._reporter.context(), subject=subject, cause=cause, sandbox=sandbox,
            since_ns=lasting.since_ns, now_ns=now_ns, is_cleared=is_cleared,
        )  # fmt: skip
        findings = self._reporter.findings
        lines = [event.to_json()]
        if kind is not None and is_cleared:
            lines += findings.end(kind, sandbox, _CLEARED, time_ns=now_ns)
        elif kind is not None:
            lines = findings.lines(event, kind, sandbox, severity=Severity.HIGH, lasts=True)
        await self._reporter.commit(Change(events=lines))
        lasting.has_event = True
        seconds = max(0, now_ns - lasting.since_ns) // 10**9
        if is_cleared:
            _log.info("fault cleared", fault=subject, seconds=seconds)
        else:
            _log.warning("fault", fault=subject, reason=cause, seconds=seconds)
