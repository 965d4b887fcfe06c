"""Release of a sandbox: each refused packet is counted, and an error leaves the fence on."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.errors import DeliveryError, FenceError
from ocsf_nft.fence import installer, turn_off, verification
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.lab import ip
from ocsf_nft.netns import named
from ocsf_nft.service.account_loop import AccountLoop
from tests.kernel import namespaces
from tests.kernel.conftest import nft
from tests.kernel.serving import connect_to, sandbox, serving, until

if TYPE_CHECKING:
    from pathlib import Path

    from ocsf_nft.flows.sandbox_account import Balance
    from ocsf_nft.nfnetlink import Generation
    from tests.kernel.serving import Served

pytestmark = pytest.mark.kernel

#: Sends to one port until its standard input ends, and prints how many packets were refused.
_FLOOD = """
import select, socket, sys
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
refused = others = 0
print("started", flush=True)
for number in range(20_000_000):
    try:
        sender.sendto(b"attempt", ("203.0.113.9", int(sys.argv[1])))
        others += 1
    except PermissionError:
        refused += 1
    if number % 64 == 0 and select.select([sys.stdin], [], [], 0)[0]:
        break
print(refused, others)
"""


@pytest.mark.parametrize("is_owned", [False, True])
async def test_each_packet_that_is_refused_before_a_release_is_counted(
    made: tuple[str, ...], tmp_path: Path, *, is_owned: bool
) -> None:
    name = made[0]
    async with serving(tmp_path) as served:
        for _ in range(3):
            await served.service.put(sandbox(name, exclusive=is_owned))
            counted = sum(served.attempts(name).values())
            flood = await asyncio.to_thread(_flood, name)
            assert flood.stdin is not None
            assert flood.stdout is not None
            assert await asyncio.to_thread(flood.stdout.readline) == b"started\n"
            await until(partial(_has_more, served, name, counted))
            final = await served.service.release(name)
            assert nft(named(name), "list", "ruleset") == ""
            (rest, _) = await asyncio.to_thread(flood.communicate)
            refused, sent = map(int, rest.split())
            assert sent > 0
            (egress,) = (each for each in final.balances if each.rule == "egress")
            assert egress.refused >= refused > 0
            await until(lambda: served.messages(name)[-1].endswith("packets."))
            assert served.attempts(name)[53] - counted == refused
            assert (egress.counter_mismatch, egress.pending) == (0, 0)


async def test_incident_of_a_flood_ends_once_at_a_release(
    made: tuple[str, ...], tmp_path: Path
) -> None:
    async with serving(tmp_path) as served:
        await served.service.put(sandbox(made[0]))
        flood = await asyncio.to_thread(_flood, made[0], 4444)
        await served.wait_for(lambda each: each["class_uid"] == 2004)
        await served.service.release(made[0])
        await asyncio.to_thread(flood.communicate)
    findings = [each for each in served.events if each["class_uid"] == 2004]
    assert len({each["finding_info"]["uid"] for each in findings}) == 1
    ends = [each for each in findings if each["status_detail"].startswith("Inactive since ")]
    assert ends == findings[-1:]


@pytest.mark.parametrize("is_late", [False, True])
async def test_fence_is_on_again_if_its_last_counts_cannot_be_stored(
    made: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_late: bool
) -> None:
    name, calls = made[0], 0
    close = AccountLoop.close

    async def failing(account: AccountLoop) -> tuple[Balance, ...]:
        nonlocal calls
        calls += 1
        if calls == 1:
            assert nft(named(name), "list", "ruleset").count("flags dormant") == 2
            if is_late:
                await asyncio.sleep(60)
            raise DeliveryError("the disk is full")
        return await close(account)

    async with serving(tmp_path) as served:
        await served.service.put(sandbox(name))
        assert await connect_to(name, 443) == {443: "refused"}
        with monkeypatch.context() as patched:
            patched.setattr(AccountLoop, "close", failing)
            patched.setattr("ocsf_nft.service.watched_sandbox._STORING_SECONDS", 0.1)
            with pytest.raises(DeliveryError, match="can't be stored" if is_late else "full"):
                await served.service.release(name)
        assert await connect_to(name, 444) == {444: "refused"}
        assert verification.verify(name, StateDirectory(tmp_path)).verdict == "as installed"
        await served.service.put(sandbox(name))
        final = await served.service.release(name)
        assert sum(each.refused for each in final.balances) == 2
        assert served.attempts(name) == {443: 1, 444: 1}


async def test_reload_that_cannot_store_the_last_counts_removes_no_fence(
    made: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, other, _ = made
    close, failed = AccountLoop.close, False

    async def failing(account: AccountLoop) -> tuple[Balance, ...]:
        nonlocal failed
        if not failed:
            failed = True
            raise DeliveryError("the disk is full")
        return await close(account)

    async with serving(tmp_path, sandbox(name)) as served:
        service = served.service
        assert await connect_to(name, 443) == {443: "refused"}
        monkeypatch.setattr(AccountLoop, "close", failing)
        moved = service.config.model_copy(update={"sandbox": (sandbox(name, netns=other),)})
        with pytest.raises(DeliveryError, match="full"):
            await service.reload(moved)
        assert await connect_to(name, 444) == {444: "refused"}
        assert service.view(name).state == "active"
    assert nft(named(name), "list", "ruleset") == "", "a clean stop removes it"
    assert served.attempts(name) == {443: 1, 444: 1}
    assert "Its fence refused 2 packets." in served.messages(name)[-1]


@pytest.mark.parametrize("is_turned_on", [False, True])
async def test_gap_is_reported_if_the_fence_may_have_refused_after_the_last_reading(
    made: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_turned_on: bool
) -> None:
    name, remove = made[0], installer.remove

    def late(*arguments: Any) -> bool:
        nft(named(name), "add table inet ocsf_nft")
        return remove(*arguments)

    def failing(*_: object) -> None:
        raise FenceError("another process owns it")

    async with serving(tmp_path) as served:
        await served.service.put(sandbox(name))
        if is_turned_on:
            monkeypatch.setattr(installer, "remove", late)
        else:
            monkeypatch.setattr(turn_off, "turn_off", failing)
        await served.service.release(name)
        assert nft(named(name), "list", "ruleset") == ""
        event = await served.wait_for(lambda each: each["activity_name"] == "Records Dropped")
        assert "between the last reading and its removal" in event["message"]


async def test_end_of_the_namespace_during_a_release_leaves_no_gap(
    made: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, turn = made[0], turn_off.turn_off

    def late(*arguments: Any) -> Generation | None:
        ip("netns", "del", name)
        namespaces.make(name)
        return turn(*arguments)

    async with serving(tmp_path) as served:
        await served.service.put(sandbox(name))
        monkeypatch.setattr(turn_off, "turn_off", late)
        await served.service.release(name)
        await served.wait_for(lambda each: "was released" in each["message"])
    assert "Records Dropped" not in {each["activity_name"] for each in served.events}
    assert served.messages(name)[-1] == f"Sandbox {name} was released. Its fence refused 0 packets."


async def test_fence_that_a_killed_service_had_turned_off_is_not_tampered_with(
    made: tuple[str, ...], tmp_path: Path
) -> None:
    name, state = made[0], StateDirectory(tmp_path)
    async with serving(tmp_path) as served:
        await served.service.put(sandbox(name))
    turn_off.turn_off(name, state)
    async with serving(tmp_path) as served:
        assert await connect_to(name, 443) == {443: "refused"}
    assert served.messages(name) == []
    record = state.read(name)
    assert record is not None
    assert not record.is_ending


def _has_more(served: Served, name: str, counted: int) -> bool:
    return sum(served.attempts(name).values()) > counted


def _flood(name: str, port: int = 53) -> subprocess.Popen[bytes]:
    return named(name).call(
        lambda: subprocess.Popen(
            [sys.executable, "-c", _FLOOD, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
    )
