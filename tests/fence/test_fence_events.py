from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.errors import SourceError
from ocsf_nft.fence import fence_events
from ocsf_nft.fence.fence_change import FenceChange
from ocsf_nft.fence.fence_events import FenceEvents
from ocsf_nft.fence.guard_thread import GuardThread
from ocsf_nft.fence.state import InstalledFence, StateDirectory
from tests.standing import INSTALLED

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class StubGuard:
    """Tamper guard that sends the notifications of a test."""

    notify: Callable[[FenceChange | Exception | None], None]

    def __init__(
        self,
        _installed: InstalledFence,
        _state: StateDirectory,
        notify: Callable[[FenceChange | Exception | None], None],
        _thread: GuardThread,
        *,
        self_heal: bool,
    ) -> None:
        StubGuard.notify = staticmethod(notify)
        self.self_heal = self_heal
        self.is_stopped = False

    def start(self) -> None:
        pass

    def stop(self) -> None:
        self.is_stopped = True


async def started(path: Path) -> FenceEvents:
    return await FenceEvents.started(INSTALLED, StateDirectory(path), GuardThread(), self_heal=True)


@pytest.fixture
async def events(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FenceEvents:
    monkeypatch.setattr(fence_events, "TamperGuard", StubGuard)
    monkeypatch.setattr(fence_events, "_MIN_INTERVAL_SECONDS", 0)
    return await started(tmp_path)


def change(changes: str) -> FenceChange:
    return FenceChange(changes=changes, process=None, comm=None, arrived_ns=1)


async def test_changes_before_the_first_check_come_at_once(events: FenceEvents) -> None:
    StubGuard.notify(change("early"))
    await asyncio.sleep(0)
    assert [each.changes for each in await anext(events.changes()) or ()] == ["early"]


async def test_check_is_due_after_each_burst_of_changes(events: FenceEvents) -> None:
    changes = events.changes()
    assert await anext(changes) is None
    for number in range(3):
        StubGuard.notify(change(str(number)))
    StubGuard.notify(None)
    assert [each.changes for each in await anext(changes) or ()] == ["0", "1", "2"]
    StubGuard.notify(None)
    assert await anext(changes) == ()


async def test_checks_are_due_at_intervals_and_shortly_after_changes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fence_events, "TamperGuard", StubGuard)
    events = await started(tmp_path)
    real_sleep, real_timeout = asyncio.sleep, asyncio.timeout
    waits: list[float | None] = []

    def timeout(seconds: float | None) -> asyncio.Timeout:
        waits.append(seconds)
        return real_timeout(0.01)

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await real_sleep(0)

    changes = events.changes()
    await anext(changes)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(asyncio, "timeout", timeout)
    assert await anext(changes) is None
    StubGuard.notify(None)
    await real_sleep(0)
    assert await anext(changes) == ()
    assert waits == [0.2, 5.0, 0.2, 5.0, 0.05]


async def test_number_of_pending_changes_is_limited(events: FenceEvents) -> None:
    changes = events.changes()
    await anext(changes)
    for number in range(1000):
        StubGuard.notify(change(str(number)))
    found = await anext(changes) or ()
    assert (len(found), found[-1].changes) == (64, "999")


async def test_error_of_the_tamper_guard_ends_the_stream(events: FenceEvents) -> None:
    changes = events.changes()
    await anext(changes)
    StubGuard.notify(SourceError("it can't be watched"))
    with pytest.raises(SourceError, match="it can't be watched"):
        await anext(changes)


async def test_pending_changes_are_available_after_the_stop(events: FenceEvents) -> None:
    StubGuard.notify(change("late"))
    await events.stop()
    assert events.tamper_guard.is_stopped  # type: ignore[attr-defined] # the test's own
    assert [each.changes for each in events.take_pending()] == ["late"]
    assert events.take_pending() == ()


def test_tamper_guard_may_notify_a_closed_event_loop(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fence_events, "TamperGuard", StubGuard)
    asyncio.run(started(tmp_path))
    StubGuard.notify(None)  # raises nothing
