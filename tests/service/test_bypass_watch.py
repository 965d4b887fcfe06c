"""Watch over frames that bypass a fence, whose namespace ends while it is cancelled."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any, cast

from ocsf_nft.errors import SourceError
from ocsf_nft.flow import Count
from ocsf_nft.service import bypass_watch
from ocsf_nft.service.bypass_watch import BypassWatch


async def test_watch_ends_if_a_reading_fails_while_it_is_cancelled(monkeypatch: Any) -> None:
    is_reading, may_fail = threading.Event(), threading.Event()

    def end(*_arguments: object) -> None:
        is_reading.set()
        may_fail.wait(60)
        raise SourceError("an uplink is missing")

    monkeypatch.setattr(bypass_watch, "SentFrames", end)
    monitor = SimpleNamespace(
        name="agent",
        gate=SimpleNamespace(stopped=Count),
        reports=SimpleNamespace(installed=SimpleNamespace(around=None)),
        namespace_socket=None,
        counters_now=None,
    )
    task = asyncio.create_task(BypassWatch(cast("Any", monitor), cast("Any", None)).run())
    await asyncio.to_thread(is_reading.wait, 60)
    task.cancel()
    await asyncio.sleep(0)  # the cancellation arrives while the thread works
    may_fail.set()
    async with asyncio.timeout(60):
        await asyncio.wait([task])
    assert task.cancelled()


async def test_frames_that_were_stopped_after_the_removal_of_the_fence_are_not_reported() -> None:
    called = asyncio.Event()

    def stopped() -> Count:
        loop.call_soon_threadsafe(called.set)
        return Count(3, 180)

    loop = asyncio.get_running_loop()
    monitor = SimpleNamespace(gate=SimpleNamespace(stopped=stopped), has_record=False)
    watch = BypassWatch(cast("Any", monitor), cast("Any", None), compares=False)
    task = asyncio.create_task(watch.run())  # a report would fail without a reporter
    async with asyncio.timeout(60):
        await called.wait()
        await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_watch_over_a_vm_only_reports_what_was_stopped(monkeypatch: Any) -> None:
    reported = asyncio.Event()

    async def note(_self: BypassWatch, stopped: Count, *_times: int) -> None:
        assert stopped == Count(3, 180)
        reported.set()

    def compare(*_arguments: object) -> None:
        raise AssertionError("a VM's frames are not compared")

    monkeypatch.setattr(BypassWatch, "_report_stopped", note)
    monkeypatch.setattr(bypass_watch, "SentFrames", compare)
    gate = SimpleNamespace(stopped=lambda: Count(3, 180))
    monitor = SimpleNamespace(gate=gate, has_record=True)
    watch = BypassWatch(cast("Any", monitor), cast("Any", None), compares=False)
    task = asyncio.create_task(watch.run())
    async with asyncio.timeout(60):
        await reported.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
