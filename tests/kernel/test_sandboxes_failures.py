"""Sandboxes of a running service that fail, or end in the middle of a call: no other notices."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import structlog

from ocsf_nft import namespace_watch, netlink, rtnetlink
from ocsf_nft.errors import (
    AbsentError,
    DeliveryError,
    FenceError,
    OcsfNftError,
    SourceError,
    UnsupportedError,
)
from ocsf_nft.fence import ended_namespaces, installer, verification
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.lab import ip
from ocsf_nft.namespace_watch import NamespaceWatch, present_identity
from ocsf_nft.netns import named
from ocsf_nft.service import fences, log_groups, sandboxes, watched_sandbox
from ocsf_nft.service import sandbox as sandbox_module
from ocsf_nft.service.policy_changes import change_of_all
from ocsf_nft.sources.nflog import Nflog
from tests.delivery.sinks.disks import disk
from tests.kernel import namespaces
from tests.kernel.conftest import nft
from tests.kernel.serving import connect_to, sandbox, serving, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocsf_nft.netns import Namespace
    from ocsf_nft.service.run import Service

pytestmark = pytest.mark.kernel

_SECONDS = 20


@contextlib.contextmanager
def _idle_process(name: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process in a namespace that only waits."""
    process = named(name).call(lambda: subprocess.Popen(["cat"], stdin=subprocess.PIPE))
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


async def test_namespace_that_is_deleted_as_soon_as_it_exists_ends_no_other_sandbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with namespaces.names(2) as (name, other):
        namespaces.make(other)
        wait = NamespaceWatch.wait_until_present
        seen = []

        async def deleted_meanwhile(self: NamespaceWatch, namespace: Namespace) -> str:
            found = await wait(self, namespace)
            seen.append(found)
            if len(seen) == 1:
                namespaces.delete(name)
            return found

        monkeypatch.setattr(NamespaceWatch, "wait_until_present", deleted_meanwhile)
        async with serving(tmp_path, sandbox(name), sandbox(other)) as served:
            ip("netns", "add", name)
            await until(lambda: bool(seen))
            await until(lambda: served.service.view(name).state == "waiting")
            await asyncio.to_thread(namespaces.make, name)
            await until(lambda: served.service.view(name).state == "active")
            assert await connect_to(name, 443) == {443: "refused"}
            assert await connect_to(other, 443) == {443: "refused"}
    assert served.attempts(name) == served.attempts(other) == {443: 1}


async def test_namespace_that_is_replaced_before_its_fence_is_not_held_by_a_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with namespaces.names(1) as (name,):
        namespaces.make(name)
        activate, replaced = fences.activate, threading.Event()

        def activate_in_next(*arguments: Any, **options: Any) -> fences.Fence:
            if not replaced.is_set():  # a log source is open in the first one
                namespaces.delete(name)
                namespaces.make(name)
                replaced.set()
            return activate(*arguments, **options)

        monkeypatch.setattr(fences, "activate", activate_in_next)
        async with serving(tmp_path) as served:
            with pytest.raises(AbsentError, match="was replaced by another"):
                await served.service.put(sandbox(name))
            assert replaced.is_set()
            feeds = served.service._sandboxes._fence_parts.nflog._feeds
            assert [*feeds] == []
            await served.service.put(sandbox(name))
            assert [identity for identity, _ in feeds] == [named(name).identity()]
            assert await connect_to(name, 443) == {443: "refused"}
        assert served.attempts(name) == {443: 1}


@contextlib.contextmanager
def _moving_process(
    name: str, other: str
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], None]]]:
    """Run a process in a namespace, and yield what moves it to another one.

    It is as if the process had exited, and another one had got its id.
    """
    code = f"""
        import os
        input()
        os.setns(os.open("/run/netns/{other}", os.O_RDONLY), os.CLONE_NEWNET)
        print("moved", flush=True)
        input()
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    pipe = subprocess.PIPE
    process = named(name).call(lambda: subprocess.Popen(command, stdin=pipe, stdout=pipe))

    def move() -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"moved\n"

    try:
        yield process, move
    finally:
        process.kill()
        process.communicate()


async def test_process_that_gets_the_id_of_another_one_is_not_fenced_meanwhile(
    made: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, other, _ = made
    activate = fences.activate

    def activate_late(*arguments: Any, **options: Any) -> fences.Fence:
        move()
        return activate(*arguments, **options)

    monkeypatch.setattr(fences, "activate", activate_late)
    with _moving_process(name, other) as (process, move):
        async with serving(tmp_path) as served:
            with pytest.raises(AbsentError, match="was replaced by another"):
                await served.service.put(sandbox(name, netns=None, pid=process.pid))
            assert served.service.views() == ()
        assert nft(named(other), "list", "ruleset") == ""


async def test_process_that_gets_the_id_of_another_one_is_not_fenced_at_the_next_attempt(
    made: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, other, _ = made
    calls: list[bool] = []

    def fail(*_: object, **__: object) -> NoReturn:
        if not calls:
            move()
        calls.append(True)
        raise FenceError("not now")

    with _moving_process(name, other) as (process, move):
        async with serving(tmp_path) as served:
            await served.service.put(sandbox(name, netns=None, pid=process.pid))
        monkeypatch.setattr(fences, "activate", fail)
        async with serving(tmp_path) as served:
            await until(lambda: bool(calls))
            monkeypatch.undo()
            await until(lambda: served.service.views() == ())
        assert nft(named(other), "list", "ruleset") == ""
    assert calls == [True]


async def test_process_that_gets_the_id_of_another_one_is_not_fenced_for_a_later_guard(
    made: tuple[str, ...], tmp_path: Path
) -> None:
    name, other, _ = made
    with _moving_process(name, other) as (process, move):
        async with serving(tmp_path) as served:
            await served.service.put(sandbox(name, netns=None, pid=process.pid))
            found = served.service._sandboxes.find(name)
            change = change_of_all(found.config, found.config)
            move()
            with pytest.raises(AbsentError, match="was replaced by another"):
                await served.service._sandboxes._renew(
                    found, found.config, change, found.namespace_id
                )
            await until(lambda: served.service.views() == ())
        assert nft(named(other), "list", "ruleset") == ""


async def test_only_the_namespace_with_the_given_identity_is_fenced(
    made: tuple[str, ...], tmp_path: Path
) -> None:
    name, other, _ = made
    async with serving(tmp_path) as served:
        with pytest.raises(AbsentError, match="was replaced by another"):
            await served.service.put(sandbox(name), namespace_id=named(other).identity())
        assert served.service.views() == ()
        assert nft(named(name), "list", "ruleset") == ""
        await served.service.put(sandbox(name), namespace_id=named(name).identity())
        assert await connect_to(name, 443) == {443: "refused"}


async def test_sandbox_with_an_error_at_the_end_of_its_namespace_ends_no_other(
    made: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, other, _ = made
    remove = ended_namespaces.remove_record
    failed: list[bool] = []

    def failing(*arguments: Any, **keys: Any) -> bool:
        if not failed:
            failed.append(True)
            raise FenceError("the guard can't be removed")
        return remove(*arguments, **keys)

    monkeypatch.setattr(ended_namespaces, "remove_record", failing)
    async with serving(tmp_path, sandbox(name), sandbox(other)) as served:
        await asyncio.to_thread(namespaces.delete, name)
        await until(lambda: served.service.view(name).state == "waiting")
        assert await connect_to(other, 443) == {443: "refused"}
        await asyncio.to_thread(namespaces.make, name)
        await until(lambda: served.service.view(name).state == "active")
        assert await connect_to(name, 443) == {443: "refused"}
    assert failed
    assert served.attempts(name) == served.attempts(other) == {443: 1}


async def test_sandbox_with_a_namespace_that_cannot_be_accessed_ends_no_other(
    made: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, other, third = made
    namespaces.delete(third)
    async with serving(tmp_path, *map(sandbox, made)) as served:

        def unusable(namespace: Namespace) -> str | None:
            if namespace != named(other):
                raise UnsupportedError("too many open files")
            return present_identity(namespace)

        with monkeypatch.context() as patch:
            for module in (namespace_watch, watched_sandbox, sandbox_module):
                patch.setattr(module, "present_identity", unusable)
            namespaces.delete(name)
            namespaces.make(third)
            for each in (name, third):
                await until(lambda each=each: served.service.view(each).state == "failed")  # type: ignore[misc]
            assert await connect_to(other, 443) == {443: "refused"}
        namespaces.make(name)
        for each in (name, third):
            await until(lambda each=each: served.service.view(each).state == "active")  # type: ignore[misc]
            assert await connect_to(each, 443) == {443: "refused"}
    assert [served.attempts(each) for each in made] == [{443: 1}] * 3


async def test_put_returns_when_a_sandbox_goes_on_with_another_process(
    made: tuple[str, ...], tmp_path: Path
) -> None:
    name = made[0]
    async with asyncio.timeout(_SECONDS), serving(tmp_path) as served:
        with _idle_process(name) as other, _idle_process(name) as first:
            await served.service.put(sandbox(name, netns=None, pid=first.pid))
            await asyncio.to_thread(namespaces.delete, name)
            first.kill()
            first.wait()
            # Its file exists no more, but its namespace does, with the other process.
            changed = sandbox(name, netns=None, pid=first.pid, labels={"team": "search"})
            assert not (await served.service.put(changed)).is_new
            view = served.service.view(name)
            assert (view.state, view.config) == ("active", changed)
            assert await connect_to(f"/proc/{other.pid}/ns/net", 443) == {443: "refused"}


async def test_record_that_cannot_be_stored_ends_nothing_and_blocks_no_call(
    made: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, other, _ = made
    monkeypatch.setattr(sandboxes, "_MAX_END_SECONDS", 0.2)

    def full(*_: object) -> None:
        raise DeliveryError("the disk is full")

    async with serving(tmp_path) as served:
        await served.service.put(sandbox(name))
        await served.service.put(sandbox(other))
        with _idle_process(name) as process:
            with monkeypatch.context() as patch:
                patch.setattr(ended_namespaces, "move_record", full)
                await asyncio.to_thread(namespaces.delete, name)
                with pytest.raises(SourceError, match="has not ended yet"):
                    await served.service.put(sandbox(name, labels={"team": "search"}))
                assert await connect_to(other, 443) == {443: "refused"}
            inside = f"/proc/{process.pid}/ns/net"
            record = StateDirectory(tmp_path)
            await until(lambda: str((found := record.read(name)) and found.namespace) == inside)
            assert served.service.view(name).state == "active"
            assert await connect_to(inside, 443) == {443: "refused"}
        await until(lambda: len(served.service.views()) == 1)
    assert served.attempts(name) == served.attempts(other) == {443: 1}


async def test_put_of_a_failed_sandbox_returns_only_when_it_is_watched(
    made: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_groups, "ATTEMPTS", 0)  # as if all groups were taken
    name = made[0]
    async with serving(tmp_path) as served:
        await served.service.put(sandbox(name))
    opened = sandbox(name, allow=["tcp:203.0.113.7:443"])
    # Another program has the group.
    async with Nflog(named(name), 4001), serving(tmp_path) as served:
        await until(lambda: served.service.view(name).state == "failed")
        for config in (sandbox(name), opened):
            with pytest.raises(OcsfNftError, match="another program holds NFLOG group"):
                await served.service.put(config)
            assert served.service.view(name).config == sandbox(name)
        # Another namespace of its name is not fenced.
        namespaces.delete(name)
        namespaces.make(name)
        await served.service.put(opened)
        assert served.service.view(name).state == "active"
        assert (await connect_to(name, 443, 444))[444] == "refused"
    async with serving(tmp_path) as served:
        assert served.service.view(name).config == opened


async def test_failed_sandbox_fences_no_other_namespace_that_gets_its_path(
    made: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_groups, "ATTEMPTS", 0)  # as if all groups were taken
    name, other = made[:2]
    async with serving(tmp_path) as served:
        await served.service.put(sandbox(name))
    begin, has_repeated = sandbox_module.Sandbox._activate_and_begin, asyncio.Event()

    async def repeated(failed: sandbox_module.Sandbox) -> None:
        try:
            await begin(failed)
        finally:
            has_repeated.set()

    monkeypatch.setattr(sandbox_module.Sandbox, "_activate_and_begin", repeated)
    # Another program has the group.
    async with Nflog(named(name), 4001), serving(tmp_path) as served:
        await has_repeated.wait()  # after the attempt at the start of the service
        # As if its process had exited, and another one had got its id.
        with _covered(name, other):
            await until(lambda: served.service.views() == ())
    assert nft(named(other), "list", "ruleset") == ""


@contextlib.contextmanager
def _covered(name: str, other: str) -> Iterator[None]:
    """Let the path of a namespace lead to another one."""
    path = Path("/run/netns", name)
    subprocess.run(["mount", "--bind", path.with_name(other), path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


async def test_sandbox_whose_former_counts_cannot_be_removed_leaves_nothing(
    made: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, other, _ = made
    state = StateDirectory(tmp_path)
    installer.install(sandbox(name).spec(), named(name), state, "nflog")
    async with serving(tmp_path) as served:

        async def failing(*_: object) -> None:
            raise DeliveryError("the disk fails")

        await asyncio.to_thread(namespaces.delete, name)
        with monkeypatch.context() as patched:
            patched.setattr(sandbox_module, "forget_account", failing)
            with pytest.raises(DeliveryError, match="the disk fails"):
                await served.service.put(sandbox(name, netns=other))
        parts = served.service._sandboxes._fence_parts
        assert not parts.nflog._feeds
        assert not parts.accounts._expected
        assert nft(named(other), "list", "ruleset") == ""


async def test_sandbox_without_a_free_nflog_group_leaves_nothing(
    made: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_groups, "ATTEMPTS", 0)  # as if all groups were taken
    name = made[0]
    async with serving(tmp_path) as served:
        async with Nflog(named(name), 4001):
            with pytest.raises(OcsfNftError, match="another program holds NFLOG group"):
                await served.service.put(sandbox(name))
        assert served.service.views() == ()
        assert nft(named(name), "list", "ruleset") == ""
        assert not (tmp_path / name).exists()


async def test_sandbox_that_cannot_be_removed_at_the_stop_keeps_no_other(
    made: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, other, third = made
    remove = installer.remove

    def failing(sandbox: str, *arguments: Any) -> None:
        if sandbox == name:
            raise FenceError("nft gave no answer")
        remove(sandbox, *arguments)

    with pytest.RaisesGroup(pytest.RaisesExc(FenceError, match="nft gave no answer")):
        async with serving(tmp_path, *map(sandbox, made)) as served:
            for each in made:
                assert await connect_to(each, 443) == {443: "refused"}
            monkeypatch.setattr(installer, "remove", failing)
    for each in (other, third):
        assert nft(named(each), "list", "ruleset") == ""
        assert served.attempts(each) == {443: 1}
        assert not (tmp_path / each).exists()


async def test_sandbox_that_could_not_be_released_is_released_later(
    made: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = made[0]

    def failing(*_: object) -> None:
        raise FenceError("nft gave no answer")

    async with serving(tmp_path) as served:
        await served.service.put(sandbox(name))
        with monkeypatch.context() as patch:
            patch.setattr(installer, "remove", failing)
            with pytest.raises(FenceError, match="nft gave no answer"):
                await served.service.release(name)
        assert served.service.view(name).state == "failed"
        assert await connect_to(name, 443) == {443: "refused"}
        await served.service.put(sandbox(name))
        assert served.service.view(name).state == "active"
        assert await connect_to(name, 444) == {444: "refused"}
        await served.service.release(name)
        assert served.service.views() == ()
        assert nft(named(name), "list", "ruleset") == ""
        assert not (tmp_path / name).exists()


async def test_reload_of_a_key_that_is_no_policy_lets_nothing_out(
    made: tuple[str, ...], tmp_path: Path
) -> None:
    name = made[0]
    async with serving(tmp_path, sandbox(name)) as served:
        service = served.service
        with _sending(name) as outcomes:
            for keys in (
                {"group": 77},
                {"self_heal": False},
                {"transport": "none"},
                {"group": 78},
            ):
                changed = sandbox(name, **keys)
                await service.reload(service.config.model_copy(update={"sandbox": (changed,)}))
                assert service.view(name).config == changed
                assert verification.verify(name, StateDirectory(tmp_path)).verdict == "as installed"
            broken = sandbox(name, group=79, host_guard="nowhere0")
            with pytest.raises(OcsfNftError, match="nowhere0"):
                await service.reload(service.config.model_copy(update={"sandbox": (broken,)}))
            view = service.view(name)
            assert (view.state, view.config.group) == ("active", 78)
        assert set(outcomes()) == {"refused"}
        await served.wait_for(lambda _: served.attempts(name) == {4444: len(outcomes())})
        with _sending(name) as outcomes:
            # Its tables are created again, and so are their counters.
            owned = sandbox(name, exclusive=True)
            await service.reload(service.config.model_copy(update={"sandbox": (owned,)}))
        assert set(outcomes()) == {"refused"}
    assert nft(named(name), "list", "ruleset") == "", "a clean stop removes it"
    changes = [each for each in served.events if each["class_uid"] == 5019]
    assert {each["severity"] for each in changes} == {"Informational"}
    assert "its policy was changed: group: none → 77" in changes[1]["message"]


@contextlib.contextmanager
def _sending(name: str) -> Iterator[Callable[[], list[str]]]:
    """Send UDP packets in a namespace all the time; yield a function that ends it."""
    outcomes: list[str] = []
    stop = threading.Event()

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            while not stop.is_set():
                try:
                    sock.sendto(b"x", ("203.0.113.7", 4444))
                    outcomes.append("sent")
                except OSError:
                    outcomes.append("refused")
                stop.wait(0.0005)

    thread = threading.Thread(target=named(name).call, args=(send,))
    thread.start()

    def end() -> list[str]:
        stop.set()
        thread.join()
        return outcomes

    try:
        yield end
    finally:
        end()


async def test_policy_of_an_ended_namespace_is_not_given_to_its_successor(
    made: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = made[0]
    install = installer.install_locked

    def recreated(*arguments: Any) -> Any:
        namespaces.delete(name)
        namespaces.make(name)
        return install(*arguments)

    async with serving(tmp_path) as served:
        await served.service.put(sandbox(name))
        monkeypatch.setattr(installer, "install_locked", recreated)
        with pytest.raises(OcsfNftError):
            await served.service.put(sandbox(name, allow=["tcp:203.0.113.7:443"]))
        monkeypatch.setattr(installer, "install_locked", install)
        await until(lambda: served.service.views() == ())
        assert nft(named(name), "list", "ruleset") == ""
        assert not (tmp_path / name).exists()


async def test_stored_sandbox_that_another_run_watches_keeps_no_service_from_starting(
    made: tuple[str, ...], tmp_path: Path
) -> None:
    name, other, _ = made
    async with serving(tmp_path) as served:
        await served.service.put(sandbox(name))
        await served.service.put(sandbox(other))
    with StateDirectory(tmp_path).run_lock(name):
        async with serving(tmp_path) as served:
            assert [each.name for each in served.service.views()] == [other]
            assert await connect_to(other, 443) == {443: "refused"}
            with pytest.raises(SourceError, match="another run watches sandbox"):
                await served.service.put(sandbox(name))
    async with serving(tmp_path) as served:
        assert len(served.service.views()) == 2, "it is still stored"
    await asyncio.to_thread(namespaces.delete, name)
    with StateDirectory(tmp_path).run_lock(name):  # a run may watch it by one of its processes
        async with serving(tmp_path) as served:
            assert [each.name for each in served.service.views()] == [other]


async def test_error_of_a_call_is_logged_if_its_caller_has_left(
    made: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path) as served:
        with structlog.testing.capture_logs() as logged:
            calling = asyncio.create_task(served.service.put(sandbox(made[0], host_guard="no0")))
            await asyncio.sleep(0.001)
            calling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await calling
            await until(lambda: served.service.views() == () and bool(logged))
        gc.collect()
    assert [each["event"] for each in logged] == ["a call has failed, and its caller has left"]
    assert "never retrieved" not in caplog.text


async def test_end_of_a_sandbox_by_a_reload_says_so(made: tuple[str, ...], tmp_path: Path) -> None:
    name, other, _ = made
    async with serving(tmp_path, sandbox(name), sandbox(other)) as served:
        config = served.service.config.model_copy(update={"sandbox": (sandbox(other),)})
        await served.service.reload(config)
        event = await served.wait_for(lambda each: "has ended" in each["message"])
    assert event["message"] == (
        f"Sandbox {name} has ended: the configuration no longer has it, and its fence was removed. "
        "Its fence refused 0 packets."
    )
    assert event["severity"] == "Informational"


async def test_sandbox_that_is_watched_again_by_another_call_is_ended_by_a_reload(
    made: tuple[str, ...], tmp_path: Path
) -> None:
    name, other, _ = made
    async with serving(tmp_path, sandbox(name), sandbox(other)) as served:
        service = served.service
        changed, ended = (
            service.config.model_copy(update={"sandbox": each})
            for each in ((sandbox(name, group=77), sandbox(other)), (sandbox(other),))
        )
        async with asyncio.timeout(_SECONDS):
            # The second call waits for the first one, which replaces the sandbox.
            await asyncio.gather(service.reload(changed), service.reload(ended))
        assert [each.name for each in service.views()] == [other]
        assert nft(named(name), "list", "ruleset") == ""


async def test_sandbox_that_renames_a_link_again_and_again_ends_no_watch(
    made: tuple[str, ...], tmp_path: Path
) -> None:
    name, other, _ = made
    async with serving(tmp_path, sandbox(name), sandbox(other)) as served:
        ip("-n", name, "link", "add", "renamed", "type", "veth", "peer", "name", "its-peer")
        await asyncio.to_thread(named(name).call, lambda: _rename("renamed", 5_000))
        nft(named(name), "flush", "ruleset")
        await until(lambda: "chain output" in nft(named(name), "list", "ruleset"))
        for each in (name, other):
            assert await connect_to(each, 443) == {443: "refused"}
        await until(lambda: {each.state for each in served.service.views()} == {"active"})


def _rename(link: str, times: int) -> None:
    """Rename a link so slowly that no notice about it is dropped."""
    (index,) = (each.ifindex for each in rtnetlink.links() if each.name == link)
    body = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, 0, 0)
    for number in range(times):
        named_so = body + netlink.attribute(3, b"renamed-%06d\0" % number)
        netlink.request(netlink.NETLINK_ROUTE, rtnetlink.RTM_NEWLINK, named_so)
        time.sleep(0.0001)


@pytest.mark.parametrize("origin", ["file", "api"])
async def test_end_of_a_namespace_on_a_read_only_disk_ends_no_other_sandbox(
    made: tuple[str, ...], tmp_path: Path, origin: str
) -> None:
    name, other, _ = made
    state, store = tmp_path / "state", tmp_path / "store.db"
    state.mkdir()
    configured = (sandbox(name), sandbox(other)) if origin == "file" else ()
    with disk(state, size="8m"):
        async with serving(state, *configured, store={"path": str(store)}) as served:
            service = served.service
            for each in () if configured else (name, other):
                await service.put(sandbox(each))
            with _read_only(state):
                await asyncio.to_thread(namespaces.delete, name)
                await until(lambda: _states(service).get(name) in {None, "waiting"})
                assert await connect_to(other, 443) == {443: "refused"}
            await asyncio.to_thread(namespaces.make, name)
            if not configured:
                await service.put(sandbox(name))
            await until(lambda: _states(service) == {name: "active", other: "active"})
            assert await connect_to(name, 443) == {443: "refused"}
    assert served.attempts(name) == served.attempts(other) == {443: 1}


def _states(service: Service) -> dict[str, str]:
    return {each.name: each.state for each in service.views()}


@contextlib.contextmanager
def _read_only(folder: Path) -> Iterator[None]:
    """Let nothing be created or deleted in a folder; open files can be written."""
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


async def test_namespace_with_the_number_of_an_ended_one_is_not_fenced_after_a_restart(
    made: tuple[str, ...], tmp_path: Path
) -> None:
    async with serving(tmp_path) as served:
        for each in made:
            await served.service.put(sandbox(each))
    name = await asyncio.to_thread(_recreated_with_the_same_number, made)
    async with serving(tmp_path) as served:
        await until(lambda: served.service.views() == ())
    assert nft(named(name), "list", "ruleset") == ""
    assert not (tmp_path / name).exists()


def _recreated_with_the_same_number(names: tuple[str, ...]) -> str:
    """Delete the namespaces; return the name of a new one that has the number of a former one.

    The kernel uses a number again when the former namespace is freed, some time later. Another
    test may have the number first, and gives it back at its end.
    """
    former = {named(name).identity(): name for name in names}
    for name in names:
        namespaces.delete(name)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with namespaces.names(30) as tried:  # all at once, so that each has another number
            for each in tried:
                ip("netns", "add", each)
                if (again := former.get(named(each).identity())) is not None:
                    path = Path("/run/netns", again)
                    path.touch()
                    subprocess.run(["mount", "--bind", f"/run/netns/{each}", path], check=True)
                    return again
        time.sleep(0.05)
    raise AssertionError("the kernel uses no number again")
