"""Senders of packets that one event reports: no packet is counted for another process."""

from __future__ import annotations

import asyncio
import subprocess
import textwrap
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest

import ocsf_nft
from ocsf_nft.attribution import fallback_chain, flow_callers
from ocsf_nft.flows import report_schedule
from ocsf_nft.lab import GATEWAY4, PROXY_PORT
from ocsf_nft.service import account_loop, reading_schedule
from tests.kernel import scripted

if TYPE_CHECKING:
    from pathlib import Path

    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

#: Each process prints the port, its own number, and how often it tries.
_PROGRAM = """
class Refused(contextlib.suppress):
    def __enter__(self): time.sleep({pause_seconds})
refused = Refused(OSError)
def child(action, port, times):
    if not os.fork():
        print(port, os.getpid(), times, flush=True)
        action(port, times)
        os._exit(0)
def by_tcp(port, times):
    for _ in range(times):
        with refused: tcp().connect((TO4[0], port))
def as_another_user(port, times):
    sockets = [tcp() for _ in range(times)]
    libc.setfsuid(4242)
    for each in sockets:
        with refused: each.connect((TO4[0], port))
def with_another_users_sockets(port, times):
    libc.setfsuid(4242)
    by_tcp(port, times)
def by_hand(port, times):
    sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, 6)
    for number in range(times):
        packet = struct.pack("!HHIIBBHHH", 1000 + number, port, 1, 0, 5 << 4, 2, 1024, 0, 0)
        with refused: sender.sendto(packet, (TO4[0], 0))
def by_frames(port, times):
    addresses = socket.inet_aton("10.200.0.2") + socket.inet_aton(TO4[0])
    packet = struct.pack("!HHHH", 1, port, 8, 0)
    header = struct.pack("!BBHHHBBH", 0x45, 0, 28, 7, 0, 64, 17, 0) + addresses
    sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sender.bind(("sb0", 0x0800))
    for _ in range(times):
        with refused: sender.send(bytes(12) + bytes([8, 0]) + header + packet)
def with_one_socket(port, times):
    sender = udp()
    for _ in range(times):
        with refused: sender.sendto(b"x", (TO4[0], port))
        sender.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
PAIRS = {
    1001: [(by_tcp, 2), (by_tcp, 1)],
    1002: [(by_tcp, 1), (as_another_user, 30)],
    1003: [(by_tcp, 1), (by_hand, 200)],
    1004: [(with_one_socket, 200), (with_one_socket, 1)],
    1005: [(by_tcp, 1), (by_tcp, 50)],
    1007: [(by_frames, 8), (with_one_socket, 8)],
    1006: [(by_tcp, 1), (with_another_users_sockets, 30)],
}
for number in range(2):
    for port, pair in PAIRS.items():
        child(pair[number][0], port, pair[number][1])
        os.wait()
for _ in range(2):
    child(by_tcp, 1008, 100)
for _ in range(2):
    os.wait()
for port in range(2000, 2000 + {flood_flows}):
    with refused: tcp().connect((TO4[0], port))
"""
#: The capture does not report all calls to the first port, and frames only one by one.
_SILENT, _FRAMES = 1004, 1007
_SECOND: Final = 1_000_000_000


class _Reported(NamedTuple):
    """Packets by port, by port and process, and the events that reported them.

    ``sure`` are the packets of processes that are named with high confidence. ``left`` are calls
    that the service would count for the flow's next event.
    """

    packets: Counter[int]
    named: Counter[tuple[int, int]]
    sure: Counter[tuple[int, int]]
    left: Counter[tuple[int, int]]
    events: defaultdict[int, list[object]]


@pytest.fixture(autouse=True)
def _long_event_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait longer for the call of a logged packet: its process may be stopped in between."""
    monkeypatch.setattr(fallback_chain, "_EVENT_DELAY_SECONDS", 1.0)


@pytest.fixture
def _reported_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Report each flow's first packet alone, and all others together when the service stops."""
    monkeypatch.setattr(report_schedule, "_FIRST_STEP_NS", 600 * _SECOND)
    monkeypatch.setattr(report_schedule, "OVER_NS", 600 * _SECOND)


# A report between the packets would make their sender uncertain.
@pytest.mark.usefixtures("_reported_at_the_end")
async def test_packets_of_one_event_are_counted_for_their_senders(lab: Lab, tmp_path: Path) -> None:
    truth, reported = await _reported(lab, tmp_path)
    _check(truth, reported)
    for (port, pid), times in truth.items():
        is_named = port in {_SILENT, _FRAMES} or reported.sure[port, pid] == times
        assert is_named, f"{times} of {pid} to {port}: {reported.events[port]}"
    assert sum(times for (port, _), times in reported.named.items() if port == _SILENT) < 200


async def test_packets_around_a_reading_are_counted_for_their_senders(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account_loop, "_GRACE_SECONDS", 0.001)
    for setting in ("READ_SECONDS", "_LONGEST_SECONDS"):
        monkeypatch.setattr(reading_schedule, setting, 0.001)
    monkeypatch.setattr(report_schedule, "_FIRST_STEP_NS", 1)
    truth, reported = await _reported(lab, tmp_path, pause_seconds=0.002)
    _check(truth, reported)
    for (port, pid), times in truth.items():
        # A reading may count a packet that is sent meanwhile. The packet's call is then in the
        # flow's next event, and there is none after the last one.
        named = reported.named[port, pid] + reported.left[port, pid]
        is_named = port in {_SILENT, _FRAMES} or named == times
        assert is_named, f"{times} of {pid} to {port}: {reported.events[port]}"


@pytest.mark.usefixtures("_reported_at_the_end")
async def test_packets_of_evicted_flows_are_counted_for_no_other_process(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow_callers, "_FLOWS", 3)
    truth, reported = await _reported(lab, tmp_path, flood_flows=2200)
    _check(truth, reported)
    assert reported.named.total() < truth.total() // 2


def _check(truth: Counter[tuple[int, int]], reported: _Reported) -> None:
    expected: Counter[int] = Counter()
    for (port, _), times in truth.items():
        expected[port] += times
    assert reported.packets == expected
    assert reported.named <= truth, reported.events


async def _reported(
    lab: Lab, state_dir: Path, *, pause_seconds: float = 0, flood_flows: int = 0
) -> tuple[Counter[tuple[int, int]], _Reported]:
    sandbox = {
        "name": "agent",
        "netns": lab.sandbox,
        "proxy": [f"{GATEWAY4}:{PROXY_PORT}"],
        "install": True,
    }
    program = textwrap.dedent(_PROGRAM).replace("{pause_seconds}", str(pause_seconds))
    program = program.replace("{flood_flows}", str(flood_flows))
    config = ocsf_nft.parse({"sandbox": [sandbox], "state_dir": str(state_dir)}, where="test")
    reported = _Reported(Counter(), Counter(), Counter(), Counter(), defaultdict(list))
    async with ocsf_nft.Service(config, iterates=True) as service, asyncio.timeout(300):
        capture = service.fallback_chain._capture
        assert capture is not None
        (watched,) = capture._watched.values()
        running = asyncio.create_task(asyncio.to_thread(_run, lab, program))
        running.add_done_callback(lambda _: service.stop())
        async for event in service:
            port = event.get("dst_endpoint", {}).get("port", 0)
            if event["class_uid"] == 4001 and 1001 <= port <= 1008:
                reported.packets[port] += event["count"]
                reported.events[port].append((event["count"], event["enrichments"]))
                is_sure, processes = _named(event)
                for pid, times in processes.items():
                    reported.named[port, pid] += times
                    reported.sure[port, pid] += times * is_sure
        for flows in watched.flows._by_user.values():
            for target, flow in flows.items():
                for call, times in flow.callers().calls:
                    reported.left[target.port, call.image.pid] += times
    return await running, reported


def _run(lab: Lab, program: str) -> Counter[tuple[int, int]]:
    done = lab.sandbox_namespace.call(
        lambda: subprocess.run(
            [*scripted.BY, f"{scripted.START}\n{program}"],
            capture_output=True,
            text=True,
            timeout=240,
            check=True,
        )
    )
    lines = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    return Counter({(port, pid): times for port, pid, times in lines})


def _named(event: dict[str, Any]) -> tuple[bool, dict[int, int]]:
    """Return True for high confidence, and the number of an event's packets by process."""
    (how,) = event["enrichments"]
    is_sure, seen = how["data"]["confidence"] == "High", how["data"].get("processes")
    if how["value"] != "unknown" and seen is None:
        return is_sure, {int(how["value"]): event["count"]}
    # Below high confidence, a process sent so many of the packets, or more.
    return is_sure, {each["pid"]: each.get("calls", 0) for each in seen or ()}
