"""The CNI plugin as a program, with a stub of the service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft import lab as laboratory
from tests.engines import stub
from tests.engines.engine import PROGRAM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ocsf_nft.lab import Lab
    from tests.engines.stub import Stub

pytestmark = pytest.mark.kernel

_PLUGIN = PROGRAM.with_name("ocsf-nft-cni")
_ID = "5c" * 32
_RESULT = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "eth0", "sandbox": "/run/netns/x", "mac": "02:00:00:00:00:02"}],
    "ips": [{"address": "10.1.2.3/24", "interface": 0}],
    "dns": {"unknown-key": [1.5, None]},
}
_ARGUMENTS = (
    "IgnoreUnknown=1;K8S_POD_NAMESPACE=team;K8S_POD_NAME=agent-1;K8S_POD_INFRA_CONTAINER_ID=x;"
    "K8S_POD_UID=1-2"
)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Stub]:
    with stub.serving(tmp_path / "service.sock") as serving:
        yield serving


@pytest.fixture
def lab() -> Iterator[Lab]:
    with laboratory.throwaway() as made:
        yield made


def _run(
    command: str, config: dict[str, Any] | bytes, **environment: str
) -> subprocess.CompletedProcess[str]:
    content = config if isinstance(config, bytes) else json.dumps(config).encode()
    done = subprocess.run(
        [_PLUGIN],
        input=content,
        env={**os.environ, "CNI_COMMAND": command, **environment},
        capture_output=True,
        check=False,
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


def _config(service: Path | Stub, **given: Any) -> dict[str, Any]:
    control = service.socket if isinstance(service, stub.Stub) else service
    return {
        "cniVersion": "1.0.0",
        "name": "net",
        "type": "ocsf-nft-cni",
        "control": str(control),
        "prevResult": _RESULT,
    } | given


def _container(lab: Lab, **given: str) -> dict[str, str]:
    return {
        "CNI_CONTAINERID": _ID,
        "CNI_NETNS": f"/run/netns/{lab.sandbox}",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/opt/cni/bin",
    } | given


def _failure(done: subprocess.CompletedProcess[str]) -> tuple[int, str]:
    assert done.returncode == 1
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert set(found) == {"cniVersion", "code", "msg"}
    assert found["msg"].startswith("ocsf-nft: ")
    return found["code"], found["msg"]


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_add_fences_the_namespace_and_returns_the_result_before_it(
    lab: Lab, service: Stub, version: str
) -> None:
    result = _RESULT | {"cniVersion": version}
    config = _config(service, cniVersion=version, prevResult=result)
    done = _run("ADD", config, **_container(lab, CNI_ARGS=_ARGUMENTS))
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == result
    (request,) = service.requests
    assert (request.method, request.path) == ("PUT", f"/v1/containers/{_ID}")
    assert request.body == {
        "id": _ID,
        "netns": f"/run/netns/{lab.sandbox}",
        "network": "own",
        "runtime": "cni",
        "name": "agent-1",
        "pod": {"name": "agent-1", "namespace": "team", "uid": "1-2"},
    }


def test_add_sends_the_policy_of_the_configuration(lab: Lab, service: Stub) -> None:
    assert _run("ADD", _config(service, policy="strict"), **_container(lab)).returncode == 0
    sandbox = {"proxy": ["10.0.0.1:3128"]}
    assert _run("ADD", _config(service, sandbox=sandbox), **_container(lab)).returncode == 0
    first, second = service.requests
    assert first.body["policy"] == "strict"
    assert second.body["sandbox"] == sandbox


def test_namespace_with_a_process_is_shared_but_for_the_process_of_its_path(
    lab: Lab, service: Stub
) -> None:
    command = ["nsenter", f"--net=/run/netns/{lab.sandbox}", "--", "cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"x\n")
        process.stdin.flush()
        process.stdout.readline()  # now it is inside
        own = {"CNI_NETNS": f"/proc/{process.pid}/ns/net"}
        for netns in ({}, own):
            assert _run("ADD", _config(service), **_container(lab, **netns)).returncode == 0
        assert _run("CHECK", _config(service), **_container(lab)).returncode == 0
        assert _run("DEL", _config(service), **_container(lab)).returncode == 0
        process.stdin.close()
    assert [each.method for each in service.requests] == ["PUT", "PUT", "PUT"]
    assert [each.body["network"] for each in service.requests] == ["shared", "own", "own"]


#: Program that leaves only its first thread in a namespace, as Podman and containerd may do.
_ENGINE = """
import ctypes, os, sys, threading
threading.Thread(target=sys.stdin.read, daemon=True).start()
namespace = os.open(sys.argv[1], os.O_RDONLY)
assert ctypes.CDLL(None).setns(namespace, 0) == 0
print("inside", flush=True)
threading.Event().wait()
"""


def test_engine_with_one_thread_in_the_namespace_is_not_in_it(lab: Lab, service: Stub) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _ENGINE, f"/run/netns/{lab.sandbox}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"inside\n"
            assert _run("ADD", _config(service), **_container(lab)).returncode == 0
        finally:
            process.kill()
    assert service.requests[0].body["network"] == "own"


def test_namespace_of_the_host_is_reported_as_such(lab: Lab, service: Stub) -> None:
    netns = {"CNI_NETNS": "/proc/self/ns/net"}
    assert _run("ADD", _config(service), **_container(lab, **netns)).returncode == 0
    assert service.requests[0].body["network"] == "host"


def test_add_fails_with_the_sentence_of_the_service(lab: Lab, service: Stub) -> None:
    service.answer = lambda _request: (409, {"detail": "no [[attach]] table matches it"})
    done = _run("ADD", _config(service), **_container(lab, CNI_ARGS=_ARGUMENTS))
    assert _failure(done) == (
        100,
        "ocsf-nft: agent-1 does not start: no [[attach]] table matches it",
    )


def test_add_fails_if_the_service_is_down(lab: Lab, tmp_path: Path) -> None:
    code, sentence = _failure(_run("ADD", _config(tmp_path / "none"), **_container(lab)))
    assert code == 101
    assert f"{_ID} does not start: the service does not answer at {tmp_path}/none" in sentence


def test_add_fails_if_the_service_does_not_answer_in_time(lab: Lab, service: Stub) -> None:
    service.answer = service.silent
    done = _run("ADD", _config(service, timeout=0.2), **_container(lab))
    code, sentence = _failure(done)
    assert code == 101
    assert "did not answer within 0.2 s" in sentence


def test_del_releases_the_sandbox_also_without_a_namespace(lab: Lab, service: Stub) -> None:
    for netns in (f"/run/netns/{lab.sandbox}", "", "/run/netns/removed"):
        done = _run("DEL", _config(service), **_container(lab, CNI_NETNS=netns))
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [(each.method, each.container) for each in service.requests] == [("DELETE", _ID)] * 3


def test_del_succeeds_although_the_service_fails(lab: Lab, service: Stub, tmp_path: Path) -> None:
    service.answer = lambda _request: (404, {"detail": "unknown"})
    done = _run("DEL", _config(service), **_container(lab))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    service.answer = lambda _request: (503, {"detail": "the disk is full"})
    for config in (_config(service), _config(tmp_path / "none")):
        done = _run("DEL", config, **_container(lab))
        assert (done.returncode, done.stdout) == (0, "")
        assert "was not released" in done.stderr


def test_check_asks_the_service_again(lab: Lab, service: Stub) -> None:
    done = _run("CHECK", _config(service), **_container(lab))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    service.answer = lambda _request: (503, {"detail": "the fence is not active"})
    assert _failure(_run("CHECK", _config(service), **_container(lab)))[0] == 100


def test_version_lists_the_supported_versions() -> None:
    done = _run("VERSION", {"cniVersion": "1.0.0"})
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {
        "cniVersion": "1.0.0",
        "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"],
    }


def test_status_is_an_error_while_the_service_is_down(service: Stub, tmp_path: Path) -> None:
    config = _config(service, cniVersion="1.1.0")
    done = _run("STATUS", config)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [each.path for each in service.requests] == ["/v1/status"]
    assert _failure(_run("STATUS", config | {"control": str(tmp_path / "none")}))[0] == 50


def test_gc_succeeds_without_the_service(tmp_path: Path) -> None:
    config = _config(tmp_path / "none", cniVersion="1.1.0") | {"cni.dev/valid-attachments": []}
    done = _run("GC", config)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def _without(key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda config: {name: value for name, value in config.items() if name != key}


def _with(**given: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda config: config | given


@pytest.mark.parametrize(
    ("change", "environment", "code", "sentence"),
    [
        (_with(cniVersion="0.2.0"), {}, 1, "cniVersion 0.2.0: use one of 0.3.0, 0.3.1, 0.4.0"),
        (_without("cniVersion"), {}, 1, "cniVersion None"),
        (_without("prevResult"), {}, 7, "list it after the plugin"),
        (_with(timeout="5"), {}, 7, "the key timeout"),
        (_with(timeout=0), {}, 7, "the key timeout"),
        (_with(control=1), {}, 7, "the key control"),
        (_with(policy=""), {}, 7, "the key policy"),
        (_with(sandbox=[]), {}, 7, "the key sandbox"),
        (dict, {"CNI_CONTAINERID": ""}, 4, "CNI_CONTAINERID is missing"),
        (dict, {"CNI_CONTAINERID": "../x"}, 4, 'CNI_CONTAINERID is "../x", no id'),
        (dict, {"CNI_NETNS": ""}, 4, "CNI_NETNS is missing"),
        (dict, {"CNI_NETNS": "/run/netns/removed"}, 4, "/run/netns/removed can't be read"),
        (dict, {"CNI_ARGS": "x"}, 4, 'CNI_ARGS has "x"'),
        (dict, {"CNI_COMMAND": "MOVE"}, 4, "CNI_COMMAND is MOVE"),
        (dict, {"CNI_COMMAND": ""}, 4, "CNI_COMMAND is missing"),
    ],
)
def test_wrong_request_is_an_error_of_the_specification(
    lab: Lab,
    service: Stub,
    change: Callable[[dict[str, Any]], dict[str, Any]],
    environment: dict[str, str],
    code: int,
    sentence: str,
) -> None:
    given = {"CNI_COMMAND": "ADD"} | _container(lab, **environment)
    done = _run(given.pop("CNI_COMMAND"), change(_config(service)), **given)
    found = _failure(done)
    assert found[0] == code
    assert sentence in found[1]
    assert service.requests == []


def test_person_who_starts_it_gets_an_error_at_once() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "CNI_COMMAND"}
    for closed in ("", "<&-"):
        with subprocess.Popen(
            ["sh", "-c", f"exec {_PLUGIN} {closed}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment,
        ) as process:  # fmt: skip
            try:
                assert process.wait(20) == 1  # its standard input is still open
            finally:
                process.kill()
            printed, errors = process.communicate()
        assert "CNI_COMMAND is missing" in printed
        assert errors == ""


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"[" * 100_000])
def test_configuration_that_is_no_json_object_is_an_error(content: bytes) -> None:
    assert _failure(_run("ADD", content))[0] == 6
