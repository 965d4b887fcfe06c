"""Faults of a service: sentences about them, and events about those that last."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Final, cast

import pytest

from ocsf_nft.ocsf import finding_parts
from ocsf_nft.service import health
from ocsf_nft.service.event_rendering import Reporter
from ocsf_nft.service.health import Fault, FaultEvents
from tests.service.keeping import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ocsf_nft.service.run import Service

_SECOND: Final = 10**9
_DOWN: Final = Fault("sink a is down", "refused")
_FENCE: Final = Fault("the fence of sandbox s is not active", "deleted", "s", is_reported=True)


def _sandbox(
    name: str,
    *,
    fence: str | None = None,
    counters: str | None = None,
    late_seconds: float = 0.0,
    failure: str | None = None,
    names: str | None = None,
    unresolved: Sequence[tuple[str, str]] = (),
    mismatch: str | None = None,
) -> SimpleNamespace:
    watched = SimpleNamespace(
        monitor=SimpleNamespace(reports=SimpleNamespace(fault=fence)),
        account=SimpleNamespace(
            fault=counters,
            schedule=SimpleNamespace(late_seconds=late_seconds),
            mismatch=SimpleNamespace(fault=mismatch),
        ),
        names=SimpleNamespace(failure=names, faults=lambda: unresolved),
    )
    return SimpleNamespace(name=name, watched=watched, failure=failure)


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


def test_counts_that_do_not_match_are_a_fault_with_a_finding() -> None:
    service = _service()
    service.sandboxes = (_sandbox("sb1", mismatch="+3 packets of rule egress"),)  # type: ignore[misc, assignment]
    service.delivery.sinks = ()  # type: ignore[misc]
    assert health.faults(service) == ()
    (fault,) = health.all_faults(service)
    assert str(fault) == "the counts of sandbox sb1 don't match: +3 packets of rule egress"
    assert fault.kind is finding_parts.COUNTER_MISMATCH


def test_names_that_are_not_resolved_are_faults() -> None:
    made = _service()
    made.sandboxes = (  # type: ignore[misc, assignment]
        _sandbox(
            "sb5", names="no memory", unresolved=[("a.test", "no answer"), ("b.test", "none")]
        ),
    )
    made.delivery.sinks = ()  # type: ignore[misc]
    expected = [
        "the addresses of host names of sandbox sb5 can't be replaced: no memory",
        "host name a.test of sandbox sb5 is not fully resolved: no answer",
        "host name b.test of sandbox sb5 is not fully resolved: none",
    ]
    assert _texts(health.all_faults(made)) == expected
    assert _texts(health.faults(made)) == expected[:1]
    assert not any(each.is_reported for each in health.all_faults(made))


class _Faults:
    """Faults of a service, checked each ten seconds."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.seconds = 0
        self.reporter = Reporter(self.store.commit, host=None)
        self._events = FaultEvents(self.reporter)

    async def pass_seconds(self, seconds: int, *faults: Fault) -> list[tuple[int, str]]:
        """Return the events of a time in which the service has some faults."""
        found = []
        for _ in range(0, seconds, 10):
            before = len(self.store.events)
            at_ns = self.seconds * _SECOND
            await self._events.update(faults, at_ns + _SECOND, at_ns)
            found += [(self.seconds, event["message"]) for event in self.store.events[before:]]
            self.seconds += 10
        return found


async def test_fault_has_events_at_its_begin_at_its_end_and_in_growing_pauses() -> None:
    faults = _Faults()
    assert await faults.pass_seconds(30) == []
    lasting = await faults.pass_seconds(20_000, _DOWN)
    assert [at - 30 for at, _ in lasting] == [0, 60, 180, 420, 900, 1860, 3780, 7380, 10980, 14580,
                                              18180]  # fmt: skip
    assert lasting[0][1] == "ocsf-nft has a fault: sink a is down: refused."
    ((_, message),) = await faults.pass_seconds(30)
    assert message.startswith("A fault of ocsf-nft was cleared after ")
    assert await faults.pass_seconds(50, _DOWN) == [], "it has just been reported"
    assert await faults.pass_seconds(610) == []
    assert [text for _, text in await faults.pass_seconds(10, _DOWN)] == [lasting[0][1]]


async def test_fault_that_lasts_is_one_finding_that_ends_once() -> None:
    faults = _Faults()
    await faults.pass_seconds(20_000, Fault("it", "why", "sb", kind=finding_parts.COLLECTION))
    assert faults.reporter.findings.end_quiet(20_000 * _SECOND) == []
    await faults.pass_seconds(10)
    stages = [
        (event["activity_name"], event["status_detail"].split()[0].rstrip(":"))
        for event in faults.store.of_class(2004)
    ]
    assert stages[0] == ("Create", "New")
    assert stages[-1] == ("Update", "Inactive")
    assert set(stages[1:-1]) == {("Update", "Active")}
    uids = {event["finding_info"]["uid"] for event in faults.store.of_class(2004)}
    assert len(uids) == 1


async def test_fault_with_another_cause_is_the_same_fault() -> None:
    faults = _Faults()
    other = _DOWN._replace(cause="no route")
    found = await faults.pass_seconds(40, _DOWN) + await faults.pass_seconds(40, other)
    assert [at for at, _ in found] == [0, 60]
    assert found[1][1].endswith("sink a is down: no route.")


async def test_fault_with_a_begin_of_its_own_has_an_event_when_it_lasts() -> None:
    faults = _Faults()
    assert await faults.pass_seconds(50, _FENCE) == []
    assert await faults.pass_seconds(20) == [], "its end has an event of its own, too"
    found = await faults.pass_seconds(70, _FENCE) + await faults.pass_seconds(10)
    assert [text.partition(" for ")[0].partition(" after ")[0] for _, text in found] == [
        "A fault of ocsf-nft has lasted",
        "A fault of ocsf-nft was cleared",
    ]
    assert faults.store.events[0]["unmapped"] == {"sandbox": "s"}


async def test_fault_that_can_not_be_stored_is_reported_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    faults = _Faults()
    faults.store.fails = True
    with pytest.raises(Exception, match="the disk is full"):
        await faults.pass_seconds(10, _DOWN)
    faults.store.fails = False
    monkeypatch.setattr(health, "_FIRST_PAUSE_NS", _SECOND)
    ((_, message),) = await faults.pass_seconds(10, _DOWN)
    assert message.startswith("ocsf-nft has a fault: ")
