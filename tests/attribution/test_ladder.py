"""Each record is told by the best rung that there is, and none waits for long."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import pytest

from ocsf_nft.attribution import credit, ladder
from ocsf_nft.attribution.capture import Lost
from ocsf_nft.attribution.ladder import Ladder, of_one_packet
from ocsf_nft.attribution.layout import NOBODY
from ocsf_nft.errors import AbsentError, UnsupportedError
from ocsf_nft.process import Attribution, Process, Seen
from tests.attribution.calling import NETNS
from tests.attribution.programs import Programs, made, read

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.attribution.users import Kind
    from ocsf_nft.record import Record

#: However slow this machine is, who waits for longer than this waits without an end.
_LONG = 5.0


@dataclass
class Sockets:
    """Who has the sockets: ``told`` by their ports, once it is not held up any more."""

    told: dict[int | None, Attribution | str] = field(default_factory=dict)
    fault: str | None = None
    asked: list[int | None] = field(default_factory=list)
    goes_on: threading.Event = field(default_factory=threading.Event)
    is_open: bool = False

    def __enter__(self) -> Self:
        if self.fault is not None:
            raise AbsentError(self.fault)
        self.is_open = True
        return self

    def __exit__(self, *_: object) -> None:
        self.is_open = False

    def attribution(self, said: Record) -> Attribution | str:
        self.asked.append(said.source_port)
        assert self.goes_on.wait(_LONG)
        return self.told.get(said.source_port, "nobody has it")


@dataclass
class NameService:
    """A name service that may hang; what it has answered is known."""

    goes_on: threading.Event = field(default_factory=threading.Event)
    known: set[tuple[Kind, int]] = field(default_factory=set)
    asked: int = 0

    def kept(self, kind: Kind, number: int) -> tuple[bool, str | None]:
        is_known = (kind, number) in self.known
        return is_known, f"{kind}{number}" if is_known else None

    def user(self, number: int) -> None:
        self._ask("user", number)

    def group(self, number: int) -> None:
        self._ask("group", number)

    def _ask(self, kind: Kind, number: int) -> None:
        self.asked += 1
        assert self.goes_on.wait(_LONG)
        self.known.add((kind, number))


@dataclass
class Host:
    """What a ladder stands on here, of which nothing hangs or fails until a test says so."""

    programs: Programs = field(default_factory=Programs)
    sockets: Sockets = field(default_factory=Sockets)
    names: NameService = field(default_factory=NameService)
    is_permissive: bool = False

    def capture(
        self, cookies: Any, *, permissive: Any, knows_types: bool | None = None
    ) -> Programs:
        assert list(cookies) == [NETNS]
        assert permissive == ({NETNS} if self.is_permissive else set())
        self.programs.check()
        if knows_types is None and not self.programs.knows_types:
            raise UnsupportedError("no types here")
        return self.programs

    def lookup(self, _namespace: object, hashes: object) -> Sockets:
        assert hashes is None
        return self.sockets

    def ladder(self, **facts: Any) -> Ladder:
        permissive = {"sb", "another"} if self.is_permissive else set()
        return Ladder({"sb": object()}, permissive=permissive, **facts)  # type: ignore[dict-item]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    here = Host()
    events = (here.sockets.goes_on, here.names.goes_on)
    for event in events:
        event.set()
    monkeypatch.setattr(ladder, "Capture", here.capture)
    monkeypatch.setattr(ladder, "cookie", lambda _namespace: NETNS)
    monkeypatch.setattr(ladder, "SocketLookup", here.lookup)
    monkeypatch.setattr(ladder, "Names", lambda: here.names)
    yield here
    for event in events:
        event.set()
    os.close(here.programs.descriptor)


def by_socket(pid: int) -> Attribution:
    return Attribution(
        rung="socket", sureness="medium", reason="it has it", process=Process(pid=pid)
    )


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

    monkeypatch.setattr(ladder, "Capture", capture)
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
    host.programs.readings = [[made(7)]]
    async with host.ladder() as standing:
        (found,) = await standing.attributions("sb", [read(verdict="permit")], 0)
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
        monkeypatch.setattr(ladder, name, lambda *_: tried.append("capture"))
    monkeypatch.setattr(ladder, "SocketLookup", lookup)
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


async def test_who_is_told_of_a_moment_later_is_found(host: Host) -> None:
    host.programs.readings = [[], [made(7)]]
    async with host.ladder() as standing:
        (found,) = await standing.attributions("sb", [read()], 0)
    assert (found.process and found.process.pid, host.sockets.asked) == (7, [])


async def test_ladder_does_not_wait_for_a_call_that_it_has_read(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ladder, "_LATER_SECONDS", 60.0)
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
    monkeypatch.setattr(credit, "_MOST_AT_ONCE", 0.0)
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
    monkeypatch.setattr(ladder, "_CHECK_SECONDS", 0.01)
    fell: list[str] = []

    async def tell(reason: str) -> None:
        fell.append(reason)

    async with host.ladder() as standing, asyncio.timeout(_LONG):
        checking = asyncio.create_task(standing.keep(tell))
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


async def test_a_capture_that_ends_is_stepped_down_from_once(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ladder, "_CHECK_SECONDS", 0.01)
    fell: list[str] = []

    async def tell(reason: str) -> None:
        fell.append(reason)

    async with host.ladder() as standing, asyncio.timeout(_LONG):
        keeping = asyncio.create_task(standing.keep(tell))
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
        await standing.keep(tell)
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
