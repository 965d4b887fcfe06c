"""An init with guest-init: no workload without a fence."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.guest import cache, machine, network
from tests.guest.conftest import IN_LAB
from tests.guest.machine import TIMEOUT_SECONDS
from tests.guest.stripped import NO_FENCE

if TYPE_CHECKING:
    from pathlib import Path

    from tests.guest.kernel import Kernel
    from tests.guest.network import Network

pytestmark = [pytest.mark.kernel, pytest.mark.xdist_group("guest")]

_SCRIPT = cache.PROJECT / "deploy/guest-init/guest-init"


def test_shellcheck_reports_nothing() -> None:
    inside = cache.PROJECT / "tests/guest/inside"
    subprocess.run(["shellcheck", _SCRIPT, inside / "init", inside / "systemd-init"], check=True)


@pytest.mark.slow
def test_no_workload_starts_without_a_fence(
    guest_kernel: Kernel, initramfs: Path, around: Network
) -> None:
    with machine.running(
        guest_kernel,
        initramfs,
        around.host_namespace,
        tap=network.TAP,
        command_line=f"{IN_LAB} guest_test.fence ocsf_nft.colour=red",
    ) as running:
        running.wait_for_end(TIMEOUT_SECONDS)
        assert NO_FENCE in running.console_text()
        assert "guest-init ended with exit 2" in running.console_text()
        assert running.port.recv(1) == b"", "the agent, which is the workload, did not start"
