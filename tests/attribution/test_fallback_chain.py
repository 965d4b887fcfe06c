"""Each record is told by the best rung that there is, and none waits for long."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from ocsf_nft.attribution import fallback_chain
from ocsf_nft.attribution.bpf_capture import Lost
from ocsf_nft.attribution.bpf_layout import NOBODY
from ocsf_nft.attribution.fallback_chain import Ladder, of_one_packet
from ocsf_nft.process import Process, Seen
from tests.attribution.calling import SYN, TCP
from tests.attribution.ladder_host import Host, Reasons, Sockets, by_socket
from tests.attribution.programs import Programs, made, read

#: However slow this machine is, who waits for longer than this waits without an end.
_LONG = 5.0


async def test_it_stands_on_the_best_rung_and_lets_go_of_it_in_the_end(host: Host) -> None:
    host.programs.so_far = Lost(3, 4)
    async with host.ladder() as standing:
        assert (standing.rung, standing.reason, standing.lost) == ("capture", None, 7)
        assert (host.sockets.is_open, host.programs.is_closed) == (True, False)
    assert (host.sockets.is_open, host.programs.is_closed, standing.lost) == (False, True, 7)


async def test_ladder_that_is_cancelled_while_it_opens_releases_what_it_opened(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening, goes_on = threading.Event(), threading.Event()

    def capture(*_: Any, **__: Any) -> Programs:
        opening.set()
        assert goes_on.wait(_LONG)
        return host.programs

    monkeypatch.setattr(fallback_chain, "Capture", capture)
    entering = asyncio.create_task(host.ladder().__aenter__())
    await asyncio.to_thread(opening.wait, _LONG)
    entering.cancel()
    await asyncio.sleep(0)
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert host.programs.is_closed
    assert not host.sockets.is_open


async def test_without_types_it_captures_what_it_can_and_says_why(host: Host) -> None:
    host.programs.knows_types = False
    async with host.ladder() as standing:
        assert (standing.rung, standing.reason) == ("capture", "no types here")


async def test_of_what_a_fence_lets_pass_calls_are_captured(host: Host) -> None:
    host.is_permissive = True
    host.programs.readings = [[made(7, protocol=TCP)]]
    async with host.ladder() as standing:
        allowed = read(verdict="permit", protocol=TCP, tcp_flags=SYN)
        (found,) = await standing.attributions("sb", [allowed], 0)
    assert (found.rung, found.sureness) == ("capture", "medium")
    assert found.process is not None


async def test_without_a_capture_it_is_the_socket_and_says_why(host: Host) -> None:
    host.programs.fault = "no BPF here"
    host.sockets.told = {1: by_socket(7)}
    async with host.ladder() as standing:
        assert (standing.rung, standing.reason) == ("socket", "no BPF here")
        (found,) = await standing.attributions("sb", [read()], 0)
        assert found.process == Process(pid=7)
        assert standing.since_last("sb", read(), 1, time.time_ns()) is None


async def test_without_anything_it_is_the_user(host: Host) -> None:
    host.programs.fault, host.sockets.fault = "no BPF here", "no namespace here"
    async with host.ladder() as standing:
        assert standing.lost == 0
        assert standing.rung == "user"
        (found,) = await standing.attributions("sb", [read()], 0)
    assert (found.rung, found.sureness, found.process) == ("user", "high", None)


@pytest.mark.parametrize(("top", "opens"), [("user", 0), ("socket", 1)])
async def test_no_better_rung_is_tried_than_is_asked_for(
    host: Host, monkeypatch: pytest.MonkeyPatch, top: str, opens: int
) -> None:
    tried = []

    def lookup(*_: object) -> Sockets:
        tried.append("socket")
        return host.sockets

    for name in ("Capture", "cookie"):
        monkeypatch.setattr(fallback_chain, name, lambda *_: tried.append("capture"))
    monkeypatch.setattr(fallback_chain, "SocketLookup", lookup)
    async with host.ladder(top=top) as standing:
        assert standing.rung == top
        await standing.attributions("sb", [read()], 0)
        assert standing.reason is None
    assert tried == ["socket"] * opens
    async with Ladder({}) as nowhere:
        assert (await nowhere.attributions("sb", [read()], 0))[0].rung == "user"
    assert tried == ["socket"] * opens


async def test_who_was_captured_is_told_and_the_sockets_are_asked_for_the_others(
    host: Host,
) -> None:
    nobodys = made(0, source_port=4, image=NOBODY)
    host.programs.readings = [[made(7), made(8, source_port=4), nobodys]]
    host.sockets.told = {3: by_socket(9), 4: "it is gone"}
    async with host.ladder() as standing:
        records = [read(source_port=port) for port in (1, 2, 3, 4)]
        records[1] = replace(records[1], destination="203.0.113.9")
        captured, nobody, had, gone = await standing.attributions("sb", records, 0)
    assert (captured.rung, captured.process and captured.process.pid) == ("capture", 7)
    assert (nobody.rung, nobody.reason) == ("user", "nobody has it")
    assert (had.rung, had.process) == ("socket", Process(pid=9))
    # It may be who was seen to send such a packet, and nobody has its socket.
    assert (gone.rung, gone.sureness, gone.process) == ("capture", "low", None)
    assert host.sockets.asked == [2, 3, 4]


async def test_names_that_are_answered_in_time_are_those_of_the_first_process(host: Host) -> None:
    host.programs.readings = [[made(7)]]
    async with host.ladder() as standing:
        (found,) = await standing.attributions("sb", [read()], 0)
    assert found.process is not None
    assert (found.process.user_name, found.process.group_name) == ("user1000", "group1000")


async def test_where_the_capture_is_not_sure_the_sockets_say_more_or_nothing(host: Host) -> None:
    unsure = [made(7), made(0, image=NOBODY)]
    several = replace(by_socket(9), sureness="low", process=None, seen=())
    for told, rung in ((by_socket(9), "socket"), (several, "capture"), ("gone", "capture")):
        host.programs.readings = [list(unsure)]
        host.sockets.told = {1: told}
        async with host.ladder() as standing:
            assert (await standing.attributions("sb", [read()], 0))[0].rung == rung


@pytest.mark.parametrize("facts", [{"rule": "forward"}, {"rule": "ingress"}, {"uid": None}])
async def test_what_no_process_of_the_sandbox_has_sent_is_nobodys(
    host: Host, facts: dict[str, Any]
) -> None:
    host.sockets.told = {1: by_socket(7)}
    async with host.ladder() as standing:
        (found,) = await standing.attributions("sb", [read(**facts)], 0)
        assert found.rung == standing.of_user(read(**facts)).rung == "none"
    assert host.sockets.asked == []


async def test_in_another_sandbox_nobody_is_looked_for(host: Host) -> None:
    host.programs.readings = [[made(7)]]
    async with host.ladder() as standing:
        (found,) = await standing.attributions("another", [read()], 0)
        assert (found.rung, found.reason) == ("user", "processes are not looked for")
        assert await standing.attributions("sb", [], 0) == []
        assert standing.since_last("another", read(), 1, time.time_ns()) is None
        standing.told("another", read(), Process(pid=7))
    assert host.sockets.asked == []


async def test_a_capture_that_ends_is_stepped_down_from_once(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fallback_chain, "_CHECK_SECONDS", 0.01)
    fell = Reasons()
    async with host.ladder() as standing, asyncio.timeout(_LONG):
        keeping = asyncio.create_task(standing.keep(fell.add))
        await asyncio.sleep(0.05)
        assert (fell, standing.rung) == ([], "capture")
        host.programs.fault = "somebody has detached it"
        os.eventfd_write(host.programs.descriptor, 1)
        await keeping
        assert fell == ["somebody has detached it"]
        assert (standing.rung, standing.reason) == ("socket", "somebody has detached it")
        assert host.programs.is_closed
        assert not asyncio.get_running_loop().remove_reader(host.programs.descriptor)
        (found,) = await standing.attributions("sb", [read()], 0)
        assert found.rung == "user"
        await standing.keep(fell.add)
        assert len(fell) == 1


@pytest.mark.parametrize("readable", [True, False])
async def test_it_steps_down_where_what_came_can_not_be_read(host: Host, *, readable: bool) -> None:
    async with host.ladder() as standing:
        host.programs.fault = "it is broken"
        if readable:
            os.eventfd_write(host.programs.descriptor, 1)
            await asyncio.sleep(0.01)
        else:
            (found,) = await standing.attributions("sb", [read()], 0)
            assert found.rung == "user"
        assert (standing.rung, standing.reason) == ("socket", "it is broken")


def test_who_sent_one_of_many_packets_may_not_have_sent_the_others() -> None:
    one = of_one_packet(by_socket(7))
    assert (one.process, one.seen, one.sureness) == (None, (Seen(process=Process(pid=7)),), "low")
    assert of_one_packet(one) is one
