"""Sentences about a service with a fault."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from ocsf_nft.service import health

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocsf_nft.service.health import Fault
    from ocsf_nft.service.run import Service


def _sandbox(
    name: str,
    *,
    fence: str | None = None,
    counters: str | None = None,
    late_seconds: float = 0.0,
    failure: str | None = None,
) -> SimpleNamespace:
    return SimpleNamespace(
        name=name,
        monitor=SimpleNamespace(fault=fence),
        account=SimpleNamespace(fault=counters, late_seconds=late_seconds),
        failure=failure,
    )


def _service(*, fault: str | None = None) -> Service:
    made = SimpleNamespace(
        sandboxes=[
            _sandbox("sb1", late_seconds=30.0),
            _sandbox("sb2", fence="it was deleted", late_seconds=30.6),
            _sandbox("sb3", counters="no memory"),
            _sandbox("sb4", fence="it was deleted", late_seconds=99, failure="it is another one"),
        ],
        retrier=SimpleNamespace(fault=fault),
        delivery=SimpleNamespace(fault=None, storage_fault=None),
    )
    return cast("Service", made)


def _texts(faults: Iterable[Fault]) -> list[str]:
    return [str(each) for each in faults]


def test_faults_name_each_sandbox_and_cause() -> None:
    fence = "the fence of sandbox sb2 is not active: it was deleted"
    counters = "the counters of sandbox sb3 can't be read: no memory"
    ended = "sandbox sb4 is no longer watched: it is another one"
    stuck = "the counters of sandbox sb2 are not read: they should have been read 31 s ago"
    assert _texts(health.stuck(_service())) == [stuck]
    assert _texts(health.faults(_service())) == [stuck, fence, counters, ended]
    # A service that waits for a disk reads no counters meanwhile, and a restart does not change
    # that.
    full = _service(fault="the disk is full")
    full.delivery.sinks = ()  # type: ignore[misc]
    assert [each for each in _texts(health.all_faults(full)) if "sb4" in each] == [
        ended, "the fence of sandbox sb4 is not active: it was deleted",
    ]  # fmt: skip
    assert stuck in _texts(health.all_faults(full)), "no fault hides another one"
    assert health.stuck(full) == ()
    expected = [fence, counters, ended, "events can't be stored: the disk is full"]
    assert _texts(health.faults(full)) == expected
