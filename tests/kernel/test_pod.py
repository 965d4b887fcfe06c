"""The pod of the example, run on the real kernel from the rendered manifests."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import socket
import subprocess
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from ocsf_nft.lab import INTERNET4, INTERNET6, SANDBOX4
from tests.deploy.manifests import EXAMPLE, Object, Pod, example_pod, rendered
from tests.kernel import command, conftest, written
from tests.kernel.pod import RunningPod, World, run_pod

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

T = TypeVar("T")

_ACTIVITY = 4001
_STATE_CHANGE = 5019
_WAIT_SECONDS = 60
#: Attempts each way out and prints the results: "out", or the name of the error.
_ATTEMPTS = """
import errno, json, socket, sys
results = {}
for where in sys.argv[1:]:
    kind, address, port = where.split(",")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sort = socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM
    with socket.socket(family, sort) as sock:
        sock.settimeout(60)
        try:
            sock.connect((address, int(port)))
            sock.send(b"bypass")
            results[where] = "out"
        except OSError as error:
            results[where] = errno.errorcode.get(error.errno, "timeout")
print(json.dumps(results))
"""
_WAYS = [
    (kind, address, port)
    for kind in ("tcp", "udp")
    for address in (INTERNET4, INTERNET6)
    for port in (53, 443)
]
_REFUSALS = {"tcp": "ECONNREFUSED", "udp": "EPERM"}


@pytest.fixture(scope="module")
def objects() -> list[Object]:
    return rendered(EXAMPLE)


#: Root in the pod is root of the node or, with the component ``userns``, has no user outside.
_WITH_BOTH = pytest.mark.parametrize(
    "spec", [True, False], indirect=True, ids=["users of the node", "users of its own"]
)


@pytest.fixture
def spec(request: pytest.FixtureRequest) -> Pod:
    """Return the example's pod; it has its own users unless a test selects otherwise."""
    spec = copy.deepcopy(example_pod().spec)
    return Pod(spec | {"hostUsers": getattr(request, "param", False)})


@pytest.fixture
def world(lab: Lab) -> Iterator[World]:
    with World(lab) as beyond:
        yield beyond


@pytest.fixture
def pod(spec: Pod, objects: list[Object], lab: Lab, tmp_path: Path) -> Iterator[RunningPod]:
    with run_pod(spec, objects, lab, tmp_path) as made:
        yield made


@_WITH_BOTH
def test_example_refuses_and_reports_the_direct_attempt_of_the_agent(
    pod: RunningPod, world: World, tmp_path: Path, judge: Callable[[Any], list[str]]
) -> None:
    output = tmp_path / "events.jsonl"
    assert _probe(pod, "fence").code == 2
    installed = _start_init_container(pod)
    assert [event["class_uid"] for event in installed.events] == [_STATE_CHANGE]
    with _watched(pod, output):
        assert _probe(pod, "fence").code == 0
        assert not _answers(pod, "proxy")
        with _container(pod, "proxy"):
            _until(lambda: _answers(pod, "proxy"))
            world.reached()
            with _container(pod, "agent"):
                # The attempt through the proxy succeeds; the direct attempt after it fails.
                assert world.reached(60) == [("tcp4", 443)]
                (event,) = _until(lambda: _activities_of_processes(output))
    assert event["dst_endpoint"]["ip"] == "192.0.2.7"
    assert event["actor"]["user"]["uid"] == "10001"
    # The container may load no BPF programs, and the socket of a refused connection has no port.
    assert [each["data"]["method"] for each in event["enrichments"]] == ["user"]
    assert event["status_code"] == "tcp-reset"
    assert event["count"] == 1
    assert "HTTPS_PROXY=http://127.0.0.1:3128" in event["status_detail"]
    assert not world.reached()
    for each in (*installed.events, *_events(output)):
        assert not judge(each)


@_WITH_BOTH
def test_only_the_proxys_user_gets_out_and_each_attempt_is_reported(
    pod: RunningPod, world: World, tmp_path: Path
) -> None:
    output = tmp_path / "events.jsonl"
    _start_init_container(pod)
    with _watched(pod, output) as watching:
        assert set(_attempt_all(pod, "proxy").values()) == {"out"}
        assert len(world.reached(60, len(_WAYS))) == len(_WAYS)
        for name in ("agent", "fence"):
            for (kind, _, _), outcome in _attempt_all(pod, name).items():
                assert outcome == _REFUSALS[kind]
        assert watching.stop(signal.SIGTERM)[0] == 0
    assert not world.reached()
    users = {"agent": "10001", "fence": "0"}
    assert _counts(output) == Counter(
        {(user, kind, address, port): 1 for user in users.values() for kind, address, port in _WAYS}
    )
    assert _status(pod).code == 0


def test_fence_outlives_its_run_and_each_refusal_is_reported(
    pod: RunningPod, world: World, tmp_path: Path
) -> None:
    output = tmp_path / "events.jsonl"
    _start_init_container(pod)
    ruleset = _ruleset(pod)
    for number, ended in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 0)):
        with _watched(pod, output) as watching:
            assert _ruleset(pod) == ruleset
            _attempt_all(pod, "agent")
            assert watching.stop(number)[0] == ended
        assert _ruleset(pod) == ruleset
        assert "out" not in _attempt_all(pod, "agent").values()
    with _watched(pod, output) as watching:
        assert watching.stop(signal.SIGTERM)[0] == 0
    assert not world.reached()
    # Two attempts during runs, two between. A killed run may repeat an event, with the same uid.
    assert _counts(output) == Counter({("10001", *way): 4 for way in _WAYS})
    assert _status(pod).code == 0


def test_connection_from_outside_is_refused_and_reported(
    pod: RunningPod, lab: Lab, tmp_path: Path
) -> None:
    output = tmp_path / "events.jsonl"
    _start_init_container(pod)
    listening = pod.namespace.call(lambda: socket.create_server(("", 8080)))

    def knock() -> None:
        with socket.socket() as sock:
            sock.settimeout(0.5)
            sock.connect((SANDBOX4, 8080))

    with listening, _watched(pod, output) as watching:
        with pytest.raises(TimeoutError):
            lab.gateway_namespace.call(knock)
        assert watching.stop(signal.SIGTERM)[0] == 0
    # The kernel itself may have sent router solicitations meanwhile, which are refused.
    knocks = [event for event in _activities(output) if event["dst_endpoint"].get("port") == 8080]
    assert {event["firewall_rule"]["name"] for event in knocks} == {"ingress"}


def test_recreated_network_namespace_is_fenced_before_other_containers_start(
    spec: Pod, objects: list[Object], lab: Lab, world: World, tmp_path: Path
) -> None:
    """A runtime may recreate a pod's namespace. The pod's emptyDir remains, with our record."""
    with run_pod(spec, objects, lab, tmp_path) as pod:
        _start_init_container(pod)
    with run_pod(spec, objects, lab, tmp_path) as pod:
        assert _ruleset(pod) == ""
        _start_init_container(pod)
        with _watched(pod, tmp_path / "events.jsonl"):
            assert "out" not in _attempt_all(pod, "agent").values()
    assert not world.reached()


@_WITH_BOTH
def test_pod_without_the_capability_does_not_start(pod: RunningPod) -> None:
    container = pod.spec["fence-install"]
    under = pod.inside(container, without=frozenset({"NET_ADMIN"}))
    failed = command.run(*container.arguments, under=under)
    assert failed.code == 3
    assert "CAP_NET_ADMIN" in failed.sentence
    assert _ruleset(pod) == ""


def test_flushed_fence_is_restored_and_reported(
    pod: RunningPod, world: World, tmp_path: Path
) -> None:
    output = tmp_path / "events.jsonl"
    _start_init_container(pod)
    ruleset = _ruleset(pod)
    with _watched(pod, output) as watching:
        fence = pod.inside(pod.spec["fence"])
        subprocess.run([*fence, "nft", "flush", "ruleset"], check=True)
        _until(lambda: _ruleset(pod) == ruleset)
        assert "out" not in _attempt_all(pod, "agent").values()
        assert watching.stop(signal.SIGTERM)[0] == 0
    assert not world.reached()
    (restored,) = (event for event in _events(output) if event["class_uid"] == _STATE_CHANGE)
    assert restored["severity"] == "High"
    assert "restored" in restored["message"]
    assert _ruleset(pod) == ruleset


def test_second_installation_changes_nothing_and_pod_with_altered_fence_is_not_ready(
    pod: RunningPod,
) -> None:
    """A kubelet may run a pod's init containers again."""
    _start_init_container(pod)
    ruleset = _ruleset(pod)
    _start_init_container(pod)
    assert _ruleset(pod) == ruleset
    assert _probe(pod, "fence", "readinessProbe").code == 0
    fence = pod.inside(pod.spec["fence"])
    subprocess.run([*fence, "nft", "delete", "table", "netdev", "ocsf_nft"], check=True)
    assert _probe(pod, "fence", "readinessProbe").code == 1
    subprocess.run([*fence, "nft", "flush", "ruleset"], check=True)
    assert _probe(pod, "fence", "readinessProbe").code == 2


def test_workload_can_neither_alter_the_fence_nor_become_a_permitted_user(
    pod: RunningPod, world: World
) -> None:
    _start_init_container(pod)
    ruleset = _ruleset(pod)
    agent = pod.inside(pod.spec["agent"])
    for attempt in (
        ["nft", "flush", "ruleset"],
        ["setpriv", "--reuid=63128", "true"],
        ["unshare", "--net", "true"],
        ["ip", "link", "set", "sb0", "down"],
    ):
        assert subprocess.run([*agent, *attempt], capture_output=True, check=False).returncode != 0
    # In its own user namespace it may become any user, but for the fence it keeps its uid.
    nested = [*agent, "unshare", "--user", "--map-user=63128", "--"]
    assert "out" not in _attempt_all_under(nested).values()
    assert not world.reached()
    assert _ruleset(pod) == ruleset


def _start_init_container(pod: RunningPod) -> command.Outcome:
    container = pod.spec["fence-install"]
    outcome = command.run(*container.arguments, under=pod.inside(container))
    assert outcome.code == 0, outcome.stderr
    return outcome


@contextlib.contextmanager
def _watched(pod: RunningPod, output: Path) -> Iterator[command.Running]:
    container = pod.spec["fence"]
    what, *arguments = container.arguments
    assert what == "run"
    with (
        output.open("ab") as stdout,
        command.running(*arguments, under=pod.inside(container), stdout=stdout) as running,
    ):
        yield running


def _probe(pod: RunningPod, name: str, kind: str = "startupProbe") -> command.Outcome:
    program, *arguments = pod.spec[name].probe(kind)
    assert program == "ocsf-nft"
    return command.run(*arguments, under=pod.inside(pod.spec[name]))


def _ruleset(pod: RunningPod) -> str:
    """Return all rules of the pod without their counts."""
    return conftest.nft(pod.namespace, "-s", "-t", "list", "ruleset")


def _status(pod: RunningPod) -> command.Outcome:
    return command.run("status", under=pod.inside(pod.spec["fence"]))


def _answers(pod: RunningPod, name: str) -> bool:
    container = pod.spec[name]
    probe = [*pod.inside(container), *container.probe("startupProbe")]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def _container(pod: RunningPod, name: str) -> Iterator[None]:
    """Run a container until the end. The proxy's program is in its image's Dockerfile."""
    container = pod.spec[name]
    entry = _entrypoint() if name == "proxy" else []
    environment = {"PATH": os.environ["PATH"], **container.environment}
    with subprocess.Popen(
        [*pod.inside(container), *entry, *container.arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def _entrypoint() -> list[str]:
    lines = (EXAMPLE / "proxy/Dockerfile").read_text(encoding="utf-8").splitlines()
    (line,) = (each for each in lines if each.startswith("ENTRYPOINT"))
    found: list[str] = json.loads(line.removeprefix("ENTRYPOINT"))
    return found


def _attempt_all(pod: RunningPod, name: str) -> dict[tuple[str, str, int], str]:
    return _attempt_all_under(pod.inside(pod.spec[name]))


def _attempt_all_under(under: list[str]) -> dict[tuple[str, str, int], str]:
    ways = {f"{kind},{address},{port}": (kind, address, port) for kind, address, port in _WAYS}
    done = subprocess.run(
        [*under, "/usr/bin/python3", "-I", "-c", _ATTEMPTS, *ways],
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    return {ways[where]: outcome for where, outcome in json.loads(done.stdout).items()}


def _events(output: Path) -> list[dict[str, Any]]:
    """Return each event once. A killed run may report an event twice, with the same uid."""
    return list({event["metadata"]["uid"]: event for event in written.so_far(output)}.values())


def _activities(output: Path) -> list[dict[str, Any]]:
    return [event for event in _events(output) if event["class_uid"] == _ACTIVITY]


def _activities_of_processes(output: Path) -> list[dict[str, Any]]:
    """Return activities of processes, without the kernel's solicitations and group reports."""
    return [event for event in _activities(output) if "user" in event.get("actor", {})]


def _counts(output: Path) -> Counter[tuple[str, str, str, int]]:
    """Return the counts of processes' refused packets by user, protocol, destination and port."""
    counts: Counter[tuple[str, str, str, int]] = Counter()
    for event in _activities_of_processes(output):
        to = event["dst_endpoint"]
        protocol = event["connection_info"]["protocol_name"]
        user = event["actor"]["user"]["uid"]
        counts[user, protocol, to["ip"], to["port"]] += event["count"]
    return counts


def _until(found: Callable[[], T]) -> T:
    end = time.monotonic() + _WAIT_SECONDS
    while not (value := found()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return value
