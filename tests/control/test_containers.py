"""Containers as sandboxes, in real network namespaces, with a stub of the service's sandboxes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import threading
from typing import TYPE_CHECKING, Any, cast

import pytest

from ocsf_nft import lab as laboratory
from ocsf_nft.config.attach import AttachConfig
from ocsf_nft.config.sandbox import SandboxConfig
from ocsf_nft.control import containers as module
from ocsf_nft.control.container_facts import ContainerFacts
from ocsf_nft.control.containers import Attached, Containers
from ocsf_nft.errors import AbsentError, ConflictError, ContainerRefusedError
from ocsf_nft.service.sandbox_view import PutResult, SandboxView, no_condition

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.lab import Lab
    from ocsf_nft.process import Process
    from ocsf_nft.service.run import Service
    from ocsf_nft.service.sandbox_view import Condition
    from ocsf_nft.service.status import Status

pytestmark = pytest.mark.kernel

_ID = "3f" * 32
_OTHER = "5c" * 32
_FENCED = "web-3f3f3f3f3f3f"
_TABLES = [
    AttachConfig.model_validate(
        {"name": "every", "match": {"container": ["web"]}, "proxy": ["10.0.0.1:3128"]}
    ),
    AttachConfig.model_validate(
        {"name": "rest", "match": {"container": ["allowed"]}, "action": "allow"}
    ),
]


class _Sandboxes:
    """Sandboxes that record the calls."""

    def __init__(self) -> None:
        self.found: dict[str, SandboxView] = {}
        self.calls: list[tuple[str, str]] = []
        self.namespace_ids: list[str] = []

    async def put(
        self,
        sandbox: SandboxConfig,
        caller: Process | None,
        require: Condition,
        *,
        namespace_id: str,
    ) -> PutResult:
        assert (caller, require) == (None, no_condition)
        self.namespace_ids.append(namespace_id)
        is_new = sandbox.name not in self.found
        self.calls.append(("put", sandbox.name))
        self.add(sandbox)
        return PutResult(is_new, ())

    async def release(
        self, name: str, caller: Process | None, require: Condition, *, keeps_fence: bool = False
    ) -> Status:
        assert (caller, require) == (None, no_condition)
        self.calls.append(("abandon" if keeps_fence else "release", name))
        del self.found[name]
        return cast("Status", name)

    def views(self) -> tuple[SandboxView, ...]:
        return tuple(self.found.values())

    def view(self, name: str) -> SandboxView:
        return self.found[name]

    async def status(self, name: str) -> Status:
        return cast("Status", name)

    def add(self, sandbox: SandboxConfig, **given: Any) -> None:
        state = {"origin": "api", "state": "active", "mode": "enforcing"} | given
        self.found[sandbox.name] = SandboxView(
            name=sandbox.name, config=sandbox, fault=None, since_ns=0, **state
        )


@pytest.fixture
def lab() -> Iterator[Lab]:
    with laboratory.throwaway() as made:
        yield made


@pytest.fixture
def sandboxes() -> _Sandboxes:
    return _Sandboxes()


@pytest.fixture
def containers(sandboxes: _Sandboxes) -> Containers:
    return Containers(cast("Service", sandboxes), lambda: _TABLES)


def _facts(netns: str, **given: Any) -> ContainerFacts:
    path = {} if "pid" in given else {"netns": f"/run/netns/{netns}"}
    return ContainerFacts.model_validate({"id": _ID, "name": "web"} | path | given)


def _sandbox(netns: str, **given: Any) -> SandboxConfig:
    return SandboxConfig.model_validate({"name": "first", "netns": f"/run/netns/{netns}"} | given)


async def test_container_becomes_a_sandbox_and_is_released(
    lab: Lab, sandboxes: _Sandboxes, containers: Containers
) -> None:
    attached = await containers.put(_ID, _facts(lab.sandbox))
    assert attached == Attached(_FENCED, "every", is_new=True)
    assert await containers.release(_ID) == cast("Status", _FENCED)
    assert sandboxes.calls == [("put", _FENCED), ("release", _FENCED)]
    with pytest.raises(AbsentError):
        await containers.release(_ID)


@pytest.mark.parametrize(
    ("key", "given"),
    [(_ID, {"name": "\u00e9" * 300 + "web"}), ("w" * 300, {"name": None})],
    ids=["name", "id"],
)
async def test_container_with_a_long_name_is_found_again(
    lab: Lab, sandboxes: _Sandboxes, key: str, given: dict[str, Any]
) -> None:
    table = {"name": "all", "match": {"container": ["*"]}, "proxy": ["10.0.0.1:3128"]}
    tables = [AttachConfig.model_validate(table)]
    containers = Containers(cast("Service", sandboxes), lambda: tables)
    facts = _facts(lab.sandbox, id=key, **given)
    assert (await containers.put(key, facts)).is_new
    assert not (await containers.put(key, facts)).is_new
    await containers.release(key)
    assert not sandboxes.found


async def test_second_put_changes_nothing_although_processes_run(
    lab: Lab, sandboxes: _Sandboxes, containers: Containers
) -> None:
    await containers.put(_ID, _facts(lab.sandbox))
    attached = await containers.put(_ID, _facts(lab.sandbox, network="shared"))
    assert attached == Attached(_FENCED, "every", is_new=False)
    assert sandboxes.calls == [("put", _FENCED)] * 2


@pytest.mark.parametrize("is_ours", [True, False])
async def test_container_is_released_if_only_a_child_of_the_service_is_in_its_network(
    lab: Lab, containers: Containers, is_ours: bool
) -> None:
    await containers.put(_ID, _facts(lab.sandbox))
    with _program(lab.sandbox, is_ours=is_ours):
        if is_ours:  # such as nft
            await containers.release(_ID)
        else:
            with pytest.raises(ConflictError, match="other containers use the network"):
                await containers.release(_ID)


@contextlib.contextmanager
def _program(netns: str, *, is_ours: bool) -> Iterator[None]:
    """Run a program in a network namespace, as a child of this process or of another one."""
    program = ["ip", "netns", "exec", netns, "sh", "-c", "echo; exec cat"]
    command = program if is_ours else ["sh", "-c", '"$@"; true', "sh", *program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.stdin.close()


async def test_container_that_was_started_again_gets_a_new_sandbox(
    lab: Lab, sandboxes: _Sandboxes, containers: Containers
) -> None:
    await containers.put(_ID, _facts(lab.sandbox))
    attached = await containers.put(_ID, _facts(lab.gateway))
    assert attached.is_new
    assert sandboxes.calls == [("put", _FENCED), ("abandon", _FENCED), ("put", _FENCED)]


async def test_container_with_two_names_has_one_sandbox(
    lab: Lab, sandboxes: _Sandboxes, containers: Containers
) -> None:
    await containers.put(_ID, _facts(lab.sandbox))
    assert await containers.put(_ID, _facts(lab.sandbox, name=None)) == Attached(_FENCED)
    assert sandboxes.calls == [("put", _FENCED)]
    await containers.release(_ID)
    assert not sandboxes.found


@pytest.mark.parametrize(
    ("state", "is_covered"),
    [("active", True), ("degraded", True), ("altered", False), ("failed", False)],
)
async def test_container_joins_a_namespace_with_an_active_fence_only(
    lab: Lab, sandboxes: _Sandboxes, containers: Containers, state: str, is_covered: bool
) -> None:
    sandboxes.add(_sandbox(lab.sandbox), origin="file", state=state)
    facts = _facts(lab.sandbox, network="shared")
    if is_covered:
        assert await containers.put(_OTHER, facts) == Attached("first")
    else:
        with pytest.raises(ContainerRefusedError):
            await containers.put(_OTHER, facts)
    assert sandboxes.calls == []


async def test_fence_of_a_virtual_machine_encloses_no_container(
    lab: Lab, sandboxes: _Sandboxes, containers: Containers
) -> None:
    keys = {"profile": "tap", "device": "tap0", "subnet": ["10.0.0.1/24"], "gateway_port": 3128}
    sandboxes.add(_sandbox(lab.sandbox, **keys), origin="file")
    with pytest.raises(ContainerRefusedError):
        await containers.put(_OTHER, _facts(lab.sandbox, network="shared"))


async def test_container_without_a_fence_is_allowed(
    lab: Lab, sandboxes: _Sandboxes, containers: Containers
) -> None:
    assert await containers.put(_ID, _facts(lab.sandbox, name="allowed")) == Attached(None)
    assert sandboxes.calls == []


async def test_namespace_of_the_service_is_never_fenced(
    sandboxes: _Sandboxes, containers: Containers
) -> None:
    with pytest.raises(ContainerRefusedError, match="of the host"):
        await containers.put(_ID, _facts("", pid=os.getpid(), network="own"))
    assert sandboxes.calls == []


async def test_missing_namespace_is_an_error(containers: Containers) -> None:
    with pytest.raises(AbsentError):
        await containers.put(_ID, _facts("removed"))


async def test_name_of_a_sandbox_in_the_file_is_a_conflict(
    lab: Lab, sandboxes: _Sandboxes, containers: Containers
) -> None:
    names = {"uid": _ID, "name": "web"}
    sandboxes.add(_sandbox(lab.sandbox, name=_FENCED, container=names), origin="file")
    with pytest.raises(ConflictError):
        await containers.put(_ID, _facts(lab.sandbox))
    with pytest.raises(ConflictError):
        await containers.release(_ID)
    assert sandboxes.calls == []


async def test_release_does_not_end_the_sandbox_of_a_later_start(
    lab: Lab, sandboxes: _Sandboxes, containers: Containers, monkeypatch: pytest.MonkeyPatch
) -> None:
    await containers.put(_ID, _facts(lab.sandbox))
    has_begun, may_end = threading.Event(), threading.Event()

    def has_processes(_: str) -> bool:
        has_begun.set()
        may_end.wait(10)
        return False

    monkeypatch.setattr(module, "_has_processes", has_processes)
    release = asyncio.create_task(containers.release(_ID))
    await asyncio.to_thread(has_begun.wait, 10)
    put = asyncio.create_task(containers.put(_ID, _facts(lab.gateway)))
    await asyncio.wait([put], timeout=0.1)
    may_end.set()
    await asyncio.gather(release, put)
    assert list(sandboxes.found) == [_FENCED]
    assert sandboxes.calls == [("put", _FENCED), ("release", _FENCED), ("put", _FENCED)]


async def test_only_the_namespace_that_the_tables_were_read_for_is_fenced(
    lab: Lab, sandboxes: _Sandboxes, containers: Containers
) -> None:
    """Its process may exit meanwhile, and one of the host may get its id."""
    await containers.put(_ID, _facts(lab.sandbox))
    assert sandboxes.namespace_ids == [lab.sandbox_namespace.identity()]
