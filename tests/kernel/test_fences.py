"""Installation and restore of fences by a service, and the records of fences."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from ocsf_nft import config
from ocsf_nft.errors import FenceError
from ocsf_nft.fence import nft, verification
from ocsf_nft.fence.guard_thread import GuardThread
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.ocsf.fence_state_events import FenceState
from ocsf_nft.service import fences, status
from ocsf_nft.service.event_rendering import Reporter
from ocsf_nft.service.fence_monitor import FenceMonitor
from tests.kernel import conftest
from tests.service.keeping import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path

    from ocsf_nft.config import SandboxConfig
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel


def _sandbox(lab: Lab, **more: object) -> SandboxConfig:
    table = {"name": conftest.SANDBOX, "netns": lab.sandbox, **more}
    return config.parse({"sandbox": [table]}, where="test").sandbox[0]


def test_service_names_the_state_directory_of_a_fence_without_record(
    fenced: Lab, tmp_path: Path
) -> None:
    nothing = StateDirectory(tmp_path / "nothing")
    with pytest.raises(FenceError, match="no record of lab: install it again, or name the right"):
        fences.activate(_sandbox(fenced), nothing)


def test_service_reinstalls_a_fence_with_a_damaged_record(
    fenced: Lab, state: StateDirectory
) -> None:
    (state.directory(conftest.SANDBOX) / "fence.json").write_text("{}")
    sandbox = _sandbox(fenced, install=True, proxy=["10.200.0.1:3128"])
    found = fences.activate(sandbox, state)
    assert (found.is_ours, found.before, found.state, found.tampering) == (
        False, FenceState.ACTIVE, FenceState.ACTIVE, None,
    )  # fmt: skip
    assert verification.verify(conftest.SANDBOX, state).verdict == "as installed"


async def test_monitored_fence_is_restored_without_a_tamper_guard(
    fenced: Lab, state: StateDirectory
) -> None:
    sink, sandbox = MemoryStore(), _sandbox(fenced)
    fence, reporter = fences.activate(sandbox, state), Reporter(sink.commit, None)
    monitor = FenceMonitor(sandbox, fence, state, reporter, GuardThread(), asyncio.Semaphore())
    conftest.nft(fenced.sandbox_namespace, "delete", "table", "inet", "ocsf_nft")
    await monitor._inspect()
    assert verification.verify(conftest.SANDBOX, state).verdict == "as installed"
    (event,) = sink.of_class(5019)
    assert "was restored" in event["status_detail"]
    assert event["severity"] == "High"


@pytest.mark.usefixtures("fenced")
def test_status_without_nft_has_counts_and_no_verdict(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((found,), _) = status.statuses(state)
    assert found.verdict == "as installed"
    monkeypatch.setattr(nft, "TRUSTED", ())
    ((found,), _) = status.statuses(StateDirectory(state.path))  # it knows no earlier verdict
    assert (found.verdict, found.absent, found.is_watched) == (None, (), False)
    assert {balance.rule for balance in found.balances} >= {"egress", "forward"}
