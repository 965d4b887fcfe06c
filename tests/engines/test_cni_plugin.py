"""The CNI plugin in a real containerd (`ctr run --cni`), with a stub of the service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.engines import containerd
from tests.engines.engine import Container, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engines.containerd import Containerd
    from tests.engines.stub import Stub

pytestmark = [pytest.mark.slow, pytest.mark.kernel]

_HELLO = ("/bin/sh", "-c", "ip -o link show eth0; echo started")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    """Run containerd with runc, and with the plugin after the bridge."""
    folder = tmp_path_factory.mktemp("engine")
    plugin = {"type": "ocsf-nft-cni", "control": f"{folder}/service.sock", "policy": "strict"}
    with containerd.running(folder / "site", folder / "service.sock", plugin=plugin) as engine:
        yield engine


def test_plugin_asks_the_service_before_the_first_process_runs(
    running: Containerd, service: Stub
) -> None:
    # The path is /proc/PID/ns/net.
    programs = service.record_programs(lambda request: Path(request.body["netns"]).parents[1])
    done = run(running, Container("agent-1", _HELLO))
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("started\n")
    assert "eth0" in done.stdout
    assert programs == ["runc:[2:INIT]"]
    assert [each.method for each in service.requests] == ["PUT", "DELETE"]
    assert len({each.container for each in service.requests}) == 1
    body = service.requests[0].body
    assert (body["network"], body["policy"]) == ("own", "strict")


def test_container_does_not_start_if_the_plugin_is_refused(
    running: Containerd, service: Stub
) -> None:
    service.answer = lambda _request: (503, {"detail": "the kernel has no nf_tables"})
    done = run(running, Container("agent-2", _HELLO))
    running.remove("agent-2")
    assert done.returncode != 0
    assert "started" not in done.stdout
    assert "does not start: the kernel has no nf_tables" in done.stderr


def test_container_does_not_start_while_the_service_is_down(running: Containerd) -> None:
    done = run(running, Container("agent-3", _HELLO))
    running.remove("agent-3")
    assert done.returncode != 0
    assert "started" not in done.stdout
    assert "does not start: the service does not answer" in done.stderr
