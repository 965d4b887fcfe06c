"""The OCI runtime wrapper in real engines, with a stub of the service."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.fence import installer
from ocsf_nft.fence.spec import FenceSpec
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.fence.values import endpoint
from ocsf_nft.netns import of_process
from tests.engines import stub
from tests.engines.conftest import SECONDS
from tests.engines.engine import Container, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engines.engine import Engine
    from tests.engines.stub import Answer, Request, Stub

pytestmark = [pytest.mark.slow, pytest.mark.kernel]

_HELLO = ("/bin/sh", "-c", "echo started")
_SLEEP = ("/bin/sleep", "600")
#: Engines with containers in the background, and with networks of other containers; not ctr.
_WITH_NETWORKS = pytest.mark.parametrize("running", ["docker", "podman"], indirect=True)
_ANNOTATION = "org.ocsf-nft.policy"


@pytest.fixture
def background(running: Engine, service: Stub) -> Iterator[Container]:
    """Run a container in the background; remove it at the end."""
    container = Container("agent-0", _SLEEP, is_background=True)
    assert run(running, container).returncode == 0
    assert len(service.of("PUT")) == 1
    yield container
    running.remove(container.name)


def test_service_is_asked_before_the_first_process_of_the_container_runs(
    running: Engine, service: Stub
) -> None:
    programs = service.record_programs(lambda request: Path(f"/proc/{request.body['pid']}"))
    done = run(running, Container("agent-1", _HELLO))
    assert (done.returncode, done.stdout) == (0, "started\n"), done.stderr
    assert programs == ["runc:[2:INIT]"]  # runc's own process, before it starts the container's


def test_service_gets_the_facts_about_the_container(running: Engine, service: Stub) -> None:
    container = Container("agent-2", _HELLO, {_ANNOTATION: "strict"}, {"role": "agent"})
    assert run(running, container).returncode == 0
    (request,) = service.of("PUT")
    body = request.body
    assert body["runtime"] == running.kind
    assert body["network"] == "own"
    assert body["annotations"][_ANNOTATION] == "strict"
    expected: dict[str, dict[str, Any]] = {
        "docker": {"name": "agent-2", "image": "ocsf-nft-test", "labels": {"role": "agent"}},
        "podman": {"name": "agent-2", "image": "localhost/ocsf-nft-test:latest", "labels": {}},
        # ctr passes labels as annotations, and gives a container no name but its id.
        "containerd": {"id": "agent-2", "labels": {}},
    }
    assert expected[running.kind].items() <= body.items()
    if running.kind == "containerd":
        assert body["annotations"]["role"] == "agent"
    else:
        assert len(body["id"]) == 64
        assert body["image_id"]


def test_fence_of_the_service_encloses_the_first_process(
    running: Engine, service: Stub, tmp_path: Path
) -> None:
    spec = FenceSpec(sandbox="agent", proxies=(endpoint("192.0.2.1:3128"),))
    state = StateDirectory(tmp_path / "state")

    def answer(request: Request) -> Answer:
        if request.method == "PUT":
            installer.install(spec, of_process(request.body["pid"]), state, "nflog")
        return stub.CREATED

    command = ("/bin/sh", "-c", "nc -w 5 203.0.113.7 443 2>&1")
    outputs = []
    for service.answer in (answer, lambda _request: stub.CREATED):
        outputs.append(run(running, Container("agent-12", command)).stdout)
    fenced, unfenced = outputs
    assert "Connection refused" in fenced
    assert "Connection refused" not in unfenced  # there is no such host


def test_sandbox_is_released_after_the_container_ends(running: Engine, service: Stub) -> None:
    assert run(running, Container("agent-3", _HELLO)).returncode == 0
    first, *others = service.requests
    assert first.method == "PUT"
    assert {each.method for each in others} == {"DELETE"}
    assert {each.container for each in service.requests} == {first.container}


def test_container_does_not_start_while_the_service_is_down(running: Engine) -> None:
    done = run(running, Container("agent-4", _HELLO))
    assert done.returncode != 0
    assert "started" not in done.stdout
    name = "agent-4"
    assert (
        f"ocsf-nft: container {name} does not start: the service does not answer at "
        f"{running.site.folder.parent}/service.sock (No such file or directory): start "
        "`ocsf-nft run` with this control socket"
    ) in done.stderr


def test_container_does_not_start_if_the_service_refuses(running: Engine, service: Stub) -> None:
    sentence = "no [[attach]] table matches it: add one"
    service.answer = lambda _request: (403, {"title": "Refused", "detail": sentence})
    done = run(running, Container("agent-5", _HELLO))
    assert done.returncode != 0
    assert "started" not in done.stdout
    assert f"container agent-5 does not start: {sentence}" in done.stderr


@pytest.mark.parametrize("running", ["docker"], indirect=True)  # the time limit is the wrapper's
def test_container_does_not_start_if_the_service_does_not_answer_in_time(
    running: Engine, service: Stub
) -> None:
    service.answer = lambda request: (
        service.silent(request) if request.method == "PUT" else stub.CREATED
    )
    done = run(running, Container("agent-6", _HELLO))
    assert done.returncode != 0
    assert "started" not in done.stdout
    assert f"did not answer within {SECONDS:g} s" in done.stderr


@pytest.mark.parametrize(
    "running", ["docker", "containerd"], indirect=True
)  # podman waits for ever
def test_container_does_not_start_if_the_wrapper_is_killed(running: Engine, service: Stub) -> None:
    def answer(request: Request) -> Answer:
        if request.method == "PUT":
            os.kill(request.pid, signal.SIGKILL)
        return stub.CREATED

    service.answer = answer
    done = run(running, Container("agent-13", _HELLO))
    assert done.returncode != 0
    assert "started" not in done.stdout
    service.answer = lambda _request: stub.CREATED
    done = run(running, Container("agent-13", _HELLO))
    assert (done.returncode, done.stdout) == (0, "started\n"), done.stderr


def test_container_without_a_fence_starts_if_the_service_permits(
    running: Engine, service: Stub
) -> None:
    service.answer = lambda request: (204 if request.method == "PUT" else 404, {})
    done = run(running, Container("agent-7", _HELLO))
    assert (done.returncode, done.stdout, done.stderr) == (0, "started\n", "")


def test_container_is_deleted_although_the_service_fails_to_release_it(
    running: Engine, service: Stub
) -> None:
    service.answer = lambda request: (
        stub.CREATED if request.method == "PUT" else (503, {"detail": "the disk is full"})
    )
    for _ in range(2):  # the second one has the same name
        done = run(running, Container("agent-8", _HELLO))
        assert (done.returncode, done.stdout, done.stderr) == (0, "started\n", "")


def test_refused_container_leaves_nothing_in_the_engine(running: Engine, service: Stub) -> None:
    service.answer = lambda _request: (503, {"detail": "not now"})
    container = Container("agent-9", _HELLO)
    assert run(running, container).returncode != 0
    service.answer = lambda _request: stub.CREATED
    done = run(running, container)
    assert (done.returncode, done.stdout) == (0, "started\n"), done.stderr


def test_service_knows_that_a_container_has_the_network_of_the_host(
    running: Engine, service: Stub
) -> None:
    assert run(running, Container("agent-10", _HELLO, network="host")).returncode == 0
    assert [each.body["network"] for each in service.of("PUT")] == ["host"]


@_WITH_NETWORKS
def test_service_knows_that_a_container_has_the_network_of_another(
    running: Engine, service: Stub, background: Container
) -> None:
    joining = Container("agent-11", _HELLO, network=f"container:{background.name}")
    assert run(running, joining).returncode == 0
    first, second = (each.body for each in service.of("PUT"))
    assert (first["network"], second["network"]) == ("own", "shared")
    assert second["name"] == joining.name
    assert (second["runtime"], second["image"]) == (first["runtime"], first["image"])


@_WITH_NETWORKS
def test_programs_can_be_executed_in_a_running_container(
    running: Engine, background: Container
) -> None:
    command = (*running.client, "exec", background.name, "/bin/sh", "-c", "echo executed")
    assert running.site.call(*command) == "executed\n"
