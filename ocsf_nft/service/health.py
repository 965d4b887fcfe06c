"""Whether a run does what it is there for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.service.run import Service

#: Counters are read twice a second, in a flood every two: who has not for so long is stuck.
_STUCK_SECONDS: Final = 30.0


def stuck(service: Service) -> tuple[str, ...]:
    """What a restart may put right: whose counters have not been read for long."""
    return tuple(
        f"the counters of sandbox {account.sandbox} have not been read for {seconds:.0f} s"
        for account in service.accounts
        if (seconds := account.idle_seconds) > _STUCK_SECONDS and service.retrier.fault is None
    )


def faults(service: Service) -> tuple[str, ...]:
    """All that keeps a run from fencing, reading and keeping, as sentences; none when all is well.

    Sinks that are down are none of it: their events are kept (see :func:`down`).
    """
    return (*stuck(service), *_faults(service))


def down(service: Service) -> tuple[str, ...]:
    """The sinks that take nothing now, and why."""
    return tuple(
        f"sink {forwarder.name} is down: {forwarder.progress.fault}"
        for forwarder in service.delivery.forwarders
        if forwarder.progress.fault is not None
    )


def _faults(service: Service) -> Iterator[str]:
    for monitor in service.fence_monitors:
        if monitor.fault is not None:
            yield f"the fence of sandbox {monitor.name} does not stand: {monitor.fault}"
    for account in service.accounts:
        if account.fault is not None:
            yield f"the counters of sandbox {account.sandbox} can't be read: {account.fault}"
    if service.retrier.fault is not None:
        yield f"nothing can be kept: {service.retrier.fault}"
