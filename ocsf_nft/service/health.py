"""Faults of a running service, for its health check and for events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.service.run import Service

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
    """Return a fault for each sandbox whose counters should have been read more than 30 s ago.

    A restart of the service may help. The result is empty while events can't be stored.
    """
    # While events can't be stored, for example on a full disk, a restart would not help.
    return tuple(
        Fault(
            f"the counters of sandbox {each.name} are not read",
            f"they should have been read {seconds:.0f} s ago",
            each.name,
        )
        for each in service.sandboxes
        if (seconds := each.account.late_seconds) > _STUCK_SECONDS
        and each.failure is None
        and service.retrier.fault is None
    )


def faults(service: Service) -> tuple[Fault, ...]:
    """Return each fault of a fence, of its counters or of the event storage.

    Sinks that are down are not included: see :func:`down`.
    """
    return (*stuck(service), *_faults(service))


def down(service: Service) -> tuple[Fault, ...]:
    """Return a fault for each sink that accepts no events now."""
    return tuple(
        Fault(f"sink {each.name} is down", each.fault)
        for each in service.delivery.sinks
        if each.fault is not None
    )


def lasting(service: Service) -> tuple[Fault, ...]:
    """Return all faults, those of sinks included."""
    return (*faults(service), *down(service))


def _faults(service: Service) -> Iterator[Fault]:
    for each in service.sandboxes:
        name = each.name
        if each.failure is not None:
            subject = f"sandbox {name} is no longer watched"
            yield Fault(subject, each.failure, name, is_reported=True)
        elif each.monitor.fault is not None:
            subject = f"the fence of sandbox {name} is not active"
            yield Fault(subject, each.monitor.fault, name, is_reported=True)
        elif each.account.fault is not None:
            subject = f"the counters of sandbox {name} can't be read"
            yield Fault(subject, each.account.fault, name, is_reported=True)
    if service.retrier.fault is not None:
        yield Fault("events can't be stored", service.retrier.fault)
    if service.delivery.fault is not None:
        yield Fault("events can't be delivered", service.delivery.fault)
    if service.delivery.storage_fault is not None:
        yield Fault("checkpoints can't be stored", service.delivery.storage_fault)
