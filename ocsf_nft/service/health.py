"""Faults of a running service, for its health check and for events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.service.run import Service
    from ocsf_nft.service.watched_sandbox import WatchedSandbox

#: An account with a reading that is overdue for this long is stuck.
_STUCK_SECONDS: Final = 30.0


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
        *_of_storage(service),
        *down(service),
    )


def _stuck(service: Service) -> Iterator[Fault]:
    for each in service.sandboxes:
        if each.failure is None and (seconds := each.account.late_seconds) > _STUCK_SECONDS:
            yield Fault(
                f"the counters of sandbox {each.name} are not read",
                f"they should have been read {seconds:.0f} s ago",
                each.name,
            )


def _of_sandbox(sandbox: WatchedSandbox) -> Iterator[Fault]:
    """Yield the faults of a sandbox, the first cause first."""
    name = sandbox.name
    for subject, cause in (
        (f"sandbox {name} is no longer watched", sandbox.failure),
        (f"the fence of sandbox {name} is not active", sandbox.monitor.fault),
        (f"the counters of sandbox {name} can't be read", sandbox.account.fault),
    ):
        if cause is not None:
            yield Fault(subject, cause, name, is_reported=True)


def _of_storage(service: Service) -> Iterator[Fault]:
    for subject, cause in (
        ("events can't be stored", service.retrier.fault),
        ("events can't be delivered", service.delivery.fault),
        ("checkpoints can't be stored", service.delivery.storage_fault),
    ):
        if cause is not None:
            yield Fault(subject, cause)
