"""Decisions of a tamper guard, without a kernel."""

from __future__ import annotations

import contextlib
import errno
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.fence import tamper_guard
from ocsf_nft.fence.guard_thread import GuardThread
from ocsf_nft.fence.ruleset_changes import Transaction
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.fence.tamper_guard import TamperGuard
from tests.standing import INSTALLED

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def reported() -> list[Any]:
    return []


@pytest.fixture(autouse=True)
def without_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tamper guards monitor nothing."""
    monitor = SimpleNamespace(close=lambda: None)
    links = SimpleNamespace(notices=contextlib.nullcontext(), new=set(), reads_from=0.0, seen=None)
    monkeypatch.setattr(tamper_guard, "NftMonitor", lambda *_: monitor)
    monkeypatch.setattr(tamper_guard, "LinkMonitor", lambda *_: links)
    monkeypatch.setattr(tamper_guard, "SurroundingsWatcher", lambda *_, **__: None)


@pytest.fixture
def guard(tmp_path: Path, reported: list[Any]) -> TamperGuard:
    """Return a tamper guard that monitors nothing."""
    return TamperGuard(
        INSTALLED, StateDirectory(tmp_path), reported.append, GuardThread(), self_heal=True
    )


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the monotonic clock of the tamper guard."""

    def set_clock(now: float) -> None:
        clock = SimpleNamespace(**{**vars(time), "monotonic": lambda: now})
        monkeypatch.setattr(tamper_guard, "time", clock)

    return set_clock


def test_tamper_guard_gives_up_after_ten_restorations_in_a_minute(
    guard: TamperGuard, at: Callable[[float], None]
) -> None:
    guard._restore_times.extend(float(number) for number in range(1, 10))
    at(10.0)
    assert not guard._is_in_conflict()
    guard._restore_times.append(10.0)
    for now, is_in_conflict in ((10.0, True), (60.9, True), (61.0, False)):
        at(now)
        assert guard._is_in_conflict() == is_in_conflict
    guard._restore_times.append(60.0)  # the first of the last ten is at 2 now
    assert guard._is_in_conflict()


def test_tamper_guard_reports_dropped_notices_once_a_minute(
    guard: TamperGuard, at: Callable[[float], None]
) -> None:
    overruns = []
    for now in (100.0, 100.1, 159.9, 160.0, 161.0):
        at(now)
        overruns.append(guard._reports_overrun())
    assert overruns == [True, False, False, True, False]


@pytest.mark.parametrize(("self_heal", "seconds"), [(True, 0.002), (False, 0.05)])
def test_tamper_guard_pauses_longer_between_turns_if_it_restores_nothing(
    tmp_path: Path, self_heal: bool, seconds: float
) -> None:
    found = TamperGuard(
        INSTALLED, StateDirectory(tmp_path), lambda _: None, GuardThread(), self_heal=self_heal
    )
    assert found.pause_seconds == seconds


def test_failed_tamper_guard_reports_its_error_once(
    guard: TamperGuard, reported: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(guard, "_turn", fail)
    assert not guard.turn(())
    guard.stop()
    (error,) = reported
    assert "can't be watched: broken" in str(error)


def test_tamper_guard_waits_until_the_next_event_it_has_to_act_on(
    guard: TamperGuard,
    at: Callable[[float], None],
    reported: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    notices, links = (SimpleNamespace(fileno=lambda number=number: number) for number in (7, 8))
    monkeypatch.setattr(guard, "_monitors", [SimpleNamespace(notices=notices, read=list)])
    monkeypatch.setattr(guard._links, "notices", links)

    def waits(now: float) -> tuple[tuple[int, ...], float | None]:
        at(now)
        return guard.awaited(now), guard.deadline(now)

    found = [waits(100.0)]
    guard._paused_until = 103.0
    found.append(waits(100.0))
    guard._links.reads_from = 100.5
    found.append(waits(100.0))
    found.append(waits(100.5))
    at(103.0)
    assert guard.turn(())
    found.append(waits(103.0))
    assert found == [
        ((7, 8), None),
        ((8,), 103.0),
        ((), 100.5),
        ((8,), 103.0),
        ((7, 8), None),
    ]
    assert not guard.is_paused
    assert reported == [None]


def _monitor(is_reverted: bool) -> Any:
    """Return a monitor with one notice, whose change has been reverted by now or not."""
    flushed = Transaction(changes="the whole ruleset was flushed")
    return SimpleNamespace(
        read=lambda: [flushed],
        is_reverted=lambda _: is_reverted,
        is_regular=lambda _: False,
    )


def test_tamper_guard_reports_a_change_that_a_check_has_repaired_as_repaired_at_once(
    guard: TamperGuard, reported: list[Any]
) -> None:
    guard._handle_notices(_monitor(is_reverted=True))
    assert [(each.changes, each.restored_after_ns) for each in reported] == [
        ("the whole ruleset was flushed", 0)
    ]


def test_tamper_guard_that_gives_up_pauses_for_a_minute(
    guard: TamperGuard, at: Callable[[float], None], reported: list[Any]
) -> None:
    at(100.0)
    guard._restore_times.extend([99.0] * 10)
    guard._handle_notices(_monitor(is_reverted=False))
    assert [each.given_up for each in reported] == [True]
    assert guard._paused_until == 160.0


def test_tamper_guard_is_paused_before_it_reports_that_it_gives_up(
    guard: TamperGuard, at: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check after the report must not restore the fence."""
    paused: list[bool] = []
    at(100.0)
    guard._restore_times.extend([99.0] * 10)
    monkeypatch.setattr(guard, "_notify", lambda _: paused.append(guard.is_paused))
    guard._handle_notices(_monitor(is_reverted=False))
    assert paused == [True]


@pytest.mark.parametrize(
    ("outcome", "attached", "detail"),
    [
        ("none", [{"late"}], "first"),
        ("restored", [], "first; 1 more change followed"),
        ("failed", [], "first"),
    ],
)
def test_tamper_guard_attaches_new_links_or_restores_and_reports_the_reverted_changes(
    guard: TamperGuard,
    reported: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    outcome: str,
    attached: list[set[str]],
    detail: str,
) -> None:
    """A restore repairs the changes before it, and not the changes after it."""
    first, repaired, later = (Transaction(changes=each) for each in ("first", "second", "third"))
    found: list[set[str]] = []
    monkeypatch.setattr(guard, "_restore", lambda _monitor, _foreign: outcome)
    links = SimpleNamespace(attach=lambda _batch, names: found.append(names), new={"late"})
    monkeypatch.setattr(guard, "_links", links)
    monitor: Any = SimpleNamespace(
        read=lambda: [repaired, later], is_reverted=lambda each: each is repaired
    )
    left = guard._react(monitor, [first])
    assert found == attached
    assert [each.changes for each in reported] == [detail]
    assert left == ([repaired, later] if outcome == "restored" else [])
