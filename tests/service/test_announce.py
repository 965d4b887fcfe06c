"""Reports of fences at the start of a run."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from ocsf_nft import config
from ocsf_nft.fence.guard_thread import GuardThread
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.ocsf.fence_state_events import FenceState, Tampering
from ocsf_nft.service.event_rendering import Reporter
from ocsf_nft.service.fence_monitor import FenceMonitor
from tests.service.keeping import MemoryStore
from tests.service.test_fence_monitor import ACTIVE

if TYPE_CHECKING:
    from pathlib import Path


async def test_announce_reports_each_fence_that_is_new_or_not_as_it_should_be(
    tmp_path: Path,
) -> None:
    (sandbox,) = config.parse({"sandbox": [{"name": "sb1"}]}, where="test").sandbox
    found = replace(ACTIVE, is_ours=False)
    permissive = FenceState.PERMISSIVE
    for fence, reported in (
        (found, 0),
        (ACTIVE, 1),
        (replace(found, before=FenceState.ABSENT), 1),
        (replace(found, reason="a flag differs"), 1),
        (replace(found, tampering=Tampering(changes="a rule")), 1),
        (replace(found, before=permissive, state=permissive), 1),
    ):
        sink = MemoryStore()
        state, reporter = StateDirectory(tmp_path), Reporter(sink.commit, None)
        monitor = FenceMonitor(sandbox, fence, state, reporter, GuardThread(), asyncio.Semaphore())
        await monitor.reports.announce()
        assert len(sink.of_class(5019)) == reported, fence
