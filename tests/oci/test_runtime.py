"""The OCI runtime wrapper with the real runc, with a stub of the service."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.engines import cgroups, stub
from tests.engines.engine import PROGRAM
from tests.oci import bundle_with_busybox

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.engines.stub import Stub

pytestmark = pytest.mark.kernel

_HELLO = ("/bin/sh", "-c", "echo started")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Stub]:
    with stub.serving(tmp_path / "service.sock") as serving:
        yield serving


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Path]:
    with cgroups.parent(f"/ocsf-nft-{secrets.token_hex(3)}") as cgroup:
        yield bundle_with_busybox.write(tmp_path / "bundle", _HELLO, cgroup)


def _run(bundle: Path, *arguments: str, timeout: float = 5.0) -> subprocess.CompletedProcess[str]:
    """Run the wrapper, with runc's state beside the bundle."""
    return subprocess.run(
        [
            PROGRAM,
            f"--ocsf-nft-control={bundle.parent}/service.sock",
            f"--ocsf-nft-timeout={timeout}",
            f"--root={bundle.parent}/state",
            *arguments,
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def _states(bundle: Path) -> list[dict[str, Any]]:
    listed = _run(bundle, "list", "--format=json").stdout
    return json.loads(listed) or []


def _create(bundle: Path, *options: str) -> int:
    """Create a container whose output is discarded; its process would keep a pipe open."""
    command = (PROGRAM, f"--ocsf-nft-control={bundle.parent}/service.sock")
    done = subprocess.run(
        (*command, f"--root={bundle.parent}/state", "create", "--bundle", bundle, *options, "web"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return done.returncode


def test_create_asks_the_service_and_start_runs_the_process(bundle: Path, service: Stub) -> None:
    assert _create(bundle) == 0
    (state,) = _states(bundle)
    (request,) = service.requests
    assert state["status"] == "created"
    assert request.method == "PUT"
    assert request.body["id"] == "web"
    assert request.body["pid"] == state["pid"]
    assert request.body["network"] == "own"
    assert _run(bundle, "start", "web").returncode == 0
    assert _run(bundle, "delete", "--force", "web").returncode == 0
    assert [each.method for each in service.requests] == ["PUT", "DELETE"]
    assert service.requests[1].path == request.path


def test_create_writes_the_pid_file_of_the_engine(bundle: Path, service: Stub) -> None:
    path = bundle.parent / "pid"
    assert _create(bundle, "--pid-file", str(path)) == 0
    assert service.requests[0].body["pid"] == int(path.read_text("ascii"))
    assert _run(bundle, "delete", "--force", "web").returncode == 0


def test_refused_container_is_deleted_and_the_reason_is_in_the_log(
    bundle: Path, service: Stub
) -> None:
    service.answer = lambda _request: (503, {"detail": "no\nfence"})
    log = bundle.parent / "log.json"
    done = _run(
        bundle, f"--log={log}", "--log-format=json", "create", "--bundle", str(bundle), "web"
    )
    sentence = 'ocsf-nft: container web does not start: "no\\nfence"'
    assert (done.returncode, done.stdout, done.stderr) == (3, "", f"{sentence}\n")
    *_, last = log.read_text("utf-8").splitlines()
    found = json.loads(last)
    assert (found["level"], found["msg"]) == ("error", sentence)
    assert _states(bundle) == []


def test_error_of_the_runtime_is_passed_on(bundle: Path, service: Stub) -> None:
    (bundle / "config.json").write_text("{", encoding="ascii")
    done = _run(bundle, "create", "--bundle", str(bundle), "web")
    assert done.returncode == 1
    assert "runc create failed" in done.stderr
    assert "ocsf-nft" not in done.stderr
    assert service.requests == []


def test_failed_delete_releases_nothing(bundle: Path, service: Stub) -> None:
    assert _create(bundle) == 0
    assert _run(bundle, "delete", "other").returncode == 1
    assert [each.method for each in service.requests] == ["PUT"]
    assert _run(bundle, "delete", "--force", "web").returncode == 0


def test_delete_logs_that_the_service_failed(bundle: Path, service: Stub) -> None:
    assert _create(bundle) == 0
    service.answer = lambda _request: (503, {"detail": "the disk is full"})
    log = bundle.parent / "log"
    done = _run(bundle, f"--log={log}", "delete", "--force", "web")
    assert (done.returncode, done.stderr) == (0, "")
    assert "level=warning" in log.read_text("utf-8")
    assert "was not released: the disk is full" in log.read_text("utf-8")


def test_run_asks_the_service_by_hooks(bundle: Path, service: Stub) -> None:
    for _ in range(2):  # the hooks are there once
        done = _run(bundle, "run", "--bundle", str(bundle), "web")
        assert (done.returncode, done.stdout) == (0, "started\n"), done.stderr
    assert [each.method for each in service.requests] == ["PUT", "DELETE"] * 2
    hooks = json.loads((bundle / "config.json").read_text("utf-8"))["hooks"]
    assert {stage: len(found) for stage, found in hooks.items()} == {
        "createRuntime": 1,
        "poststop": 1,
    }


def test_run_does_not_start_the_process_if_the_service_refuses(bundle: Path, service: Stub) -> None:
    service.answer = lambda _request: (503, {"detail": "not now"})
    done = _run(bundle, "run", "--bundle", str(bundle), "web")
    assert done.returncode != 0
    assert done.stdout == ""
    assert "container web does not start: not now" in done.stderr
    assert _states(bundle) == []


def test_restore_of_a_checkpoint_has_the_hooks_too(bundle: Path) -> None:
    done = _run(bundle, "restore", "--image-path", str(bundle), "--bundle", str(bundle), "web")
    assert done.returncode != 0  # there is no checkpoint
    hooks = json.loads((bundle / "config.json").read_text("utf-8"))["hooks"]
    assert set(hooks) == {"createRuntime", "poststop"}


def test_restore_by_another_runtime_than_runc_is_refused(bundle: Path, tmp_path: Path) -> None:
    runtime = tmp_path / "crun"
    runtime.write_text("#!/bin/sh\necho restored\n")
    runtime.chmod(0o755)
    done = _run(bundle, f"--ocsf-nft-runtime={runtime}", "restore", "--bundle", str(bundle), "web")
    assert (done.returncode, done.stdout) == (3, "")
    assert "web does not start: crun is not known to run hooks at a restore" in done.stderr


def test_container_whose_id_begins_with_a_dash_is_fenced_or_deleted(
    bundle: Path, service: Stub
) -> None:
    service.answer = lambda _request: (503, {"detail": "x"})
    assert _run(bundle, "create", "--bundle", str(bundle), "--", "-web").returncode == 3
    assert _states(bundle) == []
    service.answer = lambda _request: stub.CREATED
    assert _run(bundle, "run", "--bundle", str(bundle), "--", "-web").returncode == 0
    assert [each.container[:4] for each in service.requests] == ["-web"] * 3


def test_container_with_the_network_of_the_host_is_reported_as_such(
    bundle: Path, service: Stub
) -> None:
    for path in (None, f"/proc/{os.getpid()}/ns/net"):
        config = json.loads((bundle / "config.json").read_text("utf-8"))
        others = [each for each in config["linux"]["namespaces"] if each["type"] != "network"]
        own = [] if path is None else [{"type": "network", "path": path}]
        config["linux"]["namespaces"] = others + own
        (bundle / "config.json").write_text(json.dumps(config), encoding="utf-8")
        assert _create(bundle) == 0
        assert _run(bundle, "delete", "--force", "web").returncode == 0
    assert [each.body["network"] for each in service.of("PUT")] == ["host"] * 2


def test_containers_with_equal_ids_in_different_state_folders_differ(
    bundle: Path, service: Stub
) -> None:
    service.answer = lambda _request: (503, {"detail": "x"})
    for command in ("create", "run"):  # the second one by hooks
        for folder in ("one", "two"):
            root = f"--root={bundle.parent}/{folder}"
            assert _run(bundle, root, command, "--bundle", str(bundle), "x").returncode != 0
    first, second, *by_hooks = (each.path for each in service.of("PUT"))
    assert first != second
    assert by_hooks == [first, second]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"id": "x"}', '{"id": "x", "bundle": "/", "pid": 1e999}']
)
def test_hook_without_a_state_is_an_error(tmp_path: Path, content: str) -> None:
    done = subprocess.run(
        [PROGRAM, f"--ocsf-nft-control={tmp_path}/none", "hook", "createRuntime"],
        input=content, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert done.stderr == "ocsf-nft: the runtime gave the hook no state of a container\n"


def test_name_of_a_container_is_shown_without_control_characters(tmp_path: Path) -> None:
    config = {"annotations": {"nerdctl/name": "web\x1b[2J\nfake"}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    state = json.dumps({"id": "x", "bundle": str(tmp_path), "pid": 0})
    done = subprocess.run(
        [PROGRAM, "hook", "createRuntime"],
        input=state, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert done.stderr.startswith('ocsf-nft: container "web\\x1b[2J\\nfake" does not start: ')


def test_unknown_hook_is_an_error() -> None:
    done = subprocess.run([PROGRAM, "hook", "x"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert 'no hook "x"' in done.stderr
