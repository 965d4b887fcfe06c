"""Waits of the attribution ladder: for late calls, slow lookups and name services."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from ocsf_nft.attribution import fallback_chain, time_budget
from ocsf_nft.process import Process
from tests.attribution.ladder_host import Host, Reasons, by_socket
from tests.attribution.programs import made, read

if TYPE_CHECKING:
    import pytest


#: However slow this machine is, who waits for longer than this waits without an end.
_LONG = 5.0


async def test_who_is_told_of_a_moment_later_is_found(host: Host) -> None:
    host.programs.readings = [[], [made(7)]]
    async with host.ladder() as standing:
        (found,) = await standing.attributions("sb", [read()], 0)
    assert (found.process and found.process.pid, host.sockets.asked) == (7, [])


async def test_ladder_does_not_wait_for_a_call_that_it_has_read(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fallback_chain, "_LATER_SECONDS", 60.0)
    host.programs.readings = [[made(7)]]
    async with host.ladder() as standing, asyncio.timeout(_LONG):
        (found,) = await standing.attributions("sb", [read()], 0)
    assert (found.process and found.process.pid) == 7


async def test_no_record_waits_for_who_is_held_up_and_the_next_one_not_at_all(host: Host) -> None:
    host.programs.fault = "no BPF here"
    host.sockets.goes_on.clear()
    loop = asyncio.get_running_loop()
    async with host.ladder(wait_seconds=0.4) as standing:
        began = loop.time()
        found = await standing.attributions("sb", [read(), read()], 0)
        assert 0.39 <= loop.time() - began < _LONG / 2
        began = loop.time()
        found += await standing.attributions("sb", [read(source_port=2)], 0)
        assert loop.time() - began < 0.3
        too_long = ("user", "to look for its process would have taken too long")
        assert {(each.rung, each.reason) for each in found} == {too_long}
        host.sockets.goes_on.set()
        assert standing._busy is not None
        await standing._busy
        assert host.sockets.asked == [1]  # nobody waits for the second one any more
        host.sockets.told = {2: by_socket(7)}
        (found_later,) = await standing.attributions("sb", [read(source_port=2)], 0)
        assert found_later.process == Process(pid=7)


async def test_ladder_waits_for_50_milliseconds_by_default(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = asyncio.wait
    waits: list[float] = []

    async def wait(work: set[asyncio.Future[None]], *, timeout: float) -> None:  # noqa: ASYNC109
        waits.append(timeout)
        await real(work)

    monkeypatch.setattr(asyncio, "wait", wait)
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: 0.0)
    host.programs.fault = "no BPF here"
    async with host.ladder() as standing:
        await standing.attributions("sb", [read()], 0)
    assert waits == [0.05, 0.05]  # for the socket, and for names


async def test_ladder_closes_the_socket_lookups_beside_a_lookup_in_progress(host: Host) -> None:
    host.programs.fault = "no BPF here"
    host.sockets.goes_on.clear()
    async with host.ladder(wait_seconds=0.01) as standing:
        await standing.attributions("sb", [read()], 0)
    assert not host.sockets.is_open
    host.sockets.goes_on.set()


async def test_who_makes_us_look_all_the_time_is_looked_for_a_part_of_it(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_budget, "_MOST_AT_ONCE", 0.0)
    host.programs.fault = "no BPF here"
    async with host.ladder() as standing:
        (found,) = await standing.attributions("sb", [read()], 0)
    assert (found.rung, host.sockets.asked) == ("user", [])


async def test_names_are_told_once_they_are_known_and_nobody_waits_for_a_name_service(
    host: Host,
) -> None:
    host.names.goes_on.clear()
    host.programs.readings = [[made(7, sum=1), made(7, sum=2), made(7, sum=3)]]
    loop = asyncio.get_running_loop()
    async with host.ladder(wait_seconds=0.1) as standing:
        packet = read(captured_sum=1)
        began = loop.time()
        (found,) = await standing.attributions("sb", [packet], 0)
        assert 0.09 <= loop.time() - began < _LONG / 2
        assert (found.user_name, found.process and found.process.user_name) == (None, None)
        await standing.attributions("sb", [replace(packet, captured_sum=2)], 0)
        assert host.names.asked == 1
        host.names.goes_on.set()
        assert standing._asking is not None
        await standing._asking
        (found,) = await standing.attributions("sb", [replace(packet, captured_sum=3)], 0)
        assert found.process is not None
        assert (found.user_name, found.process.group_name) == ("user1000", "group1000")
        assert standing.of_user(read()).group_name == "group1000"
        assert standing.of_user(read(uid=None, gid=None)).group_name is None


async def test_much_that_comes_is_read_though_nobody_asks(host: Host) -> None:
    async with host.ladder() as standing:
        host.programs.readings = [[made(7)]]
        os.eventfd_write(host.programs.descriptor, 1)
        await asyncio.sleep(0.01)
        assert host.programs.readings == []
        found = standing.since_last("sb", read(), 1, time.time_ns())
        assert found is not None
        assert found.process is not None


async def test_ladder_reads_the_capture_at_each_regular_check(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few calls don't wake a reader. Without a regular check they fill the kernel's buffer."""
    monkeypatch.setattr(fallback_chain, "_CHECK_SECONDS", 0.01)
    fell = Reasons()
    async with host.ladder() as standing, asyncio.timeout(_LONG):
        checking = asyncio.create_task(standing.keep(fell.add))
        host.programs.readings = [[made(7)]]
        while host.programs.readings:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.01)
        checking.cancel()
    assert fell == []


async def test_ladder_waits_a_millisecond_for_late_calls_and_a_second_between_checks(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = asyncio.sleep
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if seconds == 0.001:
            host.programs.readings = [[], [made(7)]]
        elif seconds == 1.0:
            host.programs.fault = "somebody has detached it"
        await real(0)

    async def tell(reason: str) -> None:
        waits.append(len(reason))

    monkeypatch.setattr(asyncio, "sleep", sleep)
    async with host.ladder() as standing, asyncio.timeout(_LONG):
        (found,) = await standing.attributions("sb", [read()], 0)
        assert (found.process and found.process.pid) == 7
        await standing.keep(tell)
    assert waits == [0.001, 0, 1.0, len("somebody has detached it")]


async def test_ladder_gives_other_tasks_a_turn_while_it_attributes_many_records(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, turns = asyncio.sleep, 0

    async def sleep(seconds: float) -> None:
        nonlocal turns
        turns += seconds == 0
        await real(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    host.is_permissive = True  # no call is late then
    async with host.ladder() as standing:
        await standing.attributions("sb", [read()] * 160, 0)
    # After each 16 records, but for the last ones that may be late.
    assert turns >= 9 + 10 + 10


async def test_what_has_no_end_is_read_a_bit_of(host: Host) -> None:
    host.programs.readings = [[made(7, has_more=True)]]
    async with host.ladder() as standing:
        for host.programs.is_endless, sureness in ((False, "high"), (True, "low")):
            (found,) = await standing.attributions("sb", [read()], 0)
            assert found.sureness == sureness
