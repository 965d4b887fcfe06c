"""Who has the socket that a packet came from: that one, several, or unknown; never another."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import itertools
import os
import signal
import socket
import tempfile
import threading
import time
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.attribution import sock_diag, socket_closed, socket_holders, socket_method
from ocsf_nft.attribution.socket_method import SocketLookup
from ocsf_nft.fence import installer
from ocsf_nft.lab import INTERNET4, INTERNET6
from ocsf_nft.process import Attribution
from ocsf_nft.sources.nflog import Nflog
from tests.kernel import holding, lookups

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ocsf_nft.attribution.proc_net_sockets import Socket
    from ocsf_nft.attribution.socket_holders import Scan
    from ocsf_nft.fence.spec import FenceSpec
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab
    from ocsf_nft.record import Record

pytestmark = pytest.mark.kernel

_USER = 1000
_OWN_FRAME = 0x88B5
_ATTEMPTS = 100


@dataclasses.dataclass(frozen=True)
class Attempt:
    """What a program has said, its record, and who can be asked about it while it lives."""

    program: holding.Program
    record: Record
    lookup: SocketLookup

    async def told(self) -> Attribution | str:
        return await asyncio.to_thread(self.lookup.attribution, self.record)


@pytest.fixture(autouse=True)
def _unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long this machine takes to look at all processes, it is not given up."""
    monkeypatch.setattr(socket_method, "_BUDGET_NS", 10**10)


@pytest.fixture
def sandbox(fenced: Lab) -> Lab:
    fenced.sandbox_namespace.call(allow_ping)
    return fenced


def allow_ping() -> None:
    Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 2147483647", encoding="ascii")


@asynccontextmanager
async def attempted(
    lab: Lab, spec: FenceSpec, scenario: str, *, uid: int = _USER, sender_uid: int | None = None
) -> AsyncIterator[Attempt]:
    """An attempt of a scenario, all of it done, its record read when the packet was sent."""
    wanted_uid = uid if sender_uid is None else sender_uid

    def is_wanted(record: Record) -> bool:
        is_out = record.destination in {INTERNET4, INTERNET6} or record.ethertype == _OWN_FRAME
        return record.uid == wanted_uid and is_out

    namespace = lab.sandbox_namespace
    with SocketLookup(namespace) as lookup:
        async with Nflog(namespace, spec.group) as source:
            starting = asyncio.create_task(
                asyncio.to_thread(holding.start, namespace, scenario, uid=uid)
            )
            record = await lookups.first(source.batches(), is_wanted)
            program = await starting
        try:
            yield Attempt(program, record, lookup)
        finally:
            await asyncio.to_thread(program.end)


def pids(told: Attribution | str) -> set[int]:
    assert isinstance(told, Attribution)
    return {seen.process.pid for seen in told.seen}


@pytest.mark.parametrize(
    "scenario",
    [
        "udp",
        "udp6",
        "udp_mapped",
        "udp_connected",
        "udp_elsewhere",
        "udp_on_device",
        "tcp_bound",
        "thread_alone",
        "leader_dead",
        "forked_after",
    ],
)
async def test_who_has_opened_the_socket_and_has_it_alone_is_named(
    sandbox: Lab, spec: FenceSpec, scenario: str
) -> None:
    async with attempted(sandbox, spec, scenario) as attempt:
        told = await attempt.told()
    assert isinstance(told, Attribution)
    assert told.process is not None
    assert (told.rung, told.sureness) == ("socket", "medium")
    assert told.process.pid == attempt.program.said["sender"] == attempt.program.pid
    assert told.process.uid == _USER
    assert told.process.path is not None
    assert "python3" in told.process.path
    assert not told.seen


@pytest.mark.parametrize("scenario", ["tcp6_on_device", "tcp_mapped"])
async def test_a_connection_that_a_permissive_fence_lets_through_has_a_socket(
    lab: Lab, spec: FenceSpec, state: StateDirectory, scenario: str
) -> None:
    permissive = dataclasses.replace(spec, is_permissive=True)
    installer.install(permissive, lab.sandbox_namespace, state, "nflog")
    async with attempted(lab, permissive, scenario) as attempt:
        told = await attempt.told()
    assert attempt.record.verdict == "permit"
    assert isinstance(told, Attribution)
    assert told.process is not None
    assert told.process.pid == attempt.program.pid


@pytest.mark.parametrize(
    ("scenario", "named", "why"),
    [
        ("forked", {"sender", "child"}, "each of them has"),
        ("passed", {"sender", "receiver"}, "each of them has"),
        ("shared_port", {"sender", "other"}, "each of them has"),
        ("parent_gone", {"child"}, "it was forked"),
        ("child_gone", {"parent"}, "a child of it may have had the socket too"),
        ("child_dead", {"parent"}, "a child of it may have had the socket too"),
        ("child_ignored", {"parent"}, "a child of it may have had the socket too"),
        ("passed_on", {"receiver"}, "it was forked"),
        ("passed_on_well", {"receiver"}, "it has a Unix socket"),
        ("executed", {"sender"}, "the socket is kept on exec"),
        ("udplite", {"sender"}, "the one that sent the packet may be gone"),
        ("ping4", {"sender"}, "the one that sent the packet may be gone"),
        ("ping6", {"sender"}, "the one that sent the packet may be gone"),
    ],
)
async def test_where_another_may_have_sent_nobody_is_named_as_the_one(
    sandbox: Lab, spec: FenceSpec, scenario: str, named: set[str], why: str
) -> None:
    async with attempted(sandbox, spec, scenario) as attempt:
        told = await attempt.told()
    assert isinstance(told, Attribution)
    assert told.process is None
    assert (told.rung, told.sureness, told.unnamed) == ("socket", "low", 0)
    assert pids(told) == {attempt.program.said[name] for name in named}
    assert why in told.reason


@pytest.mark.parametrize("scenario", ["raw4", "raw6", "packet"])
async def test_who_has_a_raw_or_a_packet_socket_may_have_sent(
    sandbox: Lab, spec: FenceSpec, scenario: str
) -> None:
    async with attempted(sandbox, spec, scenario, uid=0) as attempt:
        told = await attempt.told()
    assert isinstance(told, Attribution)
    assert (told.process, told.sureness) == (None, "low")
    assert pids(told) == {attempt.program.pid}


@pytest.mark.parametrize(
    ("scenario", "why"),
    [
        ("tcp", "has no socket of the packet's user with its connection"),
        ("tcp_port_taken", "has no socket of the packet's user with its connection"),
        ("gone", "has no socket of the packet's user with its port"),
        ("port_taken", "a socket that had the packet's port has ended"),
        ("shared_port_gone", "a socket that had the packet's port has ended"),
        ("many", "more sockets than can be looked through"),
    ],
)
async def test_who_is_gone_is_unknown_whoever_has_the_port_now(
    sandbox: Lab, spec: FenceSpec, scenario: str, why: str
) -> None:
    async with attempted(sandbox, spec, scenario) as attempt, asyncio.timeout(20):
        # The kernel reports the end of a socket later, and much later on a busy machine.
        while isinstance(told := await attempt.told(), Attribution):
            assert (told.process, told.sureness) == (None, "low")
    assert why in told


async def test_another_users_socket_with_the_port_makes_it_unsure(
    sandbox: Lab, spec: FenceSpec
) -> None:
    async with attempted(sandbox, spec, "other_user", uid=0, sender_uid=_USER) as attempt:
        told = await attempt.told()
    assert isinstance(told, Attribution)
    assert told.process is None
    assert pids(told) == {attempt.program.said["sender"]}
    assert "another socket may have sent the packet" in told.reason


async def test_where_not_all_was_looked_at_nobody_is_named(
    sandbox: Lab, spec: FenceSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with attempted(sandbox, spec, "udp") as attempt:

        def in_part(inodes: set[int], namespace: str, deadline_ns: int) -> Scan:
            return socket_holders.holders(inodes, namespace, deadline_ns)._replace(
                missed="that is why"
            )

        monkeypatch.setattr(socket_method, "holders", in_part)
        told = await attempt.told()
    assert isinstance(told, Attribution)
    assert told.process is None
    assert pids(told) == {attempt.program.pid}
    assert told.reason.endswith("that is why")


async def test_where_nobody_is_found_to_have_one_of_the_sockets_nobody_is_named(
    sandbox: Lab, spec: FenceSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with attempted(sandbox, spec, "udp") as attempt:
        real = attempt.lookup._tables.by_port

        def one_more(*asked: int, deadline_ns: int) -> tuple[Socket, ...]:
            (found,) = real(*asked, deadline_ns=deadline_ns)  # type: ignore[arg-type]
            return (found, found._replace(inode=1))

        monkeypatch.setattr(attempt.lookup._tables, "by_port", one_more)
        told = await attempt.told()
    assert isinstance(told, Attribution)
    assert told.process is None
    assert pids(told) == {attempt.program.pid}


async def test_who_could_be_framed_by_a_packet_made_by_hand_is_not_named(
    sandbox: Lab, spec: FenceSpec
) -> None:
    async with attempted(sandbox, spec, "forged", uid=0) as attempt:
        told = await attempt.told()
    assert isinstance(told, Attribution)
    assert told.process is None
    assert "as if they came from it" in told.reason


async def test_who_has_a_raw_socket_may_have_made_any_packet(sandbox: Lab, spec: FenceSpec) -> None:
    async with attempted(sandbox, spec, "forged_openly", uid=0) as attempt:
        told = await attempt.told()
    assert pids(told) == {attempt.program.said["sender"], attempt.program.said["victim"]}


async def test_a_process_outside_that_has_the_socket_is_told_to_be_outside(
    sandbox: Lab, spec: FenceSpec
) -> None:
    namespace = sandbox.sandbox_namespace

    def send() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with pytest.raises(PermissionError):
            sock.sendto(b"bypass", (INTERNET4, 443))
        return sock

    with SocketLookup(namespace) as lookup:
        async with Nflog(namespace, spec.group) as source:
            with await asyncio.to_thread(namespace.call, send):
                record = await lookups.first(source.batches(), lambda record: record.uid == 0)
                told = lookup.attribution(record)
    assert pids(told) == {os.getpid()}
    assert isinstance(told, Attribution)
    assert told.process is None
    assert "outside the sandbox" in told.reason


async def test_who_started_after_the_packet_has_not_sent_it(sandbox: Lab, spec: FenceSpec) -> None:
    """By the time, whatever else speaks for it."""
    async with attempted(sandbox, spec, "udp") as attempt:
        # As if nothing had ended since, and the packet were from before the program.
        before = dataclasses.replace(attempt.record, time_ns=attempt.record.time_ns - 10**9)
        attempt.lookup._since_ns = 0
        assert attempt.lookup._ended is not None
        attempt.lookup._ended._since_ns = 0
        told = await asyncio.to_thread(attempt.lookup.attribution, before)
    assert isinstance(told, str)
    assert "started later than the packet" in told


async def test_who_ends_while_it_is_looked_up_is_not_named(
    sandbox: Lab, spec: FenceSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with attempted(sandbox, spec, "udp") as attempt:

        def then_end(inodes: set[int], namespace: str, deadline_ns: int) -> Scan:
            found = socket_holders.holders(inodes, namespace, deadline_ns)
            os.kill(attempt.program.pid, signal.SIGKILL)
            os.waitid(os.P_PID, attempt.program.pid, os.WEXITED | os.WNOWAIT)
            _until_told(attempt)
            return found

        monkeypatch.setattr(socket_method, "holders", then_end)
        told = await attempt.told()
    assert told == "a socket that had the packet's port has ended"


@pytest.mark.parametrize(("seconds", "waits"), [(0, [0.003]), (1, [0.0])])
async def test_socket_lookup_waits_a_short_time_for_a_notice_that_the_socket_was_closed(
    sandbox: Lab, spec: FenceSpec, monkeypatch: pytest.MonkeyPatch, seconds: int, waits: list[float]
) -> None:
    slept: list[float] = []
    now_ns = time.monotonic_ns()
    clock = itertools.count(now_ns, seconds * 1_000_000_000)
    changed = {"sleep": slept.append, "monotonic_ns": lambda: next(clock)}
    async with attempted(sandbox, spec, "udp") as attempt:
        monkeypatch.setattr(socket_method, "time", SimpleNamespace(**{**vars(time), **changed}))
        assert isinstance(await attempt.told(), Attribution)
    assert slept == waits


async def test_socket_lookup_names_the_reason_why_it_cannot_tell(
    sandbox: Lab, spec: FenceSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Scan:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async with attempted(sandbox, spec, "udp") as attempt:
        lookup = attempt.lookup
        with monkeypatch.context() as patched:
            patched.setattr(socket_method, "holders", fail)
            told = await attempt.told()
            assert told == "the sandbox's sockets can't be looked at: Input/output error"
        with monkeypatch.context() as patched:
            patched.setattr(lookup, "_process", lambda _: None)
            told = await attempt.told()
            assert told == "the process that had the packet's socket has ended"
        found = lookup._candidates
        with monkeypatch.context() as patched:
            # A socket without a file, as after its process has closed it.
            patched.setattr(lookup, "_candidates", lambda *asked: _without_files(found(*asked)))
            told = await attempt.told()
            assert (
                told == "the socket of the packet's user with its port is closed: no process has it"
            )
        assert isinstance(await attempt.told(), Attribution)


def _without_files(found: socket_method._Candidates) -> socket_method._Candidates:
    closed = tuple(each._replace(inode=0) for each in found.sockets)
    return found._replace(sockets=closed)


def _until_told(attempt: Attempt) -> None:
    """Once the kernel has said that the attempt's socket has ended: it does so when it has time."""
    ended, end = attempt.lookup._ended, time.monotonic() + 5
    assert ended is not None
    assert attempt.record.source_port is not None
    while not ended.doubt(17, attempt.record.source_port, ended._since_ns):
        assert time.monotonic() < end, "it never said so"
        time.sleep(0.001)


async def test_many_are_not_all_named(
    sandbox: Lab, spec: FenceSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_method, "_MOST_SEEN", 1)
    async with attempted(sandbox, spec, "forked") as attempt:
        told = await attempt.told()
    assert isinstance(told, Attribution)
    assert (len(told.seen), told.unnamed) == (1, 1)


async def test_without_netlink_the_text_files_say_who_may_have_been(
    sandbox: Lab, spec: FenceSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking() -> socket.socket:
        raise OSError(errno.EPROTONOSUPPORT, os.strerror(errno.EPROTONOSUPPORT))

    monkeypatch.setattr(sock_diag, "_open_diag", lacking)
    monkeypatch.setattr(socket_closed, "_subscribe", lacking)
    for scenario in ("udp_mapped", "tcp", "udplite"):
        async with attempted(sandbox, spec, scenario) as attempt:
            told = await attempt.told()
        if scenario == "tcp":
            assert isinstance(told, str)
        else:
            assert isinstance(told, Attribution)
            assert told.process is None
            assert pids(told) == {attempt.program.pid}
            assert "may be gone" in told.reason


async def test_what_no_socket_of_the_sandbox_has_sent_is_not_looked_up(
    sandbox: Lab, spec: FenceSpec
) -> None:
    async with attempted(sandbox, spec, "udp") as attempt:
        now_ns = time.time_ns()
        for change, why in (
            ({"rule": "forward"}, "from no socket of it"),
            ({"rule": "vm-link"}, "from no socket of it"),
            ({"uid": None}, "no process's socket"),
            ({"uid": 7}, "has no socket of the packet's user"),
            ({"source_port": None}, "has no socket of the packet's user"),
            ({"protocol": None}, "has no socket that sends such packets"),
            ({"protocol": 132}, "has no ping or raw socket"),
            ({"time_ns": now_ns - 10**12}, "from before the sandbox's sockets were watched"),
            ({"time_ns": now_ns + 10**12}, "the clock was set back"),
        ):
            changed = dataclasses.replace(attempt.record, **change)
            told = await asyncio.to_thread(attempt.lookup.attribution, changed)
            assert isinstance(told, str), change
            assert why in told, change
        attempt.lookup.__exit__()
        assert "not watched any more" in str(await attempt.told())


async def test_socket_lookup_closed_during_a_lookup_gives_no_result(
    sandbox: Lab, spec: FenceSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, goes_on = threading.Event(), threading.Event()
    all_holders = socket_holders.holders

    def held_up(*arguments: Any) -> Scan:
        reading.set()
        assert goes_on.wait(10)
        return all_holders(*arguments)

    monkeypatch.setattr(socket_method, "holders", held_up)
    async with attempted(sandbox, spec, "udp") as attempt:
        answer = asyncio.create_task(attempt.told())
        await asyncio.to_thread(reading.wait, 10)
        attempt.lookup.__exit__()
        goes_on.set()
        assert "sockets can't be looked at" in str(await answer)


async def test_of_many_attempts_none_is_told_wrongly(
    sandbox: Lab, spec: FenceSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace = sandbox.sandbox_namespace
    with tempfile.TemporaryDirectory() as folder, SocketLookup(namespace) as lookup:
        program = lookups.build(Path(folder))
        async with Nflog(namespace, spec.group) as source:
            # Without a time limit, so the speed of the machine has no effect on the result.
            stays = await lookups.rate(
                namespace, source, lookup, program, "udp", "stays", _ATTEMPTS
            )
            monkeypatch.undo()
            rates = [
                await lookups.rate(namespace, source, lookup, program, protocol, ending, _ATTEMPTS)
                for protocol in ("tcp", "udp")
                for ending in ("gone", "stays")
            ]
    print(stays, *rates, sep="\n")  # noqa: T201 - the measured rates
    assert [rate.wrong for rate in (stays, *rates)] == [0] * 5
    # A port that another one had within five seconds is in doubt.
    assert stays.named + stays.seen >= 0.9 * _ATTEMPTS


async def test_whoever_takes_port_after_port_is_not_told_for_who_had_it_before(
    sandbox: Lab, spec: FenceSpec
) -> None:
    namespace = sandbox.sandbox_namespace
    namespace.call(_with_few_ports)
    churning = [holding.start(namespace, "churn") for _ in range(2)]
    with tempfile.TemporaryDirectory() as folder, SocketLookup(namespace) as lookup:
        program = lookups.build(Path(folder))
        async with Nflog(namespace, spec.group) as source:
            rate = await lookups.rate(namespace, source, lookup, program, "udp", "gone", _ATTEMPTS)
    for process in churning:
        process.end()
    print(rate)  # noqa: T201 - what was measured
    assert rate.wrong == 0


def _with_few_ports() -> None:
    ports = Path("/proc/sys/net/ipv4/ip_local_port_range")
    ports.write_text("40000 40039", encoding="ascii")


async def test_the_namespace_is_let_go(sandbox: Lab) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - shorter
    with SocketLookup(sandbox.sandbox_namespace) as lookup:
        lookup._tables.files.raw(4, time.monotonic_ns() + 10**9)
        assert len(os.listdir("/proc/self/fd")) > before  # noqa: PTH208 - shorter
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - shorter
