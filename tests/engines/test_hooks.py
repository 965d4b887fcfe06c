"""The OCI hooks in a real Podman, with a stub of the service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.engines import podman
from tests.engines.engine import PROGRAM, Container, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engines.podman import Podman
    from tests.engines.stub import Stub

pytestmark = [pytest.mark.slow, pytest.mark.kernel]

_HOOKS = Path(__file__).parents[2] / "deploy/containers/hooks.d"
_HELLO = ("/bin/sh", "-c", "echo started")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    """Run Podman with runc and the hooks of `deploy/`, which start the installed program."""
    folder = tmp_path_factory.mktemp("engine")
    hooks = folder / "hooks.d"
    hooks.mkdir()
    for path in _HOOKS.iterdir():
        _write_hook(hooks / path.name, json.loads(path.read_text("utf-8")), folder)
    with podman.running(folder / "site", folder / "service.sock", hooks=hooks) as engine:
        yield engine


def _write_hook(path: Path, found: dict[str, Any], folder: Path) -> None:
    name, *arguments = found["hook"]["args"]
    found["hook"]["path"] = str(PROGRAM)
    found["hook"]["args"] = [name, f"--ocsf-nft-control={folder}/service.sock", *arguments]
    path.write_text(json.dumps(found), encoding="utf-8")


def test_hook_asks_the_service_before_the_first_process_runs(
    running: Podman, service: Stub
) -> None:
    programs = service.record_programs(lambda request: Path(f"/proc/{request.body['pid']}"))
    done = run(running, Container("agent-1", _HELLO, {"role": "agent"}))
    assert (done.returncode, done.stdout) == (0, "started\n"), done.stderr
    assert programs == ["runc:[2:INIT]"]
    assert [each.method for each in service.requests] == ["PUT", "DELETE"]
    assert len({each.container for each in service.requests}) == 1
    body = service.requests[0].body
    assert (body["runtime"], body["name"], body["network"]) == ("podman", "agent-1", "own")
    assert body["annotations"]["role"] == "agent"


def test_container_does_not_start_if_the_hook_is_refused(running: Podman, service: Stub) -> None:
    service.answer = lambda _request: (503, {"detail": "the kernel has no nf_tables"})
    done = run(running, Container("agent-2", _HELLO))
    assert done.returncode != 0
    assert "started" not in done.stdout
    assert "container agent-2 does not start: the kernel has no nf_tables" in done.stderr


def test_container_does_not_start_while_the_service_is_down(running: Podman) -> None:
    done = run(running, Container("agent-3", _HELLO))
    assert done.returncode != 0
    assert "started" not in done.stdout
    assert "container agent-3 does not start: the service does not answer" in done.stderr
