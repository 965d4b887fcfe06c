"""Tests of the fallback chain: each record gets the best method, and none waits for long."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from ocsf_nft.attribution import fallback_chain, socket_lookups
from ocsf_nft.attribution.bpf_capture import UNKNOWN_IMAGE, Dropped
from ocsf_nft.attribution.fallback_chain import FallbackChain
from ocsf_nft.errors import UnsupportedError
from ocsf_nft.process import Process, Seen, limit_to_one_packet
from tests.attribution.calling import SYN, TCP
from tests.attribution.fallback_host import Host, Reasons, Sockets, by_socket
from tests.attribution.programs import Programs, call_now, record_now

#: Upper limit of each wait, enough for a slow machine.
_LONG = 5.0


async def test_chain_starts_with_the_best_method_and_closes_it_at_the_end(host: Host) -> None:
    host.programs.drops = Dropped(3, 4)
    async with host.chain() as chain:
        assert (chain.method, chain.reason, chain.dropped) == ("capture", None, 7)
        assert (host.sockets.is_open, host.programs.is_closed) == (False, False)
    assert (host.sockets.is_open, host.programs.is_closed, chain.dropped) == (False, True, 7)


async def test_chain_that_is_cancelled_while_it_opens_releases_its_resources(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening, unblocked = threading.Event(), threading.Event()

    def capture(*_: Any, **__: Any) -> Programs:
        opening.set()
        assert unblocked.wait(_LONG)
        return host.programs

    monkeypatch.setattr(fallback_chain, "Capture", capture)
    entering = asyncio.create_task(host.chain().__aenter__())
    await asyncio.to_thread(opening.wait, _LONG)
    entering.cancel()
    await asyncio.sleep(0)
    unblocked.set()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert host.programs.is_closed
    assert not host.sockets.is_open


async def test_capture_that_fails_at_its_first_read_is_closed(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Dropped:
        raise UnsupportedError("the BPF object file has no map dropped")

    monkeypatch.setattr(host.programs, "dropped", fail)
    async with host.chain() as chain:
        assert (chain.method, chain.reason) == ("socket", "the BPF object file has no map dropped")
        assert host.programs.is_closed


async def test_chain_without_types_captures_calls_and_gives_the_reason(host: Host) -> None:
    host.knows_types = False
    async with host.chain() as chain:
        assert (chain.method, chain.reason) == ("capture", "no types here")


async def test_chain_captures_calls_of_a_permissive_fence(host: Host) -> None:
    host.is_permissive = True
    host.programs.readings = [[call_now(7, protocol=TCP)]]
    async with host.chain() as chain:
        allowed = record_now(verdict="permit", protocol=TCP, tcp_flags=SYN)
        (found,) = await chain.attributions("sb", [allowed], 0)
    assert (found.method, found.confidence) == ("capture", "medium")
    assert found.process is not None


async def test_chain_without_a_capture_uses_the_socket_and_gives_the_reason(host: Host) -> None:
    host.programs.fault = "no BPF here"
    host.sockets.results = {1: by_socket(7)}
    async with host.chain() as chain:
        assert (chain.method, chain.reason) == ("socket", "no BPF here")
        (found,) = await chain.attributions("sb", [record_now()], 0)
        assert found.process == Process(pid=7)
        assert chain.since_last("sb", record_now(), 1, time.time_ns()) is None


async def test_chain_without_capture_and_sockets_uses_the_user(host: Host) -> None:
    host.programs.fault, host.sockets.fault = "no BPF here", "no namespace here"
    async with host.chain() as chain:
        assert chain.dropped == 0
        assert chain.method == "user"
        (found,) = await chain.attributions("sb", [record_now()], 0)
    assert (found.method, found.confidence, found.process) == ("user", "high", None)


@pytest.mark.parametrize(("top", "opens"), [("user", 0), ("socket", 1)])
async def test_chain_opens_no_better_method_than_requested(
    host: Host, monkeypatch: pytest.MonkeyPatch, top: str, opens: int
) -> None:
    opened = []

    def lookup(*_: object, **__: object) -> Sockets:
        opened.append("socket")
        return host.sockets

    for name in ("Capture", "cookie"):
        monkeypatch.setattr(fallback_chain, name, lambda *_: opened.append("capture"))
    monkeypatch.setattr(socket_lookups, "SocketLookup", lookup)
    async with host.chain(top=top) as chain:
        assert chain.method == top
        await chain.attributions("sb", [record_now()], 0)
        assert chain.reason is None
    assert opened == ["socket"] * opens
    async with FallbackChain() as empty:
        assert (await empty.attributions(None, [record_now()], 0))[0].method == "user"
    assert opened == ["socket"] * opens


async def test_chain_asks_the_sockets_for_packets_without_a_captured_sender(
    host: Host,
) -> None:
    unknown = call_now(0, source_port=4, image=UNKNOWN_IMAGE)
    host.programs.readings = [[call_now(7), call_now(8, source_port=4), unknown]]
    host.sockets.results = {3: by_socket(9), 4: "it was closed"}
    async with host.chain() as chain:
        records = [record_now(source_port=port) for port in (1, 2, 3, 4)]
        records[1] = replace(records[1], destination="203.0.113.9")
        records[2] = replace(records[2], protocol=TCP, tcp_flags=SYN)
        captured, by_user, had, closed = await chain.attributions("sb", records, 0)
    assert (captured.method, captured.process and captured.process.pid) == ("capture", 7)
    assert (by_user.method, by_user.reason) == ("user", "no process has it")
    assert (had.method, had.process) == ("socket", Process(pid=9))
    # A process was seen to send such a packet, and no process has its socket.
    assert (closed.method, closed.confidence, closed.process) == ("capture", "low", None)
    assert host.sockets.asked == [2, 3, 4]


async def test_holder_of_a_udp_socket_is_a_candidate_if_capture_saw_no_sender(
    host: Host,
) -> None:
    """A raw socket can send from any port, and capture reports each refused packet."""
    host.sockets.results = {1: by_socket(9)}
    async with host.chain() as chain:
        (found,) = await chain.attributions("sb", [record_now()], 0)
    assert (found.method, found.confidence, found.process) == ("socket", "low", None)
    assert [each.process for each in found.seen] == [Process(pid=9)]
    assert found.reason == (
        "it has the packet's socket, but the kernel did not see it send the packet"
    )
    host.is_permissive = True
    async with host.chain() as chain:
        (found,) = await chain.attributions("sb", [record_now()], 0)
    assert (found.method, found.process) == ("socket", Process(pid=9))


async def test_names_answered_in_time_are_in_the_first_attribution(host: Host) -> None:
    host.programs.readings = [[call_now(7)]]
    async with host.chain() as chain:
        (found,) = await chain.attributions("sb", [record_now()], 0)
    assert found.process is not None
    assert (found.process.user_name, found.process.group_name) == ("user1000", "group1000")


async def test_socket_result_replaces_an_uncertain_capture_only_if_it_is_certain(
    host: Host,
) -> None:
    syn = {"protocol": TCP, "is_syn": True}
    uncertain = [call_now(7, **syn), call_now(0, image=UNKNOWN_IMAGE, **syn)]
    several = replace(by_socket(9), confidence="low", process=None, seen=())
    results = ((by_socket(9), "socket"), (several, "capture"), ("closed", "capture"))
    for result, method in results:
        host.programs.readings = [list(uncertain)]
        host.sockets.results = {1: result}
        async with host.chain() as chain:
            packet = record_now(protocol=TCP, tcp_flags=SYN)
            assert (await chain.attributions("sb", [packet], 0))[0].method == method


@pytest.mark.parametrize("facts", [{"rule": "forward"}, {"rule": "ingress"}, {"uid": None}])
async def test_packet_that_no_process_of_the_sandbox_sent_has_no_process(
    host: Host, facts: dict[str, Any]
) -> None:
    host.sockets.results = {1: by_socket(7)}
    async with host.chain() as chain:
        (found,) = await chain.attributions("sb", [record_now(**facts)], 0)
        assert found.method == chain.user_attribution(record_now(**facts)).method == "none"
    assert host.sockets.asked == []


async def test_chain_does_not_look_up_processes_of_an_unknown_sandbox(host: Host) -> None:
    host.programs.readings = [[call_now(7)]]
    async with host.chain() as chain:
        (found,) = await chain.attributions("another", [record_now()], 0)
        expected = ("user", "process lookup is not active for this sandbox")
        assert (found.method, found.reason) == expected
        assert await chain.attributions("sb", [], 0) == []
        assert chain.since_last("another", record_now(), 1, time.time_ns()) is None
        chain.mark_reported("another", record_now(), Process(pid=7))
    assert host.sockets.asked == []


async def test_chain_falls_back_once_when_its_capture_ends(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fallback_chain, "_CHECK_SECONDS", 0.01)
    reasons = Reasons()
    async with host.chain() as chain, asyncio.timeout(_LONG):
        watching = asyncio.create_task(chain.watch_capture(reasons.add))
        await asyncio.sleep(0.05)
        assert (reasons, chain.method) == ([], "capture")
        host.programs.fault = "another process has detached it"
        os.eventfd_write(host.programs.descriptor, 1)
        await watching
        assert reasons == ["another process has detached it"]
        assert (chain.method, chain.reason) == ("socket", "another process has detached it")
        assert host.programs.is_closed
        assert not asyncio.get_running_loop().remove_reader(host.programs.descriptor)
        (found,) = await chain.attributions("sb", [record_now()], 0)
        assert found.method == "user"
        await chain.watch_capture(reasons.add)
        assert len(reasons) == 1


@pytest.mark.parametrize("readable", [True, False])
async def test_chain_falls_back_if_events_cannot_be_read(host: Host, *, readable: bool) -> None:
    async with host.chain() as chain:
        host.programs.fault = "it is broken"
        if readable:
            os.eventfd_write(host.programs.descriptor, 1)
            await asyncio.sleep(0.01)
            assert (chain.method, chain.reason) == ("user", "it is broken")
        (found,) = await chain.attributions("sb", [record_now()], 0)
        assert found.method == "user"
        assert (chain.method, chain.reason) == ("socket", "it is broken")
        assert host.sockets.is_late, "it was opened after the start"


def test_sender_of_one_packet_is_only_a_possible_sender_of_many() -> None:
    one = limit_to_one_packet(by_socket(7))
    assert (one.process, one.seen, one.confidence) == (None, (Seen(process=Process(pid=7)),), "low")
    assert limit_to_one_packet(one) is one
