"""Lookup of the process that has a packet's socket: it names the sender, several, or none."""

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

from ocsf_nft.attribution import sock_diag, socket_holders, socket_method
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
    """A running program, the record of its packet, and the lookup for it."""

    program: holding.Program
    record: Record
    lookup: SocketLookup

    async def attribution(self) -> Attribution | str:
        return await asyncio.to_thread(self.lookup.attribution, self.record)


@pytest.fixture(autouse=True)
def _without_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a lookup take long, so that a slow machine does not end it."""
    monkeypatch.setattr(socket_method, "_BUDGET_NS", 10**11)


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
    """Run the attempt of a scenario to its end; read its record when the packet is sent."""
    expected_uid = uid if sender_uid is None else sender_uid

    def is_of_attempt(record: Record) -> bool:
        is_out = record.destination in {INTERNET4, INTERNET6} or record.ethertype == _OWN_FRAME
        return record.uid == expected_uid and is_out

    namespace = lab.sandbox_namespace
    with SocketLookup(namespace) as lookup:
        async with Nflog(namespace, spec.group) as source:
            recorded = threading.Event()
            starting = asyncio.create_task(
                asyncio.to_thread(holding.start, namespace, scenario, uid=uid, recorded=recorded)
            )
            try:
                record = await lookups.first(source.batches(), is_of_attempt)
            finally:
                recorded.set()
            program = await starting
        try:
            yield Attempt(program, record, lookup)
        finally:
            await asyncio.to_thread(program.end)


def pids(result: Attribution | str) -> set[int]:
    assert isinstance(result, Attribution)
    return {seen.process.pid for seen in result.seen}


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
async def test_only_process_with_the_socket_that_it_opened_is_named(
    sandbox: Lab, spec: FenceSpec, scenario: str
) -> None:
    async with attempted(sandbox, spec, scenario) as attempt:
        result = await attempt.attribution()
    assert isinstance(result, Attribution)
    assert result.process is not None
    assert (result.method, result.confidence) == ("socket", "medium")
    assert result.process.pid == attempt.program.pids["sender"] == attempt.program.pid
    assert result.process.uid == _USER
    assert result.process.path is not None
    assert "python3" in result.process.path
    assert not result.seen


@pytest.mark.parametrize("scenario", ["tcp6_on_device", "tcp_mapped"])
async def test_connection_allowed_by_a_permissive_fence_has_a_socket(
    lab: Lab, spec: FenceSpec, state: StateDirectory, scenario: str
) -> None:
    permissive = dataclasses.replace(spec, is_permissive=True)
    installer.install(permissive, lab.sandbox_namespace, state, "nflog")
    async with attempted(lab, permissive, scenario) as attempt:
        result = await attempt.attribution()
    assert attempt.record.verdict == "permit"
    assert isinstance(result, Attribution)
    assert result.process is not None
    assert result.process.pid == attempt.program.pid


@pytest.mark.parametrize(
    ("scenario", "named", "why"),
    [
        ("forked", {"sender", "child"}, "each of them has"),
        ("passed", {"sender", "receiver"}, "each of them has"),
        ("shared_port", {"sender", "other"}, "each of them has"),
        ("parent_exited", {"child"}, "it was forked"),
        ("child_exited", {"parent"}, "a child of it may have had the socket too"),
        ("child_dead", {"parent"}, "a child of it may have had the socket too"),
        ("child_ignored", {"parent"}, "a child of it may have had the socket too"),
        ("passed_on", {"receiver"}, "it was forked"),
        ("passed_on_well", {"receiver"}, "it has a Unix socket"),
        ("executed", {"sender"}, "the socket stays open on exec"),
        ("udplite", {"sender"}, "the sender may have ended"),
        ("ping4", {"sender"}, "the sender may have ended"),
        ("ping6", {"sender"}, "the sender may have ended"),
    ],
)
async def test_possible_other_sender_makes_the_processes_only_candidates(
    sandbox: Lab, spec: FenceSpec, scenario: str, named: set[str], why: str
) -> None:
    async with attempted(sandbox, spec, scenario) as attempt:
        result = await attempt.attribution()
    assert isinstance(result, Attribution)
    assert result.process is None
    assert (result.method, result.confidence, result.unnamed) == ("socket", "low", 0)
    assert pids(result) == {attempt.program.pids[name] for name in named}
    assert why in result.reason


@pytest.mark.parametrize("scenario", ["raw4", "raw6", "packet"])
async def test_process_with_a_raw_or_a_packet_socket_is_a_candidate(
    sandbox: Lab, spec: FenceSpec, scenario: str
) -> None:
    async with attempted(sandbox, spec, scenario, uid=0) as attempt:
        result = await attempt.attribution()
    assert isinstance(result, Attribution)
    assert (result.process, result.confidence) == (None, "low")
    assert pids(result) == {attempt.program.pid}


@pytest.mark.parametrize(
    ("scenario", "why"),
    [
        ("tcp", "no longer has a socket of the packet's user with its connection"),
        ("tcp_port_taken", "no longer has a socket of the packet's user with its connection"),
        ("exited", "no longer has a socket of the packet's user with its port"),
        ("port_taken", "a socket that had the packet's port was closed"),
        ("shared_port_exited", "a socket that had the packet's port was closed"),
        ("many", "more sockets than the lookup can check"),
    ],
)
async def test_exited_sender_is_unknown_even_if_another_process_has_the_port(
    sandbox: Lab, spec: FenceSpec, scenario: str, why: str
) -> None:
    async with attempted(sandbox, spec, scenario) as attempt, asyncio.timeout(60):
        # The kernel reports a closed socket later, and much later on a busy machine.
        while isinstance(result := await attempt.attribution(), Attribution):
            assert (result.process, result.confidence) == (None, "low")
    assert why in result


async def test_socket_of_another_user_with_the_port_makes_the_sender_uncertain(
    sandbox: Lab, spec: FenceSpec
) -> None:
    async with attempted(sandbox, spec, "other_user", uid=0, sender_uid=_USER) as attempt:
        result = await attempt.attribution()
    assert isinstance(result, Attribution)
    assert result.process is None
    assert pids(result) == {attempt.program.pids["sender"]}
    assert "another socket may have sent the packet" in result.reason


async def test_incomplete_search_names_no_sender(
    sandbox: Lab, spec: FenceSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with attempted(sandbox, spec, "udp") as attempt:

        def in_part(inodes: set[int], namespace: str, deadline_ns: int) -> Scan:
            found = socket_holders.find_holders(inodes, namespace, deadline_ns)
            return found._replace(missed="that is why")

        monkeypatch.setattr(socket_method, "find_holders", in_part)
        result = await attempt.attribution()
    assert isinstance(result, Attribution)
    assert result.process is None
    assert pids(result) == {attempt.program.pid}
    assert result.reason.endswith("that is why")


async def test_socket_without_a_holder_makes_the_sender_uncertain(
    sandbox: Lab, spec: FenceSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with attempted(sandbox, spec, "udp") as attempt:
        real = attempt.lookup.tables.by_port

        def one_more(*arguments: int, deadline_ns: int) -> tuple[Socket, ...]:
            (found,) = real(*arguments, deadline_ns=deadline_ns)  # type: ignore[arg-type]
            return (found, found._replace(inode=1))

        monkeypatch.setattr(attempt.lookup.tables, "by_port", one_more)
        result = await attempt.attribution()
    assert isinstance(result, Attribution)
    assert result.process is None
    assert pids(result) == {attempt.program.pid}


async def test_sender_is_uncertain_if_the_packet_could_be_made_by_hand(
    sandbox: Lab, spec: FenceSpec
) -> None:
    async with attempted(sandbox, spec, "forged", uid=0) as attempt:
        result = await attempt.attribution()
    assert isinstance(result, Attribution)
    assert result.process is None
    assert "that seem to come from it" in result.reason


async def test_process_with_a_raw_socket_may_have_made_any_packet(
    sandbox: Lab, spec: FenceSpec
) -> None:
    async with attempted(sandbox, spec, "forged_openly", uid=0) as attempt:
        result = await attempt.attribution()
    assert pids(result) == {attempt.program.pids["sender"], attempt.program.pids["victim"]}


async def test_process_outside_that_has_the_socket_is_reported_as_outside(
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
                result = lookup.attribution(record)
    assert pids(result) == {os.getpid()}
    assert isinstance(result, Attribution)
    assert result.process is None
    assert "outside the sandbox" in result.reason


async def test_process_that_started_after_the_packet_is_not_named(
    sandbox: Lab, spec: FenceSpec
) -> None:
    """Its start time alone excludes it."""
    async with attempted(sandbox, spec, "udp") as attempt:
        # As if no socket was closed since, and the packet were from before the program.
        before = dataclasses.replace(attempt.record, time_ns=attempt.record.time_ns - 10**11)
        attempt.lookup._since_ns = 0
        result = await asyncio.to_thread(attempt.lookup.attribution, before)
    assert isinstance(result, str)
    assert "only processes that started after the packet have" in result


async def test_process_that_ends_during_the_lookup_is_not_named(
    sandbox: Lab, spec: FenceSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with attempted(sandbox, spec, "udp") as attempt:

        def then_end(inodes: set[int], namespace: str, deadline_ns: int) -> Scan:
            found = socket_holders.find_holders(inodes, namespace, deadline_ns)
            os.kill(attempt.program.pid, signal.SIGKILL)
            os.waitid(os.P_PID, attempt.program.pid, os.WEXITED | os.WNOWAIT)
            _wait_for_notice(attempt)
            return found

        monkeypatch.setattr(socket_method, "find_holders", then_end)
        result = await attempt.attribution()
    assert result == "a socket that had the packet's port was closed"


@pytest.mark.parametrize(("seconds", "waits"), [(0, [0.003]), (1, [0.0])])
async def test_socket_lookup_waits_a_short_time_for_a_notice_that_the_socket_was_closed(
    sandbox: Lab, spec: FenceSpec, monkeypatch: pytest.MonkeyPatch, seconds: int, waits: list[float]
) -> None:
    slept: list[float] = []
    async with attempted(sandbox, spec, "udp") as attempt:
        clock = itertools.count(time.monotonic_ns(), seconds * 1_000_000_000)
        changed = {"sleep": slept.append, "monotonic_ns": lambda: next(clock)}
        monkeypatch.setattr(socket_method, "time", SimpleNamespace(**{**vars(time), **changed}))
        assert isinstance(await attempt.attribution(), Attribution)
    assert slept == waits


async def test_failed_lookup_returns_the_reason(
    sandbox: Lab, spec: FenceSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Scan:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async with attempted(sandbox, spec, "udp") as attempt:
        lookup = attempt.lookup
        with monkeypatch.context() as patched:
            patched.setattr(socket_method, "find_holders", fail)
            result = await attempt.attribution()
            assert result == "the sandbox's sockets can't be read: Input/output error"
        with monkeypatch.context() as patched:
            patched.setattr(lookup, "_process", lambda _: None)
            result = await attempt.attribution()
            assert result == "the process that had the packet's socket has ended"
        found = lookup._candidates
        with monkeypatch.context() as patched:
            # A socket without a file, as after its process has closed it.
            patched.setattr(lookup, "_candidates", lambda *passed: _without_files(found(*passed)))
            result = await attempt.attribution()
            assert (
                result
                == "the socket of the packet's user with its port is closed: no process has it"
            )
        assert isinstance(await attempt.attribution(), Attribution)


def _without_files(found: socket_method._Candidates) -> socket_method._Candidates:
    closed = tuple(each._replace(inode=0) for each in found.sockets)
    return found._replace(sockets=closed)


def _wait_for_notice(attempt: Attempt) -> None:
    """Wait until the kernel has reported that the attempt's socket was closed."""
    closed, end = attempt.lookup.closed, time.monotonic() + 60
    assert closed is not None
    assert attempt.record.source_port is not None
    while not closed.doubt(17, attempt.record.source_port, attempt.lookup._since_ns):
        assert time.monotonic() < end, "the kernel has sent no notice"
        time.sleep(0.001)


async def test_only_some_of_many_processes_are_named(
    sandbox: Lab, spec: FenceSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_method, "_MOST_SEEN", 1)
    async with attempted(sandbox, spec, "forked") as attempt:
        result = await attempt.attribution()
    assert isinstance(result, Attribution)
    assert (len(result.seen), result.unnamed) == (1, 1)


async def test_lookup_without_netlink_uses_the_text_files(
    sandbox: Lab, spec: FenceSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking() -> socket.socket:
        raise OSError(errno.EPROTONOSUPPORT, os.strerror(errno.EPROTONOSUPPORT))

    monkeypatch.setattr(sock_diag, "_open_diag", lacking)
    monkeypatch.setattr(sock_diag, "_subscribe", lacking)
    for scenario in ("udp_mapped", "tcp", "udplite"):
        async with attempted(sandbox, spec, scenario) as attempt:
            result = await attempt.attribution()
        if scenario == "tcp":
            assert isinstance(result, str)
        else:
            assert isinstance(result, Attribution)
            assert result.process is None
            assert pids(result) == {attempt.program.pid}
            assert "may have ended" in result.reason


async def test_packet_that_no_socket_of_the_sandbox_sent_is_not_looked_up(
    sandbox: Lab, spec: FenceSpec
) -> None:
    async with attempted(sandbox, spec, "udp") as attempt:
        now_ns = time.time_ns()
        for change, why in (
            ({"uid": None}, "no longer has a socket of the packet's user"),
            ({"uid": 7}, "no longer has a socket of the packet's user"),
            ({"source_port": None}, "no longer has a socket of the packet's user"),
            ({"protocol": None}, "no longer has a socket that sends such packets"),
            ({"protocol": 132}, "no longer has a ping or raw socket"),
            ({"time_ns": now_ns - 10**12}, "from before the sandbox's sockets were watched"),
            ({"time_ns": now_ns + 10**12}, "the clock was set back"),
        ):
            changed = dataclasses.replace(attempt.record, **change)
            result = await asyncio.to_thread(attempt.lookup.attribution, changed)
            assert isinstance(result, str), change
            assert why in result, change
        attempt.lookup.__exit__()
        assert "no longer watched" in str(await attempt.attribution())


async def test_socket_lookup_closed_during_a_lookup_gives_no_result(
    sandbox: Lab, spec: FenceSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, unblocked = threading.Event(), threading.Event()
    real = socket_holders.find_holders

    def blocked(*arguments: Any) -> Scan:
        reading.set()
        assert unblocked.wait(60)
        return real(*arguments)

    monkeypatch.setattr(socket_method, "find_holders", blocked)
    async with attempted(sandbox, spec, "udp") as attempt:
        answer = asyncio.create_task(attempt.attribution())
        await asyncio.to_thread(reading.wait, 60)
        attempt.lookup.__exit__()
        unblocked.set()
        assert "sockets can't be read" in str(await answer)


async def test_none_of_many_attempts_has_a_wrong_sender(
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
                for ending in ("exits", "stays")
            ]
    print(stays, *rates, sep="\n")  # noqa: T201 - the measured rates
    assert [rate.wrong for rate in (stays, *rates)] == [0] * 5
    # A port that another process had within five seconds is in doubt.
    assert stays.named + stays.seen >= 0.9 * _ATTEMPTS


async def test_process_that_takes_port_after_port_is_not_named_for_an_earlier_owner(
    sandbox: Lab, spec: FenceSpec
) -> None:
    namespace = sandbox.sandbox_namespace
    namespace.call(_with_few_ports)
    churning = [holding.start(namespace, "churn") for _ in range(2)]
    with tempfile.TemporaryDirectory() as folder, SocketLookup(namespace) as lookup:
        program = lookups.build(Path(folder))
        async with Nflog(namespace, spec.group) as source:
            rate = await lookups.rate(namespace, source, lookup, program, "udp", "exits", _ATTEMPTS)
    for process in churning:
        process.end()
    print(rate)  # noqa: T201 - the measured rate
    assert rate.wrong == 0


def _with_few_ports() -> None:
    ports = Path("/proc/sys/net/ipv4/ip_local_port_range")
    ports.write_text("40000 40039", encoding="ascii")


async def test_lookup_closes_its_descriptors(sandbox: Lab) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - shorter
    with SocketLookup(sandbox.sandbox_namespace) as lookup:
        lookup.tables.files.raw(4, time.monotonic_ns() + 10**9)
        assert len(os.listdir("/proc/self/fd")) > before  # noqa: PTH208 - shorter
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - shorter
