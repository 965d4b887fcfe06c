"""Who did it, where packets are told together: each is counted for who sent it, or for nobody."""

from __future__ import annotations

import asyncio
import subprocess
import textwrap
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import pytest

import ocsf_nft
from ocsf_nft.lab import GATEWAY4, PROXY_PORT
from tests.kernel import scripted

if TYPE_CHECKING:
    from pathlib import Path

    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

#: Each says how often it has tried which port.
_PROGRAM = """
def child(deed, port, times):
    if not os.fork():
        print(port, os.getpid(), times, flush=True)
        deed(port, times)
        os._exit(0)
    os.wait()
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
time.sleep(0.5)
for number in range(2):
    for port, pair in PAIRS.items():
        child(pair[number][0], port, pair[number][1])
    time.sleep(0.3)
for port in range(2000, 4200):  # more than are kept
    if not port % 100: time.sleep(0.1)
    with refused: tcp().connect((TO4[0], port))
"""
#: Some of these are not told of, and frames are told by themselves alone.
_SILENT, _FRAMES = 1004, 1007


async def test_no_packet_is_counted_for_who_has_not_sent_it(lab: Lab, tmp_path: Path) -> None:
    sandbox = {
        "name": "agent",
        "netns": lab.sandbox,
        "proxy": [f"{GATEWAY4}:{PROXY_PORT}"],
        "install": True,
    }
    config = ocsf_nft.parse({"sandbox": [sandbox], "state_dir": str(tmp_path)}, where="test")
    packets: Counter[int] = Counter()
    named: Counter[tuple[int, int]] = Counter()
    sure: Counter[tuple[int, int]] = Counter()
    events: defaultdict[int, list[object]] = defaultdict(list)
    async with ocsf_nft.Service(config, iterates=True) as service, asyncio.timeout(40):
        running = asyncio.create_task(asyncio.to_thread(_run, lab))
        running.add_done_callback(lambda _: service.stop())
        async for event in service:
            port = event.get("dst_endpoint", {}).get("port", 0)
            if event["class_uid"] == 4001 and 1001 <= port <= 1007:
                packets[port] += event["count"]
                events[port].append((event["count"], event["enrichments"]))
                is_sure, processes = _named(event)
                for pid, times in processes.items():
                    named[port, pid] += times
                    sure[port, pid] += times * is_sure
    truth = await running
    expected: Counter[int] = Counter()
    for (port, _), times in truth.items():
        expected[port] += times
    assert packets == expected
    assert named <= truth
    for (port, pid), times in truth.items():
        is_named = port in {_SILENT, _FRAMES} or sure[port, pid] == times
        assert is_named, f"{times} of {pid} to {port}: {events[port]}"
    assert sum(times for (port, _), times in named.items() if port == _SILENT) < 100


def _run(lab: Lab) -> Counter[tuple[int, int]]:
    done = lab.sandbox_namespace.call(
        lambda: subprocess.run(
            [*scripted.BY, f"{scripted.START}\n{textwrap.dedent(_PROGRAM)}"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    )
    lines = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    return Counter({(port, pid): times for port, pid, times in lines})


def _named(event: dict[str, Any]) -> tuple[bool, dict[int, int]]:
    """Whether it is sure, and how many packets of an event are said to be whose."""
    (how,) = event["enrichments"]
    if how["value"] != "unknown":
        return how["data"]["confidence"] == "High", {int(how["value"]): event["count"]}
    seen = how["data"].get("processes", [])
    return how["data"]["confidence"] == "High", {each["pid"]: each.get("calls", 0) for each in seen}
