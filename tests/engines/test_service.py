"""Containers of real engines, fenced by the real service."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.control_request import Service, ServiceError
from tests.engines.conftest import ENGINES
from tests.engines.engine import Container, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.engines.engine import Engine

pytestmark = [pytest.mark.slow, pytest.mark.kernel]

_SECONDS = 60.0
_POLICY = {"org.ocsf-nft.policy": "agents"}
#: A program that attempts to get out.
_ATTEMPT = ("/bin/sh", "-c", "nc -w 5 203.0.113.7 443 2>&1; echo ended")
_CONFIG = """
control = "{folder}/service.sock"
output = "{folder}/events.jsonl"
state_dir = "{folder}/state"

[[attach]]
name = "agents"
proxy = ["192.0.2.1:3128"]

[[attach]]
name = "free"
match = {{ label = {{ free = "yes" }} }}
action = "allow"
"""


@dataclass(frozen=True, slots=True)
class Running:
    """Running service, and the file of its events."""

    service: Service
    path: Path

    def events(self) -> list[dict[str, Any]]:
        """Return all events so far."""
        lines = self.path.read_text("utf-8").splitlines() if self.path.exists() else []
        return [json.loads(line) for line in lines]

    def wait_for(
        self, holds: Callable[[dict[str, Any]], bool], number: int
    ) -> list[dict[str, Any]]:
        """Return the events for which ``holds`` is true, when there are ``number`` of them."""
        end = time.monotonic() + _SECONDS
        while len(found := [each for each in self.events() if holds(each)]) < number:
            assert time.monotonic() < end, [each.get("message") for each in self.events()]
            time.sleep(0.05)
        return found

    def sandboxes(self) -> list[str]:
        """Return the names of the sandboxes."""
        return [each["name"] for each in self.service.request("GET", "/v1/sandboxes")["sandboxes"]]


@contextlib.contextmanager
def _started(folder: Path) -> Iterator[Running]:
    path = folder / "service.toml"
    path.write_text(_CONFIG.format(folder=folder), encoding="utf-8")
    with (folder / "service.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ocsf_nft", "run", "--config", path],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        service = Service(f"{folder}/service.sock", 5.0)
        end = time.monotonic() + _SECONDS
        while not _answers(service):
            assert process.poll() is None, (folder / "service.log").read_text("utf-8")
            assert time.monotonic() < end
            time.sleep(0.05)
        yield Running(service, folder / "events.jsonl")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=_SECONDS)


def _answers(service: Service) -> bool:
    try:
        service.request("GET", "/v1/status")
    except ServiceError:
        return False
    return True


@pytest.fixture(scope="module", params=ENGINES)
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    """Run each engine, with much time for the service: 20 containers start at once."""
    folder = tmp_path_factory.mktemp("engine")
    with ENGINES[request.param](folder / "site", folder / "service.sock", _SECONDS) as engine:
        yield engine


@pytest.fixture
def served(running: Engine) -> Iterator[Running]:
    with _started(running.site.folder.parent) as made:
        yield made


def _is_attempt(event: dict[str, Any]) -> bool:
    return event["class_uid"] == 4001


def test_attempt_of_the_first_process_is_refused_and_has_the_container(
    running: Engine, served: Running
) -> None:
    done = run(running, Container("real-1", _ATTEMPT, _POLICY))
    assert done.returncode == 0, done.stderr
    assert "Connection refused" in done.stdout
    assert "ended" in done.stdout
    (event,) = served.wait_for(
        lambda event: _is_attempt(event) and event["dst_endpoint"]["ip"] == "203.0.113.7", 1
    )
    names = event["src_endpoint"]["container"]
    assert names["runtime"] == running.kind
    if running.kind == "containerd":
        assert names["uid"] == "real-1"
    else:
        assert (len(names["uid"]), names["name"]) == (64, "real-1")
        assert names["image"]["name"].startswith(("ocsf-nft-test", "localhost/ocsf-nft-test"))
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
    # The end of a container is no alert.
    assert {event["severity"] for event in served.events() if event["class_uid"] == 5019} == {
        "Informational"
    }


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
