"""Faults of a running service, for its health check."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.service.run import Service

#: Counters are read twice a second, or every two seconds in a flood. An account that was not read
#: for this long is stuck.
_STUCK_SECONDS: Final = 30.0


def stuck(service: Service) -> tuple[str, ...]:
    """Return a sentence for each sandbox whose counters were not read for more than 30 s.

    A restart of the service may help. The result is empty while events can't be stored.
    """
    # While events can't be stored, for example on a full disk, a restart would not help.
    return tuple(
        f"the counters of sandbox {account.sandbox} have not been read for {seconds:.0f} s"
        for account in service.accounts
        if (seconds := account.idle_seconds) > _STUCK_SECONDS and service.retrier.fault is None
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
        f"sink {forwarder.name} is down: {forwarder.progress.fault}"
        for forwarder in service.delivery.forwarders
        if forwarder.progress.fault is not None
    )


def _faults(service: Service) -> Iterator[str]:
    for monitor in service.fence_monitors:
        if monitor.fault is not None:
            yield f"the fence of sandbox {monitor.name} is not active: {monitor.fault}"
    for account in service.accounts:
        if account.fault is not None:
            yield f"the counters of sandbox {account.sandbox} can't be read: {account.fault}"
    if service.retrier.fault is not None:
        yield f"events can't be stored: {service.retrier.fault}"
