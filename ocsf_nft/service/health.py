"""Faults of a running service, for its health check."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.service.run import Service

#: An account with a reading that is overdue for this long is stuck.
_STUCK_SECONDS: Final = 30.0


def stuck(service: Service) -> tuple[str, ...]:
    """Return a sentence for each sandbox whose counters should have been read more than 30 s ago.

    A restart of the service may help. The result is empty while events can't be stored.
    """
    # While events can't be stored, for example on a full disk, a restart would not help.
    return tuple(
        f"the counters of sandbox {each.name} should have been read {seconds:.0f} s ago"
        for each in service.sandboxes
        if (seconds := each.account.late_seconds) > _STUCK_SECONDS
        and each.failure is None
        and service.retrier.fault is None
    )


def faults(service: Service) -> tuple[str, ...]:
    """Return a sentence for each fault of a fence, of its counters or of the event storage.

    Sinks that are down are not included: see :func:`down`.
    """
    return (*stuck(service), *_faults(service))


def down(service: Service) -> tuple[str, ...]:
    """Return one sentence for each sink that accepts no events now.

    The sentence gives the cause.
    """
    return tuple(
        f"sink {each.name} is down: {each.fault}"
        for each in service.delivery.sinks
        if each.fault is not None
    )


def _faults(service: Service) -> Iterator[str]:
    for each in service.sandboxes:
        if each.failure is not None:
            yield f"sandbox {each.name} is no longer watched: {each.failure}"
        elif each.monitor.fault is not None:
            yield f"the fence of sandbox {each.name} is not active: {each.monitor.fault}"
        elif each.account.fault is not None:
            yield f"the counters of sandbox {each.name} can't be read: {each.account.fault}"
    if service.retrier.fault is not None:
        yield f"events can't be stored: {service.retrier.fault}"
    if service.delivery.fault is not None:
        yield f"events can't be delivered: {service.delivery.fault}"
    if service.delivery.storage_fault is not None:
        yield f"checkpoints can't be stored: {service.delivery.storage_fault}"
