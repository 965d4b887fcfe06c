"""Containers that share a network namespace, with the service's own engine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.config import SandboxConfig
from ocsf_nft.config.attach import AttachConfig
from ocsf_nft.control.container_facts import ContainerFacts
from ocsf_nft.control.containers import Attached, Containers
from ocsf_nft.errors import ConflictError, FenceError
from ocsf_nft.netns import named
from tests.kernel import namespaces
from tests.kernel.conftest import nft
from tests.kernel.namespaces import connect
from tests.kernel.serving import serving, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.serving import Served

pytestmark = pytest.mark.kernel

_FIRST, _SECOND, _THIRD = "3f" * 32, "5c" * 32, "7a" * 32
_SANDBOX = "web-3f3f3f3f3f3f"
_TABLE = AttachConfig.model_validate(
    {"name": "all", "match": {"container": ["*"]}, "proxy": [namespaces.PROXY]}
)


@pytest.fixture
def names() -> Iterator[tuple[str, ...]]:
    """Yield the names of two namespaces that exist."""
    with namespaces.names(2) as found:
        for name in found:
            namespaces.make(name)
        yield found


@contextlib.contextmanager
def _process(name: str) -> Iterator[int]:
    """Run a process in a network namespace; it is no child of this process, as the service is."""
    inside = f"ip netns exec {name} sh -c 'echo $$; exec sleep 600' & wait"
    with subprocess.Popen(("sh", "-c", inside), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        try:
            yield pid
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _end(pid: int) -> None:
    """End a process, and wait for that without a pause for other tasks."""
    os.kill(pid, signal.SIGKILL)
    while Path(f"/proc/{pid}/ns/net").exists():
        pass


def _containers(served: Served) -> Containers:
    return Containers(served.service, lambda: [_TABLE])


def _facts(key: str, pid: int, network: str = "own") -> ContainerFacts:
    return ContainerFacts.model_validate({"id": key, "name": "web", "pid": pid, "network": network})


async def _is_refused(name: str) -> bool:
    return await asyncio.to_thread(connect, name, 443) == {443: "refused"}


async def test_container_stays_fenced_after_the_end_of_the_one_with_its_network(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    async with serving(tmp_path) as served:
        containers = _containers(served)
        with _process(names[0]) as joined:
            with _process(names[0]) as first:
                await containers.put(_FIRST, _facts(_FIRST, first))
                facts = _facts(_SECOND, joined, "shared")
                assert await containers.put(_SECOND, facts) == Attached(_SANDBOX)
            with pytest.raises(ConflictError, match="other containers use the network"):
                await containers.release(_FIRST)
            assert await _is_refused(names[0])
            # A third one joins the network by way of the second one.
            with _process(names[0]) as third:
                facts = _facts(_THIRD, third, "shared")
                assert await containers.put(_THIRD, facts) == Attached(_SANDBOX)
        await until(lambda: served.service.views() == ())
    assert sum(served.attempts(_SANDBOX).values()) == 1


async def test_container_stays_fenced_after_the_one_with_its_network_has_started_again(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    async with serving(tmp_path) as served:
        containers = _containers(served)
        with _process(names[0]), _process(names[1]) as again:
            with _process(names[0]) as first:
                await containers.put(_FIRST, _facts(_FIRST, first))
            attached = await containers.put(_FIRST, _facts(_FIRST, again))
            assert (attached.sandbox, attached.is_new) == (_SANDBOX, True)
            assert await _is_refused(names[0])
            assert await _is_refused(names[1])
            _end(again)
            await containers.release(_FIRST)
        assert served.service.views() == ()
    assert sum(served.attempts(_SANDBOX).values()) == 1  # not those of the former network


async def test_container_does_not_start_if_its_fence_is_not_active_any_more(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    table = _TABLE.model_copy(update={"self_heal": False})
    async with serving(tmp_path) as served:
        containers = Containers(served.service, lambda: [table])
        with _process(names[0]) as first:
            await containers.put(_FIRST, _facts(_FIRST, first))
            nft(named(names[0]), "flush", "ruleset")
            await until(lambda: served.service.view(_SANDBOX).state == "absent")
            with pytest.raises(FenceError, match="is not active"):
                await containers.put(_FIRST, _facts(_FIRST, first))


async def test_sandbox_is_changed_right_after_the_exit_of_its_process(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    async with serving(tmp_path) as served:
        with _process(names[0]) as second, _process(names[0]) as first:
            keys = {"name": "web", "proxy": [namespaces.PROXY], "install": True}
            await served.service.put(SandboxConfig.model_validate(keys | {"pid": first}))
            _end(first)  # the service notices nothing yet
            async with asyncio.timeout(30):
                await served.service.put(SandboxConfig.model_validate(keys | {"pid": second}))
            assert served.service.view("web").config.pid == second
