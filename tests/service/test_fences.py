from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft import config
from ocsf_nft.demo.collector import Collector
from ocsf_nft.errors import AbsentError, DeliveryError, OcsfNftError, UnsupportedError
from ocsf_nft.fence import installer
from ocsf_nft.fence.installer import Verification
from ocsf_nft.fence.spec import FenceSpec, Surroundings
from ocsf_nft.fence.state import Installed, StateDirectory
from ocsf_nft.fence.values import endpoint
from ocsf_nft.netns import Namespace
from ocsf_nft.ocsf.notices import FenceState
from ocsf_nft.service import fences
from ocsf_nft.service.fences import Fence, Watched
from ocsf_nft.service.reporter import Reporter
from ocsf_nft.service.to_its_end import to_its_end

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

INSTALLED = Installed(
    spec=FenceSpec(sandbox="sb1", proxies=(endpoint("10.200.0.1:3128"),)),
    around=Surroundings(links=("sb0",)),
    namespace=Namespace(),
    identity="4:1",
    transport="nflog",
    policy="",
    listings={"inet ocsf_nft": ""},
)
STANDING = Fence(installed=INSTALLED, state=FenceState.STANDING, is_ours=True)


@pytest.fixture
def sink() -> Collector:
    return Collector()


@pytest.fixture
def watched(sink: Collector, tmp_path: Path) -> Callable[[Fence], Watched]:
    sandbox = config.parse({"sandbox": [{"name": "sb1"}]}, where="test").sandbox[0]
    state = StateDirectory(tmp_path)
    return lambda fence: Watched(sandbox, fence, state, Reporter(sink, None))


def _verified(
    monkeypatch: pytest.MonkeyPatch,
    verdict: Any,
    difference: str = "",
    error: Exception | None = None,
) -> None:
    """Let the installer find a fence so, and find nothing to remove where ``error`` says that."""

    def remove(*_: object) -> None:
        if error is not None:
            raise error

    found = Verification(verdict=verdict, difference=difference, installed=INSTALLED)
    monkeypatch.setattr(installer, "verify", lambda *_: found)
    monkeypatch.setattr(installer, "remove", remove)


def _told(sink: Collector) -> list[tuple[str, str, str | None]]:
    """From which state to which each event says that the fence went, and why."""
    names = {"Enabled": "Standing", "Disabled": "Absent"}
    return [
        (
            event["unmapped"]["previous_state"],
            names.get(event["state"], event["state"]),
            event.get("status_detail"),
        )
        for event in sink.events
    ]


async def test_each_event_begins_with_the_state_that_the_one_before_told(
    sink: Collector, watched: Callable[[Fence], Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    renewed = replace(STANDING, installed=replace(INSTALLED, policy="newer"))
    seen: list[Fence | OcsfNftError] = [
        STANDING,
        replace(STANDING, state=FenceState.ALTERED, reason="a rule came"),
        AbsentError("no fence"),
        AbsentError("no fence"),
        STANDING,
        UnsupportedError("no nft"),
        renewed,
        replace(renewed, state=FenceState.DEGRADED, reason="no nft_log"),
    ]

    def stand(*_: object) -> Fence:
        found = seen.pop(0)
        if isinstance(found, OcsfNftError):
            raise found
        return found

    monkeypatch.setattr(fences, "stand", stand)
    _verified(monkeypatch, "as installed")
    fence = watched(STANDING)
    await fence.announce()
    while seen:
        await fence._look()
    await fence.take_away()
    assert _told(sink) == [
        ("Absent", "Standing", None),
        ("Standing", "Altered", "a rule came"),
        ("Altered", "Absent", "no fence"),
        ("Absent", "Standing", None),
        ("Standing", "Altered", "no nft"),
        ("Altered", "Standing", "it was altered or gone, and has been put back"),
        ("Standing", "Degraded", "no nft_log"),
        ("Degraded", "Absent", None),
    ]


async def test_a_change_is_delivered_before_it_is_logged(
    sink: Collector, watched: Callable[[Fence], Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever starts a run may not read its standard error: the log can wait for ever."""

    class Full:
        def warning(self, *_: object, **__: object) -> None:
            raise BlockingIOError

        error = warning

    def gone(*_: object) -> None:
        raise AbsentError("no fence")

    monkeypatch.setattr(fences, "_log", Full())
    monkeypatch.setattr(fences, "stand", gone)
    fence = watched(replace(STANDING, state=FenceState.DEGRADED, reason="no nft_log"))
    with pytest.raises(BlockingIOError):
        await fence.announce()
    with pytest.raises(BlockingIOError):
        await fence._look()
    assert _told(sink) == [
        ("Absent", "Degraded", "no nft_log"),
        ("Degraded", "Absent", "no fence"),
    ]


@pytest.mark.parametrize(
    ("verdict", "error"), [("absent", None), ("as installed", AbsentError("no fence"))]
)
async def test_a_fence_that_is_gone_before_it_is_removed_is_told_to_be(
    sink: Collector,
    watched: Callable[[Fence], Watched],
    monkeypatch: pytest.MonkeyPatch,
    verdict: str,
    error: Exception | None,
) -> None:
    _verified(monkeypatch, verdict, error=error)
    await watched(STANDING).take_away()
    assert _told(sink) == [
        ("Standing", "Absent", "somebody else had removed it before this run did")
    ]


async def test_a_fence_that_stood_before_is_neither_told_nor_taken_away(
    sink: Collector, watched: Callable[[Fence], Watched]
) -> None:
    found = watched(replace(STANDING, is_ours=False))
    await found.announce()
    await found.take_away()
    assert _told(sink) == []


def test_a_fence_that_is_not_as_it_was_installed_is_altered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    state = StateDirectory(tmp_path)  # empty: what was compared with is not read again
    sandbox = config.parse({"sandbox": [{"name": "sb1"}]}, where="test").sandbox[0]
    _verified(monkeypatch, "differs", "+accept")
    found = fences.stand(sandbox, state)
    assert (found.state, found.reason) == (
        FenceState.ALTERED,
        "it is not as it was installed: +accept",
    )


async def test_a_look_that_has_begun_ends_before_its_watch_does() -> None:
    begun, may_end, told = threading.Event(), threading.Event(), threading.Event()

    def stand() -> None:
        begun.set()
        may_end.wait(10)

    async def look() -> None:
        await asyncio.to_thread(stand)
        told.set()

    watch = asyncio.ensure_future(to_its_end(look()))
    await asyncio.to_thread(begun.wait, 10)
    watch.cancel()
    await asyncio.sleep(0.05)
    assert not watch.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await watch
    assert told.is_set()


async def test_a_look_that_fails_while_its_watch_is_cancelled_is_told() -> None:
    begun = asyncio.Event()

    async def look() -> None:
        begun.set()
        await asyncio.sleep(0.05)
        raise DeliveryError("it can't be told")

    watch = asyncio.ensure_future(to_its_end(look()))
    await begun.wait()
    watch.cancel()
    with pytest.raises(DeliveryError, match="can't be told"):
        await watch


@pytest.mark.parametrize(
    ("source", "transport", "wanted"),
    [
        ("auto", "auto", None),
        ("auto", "none", "none"),
        ("nflog", "auto", "nflog"),
        ("kmsg", "auto", "kmsg"),
        ("journal", "auto", "kmsg"),
        ("journal", "kmsg", "kmsg"),
    ],
)
def test_a_fence_logs_so_that_the_source_asked_for_can_read_it(
    source: str, transport: str, wanted: str | None
) -> None:
    sandbox = {"name": "a", "source": source, "transport": transport}
    read = config.parse({"sandbox": [sandbox]}, where="test")
    assert fences.wanted_transport(read.sandbox[0]) == wanted
