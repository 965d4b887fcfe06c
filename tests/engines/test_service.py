"""Containers of real engines, fenced by the real service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.engines import containerd, service
from tests.engines.conftest import ENGINES
from tests.engines.engine import Container, run
from tests.engines.service import SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engines.containerd import Containerd
    from tests.engines.engine import Engine
    from tests.engines.service import Running

pytestmark = [pytest.mark.slow, pytest.mark.kernel]

_POLICY = {"org.ocsf-nft.policy": "agents"}
#: A program that attempts to get out.
_ATTEMPT = ("/bin/sh", "-c", "nc -w 5 203.0.113.7 443 2>&1; echo ended")


@pytest.fixture(scope="module", params=ENGINES)
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    """Run each engine, with much time for the service: 20 containers start at once."""
    folder = tmp_path_factory.mktemp("engine")
    with ENGINES[request.param](folder / "site", folder / "service.sock", SECONDS) as engine:
        yield engine


@pytest.fixture(scope="module")
def served(running: Engine) -> Iterator[Running]:
    with service.started(running.site.folder.parent) as made:
        yield made


def _is_attempt(event: dict[str, Any]) -> bool:
    return bool(event["class_uid"] == 4001)


def test_attempt_of_the_first_process_is_refused_and_has_the_container(
    running: Engine, served: Running
) -> None:
    done = run(running, Container("real-1", _ATTEMPT, _POLICY, {"team": "search"}))
    assert done.returncode == 0, done.stderr
    assert "Connection refused" in done.stdout
    assert "ended" in done.stdout
    (event,) = served.wait_for(
        lambda event: (
            _is_attempt(event)
            and event["dst_endpoint"]["ip"] == "203.0.113.7"
            and "real-1-" in event["unmapped"]["sandbox"]
        ),
        1,
    )
    names = event["src_endpoint"]["container"]
    assert names["runtime"] == running.kind
    if running.kind == "containerd":
        assert names["uid"] == "real-1"
    else:
        assert (len(names["uid"]), names["name"]) == (64, "real-1")
        assert names["image"]["name"].startswith(("ocsf-nft-test", "localhost/ocsf-nft-test"))
    if running.kind == "docker":
        assert names["labels"] == ["team=search"]
    assert event["actor"]["process"]["cmd_line"] == "nc -w 5 203.0.113.7 443"
    assert served.sandboxes() == []


def test_container_that_no_table_matches_does_not_start(running: Engine, served: Running) -> None:
    done = run(running, Container("real-2", _ATTEMPT))
    assert done.returncode != 0
    assert "ended" not in done.stdout
    assert "container real-2 does not start: no [[attach]] table matches it" in done.stderr
    assert served.sandboxes() == []


def test_container_that_a_table_allows_has_no_fence(running: Engine, served: Running) -> None:
    done = run(running, Container("real-3", _ATTEMPT, {"free": "yes"}))
    assert done.returncode == 0, done.stderr
    assert "Connection refused" not in done.stdout
    assert served.sandboxes() == []


def test_container_with_the_network_of_the_host_does_not_start(
    running: Engine, served: Running
) -> None:
    done = run(running, Container("real-4", _ATTEMPT, _POLICY, network="host"))
    assert done.returncode != 0
    assert "ended" not in done.stdout
    assert "network namespace of the host" in done.stderr
    assert served.sandboxes() == []


def test_20_containers_are_fenced_at_the_same_time(running: Engine, served: Running) -> None:
    names = [f"real-many-{number:02}" for number in range(20)]
    started = [running.start(Container(name, _ATTEMPT, _POLICY)) for name in names]
    for process in started:
        with process:
            stdout, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
        assert "Connection refused" in stdout
    found = served.wait_for(
        lambda event: (
            _is_attempt(event)
            and event["dst_endpoint"]["ip"] == "203.0.113.7"
            and "real-many-" in event["unmapped"]["sandbox"]
        ),
        20,
    )
    assert len({event["unmapped"]["sandbox"] for event in found}) == len(found) == 20
    assert served.sandboxes() == []
    alerts = [
        event["message"]
        for event in served.events()
        if event["class_uid"] == 5019 and event["severity"] != "Informational"
    ]
    assert alerts == []  # the end of a container is none


@pytest.mark.parametrize("running", ["docker", "podman"], indirect=True)
def test_container_in_the_network_of_a_fenced_one_is_enclosed_too(
    running: Engine, served: Running
) -> None:
    first = Container("real-5", ("/bin/sleep", "600"), _POLICY, is_background=True)
    assert run(running, first).returncode == 0
    try:
        assert len(served.sandboxes()) == 1
        done = run(running, Container("real-6", _ATTEMPT, network="container:real-5"))
        assert "Connection refused" in done.stdout, done.stderr
        assert len(served.sandboxes()) == 1
    finally:
        running.remove("real-5")
    assert served.sandboxes() == []


@pytest.fixture(scope="module")
def with_plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    """Run containerd with runc, and with the CNI plugin."""
    folder = tmp_path_factory.mktemp("engine")
    control = folder / "service.sock"
    plugin = {"type": "ocsf-nft-cni", "control": str(control), "timeout": SECONDS}
    plugin["policy"] = "agents"
    with containerd.running(folder / "site", control, plugin=plugin) as engine:
        yield engine


def test_cni_plugin_fences_a_container(with_plugin: Containerd) -> None:
    with service.started(with_plugin.site.folder.parent) as served:
        done = run(with_plugin, Container("real-7", _ATTEMPT))
        assert "Connection refused" in done.stdout, done.stderr
        served.wait_for(
            lambda event: _is_attempt(event) and event["dst_endpoint"]["ip"] == "203.0.113.7", 1
        )
        assert served.sandboxes() == []
