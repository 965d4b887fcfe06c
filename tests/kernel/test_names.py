"""Host names in policies: the fence follows the answers of a real name server."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import os
import secrets
import signal
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.errors import FenceError, UnsupportedError, UsageError
from ocsf_nft.fence import installer, verification
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.fence.tamper_guard import TamperGuard
from ocsf_nft.lab import INTERNET4, ip
from ocsf_nft.netns import named
from ocsf_nft.process import Process
from ocsf_nft.service import name_state, run
from ocsf_nft.service.delivery_process import DeliveryProcess
from tests.kernel import conftest
from tests.kernel.serving import connect_to, sandbox, serving, until
from tests.name_server import name_server, resolver_files

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.kernel.serving import Served
    from tests.name_server import NameServer

pytestmark = pytest.mark.kernel

_CALLER = Process(
    pid=os.getpid(), name="supervisor", path="/usr/bin/supervisor", uid=1234, gid=5678
)
_NAME = "api.test"
_ALLOW = [f"tcp:{_NAME}:443"]


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NameServer]:
    """Run a name server that the services of the test ask. They ask often: its TTL is zero."""
    monkeypatch.setattr(name_state, "_MIN_TTL", 0.1)
    monkeypatch.setattr(name_state, "_MAX_PAUSE", 0.2)
    async with name_server({_NAME: [INTERNET4]}) as found:
        found.ttl = 0
        files = resolver_files(tmp_path, found)
        delivering = functools.partial(DeliveryProcess, resolver=files)
        monkeypatch.setattr(run, "DeliveryProcess", delivering)
        yield found


def _allowed(folder: Path, name: str) -> list[str]:
    """Return the exceptions in the record of a fence, which must be as installed."""
    state = StateDirectory(folder)
    found = verification.verify(name, state)
    assert found.installed is not None
    assert (found.verdict, found.difference) == ("as installed", "")
    return list(map(str, found.installed.spec.exceptions))


@contextlib.asynccontextmanager
async def _serving(folder: Path, name: str, **keys: Any) -> AsyncIterator[Served]:
    """Run a service with one sandbox. Its policy allows a host name."""
    async with serving(folder) as served:
        await served.service.put(sandbox(name, allow=_ALLOW, **keys))
        yield served


async def _until_asked(server: NameServer, times: int) -> None:
    """Wait for ``times`` more questions to the name server, for each kind of address.

    A later change of its zone does not come between the two questions of one lookup.
    """
    last = {(_NAME, kind): server.asked[_NAME, kind] + times for kind in ("A", "AAAA")}
    await until(lambda: all(server.asked[each] >= number for each, number in last.items()))


async def _until_allowed(served: Served, folder: Path, name: str, *expected: str) -> None:
    """Wait until a sandbox may reach these addresses only."""
    texts = [f"tcp:{each}:443" for each in expected]

    def holds() -> bool:
        (watched,) = (each.watched for each in served.service.sandboxes if each.name == name)
        assert watched is not None
        return [*map(str, watched.monitor.reports.installed.spec.exceptions)] == texts

    await until(holds)
    assert _allowed(folder, name) == texts
    assert served.service.view(name).state == "active"


async def test_name_is_resolved_before_the_call_is_answered(
    made: tuple[str, ...],
    tmp_path: Path,
    server: NameServer,
    judge: Callable[[Any], list[str]],
) -> None:
    name = made[0]
    server.zone["proxy.test"] = ["10.250.0.1"]
    async with serving(tmp_path) as served:
        config = sandbox(name, proxy=["proxy.test:3128"], allow=_ALLOW)
        await served.service.put(config, _CALLER)
        assert _allowed(tmp_path, name) == [f"tcp:{INTERNET4}:443"]
        view = served.service.view(name)
        assert (view.state, view.fault) == ("active", None)
        assert view.config.given()["allow"] == _ALLOW
        outcomes = await connect_to(name, 443, 444)
        assert outcomes[443] != "refused"
        assert outcomes[444] == "refused"
    added, resolved, *_ = served.messages(name)
    assert "the sandbox was added by supervisor" in added
    assert resolved == (
        f"The fence of sandbox {name} is active, and logs what it blocks; host names in its policy "
        f"have new addresses: {_NAME}: added {INTERNET4}; proxy.test: added 10.250.0.1."
    )
    event = next(each for each in served.events if each.get("message") == resolved)
    assert event["unmapped"]["changes"] == [
        f"{_NAME}: added {INTERNET4}", "proxy.test: added 10.250.0.1",
    ]  # fmt: skip
    assert event["unmapped"]["addresses"] == {_NAME: [INTERNET4], "proxy.test": ["10.250.0.1"]}
    assert event["unmapped"]["policy"]["proxy"] == ["proxy.test:3128"]
    assert event["unmapped"]["policy"]["allow"] == _ALLOW
    assert "actor" not in event
    assert (event["severity"], event["status"]) == ("Informational", "Success")
    assert [fault for each in served.events for fault in judge(each)] == []


async def test_fence_with_names_only_is_closed_until_they_are_resolved(
    made: tuple[str, ...], tmp_path: Path, server: NameServer
) -> None:
    name, device = made[0], f"n{secrets.token_hex(4)}"
    ip("link", "add", device, "type", "veth", "peer", "name", "inside", "netns", name)
    async with serving(tmp_path) as served:
        config = sandbox(name, proxy=[f"{_NAME}:443"], allow=["udp:b.test:1-2"], host_guard=device)
        server.zone[_NAME] = []
        await served.service.put(config)
        record = StateDirectory(tmp_path).read(name)
        assert record is not None
        assert (record.spec.allowed, record.spec.ranges) == ((), ())
        assert await connect_to(name, 443) == {443: "refused"}
        assert served.service.view(name).fault == (
            f"{_NAME}: it has no address that can be allowed; b.test: there is no such name"
        )
        server.zone |= {_NAME: [INTERNET4], "b.test": [INTERNET4, "2001:db8::7"]}
        (watched,) = (each.watched for each in served.service.sandboxes)
        assert watched is not None
        reports = watched.monitor.reports
        await until(lambda: bool(reports.installed.spec.proxies and reports.installed.spec.ranges))
        assert _allowed(tmp_path, name) == [f"udp:{INTERNET4}:1-2", "udp:[2001:db8::7]:1-2"]
        assert (await connect_to(name, 443))[443] != "refused"
        await served.service.release(name)


async def test_changed_addresses_replace_the_old_ones_and_are_one_event(
    made: tuple[str, ...], tmp_path: Path, server: NameServer
) -> None:
    name = made[0]
    async with _serving(tmp_path, name) as served:
        assert (await connect_to(name, 443))[443] != "refused"
        server.zone[_NAME] = ["198.51.100.2", "198.51.100.1"]
        await _until_allowed(served, tmp_path, name, "198.51.100.1", "198.51.100.2")
        assert await connect_to(name, 443) == {443: "refused"}
        server.zone[_NAME].reverse()
        await _until_asked(server, 3)
        server.zone[_NAME] = [INTERNET4, "2001:db8::7"]
        await _until_allowed(served, tmp_path, name, INTERNET4, "[2001:db8::7]")
        assert (await connect_to(name, 443))[443] != "refused"
    last = (
        f"added {INTERNET4}", "added 2001:db8::7", "removed 198.51.100.1", "removed 198.51.100.2",
    )  # fmt: skip
    texts = [each.partition("new addresses: ")[2] for each in served.messages(name)]
    assert [each for each in texts if each] == [
        f"{_NAME}: added {INTERNET4}.",
        f"{_NAME}: added 198.51.100.1, added 198.51.100.2, removed {INTERNET4}.",
        f"{_NAME}: {', '.join(last)}.",
    ]
    assert served.attempts(name) == {443: 1}
    assert not any("another process" in each for each in served.messages(name))


@pytest.mark.parametrize(
    "keys",
    [
        {"exclusive": True},
        {"profile": "sidecar", "proxy_uid": [63128]},
        {"permissive": True},
        {"self_heal": False},
        {"transport": "none"},
    ],
    ids="-".join,
)
async def test_addresses_change_in_each_kind_of_fence(
    made: tuple[str, ...], tmp_path: Path, server: NameServer, keys: dict[str, Any]
) -> None:
    name = made[0]
    async with _serving(tmp_path, name, **keys) as served:
        assert _allowed(tmp_path, name) == [f"tcp:{INTERNET4}:443"]
        server.zone[_NAME] = ["198.51.100.1"]
        await _until_allowed(served, tmp_path, name, "198.51.100.1")


async def test_name_that_disappears_allows_nothing(
    made: tuple[str, ...], tmp_path: Path, server: NameServer
) -> None:
    name = made[0]
    async with _serving(tmp_path, name) as served:
        del server.zone[_NAME]
        await _until_allowed(served, tmp_path, name)
        assert await connect_to(name, 443) == {443: "refused"}
        assert served.service.view(name).fault == f"{_NAME}: there is no such name"
        server.zone[_NAME] = []
        await until(lambda: "no address" in (served.service.view(name).fault or ""))
        server.zone[_NAME] = [INTERNET4]
        await _until_allowed(served, tmp_path, name, INTERNET4)
        assert served.service.view(name).fault is None


async def test_answer_with_loopback_opens_nothing_and_is_a_fault(
    made: tuple[str, ...], tmp_path: Path, server: NameServer
) -> None:
    name = made[0]
    server.zone[_NAME] = ["127.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "::1", INTERNET4]
    async with _serving(tmp_path, name) as served:
        assert _allowed(tmp_path, name) == [f"tcp:{INTERNET4}:443"]
        fault = served.service.view(name).fault
    assert fault is not None
    assert "addresses that a name must not allow are refused: 0.0.0.0 (it means this host)" in fault


async def test_last_addresses_stay_while_servers_fail_and_are_removed_in_the_end(
    made: tuple[str, ...], tmp_path: Path, server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = made[0]
    async with _serving(tmp_path, name) as served:
        server.mode = "fail"
        await until(lambda: "SERVFAIL" in (served.service.view(name).fault or ""))
        assert "stay allowed for up to ten minutes" in (served.service.view(name).fault or "")
        await _until_asked(server, 3)
        assert (await connect_to(name, 443))[443] != "refused"
        server.mode = "answer"
        await until(lambda: served.service.view(name).fault is None)
        monkeypatch.setattr(name_state, "KEEP_SECONDS", 0.5)
        await _until_asked(server, 2)
        server.mode = "fail"
        await _until_allowed(served, tmp_path, name)
        assert await connect_to(name, 443) == {443: "refused"}
        assert "are not allowed any more" in (served.service.view(name).fault or "")
    assert f"{_NAME}: removed {INTERNET4}." in served.messages(name)[-1]


async def test_call_is_answered_in_time_if_no_server_answers(
    made: tuple[str, ...], tmp_path: Path, server: NameServer
) -> None:
    name = made[0]
    server.mode = "silent"
    async with serving(tmp_path) as served:
        async with asyncio.timeout(15):
            await served.service.put(sandbox(name, allow=_ALLOW))
        assert _allowed(tmp_path, name) == []
        fault = served.service.view(name).fault
        assert fault is not None
        assert fault.startswith(f"{_NAME}: no name server has answered within 4 s")
        server.mode = "answer"
        await _until_allowed(served, tmp_path, name, INTERNET4)


async def test_restart_of_the_service_closes_nothing_before_the_first_answer(
    made: tuple[str, ...], tmp_path: Path, server: NameServer
) -> None:
    name, other, _ = made
    async with _serving(tmp_path, name):
        pass
    assert _allowed(tmp_path, name) == [f"tcp:{INTERNET4}:443"]
    server.mode = "fail"
    async with serving(tmp_path) as again:
        assert again.service.view(name).state == "active"
        await until(lambda: "SERVFAIL" in (again.service.view(name).fault or ""))
        assert (await connect_to(name, 443))[443] != "refused"
        await again.service.put(sandbox(other, allow=_ALLOW))
        assert _allowed(tmp_path, other) == []
        server.zone[_NAME] = ["198.51.100.1"]
        server.mode = "answer"
        for each in (name, other):
            await _until_allowed(again, tmp_path, each, "198.51.100.1")
        assert await connect_to(name, 443) == {443: "refused"}
    assert len([each for each in again.messages(name) if "new addresses" in each]) == 1
    assert not any("installed again" in each for each in again.messages(name))


async def test_killed_delivery_process_is_asked_again(
    made: tuple[str, ...], tmp_path: Path, server: NameServer
) -> None:
    name, other, _ = made
    async with _serving(tmp_path, name) as served:
        server.mode = "silent"
        calling = asyncio.create_task(served.service.put(sandbox(other, allow=["tcp:b.test:443"])))
        await until(lambda: server.asked["b.test", "A"] > 0)
        running = served.service.delivery._run
        assert running is not None
        server.zone |= {_NAME: ["198.51.100.1"], "b.test": ["198.51.100.2"]}
        server.mode = "answer"
        os.kill(running.pid, signal.SIGKILL)
        await calling
        await _until_allowed(served, tmp_path, name, "198.51.100.1")
        await _until_allowed(served, tmp_path, other, "198.51.100.2")


async def test_sandboxes_share_one_lookup_of_a_name(
    made: tuple[str, ...], tmp_path: Path, server: NameServer
) -> None:
    server.ttl = 3600
    async with serving(tmp_path) as served:
        for name in made[:2]:
            await served.service.put(sandbox(name, allow=_ALLOW))
            assert _allowed(tmp_path, name) == [f"tcp:{INTERNET4}:443"]
        assert server.asked == {(_NAME, "A"): 1, (_NAME, "AAAA"): 1}
        await served.service.release(made[0])
        assert _allowed(tmp_path, made[1]) == [f"tcp:{INTERNET4}:443"]
        await served.service.put(sandbox(made[1]))
        assert _allowed(tmp_path, made[1]) == []
        await served.service.put(sandbox(made[1], allow=_ALLOW))
        assert _allowed(tmp_path, made[1]) == [f"tcp:{INTERNET4}:443"]
        assert server.asked == {(_NAME, "A"): 2, (_NAME, "AAAA"): 2}


async def test_change_that_fails_leaves_the_names_of_the_policy_before(
    made: tuple[str, ...], tmp_path: Path, server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = made[0]

    def fail(*_: object) -> None:
        raise FenceError("the kernel refuses")

    async with _serving(tmp_path, name) as served:
        server.mode = "fail"
        with monkeypatch.context() as patched:
            patched.setattr(TamperGuard, "replace", fail)
            with pytest.raises(FenceError, match="the kernel refuses"):
                await served.service.put(sandbox(name, allow=["tcp:b.test:443"]))
            await _until_asked(server, 3)
            assert "stay allowed" in (served.service.view(name).fault or "")
            server.zone[_NAME] = ["198.51.100.1"]
            server.mode = "answer"
            await until(lambda: served.service.view(name).fault == "the kernel refuses")
        await _until_allowed(served, tmp_path, name, "198.51.100.1")
        await until(lambda: served.service.view(name).fault is None)
        assert served.service.view(name).config.given()["allow"] == _ALLOW


async def test_fence_that_an_operator_removes_stays_removed(
    made: tuple[str, ...], tmp_path: Path, server: NameServer
) -> None:
    name = made[0]
    async with _serving(tmp_path, name) as served:
        await asyncio.to_thread(installer.remove, name, StateDirectory(tmp_path))
        await until(lambda: served.service.view(name).state == "absent")
        server.zone[_NAME] = ["198.51.100.1"]
        await _until_asked(server, 5)
        assert conftest.nft(named(name), "list", "ruleset") == ""


async def test_policy_that_an_operator_installs_stays_installed(
    made: tuple[str, ...], tmp_path: Path, server: NameServer
) -> None:
    name = made[0]
    async with _serving(tmp_path, name) as served:
        spec = sandbox(name, allow=["tcp:198.51.100.9:443"]).spec()
        state = StateDirectory(tmp_path)
        await asyncio.to_thread(installer.install, spec, named(name), state)
        await _until_allowed(served, tmp_path, name, "198.51.100.9")
        server.zone[_NAME] = ["198.51.100.1"]
        await _until_asked(server, 5)
        assert _allowed(tmp_path, name) == ["tcp:198.51.100.9:443"]
        await served.service.put(sandbox(name, allow=_ALLOW, labels={"a": "b"}))
        assert _allowed(tmp_path, name) == ["tcp:198.51.100.1:443"]


async def test_names_need_a_service_that_installs_the_fence(
    made: tuple[str, ...], tmp_path: Path, server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as served:
        put = served.service.put
        with pytest.raises(UsageError, match=r"has the host name api\.test, but not install"):
            await put(sandbox(made[0], allow=_ALLOW, install=False))
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
        with pytest.raises(UnsupportedError, match=r"need the extra ocsf-nft\[names\]"):
            await put(sandbox(made[0], allow=_ALLOW))
        assert served.service.views() == ()
        await put(sandbox(made[0]))
        with pytest.raises(UnsupportedError, match=r"need the extra ocsf-nft\[names\]"):
            await put(sandbox(made[0], allow=_ALLOW))
        assert served.service.view(made[0]).config.allow == ()
    assert not server.asked
