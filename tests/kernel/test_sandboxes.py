"""Sandboxes that are added, changed and released while a service runs, and that end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.config.identity import CloudConfig, IdentityConfig
from ocsf_nft.errors import AbsentError, ConflictError, OcsfNftError, UsageError
from ocsf_nft.fence import verification
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.netns import named
from ocsf_nft.process import Process
from ocsf_nft.service import log_groups
from ocsf_nft.service.status import Status
from ocsf_nft.sources.nflog import Nflog
from tests.descriptors import open_descriptors
from tests.kernel import namespaces
from tests.kernel.conftest import nft
from tests.kernel.namespaces import connect
from tests.kernel.serving import connect_to, sandbox, serving, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from ocsf_nft import Service

pytestmark = pytest.mark.kernel

_CALLER = Process(
    pid=os.getpid(), name="supervisor", path="/usr/bin/supervisor", uid=1234, gid=5678
)


async def test_added_sandbox_is_fenced_watched_and_released(
    made: tuple[str, ...], tmp_path: Path, judge: Callable[[Any], list[str]]
) -> None:
    name = made[0]
    async with serving(tmp_path) as served:
        service = served.service
        assert service.views() == ()
        result = await service.put(sandbox(name), _CALLER)
        assert (result.is_new, result.changes) == (True, ())
        view = service.view(name)
        assert (view.state, view.mode, view.origin, view.fault) == (
            "active",
            "enforcing",
            "api",
            None,
        )
        assert await connect_to(name, 443, 444) == {443: "refused", 444: "refused"}
        final = await service.release(name, _CALLER)
        (egress,) = (each for each in final.balances if each.rule == "egress")
        assert (egress.refused, egress.counter_mismatch, egress.pending) == (2, 0, 0)
        assert service.views() == ()
        with pytest.raises(AbsentError, match=f"there is no sandbox {name} here"):
            await service.release(name)
        assert nft(named(name), "list", "ruleset") == ""
        assert not (tmp_path / name).exists()
    assert served.attempts(name) == {443: 1, 444: 1}
    assert all(
        event["actor"]["process"]["name"].startswith("python")
        for event in served.events
        if event["class_uid"] == 4001
    )
    assert [event["metadata"]["event_code"] for event in served.events] == [
        "service-started", "sandbox-added", "egress-blocked", "egress-blocked",
        "sandbox-released", "service-stopped",
    ]  # fmt: skip
    added, released = (event for event in served.events if event["class_uid"] == 5019)
    assert "the sandbox was added by supervisor" in added["message"]
    assert released["message"] == f"Sandbox {name} was released. Its fence refused 2 packets."
    for event in (added, released):
        process = event["actor"]["process"]
        assert (process["pid"], process["file"]["path"]) == (os.getpid(), "/usr/bin/supervisor")
        assert process["user"]["uid"] == "1234"
        assert event["severity"] == "Informational"
    assert [fault for event in served.events for fault in judge(event)] == []


async def test_events_of_a_service_have_its_identity(
    made: tuple[str, ...], tmp_path: Path, judge: Callable[[Any], list[str]]
) -> None:
    name = made[0]
    cloud = CloudConfig(provider="aws", account_uid="123456789012", region="eu-central-1")
    identity = IdentityConfig(
        tenant_uid="all", environment="test", instance_uid="i-0abc", cloud=cloud
    )
    async with serving(tmp_path, identity=identity) as served:
        await served.service.put(
            sandbox(name, tenant_uid="acme", labels={"team": "x"}, container={"name": "c1"})
        )
        assert await connect_to(name, 443) == {443: "refused"}
        await served.service.release(name)
    found = {}
    for event in served.events:
        assert event["cloud"]["account"] == {"uid": "123456789012"}
        assert event["device"]["instance_uid"] == "i-0abc"
        metadata = event["metadata"]
        found[metadata["event_code"]] = (metadata["tenant_uid"], metadata["labels"])
    of_service, of_sandbox = ("all", ["environment=test"]), ("acme", ["team=x", "environment=test"])
    assert found == {
        "service-started": of_service,
        "sandbox-added": of_sandbox,
        "egress-blocked": of_sandbox,
        "sandbox-released": of_sandbox,
        "service-stopped": of_service,
    }
    assert [fault for event in served.events for fault in judge(event)] == []


async def test_program_adds_changes_and_releases_a_sandbox_of_its_service(
    made: tuple[str, ...], tmp_path: Path
) -> None:
    name = made[0]
    async with serving(tmp_path) as served:
        service = served.service
        with pytest.raises(AbsentError, match="there is no such sandbox"):
            await service.set(sandbox(name))
        await service.add(sandbox(name))
        with pytest.raises(ConflictError, match="there is a sandbox"):
            await service.add(sandbox(name))
        changes = await service.set(sandbox(name, permissive=True))
        assert changes == ("permissive: none → true",)
        await service.release(name)
    assert all("actor" not in each for each in served.events if each["class_uid"] == 5019)


async def test_policy_is_changed_in_place_and_the_change_is_an_audit_event(
    made: tuple[str, ...], tmp_path: Path
) -> None:
    name = made[0]
    opened = sandbox(name, allow=["tcp:203.0.113.7:443"])
    async with serving(tmp_path) as served:
        put = served.service.put
        await put(sandbox(name))
        assert await connect_to(name, 443) == {443: "refused"}
        result = await put(opened, _CALLER)
        assert result == (False, ("allow: added tcp:203.0.113.7:443",))
        assert (await put(opened, _CALLER)).changes == ()
        assert (await connect_to(name, 443))[443] != "refused"
        assert verification.verify(name, StateDirectory(tmp_path)).verdict == "as installed"
        permissive = await put(sandbox(name, permissive=True))
        assert permissive.changes == (
            "allow: removed tcp:203.0.113.7:443", "permissive: none → true",
        )  # fmt: skip
        assert served.service.view(name).mode == "permissive"
        assert (await connect_to(name, 445))[445] != "refused"
        await put(sandbox(name))
        assert await connect_to(name, 443, 446) == {443: "refused", 446: "refused"}
        with pytest.raises(ConflictError, match=f"group of sandbox {name} can't be changed"):
            await put(sandbox(name, group=77))
        final = await served.service.release(name)
    numbers = {
        each.mode: (each.refused, each.allowed) for each in final.balances if each.rule == "egress"
    }
    assert numbers["enforcing"] == (3, 0)
    assert numbers["permissive"][1] >= 1
    assert served.attempts(name)[443] == 2
    changes = [event for event in served.events if "policy was changed" in event["message"]]
    assert len(changes) == 3, "no event where nothing changed, and none by the guard"
    first = changes[0]
    assert first["actor"]["process"]["name"] == "supervisor"
    assert first["unmapped"]["changes"] == ["allow: added tcp:203.0.113.7:443"]
    assert "allow" not in first["unmapped"]["policy_before"]
    assert first["unmapped"]["policy"]["allow"] == ["tcp:203.0.113.7:443"]


async def test_events_have_the_labels_and_severities_of_their_sandbox_at_that_time(
    made: tuple[str, ...], tmp_path: Path, judge: Callable[[Any], list[str]]
) -> None:
    name, other, _ = made
    async with serving(tmp_path) as served:
        put = served.service.put
        await put(sandbox(other))
        container = {"uid": "3f4e", "name": "web", "labels": {"app": "agent"}}
        await put(sandbox(name, labels={"team": "search"}, container=container))
        assert await connect_to(name, 1001) == {1001: "refused"}
        await served.wait_for(lambda each: each.get("dst_endpoint", {}).get("port") == 1001)
        severe = [{"severity": "critical", "port": 1002}]
        await put(sandbox(name, labels={"team": "ads", "task": "7"}, severity=severe))
        for each in (name, other):
            assert await connect_to(each, 1002) == {1002: "refused"}
        with pytest.raises(UsageError, match="has the key sandbox"):
            await put(sandbox(name, severity=[{"severity": "low", "sandbox": other}]))
    first, second, third = (each for each in served.events if each["class_uid"] == 4001)
    assert first["metadata"]["labels"] == ["team=search"]
    inside = first["src_endpoint"]["container"]
    assert (inside["name"], inside["labels"]) == ("web", ["app=agent"])
    assert first["severity"] == "Medium"
    second, third = sorted((second, third), key=lambda each: each["unmapped"]["sandbox"])
    assert second["metadata"]["labels"] == ["task=7", "team=ads"]
    assert "container" not in second["src_endpoint"]
    assert (second["severity"], third["severity"]) == ("Critical", "Medium")
    assert "labels" not in third["metadata"]
    finding, *_ = (each for each in served.events if each["class_uid"] == 2004)
    assert finding["metadata"]["labels"] == ["task=7", "team=ads"]
    assert [fault for event in served.events for fault in judge(event)] == []


async def test_sandbox_that_cannot_be_added_leaves_nothing(
    made: tuple[str, ...], tmp_path: Path
) -> None:
    async with serving(tmp_path) as served:
        for wrong in (
            sandbox(made[0], netns=f"{made[0]}-missing"),
            sandbox(made[0], pid=2**22, netns=None),
            sandbox(made[0], install=False),
            sandbox(made[0], host_guard="nowhere0"),
        ):
            with pytest.raises(OcsfNftError):
                await served.service.put(wrong)
            assert served.service.views() == ()
            assert not (tmp_path / made[0]).exists()
        assert nft(named(made[0]), "list", "ruleset") == ""
        await served.service.put(sandbox(made[0]))
        assert await connect_to(made[0], 443) == {443: "refused"}


async def test_end_of_a_namespace_is_the_end_of_its_sandbox_and_touches_no_other(
    made: tuple[str, ...], tmp_path: Path
) -> None:
    ended, other, third = made
    async with serving(tmp_path) as served:
        await served.service.put(sandbox(other))
        await served.service.put(sandbox(third))
        # Each watch has opened its socket.
        watches = [each.watched.bypass for each in served.service.sandboxes if each.watched]
        await until(lambda: all(each and each._frames for each in watches))
        before = open_descriptors()
        await served.service.put(sandbox(ended))
        assert await connect_to(ended, 1001, 1002) == {1001: "refused", 1002: "refused"}
        await asyncio.to_thread(namespaces.delete, ended)
        await until(lambda: len(served.service.views()) == 2)
        event = await served.wait_for(lambda each: "has ended" in each["message"])
        assert open_descriptors() <= before
        assert await connect_to(other, 1003) == {1003: "refused"}
        assert not (tmp_path / ended).exists()
    assert event["message"] == (
        f"Sandbox {ended} has ended, with its network namespace. Its fence refused 2 packets."
    )
    assert event["metadata"]["event_code"] == "sandbox-ended"
    assert (event["severity"], event["status"]) == ("Informational", "Success")
    assert served.attempts(ended) == {1001: 1, 1002: 1}
    assert served.attempts(other) == {1003: 1}
    severities = {each["severity"] for each in served.events if each["class_uid"] != 4001}
    assert severities == {"Informational"}


async def test_configured_sandbox_is_waited_for_and_fenced_again(tmp_path: Path) -> None:
    with namespaces.names(2) as (name, other):
        namespaces.make(other)
        async with serving(tmp_path, sandbox(name), sandbox(other)) as served:
            assert served.service.view(name).state == "waiting"
            for port in (2001, 2002):
                await asyncio.to_thread(namespaces.make, name)
                await until(lambda: served.service.view(name).state == "active")
                assert await connect_to(name, port) == {port: "refused"}
                assert await connect_to(other, port) == {port: "refused"}
                await asyncio.to_thread(namespaces.delete, name)
                await until(lambda: served.service.view(name).state == "waiting")
            with pytest.raises(ConflictError, match="that of the configuration file"):
                await served.service.put(sandbox(name))
        assert served.attempts(name) == served.attempts(other) == {2001: 1, 2002: 1}
        assert len([each for each in served.messages(name) if "has ended" in each]) == 2
        assert nft(named(other), "list", "ruleset") == "", "a clean stop removes it"


def _is_watched(service: Service, name: str) -> bool:
    """Return True if the namespace that exists now is watched."""
    (watched,) = (each.watched for each in service.sandboxes if each.name == name)
    return watched is not None and named(name).has_identity(watched.identity)


async def test_recreated_namespace_is_fenced_at_once(tmp_path: Path) -> None:
    with namespaces.names(2) as (name, other):
        namespaces.make(name)
        namespaces.make(other)
        async with serving(tmp_path, sandbox(name), sandbox(other)) as served:

            def recreate() -> None:
                namespaces.delete(name)
                namespaces.make(name)

            for port in range(3001, 3006):
                assert await connect_to(name, port) == {port: "refused"}
                await asyncio.to_thread(recreate)
                await until(lambda: _is_watched(served.service, name))
                assert await connect_to(name, port) == {port: "refused"}
            assert await connect_to(other, 3009) == {3009: "refused"}
        assert served.attempts(name) == dict.fromkeys(range(3001, 3006), 2)
        assert served.attempts(other) == {3009: 1}


async def test_sandbox_without_its_name_is_watched_while_it_has_processes(
    made: tuple[str, ...], tmp_path: Path
) -> None:
    name = made[0]
    async with serving(tmp_path, sandbox(name)) as served:
        async with _idle_process(name) as process:
            await asyncio.to_thread(namespaces.delete, name)
            inside = f"/proc/{process.pid}/ns/net"
            await until(lambda: _record_path(tmp_path, name) == inside)
            assert served.service.view(name).state == "active"
            await asyncio.to_thread(connect, inside, 4001)
            await served.wait_for(lambda each: each.get("dst_endpoint", {}).get("port") == 4001)
            # Its fence is still restored.
            nft(named(inside), "flush", "ruleset")
            await served.wait_for(lambda each: "restored" in each["message"])
            await asyncio.to_thread(connect, inside, 4002)
            assert served.service.view(name).state == "active"
        await until(lambda: served.service.view(name).state == "waiting")
        namespaces.make(name)
        await until(lambda: _is_watched(served.service, name))
        async with _idle_process(name):
            await asyncio.to_thread(namespaces.delete, name)
            await until(lambda: "/proc/" in (_record_path(tmp_path, name) or ""))
            namespaces.make(name)
            await until(lambda: _is_watched(served.service, name))
            assert await connect_to(name, 4003) == {4003: "refused"}
    assert served.attempts(name) == {4001: 1, 4002: 1, 4003: 1}
    ends = [each for each in served.messages(name) if "has ended, " in each]
    assert ["with its network namespace" in each for each in ends] == [True, False]
    assert "another network namespace has its name" in ends[1]


def _record_path(folder: Path, name: str) -> str | None:
    found = StateDirectory(folder).read(name)
    return None if found is None else str(found.namespace)


@contextlib.asynccontextmanager
async def _idle_process(name: str) -> AsyncIterator[subprocess.Popen[bytes]]:
    """Run a process in a namespace that only waits."""
    process = named(name).call(lambda: subprocess.Popen(["cat"], stdin=subprocess.PIPE))
    try:
        yield process
    finally:
        process.kill()
        await asyncio.to_thread(process.communicate)


async def test_added_sandbox_comes_back_after_a_restart_with_its_counts(
    made: tuple[str, ...], tmp_path: Path
) -> None:
    name, ended, _ = made
    async with serving(tmp_path) as served:
        await served.service.put(sandbox(name, labels={"team": "search"}))
        await served.service.put(sandbox(ended))
        assert await connect_to(name, 443) == {443: "refused"}
    assert await connect_to(name, 444) == {444: "refused"}, "the fence stays"
    namespaces.delete(ended)
    async with serving(tmp_path) as again:
        await until(lambda: len(again.service.views()) == 1)
        view = again.service.view(name)
        assert (view.state, view.config.labels) == ("active", {"team": "search"})
        assert await connect_to(name, 445) == {445: "refused"}
        final = await again.service.release(name)
    (egress,) = (each for each in final.balances if each.rule == "egress")
    assert (egress.refused, egress.counter_mismatch) == (3, 0)
    assert served.attempts(name) == {443: 1}
    assert again.attempts(name) == {444: 1, 445: 1}
    assert len([each for each in again.messages(ended) if "has ended" in each]) == 1
    assert not (tmp_path / ended).exists()


async def test_process_with_the_pid_of_an_ended_sandbox_is_not_fenced_after_a_restart(
    made: tuple[str, ...], tmp_path: Path
) -> None:
    name, other, _ = made
    async with _idle_process(name) as process:
        async with serving(tmp_path) as served:
            await served.service.put(sandbox(name, netns=None, pid=process.pid))
        stored = tmp_path / name / "sandbox.json"
        whole = stored.read_bytes()
        async with _idle_process(other) as reused:
            # As if the other process had got the pid of the first one.
            for path in (stored, tmp_path / name / "fence.json"):
                content = path.read_bytes()
                pid = str(process.pid).encode()
                assert pid in content
                path.write_bytes(content.replace(pid, str(reused.pid).encode()))
            assert stored.read_bytes() != whole
            async with serving(tmp_path) as again:
                await until(lambda: again.service.views() == ())
                await again.wait_for(lambda each: "has ended, with its" in each["message"])
            assert nft(named(other), "list", "ruleset") == ""
    assert not (tmp_path / name).exists()


async def test_release_of_a_sandbox_that_is_ending_is_informational(
    made: tuple[str, ...], tmp_path: Path
) -> None:
    async with serving(tmp_path) as served:
        for name in made:
            await served.service.put(sandbox(name))
        deleting = [asyncio.to_thread(namespaces.delete, name) for name in made]
        releasing = [served.service.release(name) for name in made]
        _, results = await asyncio.gather(
            asyncio.gather(*deleting), asyncio.gather(*releasing, return_exceptions=True)
        )
        assert {type(each) for each in results} <= {Status, AbsentError}
        await until(lambda: served.service.views() == ())
    changes = [each for each in served.events if each["class_uid"] == 5019]
    assert {each["severity"] for each in changes} == {"Informational"}
    assert len(changes) == 6


async def test_sandbox_that_cannot_be_watched_is_tried_again_and_touches_no_other(
    made: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_groups, "ATTEMPTS", 0)  # as if all groups were taken
    name, other, _ = made
    async with serving(tmp_path) as served:
        await served.service.put(sandbox(name))
        await served.service.put(sandbox(other))
    async with contextlib.AsyncExitStack() as stack:
        other_reader = contextlib.AsyncExitStack()
        await other_reader.enter_async_context(Nflog(named(name), 4001))  # it has the group
        again = await stack.enter_async_context(serving(tmp_path))
        await until(lambda: again.service.view(name).state == "failed")
        assert "another program holds NFLOG group" in (again.service.view(name).fault or "")
        assert again.service.view(other).state == "active"
        assert await connect_to(other, 443) == {443: "refused"}
        assert await connect_to(name, 443) == {443: "refused"}, "its fence stays"
        await other_reader.aclose()
        await again.service.put(sandbox(name))  # tries it at once
        await until(lambda: again.service.view(name).state == "active")
        assert await connect_to(name, 444) == {444: "refused"}
    assert again.attempts(name) == {443: 1, 444: 1}
    assert again.attempts(other) == {443: 1}


async def test_calls_for_one_sandbox_follow_one_another(
    made: tuple[str, ...], tmp_path: Path
) -> None:
    name = made[0]
    async with serving(tmp_path) as served:
        put, release = served.service.put, served.service.release
        calls = [
            asyncio.create_task(put(config))
            for config in (sandbox(name), sandbox(name, allow=["tcp:203.0.113.7:1"]))
        ]
        releasing = asyncio.create_task(release(name))
        calls += [asyncio.create_task(put(sandbox(each))) for each in made]
        await asyncio.gather(releasing, *calls)
        assert [each.result().is_new for each in calls] == [True, False, True, True, True]
        assert {each.state for each in served.service.views()} == {"active"}
        assert len(served.service.views()) == 3


async def test_call_is_completed_after_its_caller_has_left(
    made: tuple[str, ...], tmp_path: Path
) -> None:
    async with serving(tmp_path) as served:
        calling = asyncio.create_task(served.service.put(sandbox(made[0])))
        await asyncio.sleep(0.01)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        await until(lambda: any(each.state == "active" for each in served.service.views()))
        assert await connect_to(made[0], 443) == {443: "refused"}


async def test_reload_adds_changes_and_ends_sandboxes(
    made: tuple[str, ...], tmp_path: Path
) -> None:
    first, second, third = made
    async with serving(tmp_path, sandbox(first), sandbox(second)) as served:
        service = served.service
        changed = sandbox(second, allow=["tcp:203.0.113.7:443"])
        await service.reload(
            service.config.model_copy(update={"sandbox": (changed, sandbox(third))})
        )
        assert [each.name for each in service.views()] == [second, third]
        assert nft(named(first), "list", "ruleset") == ""
        assert (await connect_to(second, 443))[443] != "refused"
        assert await connect_to(third, 443) == {443: "refused"}
        # A key that is not of the policy, in the same namespace.
        fence = nft(named(third), "-a", "list", "table", "inet", "ocsf_nft")
        regrouped = sandbox(third, group=77)
        await service.reload(service.config.model_copy(update={"sandbox": (changed, regrouped)}))
        assert "group 77" in nft(named(third), "list", "ruleset")
        assert fence.partition("\n")[0] in nft(named(third), "-a", "list", "ruleset")
        assert await connect_to(third, 444) == {444: "refused"}
        await service.reload(
            service.config.model_copy(update={"sandbox": (changed, sandbox(third))})
        )
        broken = sandbox(first, host_guard="nowhere0")
        with pytest.raises(OcsfNftError, match="nowhere0"):
            await service.reload(
                service.config.model_copy(update={"sandbox": (changed, broken, sandbox(third))})
            )
        assert [each.name for each in service.views()] == [second, third]


async def test_cycles_of_add_and_release_leave_nothing(
    made: tuple[str, ...], tmp_path: Path
) -> None:
    name = made[0]

    def left() -> tuple[int, set[str], int]:
        files = {each.name for each in tmp_path.iterdir()}
        return open_descriptors(), files, len(asyncio.all_tasks())

    async with serving(tmp_path) as served:
        for number in range(12):
            await served.service.put(sandbox(name))
            await served.service.release(name)
            if number == 1:
                before = left()
        assert left() == before
        assert nft(named(name), "list", "ruleset") == ""
