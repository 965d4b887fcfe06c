"""Removal of a fence that no run watches."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.errors import FenceError
from ocsf_nft.fence import installer, table_changes, verification
from ocsf_nft.lab import ip
from ocsf_nft.service import unwatched_removal
from tests.kernel import accounts, attempts, command
from tests.kernel.conftest import SANDBOX, nft

if TYPE_CHECKING:
    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel


@pytest.fixture
def unwatched(fenced: Lab, state: StateDirectory, tmp_path: Path) -> InstalledFence:
    """Return a fence that a run has watched until now; the kernel sends no packets of its own."""
    fenced.sandbox_namespace.call(
        lambda: Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1", encoding="ascii")
    )
    with command.running(*accounts.options(state, tmp_path / "events.jsonl")) as running:
        assert running.stop(signal.SIGTERM)[0] == 0
    installed = state.read(SANDBOX)
    assert installed is not None
    return installed


def _refused(lab: Lab) -> bool:
    """Send packets to the internet; return whether the fence has counted them."""
    before = nft(lab.sandbox_namespace, "list counter inet ocsf_nft refused_egress")
    attempts.attempt(lab.sandbox_namespace, 1000, 3, "udp4")
    return before != nft(lab.sandbox_namespace, "list counter inet ocsf_nft refused_egress")


def test_fence_counts_no_packet_between_its_last_reading_and_its_removal(
    lab: Lab, unwatched: InstalledFence, state: StateDirectory
) -> None:
    assert _refused(lab)
    found = []

    def work() -> None:
        found.append(_refused(lab))
        installer.remove(SANDBOX, state)

    assert unwatched_removal.remove(unwatched, state, work) == 3
    assert found == [False]
    assert state.account_place(SANDBOX) is not None


def test_fence_that_cannot_be_removed_is_on_and_keeps_its_counts(
    lab: Lab, unwatched: InstalledFence, state: StateDirectory
) -> None:
    def fail() -> None:
        raise FenceError("not now")

    with pytest.raises(FenceError, match="not now"):
        unwatched_removal.remove(unwatched, state, fail)
    assert _refused(lab)
    assert verification.verify(SANDBOX, state).verdict == "as installed"
    assert (
        unwatched_removal.remove(unwatched, state, partial(installer.remove, SANDBOX, state)) == 3
    )


def test_counts_stay_if_another_process_turns_the_fence_on_before_its_removal(
    unwatched: InstalledFence, state: StateDirectory
) -> None:
    def work() -> None:
        table_changes.turn_on(unwatched.namespace, tuple(unwatched.spec.tables))
        installer.remove(SANDBOX, state)

    assert unwatched_removal.remove(unwatched, state, work) == 0
    assert state.account_place(SANDBOX) is not None


def test_removal_after_the_end_of_the_namespace_is_one_sentence(
    lab: Lab, unwatched: InstalledFence, state: StateDirectory
) -> None:
    assert unwatched.namespace == lab.sandbox_namespace
    ip("netns", "del", lab.sandbox)
    try:
        removed = command.run("remove", "--sandbox", SANDBOX, "--state-dir", str(state.path))
    finally:
        ip("netns", "add", lab.sandbox)
    assert (removed.code, removed.stderr) == (0, f"sandbox {SANDBOX} is no longer fenced\n")


def test_counts_end_with_a_fence_whose_packets_are_all_reported(
    unwatched: InstalledFence, state: StateDirectory
) -> None:
    work = partial(installer.remove, SANDBOX, state)
    assert unwatched_removal.remove(unwatched, state, work) == 0
    assert state.account_place(SANDBOX) is None
