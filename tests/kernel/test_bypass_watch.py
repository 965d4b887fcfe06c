"""Frames that leave a sandbox by a way that its fence does not see: each is reported."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest

from ocsf_nft.fence.frame_balance import FrameBalance
from ocsf_nft.lab import GATEWAY4, GATEWAY6, GATEWAY_MAC, PROXY_PORT, SANDBOX4, ip
from ocsf_nft.service import bypass_watch
from tests.kernel import conftest, ethtool, ordinary_traffic, packets, xdp
from tests.kernel.conftest import nft
from tests.kernel.serving import Served, sandbox, serving, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ocsf_nft.config import SandboxConfig
    from ocsf_nft.fence.frame_balance import FrameReading
    from ocsf_nft.flow import Count
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

_NAME: Final = "agent"
_PROXIES: Final = (f"{GATEWAY4}:{PROXY_PORT}", f"[{GATEWAY6}]:{PROXY_PORT}")
_FRAME: Final = packets.frame(
    bytes.fromhex(GATEWAY_MAC.replace(":", "")), b"\x02\0\0\0\0\x02", 0x88B5, bytes(46)
)


@pytest.fixture(autouse=True)
def _frequent_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bypass_watch, "_PAUSE_SECONDS", 0.05)


@pytest.fixture
def proxy(lab: Lab) -> Iterator[None]:
    """Accept connections at the proxy's addresses, read all and close them after the client."""
    connections: list[socket.socket] = []
    readers: list[threading.Thread] = []

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # closed at the end of the test
            while True:
                connections.append(listener.accept()[0])
                _start(readers, _read_all, connections[-1])

    servers: list[threading.Thread] = []
    with contextlib.ExitStack() as stack:
        stack.callback(_end, connections, readers)
        for family, address in ((socket.AF_INET, GATEWAY4), (socket.AF_INET6, GATEWAY6)):
            listen = partial(socket.create_server, (address, PROXY_PORT), family=family)
            listener = stack.enter_context(lab.gateway_namespace.call(listen))
            _start(servers, serve, listener)
            stack.callback(_end, [listener], servers[-1:])
        yield


def _start(
    threads: list[threading.Thread], read: Callable[[socket.socket], None], sock: socket.socket
) -> None:
    threads.append(threading.Thread(target=read, args=(sock,)))
    threads[-1].start()


def _end(sockets: list[socket.socket], threads: list[threading.Thread]) -> None:
    # The end of a connection may be lost: its sandbox has left.
    for sock in sockets:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join()


def _read_all(sock: socket.socket) -> None:
    with sock, contextlib.suppress(ConnectionError):
        while sock.recv(1 << 20):
            pass


def _connect(lab: Lab, address: str = GATEWAY4) -> socket.socket:
    return lab.sandbox_namespace.call(
        lambda: socket.create_connection((address, PROXY_PORT), timeout=30)
    )


def _send(lab: Lab, size: int, times: int = 1, address: str = GATEWAY4) -> None:
    with _connect(lab, address) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(times):
            sock.sendall(bytes(size))


def _bypassed(served: Served) -> list[dict[str, Any]]:
    return [event for event in served.events if event["metadata"]["event_code"] == "fence-bypassed"]


def _passed(lab: Lab) -> int:
    listed = nft(lab.sandbox_namespace, "list", "counter", "netdev", "ocsf_nft", "seen_link")
    return int(listed.partition("packets ")[2].split()[0])


async def _until_compared(served: Served) -> bypass_watch.BypassWatch:
    """Wait until a reading without traffic has shown what was sent before the watch."""

    def is_exact() -> bool:
        (one,) = served.service.sandboxes
        watch = None if one.watched is None else one.watched.bypass
        return watch is not None and watch.is_exact

    await until(is_exact)
    (one,) = served.service.sandboxes
    assert one.watched is not None
    assert one.watched.bypass is not None
    return one.watched.bypass


@pytest.mark.usefixtures("proxy")
async def test_one_frame_beside_100000_allowed_ones_is_reported(lab: Lab, tmp_path: Path) -> None:
    config = sandbox(_NAME, netns=lab.sandbox, proxy=_PROXIES)
    async with serving(tmp_path, config) as served:
        await _until_compared(served)
        sending = asyncio.create_task(asyncio.to_thread(_send, lab, 64, 120_000))
        before = _passed(lab)
        await until(lambda: _passed(lab) - before > 50_000)
        lab.sandbox_namespace.call(lambda: xdp.send(lab.sandbox_device, _FRAME))
        await sending
        assert _passed(lab) - before > 100_000
        event = await served.wait_for(
            lambda event: event["metadata"]["event_code"] == "fence-bypassed-finding"
        )
        assert (event["severity"], event["activity_name"]) == ("High", "Create")
        await _until_compared(served)
    assert [each["unmapped"]["frames"] for each in _bypassed(served)] == [1]


def _send_and_hide(lab: Lab, times: int) -> None:
    """Send frames past the fence, each with one that passes the fence and is then dropped.

    The dropped one is longer than the other end of the link accepts.
    """
    segment = packets.tcp(PROXY_PORT, 0x10) + bytes(5000)
    long = packets.ip4(SANDBOX4, GATEWAY4, socket.IPPROTO_TCP, segment)
    ip("-n", lab.sandbox, "link", "set", lab.sandbox_device, "mtu", "9000")

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
            for _ in range(times):
                sock.sendto(long, (GATEWAY4, 0))
                xdp.send(lab.sandbox_device, _FRAME)

    lab.sandbox_namespace.call(send)


async def test_dropped_frames_hide_no_frame_that_bypasses_the_fence(
    lab: Lab, tmp_path: Path
) -> None:
    config = sandbox(_NAME, netns=lab.sandbox, proxy=_PROXIES)
    async with serving(tmp_path, config) as served:
        await _until_compared(served)
        before = _passed(lab)
        await asyncio.to_thread(_send_and_hide, lab, 10)
        assert _passed(lab) - before >= 10  # and ARP
        await served.wait_for(lambda event: event.get("unmapped", {}).get("total_frames") == 10)
    assert sum(each["unmapped"]["frames"] for each in _bypassed(served)) == 10


async def _go_through_a_day(
    lab: Lab, state_dir: Path, *, hours: int, connections: int, is_guarded: bool
) -> None:
    """Send ordinary traffic, and restart the service each hour; nothing is reported.

    ``connections`` is the least number of connections in two hours. They begin when the comparison
    is exact, and go on during the restart. With ``is_guarded``, the service knows the host's end of
    the link, and reads its counters.
    """
    conftest.load(lab.gateway_namespace, ordinary_traffic.LOSSY)
    config = sandbox(
        _NAME, netns=lab.sandbox, proxy=_PROXIES, allow=[f"udp:{GATEWAY4}:{PROXY_PORT}"]
    )
    for pair in range(hours // 2):
        switch = partial(ethtool.switch, lab.gateway_device, ethtool.GRO, on=pair % 2 == 0)
        lab.gateway_namespace.call(switch)
        with contextlib.ExitStack() as running:
            running.enter_context(ordinary_traffic.proxy(lab))
            async with serving(state_dir) as served:
                await served.service.put(config)
                await _until_compared(served)
                programs = running.enter_context(ordinary_traffic.programs(lab, connections))
                await _disturb(lab, served, config)
            assert not _bypassed(served)
            async with serving(state_dir) as served:
                assert programs.poll() is None  # they went on during the restart
                await _disturb(lab, served, config)
                assert programs.stdin is not None
                programs.stdin.close()
                assert await asyncio.to_thread(programs.wait, 120) == 0
                watch = await _until_compared(served)
                assert watch.not_compared is None
                (one,) = served.service.sandboxes
                assert one.watched is not None
                assert bool(one.watched.monitor.reports.installed.around.host.ends) == is_guarded
            assert not _bypassed(served)


async def _disturb(lab: Lab, served: Served, config: SandboxConfig) -> None:
    """Change the policy, let the programs forget their neighbours, take the link down and up."""
    for is_permissive in (True, False):
        await served.service.put(config.model_copy(update={"permissive": is_permissive}))
        ip("-n", lab.sandbox, "neighbour", "flush", "dev", lab.sandbox_device)
    ip("-n", lab.gateway, "link", "set", lab.gateway_device, "down")
    ip("-n", lab.gateway, "link", "set", lab.gateway_device, "up")
    ip("-n", lab.gateway, "address", "replace", f"{GATEWAY6}/64", "dev", lab.gateway_device)


@pytest.mark.parametrize("is_guarded", [False, True])
def test_ordinary_traffic_is_not_reported(lab: Lab, tmp_path: Path, is_guarded: bool) -> None:
    def send() -> None:
        day = _go_through_a_day(lab, tmp_path, hours=2, connections=1800, is_guarded=is_guarded)
        asyncio.run(day)

    # The host of a service in the gateway's namespace is the gateway.
    lab.gateway_namespace.call(send) if is_guarded else send()


@pytest.mark.slow
@pytest.mark.long
def test_day_of_ordinary_traffic_is_not_reported(lab: Lab, tmp_path: Path) -> None:
    # One connection in four seconds.
    day = partial(_go_through_a_day, lab, tmp_path, hours=24, connections=1800, is_guarded=True)
    lab.gateway_namespace.call(lambda: asyncio.run(day()))


@pytest.mark.usefixtures("proxy")
async def test_frames_that_the_interface_divides_are_not_compared(lab: Lab, tmp_path: Path) -> None:
    def switch(*, on: bool) -> None:
        ethtool.switch(lab.sandbox_device, ethtool.TSO, on=on)

    lab.sandbox_namespace.call(partial(switch, on=False))
    config = sandbox(_NAME, netns=lab.sandbox, proxy=_PROXIES)
    async with serving(tmp_path, config) as served:
        (one,) = served.service.sandboxes
        assert one.watched is not None
        watch = one.watched.bypass
        assert watch is not None
        await until(lambda: watch.not_compared is not None)
        assert watch.not_compared == "segmentation offload of the interface sb0 is off"
        await asyncio.to_thread(_send, lab, 1 << 20)
        lab.sandbox_namespace.call(partial(switch, on=True))
        assert not _bypassed(served)
        await _until_compared(served)
        # Another process switches it off later, after which no frame can be found.
        lab.sandbox_namespace.call(partial(switch, on=False))
        await asyncio.to_thread(_send, lab, 1 << 20)
        event = await served.wait_for(_is_no_comparison)
        assert event["severity"] == "High"
        assert "segmentation offload of the interface sb0 is off" in event["message"]
        assert not _bypassed(served)


@pytest.mark.usefixtures("proxy")
async def test_reset_counters_are_reported(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = sandbox(_NAME, netns=lab.sandbox, proxy=_PROXIES)
    readings: list[FrameReading] = []
    observe = FrameBalance.observe

    def noted(balance: FrameBalance, reading: FrameReading) -> Count | None:
        readings.append(reading)
        return observe(balance, reading)

    monkeypatch.setattr(FrameBalance, "observe", noted)
    async with serving(tmp_path) as served:
        # A fence that the service replaces or restores has new counters, which is no reset.
        for is_permissive in (False, True, False):
            await served.service.put(config.model_copy(update={"permissive": is_permissive}))
            await asyncio.to_thread(_send, lab, 1000, 10)
            await _until_compared(served)
        epoch = readings[-1].epoch
        nft(lab.sandbox_namespace, "delete", "table", "netdev", "ocsf_nft")
        await served.wait_for(lambda event: event["metadata"]["event_code"] == "fence-restored")
        await asyncio.to_thread(_send, lab, 1000, 10)
        await _until_compared(served)
        # Without a reading of these frames, the counters would not seem to decrease.
        await until(lambda: readings[-1].epoch != epoch and readings[-1].passed_before.packets > 0)
        assert not any(map(_is_no_comparison, served.events))
        nft(lab.sandbox_namespace, "reset", "counters")
        event = await served.wait_for(_is_no_comparison)
        assert (event["severity"], event["status"]) == ("High", "Failure")
        assert "counters of the fence were set to zero" in event["message"]


def _is_no_comparison(event: dict[str, Any]) -> bool:
    return bool(event["metadata"]["event_code"] == "surroundings-changed")
