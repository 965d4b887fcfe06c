"""Sentences about a service with a fault."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from ocsf_nft.service import health

if TYPE_CHECKING:
    from ocsf_nft.service.run import Service


def _service(*, fault: str | None = None) -> Service:
    made = SimpleNamespace(
        fence_monitors=[
            SimpleNamespace(name="sb1", fault=None),
            SimpleNamespace(name="sb2", fault="it was deleted"),
        ],
        accounts=[
            SimpleNamespace(sandbox="sb1", fault=None, idle_seconds=30.0),
            SimpleNamespace(sandbox="sb2", fault="no memory", idle_seconds=30.6),
        ],
        retrier=SimpleNamespace(fault=fault),
    )
    return cast("Service", made)


def test_faults_name_each_sandbox_and_cause() -> None:
    fence = "the fence of sandbox sb2 is not active: it was deleted"
    counters = "the counters of sandbox sb2 can't be read: no memory"
    stuck = "the counters of sandbox sb2 have not been read for 31 s"
    assert health.stuck(_service()) == (stuck,)
    assert health.faults(_service()) == (stuck, fence, counters)
    # A service that waits for a disk reads no counters meanwhile, and a restart does not change
    # that.
    full = _service(fault="the disk is full")
    assert health.stuck(full) == ()
    assert health.faults(full) == (fence, counters, "events can't be stored: the disk is full")
