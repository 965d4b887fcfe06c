"""Tests of the waits of the fallback chain: for late calls, slow lookups and name services."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace
from typing import Any

import pytest

from ocsf_nft.attribution import fallback_chain, socket_method
from ocsf_nft.process import Process
from tests.attribution.calling import SYN, TCP
from tests.attribution.fallback_host import Host, Reasons, by_socket
from tests.attribution.programs import call_now, record_now

#: Upper limit of each wait, enough for a slow machine.
_LONG = 5.0


async def test_chain_finds_a_call_reported_a_bit_later(host: Host) -> None:
    host.programs.readings = [[], [call_now(7)]]
    async with host.chain() as chain:
        (found,) = await chain.attributions("sb", [record_now()], 0)
    assert (found.process and found.process.pid, host.sockets.asked) == (7, [])


async def test_chain_waits_for_the_report_of_a_sender_who_was_interrupted(host: Host) -> None:
    host.programs.readings = [[], [], [], [call_now(7)]]
    async with host.chain(wait_seconds=_LONG) as chain:
        (found,) = await chain.attributions("sb", [record_now()], 0)
    assert (found.process and found.process.pid, host.sockets.asked) == (7, [])


async def test_chain_waits_for_the_report_of_each_of_two_equal_packets(host: Host) -> None:
    host.programs.readings = [[call_now(7)], [], [], [call_now(8)]]
    async with host.chain(wait_seconds=_LONG) as chain:
        found = await chain.attributions("sb", [record_now(), record_now()], 0)
    assert [each.confidence for each in found] == ["medium", "medium"]
    assert host.programs.readings == []


async def test_chain_leaves_half_of_the_time_to_the_lookups(host: Host) -> None:
    host.programs.readings = [[]] * 1000
    host.sockets.results = {1: by_socket(9)}
    loop = asyncio.get_running_loop()
    async with host.chain(wait_seconds=2.0) as chain:
        began = loop.time()
        (found,) = await chain.attributions("sb", [record_now(protocol=TCP, tcp_flags=SYN)], 0)
        assert loop.time() - began < 1.5
    assert found.process == Process(pid=9)


@pytest.mark.parametrize("facts", [{"verdict": "permit"}, {"time_ns": 0}])
async def test_chain_waits_for_no_report_that_never_comes(
    host: Host, facts: dict[str, Any]
) -> None:
    host.programs.readings = [[]] * 1000
    loop = asyncio.get_running_loop()
    async with host.chain(wait_seconds=60.0) as chain:
        began = loop.time()
        await chain.attributions("sb", [replace(record_now(), **facts)], 0)
        assert loop.time() - began < _LONG


async def test_chain_does_not_wait_for_a_call_that_it_has_read(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fallback_chain, "_EVENT_DELAY_SECONDS", 60.0)
    host.programs.readings = [[call_now(7)]]
    async with host.chain() as chain, asyncio.timeout(_LONG):
        (found,) = await chain.attributions("sb", [record_now()], 0)
    assert (found.process and found.process.pid) == 7


async def test_chain_waits_once_for_a_blocked_lookup(host: Host) -> None:
    host.programs.fault = "no BPF here"
    host.sockets.unblocked.clear()
    loop = asyncio.get_running_loop()
    async with host.chain(wait_seconds=0.4) as chain:
        began = loop.time()
        found = await chain.attributions("sb", [record_now(), record_now()], 0)
        assert 0.39 <= loop.time() - began < _LONG / 2
        began = loop.time()
        found += await chain.attributions("sb", [record_now(source_port=2)], 0)
        assert loop.time() - began < 0.3
        too_long = ("user", "the lookup of its process would have taken too long")
        assert {(each.method, each.reason) for each in found} == {too_long}
        host.sockets.unblocked.set()
        assert chain._lookups._busy is not None
        await chain._lookups._busy
        assert host.sockets.asked == [1]  # the second lookup has passed its deadline
        host.sockets.results = {2: by_socket(7)}
        (found_later,) = await chain.attributions("sb", [record_now(source_port=2)], 0)
        assert found_later.process == Process(pid=7)


async def test_chain_waits_for_50_milliseconds_by_default(
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
    async with host.chain() as chain:
        await chain.attributions("sb", [record_now()], 0)
    assert waits == [0.05, 0.05]  # for the socket, and for names


async def test_chain_closes_the_socket_lookups_beside_a_lookup_in_progress(host: Host) -> None:
    host.programs.fault = "no BPF here"
    host.sockets.unblocked.clear()
    async with host.chain(wait_seconds=0.01) as chain:
        await chain.attributions("sb", [record_now()], 0)
    assert not host.sockets.is_open
    host.sockets.unblocked.set()


async def test_chain_limits_the_time_spent_on_lookups(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_method, "_MOST_SECONDS", 0.0)
    host.programs.fault = "no BPF here"
    async with host.chain() as chain:
        (found,) = await chain.attributions("sb", [record_now()], 0)
    assert (found.method, host.sockets.asked) == ("user", [])


async def test_chain_does_not_wait_for_a_slow_name_service(
    host: Host,
) -> None:
    host.names.unblocked.clear()
    host.programs.readings = [[call_now(7, sum=1), call_now(7, sum=2), call_now(7, sum=3)]]
    loop = asyncio.get_running_loop()
    async with host.chain(wait_seconds=0.1) as chain:
        packet = record_now(captured_sum=1)
        began = loop.time()
        (found,) = await chain.attributions("sb", [packet], 0)
        assert 0.09 <= loop.time() - began < _LONG / 2
        assert (found.user_name, found.process and found.process.user_name) == (None, None)
        await chain.attributions("sb", [replace(packet, captured_sum=2)], 0)
        assert host.names.asked == 1
        host.names.unblocked.set()
        assert chain._asking is not None
        await chain._asking
        (found,) = await chain.attributions("sb", [replace(packet, captured_sum=3)], 0)
        assert found.process is not None
        assert (found.user_name, found.process.group_name) == ("user1000", "group1000")
        assert chain.user_attribution(record_now()).group_name == "group1000"
        assert chain.user_attribution(record_now(uid=None, gid=None)).group_name is None


async def test_chain_reads_a_full_ring_without_a_query(host: Host) -> None:
    async with host.chain() as chain:
        host.programs.readings = [[call_now(7)]]
        os.eventfd_write(host.programs.descriptor, 1)
        await asyncio.sleep(0.01)
        assert host.programs.readings == []
        found = chain.since_last("sb", record_now(), 1, time.time_ns())
        assert found is not None
        assert found.process is not None


async def test_chain_reads_the_capture_at_each_regular_check(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check a ring with few calls: they don't wake a reader, and would fill the kernel's buffer."""
    monkeypatch.setattr(fallback_chain, "_CHECK_SECONDS", 0.01)
    reasons = Reasons()
    async with host.chain() as chain, asyncio.timeout(_LONG):
        checking = asyncio.create_task(chain.watch_capture(reasons.add))
        host.programs.readings = [[call_now(7)]]
        while host.programs.readings:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.01)
        checking.cancel()
    assert reasons == []


async def test_chain_waits_a_millisecond_for_late_calls_and_a_second_between_checks(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = asyncio.sleep
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if seconds == 0.001:
            host.programs.readings = [[], [call_now(7)]]
        elif seconds == 1.0:
            host.programs.fault = "another process has detached it"
        await real(0)

    async def on_fallback(reason: str) -> None:
        waits.append(len(reason))

    monkeypatch.setattr(asyncio, "sleep", sleep)
    async with host.chain() as chain, asyncio.timeout(_LONG):
        (found,) = await chain.attributions("sb", [record_now()], 0)
        assert (found.process and found.process.pid) == 7
        await chain.watch_capture(on_fallback)
    assert waits == [0.001, 0, 1.0, len("another process has detached it")]


async def test_chain_gives_other_tasks_a_turn_while_it_attributes_many_records(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, turns = asyncio.sleep, 0

    async def sleep(seconds: float) -> None:
        nonlocal turns
        turns += seconds == 0
        await real(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    host.is_permissive = True  # no call is late then
    async with host.chain() as chain:
        await chain.attributions("sb", [record_now()] * 160, 0)
    # After each 16 records, except the last ones, which may be late.
    assert turns >= 9 + 10 + 10


async def test_chain_reads_only_a_part_of_endless_events(host: Host) -> None:
    host.programs.readings = [[call_now(7, has_more=True)]]
    async with host.chain() as chain:
        for host.programs.is_endless, confidence in ((False, "high"), (True, "low")):
            (found,) = await chain.attributions("sb", [record_now()], 0)
            assert found.confidence == confidence
