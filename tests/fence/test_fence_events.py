from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.errors import SourceError
from ocsf_nft.fence import fence_events
from ocsf_nft.fence.fence_events import Watch
from ocsf_nft.fence.state import Installed, StateDirectory
from ocsf_nft.fence.tamper_guard import Alteration
from tests.standing import INSTALLED

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Posted:
    """A sentry that tells what a test has it tell."""

    tell: Callable[[Alteration | Exception | None], None]

    def __init__(
        self,
        _installed: Installed,
        _state: StateDirectory,
        tell: Callable[[Alteration | Exception | None], None],
        *,
        heals: bool,
    ) -> None:
        Posted.tell = staticmethod(tell)
        self.heals = heals
        self.has_ended = False

    def begin(self) -> None:
        pass

    def end(self) -> None:
        self.has_ended = True


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Watch:
    monkeypatch.setattr(fence_events, "Sentry", Posted)
    monkeypatch.setattr(fence_events, "_REST_SECONDS", 0)
    return Watch(INSTALLED, StateDirectory(tmp_path), heals=True)


def altered(changes: str) -> Alteration:
    return Alteration(changes=changes, process=None, comm=None, arrived_ns=1)


async def test_a_look_is_due_at_once_and_after_each_burst_of_changes(watched: Watch) -> None:
    await watched.begin()
    changes = watched.changes()
    assert await anext(changes) == ()
    for number in range(3):
        Posted.tell(altered(str(number)))
    Posted.tell(None)
    assert [each.changes for each in await anext(changes)] == ["0", "1", "2"]
    Posted.tell(None)
    assert await anext(changes) == ()


async def test_looks_are_due_at_intervals_and_a_short_time_after_changes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fence_events, "Sentry", Posted)
    begun = Watch(INSTALLED, StateDirectory(tmp_path), heals=True)
    await begun.begin()
    real_sleep, real_timeout = asyncio.sleep, asyncio.timeout
    waits: list[float | None] = []

    def timeout(seconds: float | None) -> asyncio.Timeout:
        waits.append(seconds)
        return real_timeout(0.01)

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await real_sleep(0)

    changes = begun.changes()
    await anext(changes)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(asyncio, "timeout", timeout)
    await anext(changes)
    Posted.tell(None)
    await real_sleep(0)
    await anext(changes)
    assert waits == [0.2, 5.0, 0.2, 5.0, 0.05]


async def test_what_waits_has_a_bound(watched: Watch) -> None:
    await watched.begin()
    changes = watched.changes()
    await anext(changes)
    for number in range(1000):
        Posted.tell(altered(str(number)))
    found = await anext(changes)
    assert (len(found), found[-1].changes) == (64, "999")


async def test_what_ended_the_sentry_ends_the_watch(watched: Watch) -> None:
    await watched.begin()
    changes = watched.changes()
    await anext(changes)
    Posted.tell(SourceError("it can't be watched"))
    with pytest.raises(SourceError, match="it can't be watched"):
        await anext(changes)


async def test_what_was_not_told_is_left(watched: Watch) -> None:
    await watched.begin()
    Posted.tell(altered("late"))
    await watched.end()
    assert watched.sentry.has_ended  # type: ignore[attr-defined] # the test's own
    assert [each.changes for each in watched.left()] == ["late"]
    assert watched.left() == ()


def test_a_watch_that_has_not_begun_has_no_sentry(watched: Watch) -> None:
    with pytest.raises(RuntimeError, match="begin the watch first"):
        _ = watched.sentry


def test_a_sentry_that_tells_when_its_loop_has_ended_goes_on(watched: Watch) -> None:
    asyncio.run(watched.begin())
    Posted.tell(None)  # raises nothing
