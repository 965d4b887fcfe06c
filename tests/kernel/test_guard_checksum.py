"""Checksum requests of a sandbox or a VM, behind a host that forwards them.

A socket of AF_XDP makes such requests, and the driver of a VM's interface (virtio). A request names
any offset of the frame. The guard has judged the frame before the device writes there, and nftables
can't match the request.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import secrets
import signal
import socket
import struct
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from ocsf_nft import rtnetlink
from ocsf_nft.fence.surroundings import programs
from ocsf_nft.lab import PROXY_PORT, configure, ip, new_namespace
from ocsf_nft.netns import named
from tests.kernel import command, conftest, ethtool, headers, packets, written, xdp
from tests.kernel.packets import ETH_IP, ETH_IP6

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocsf_nft.netns import Namespace

pytestmark = pytest.mark.kernel

_OWN4, _OWN6 = "10.1.0.2", "fd01::2"
_VM4: Final = "10.3.0.2"
_PROXY4, _PROXY6 = "10.2.0.5", "fd02::5"
#: Destination that no policy allows.
_OTHER6: Final = "fd02:6666::5"
_OTHER_PORT: Final = 22
_MAC, _HOST_MAC = b"\2\0\0\0\0\2", b"\2\0\0\0\0\1"
_PAYLOAD: Final = b"chosen by the sandbox "


@dataclass(frozen=True)
class _World:
    """Names of namespaces: a sandbox, its host, which forwards, and the outside."""

    sandbox: str
    host: str
    outside: str


@pytest.fixture
def world() -> Iterator[_World]:
    prefix = f"ocsf-nft-{secrets.token_hex(3)}"
    made = _World(f"{prefix}-sb", f"{prefix}-host", f"{prefix}-out")
    with contextlib.ExitStack() as cleanup:
        for name in (made.sandbox, made.host, made.outside):
            cleanup.enter_context(new_namespace(name))
        ip("-n", made.sandbox, "link", "add", "sb0", "address", _MAC.hex(":"), "type", "veth",
           "peer", "name", "h0", "address", _HOST_MAC.hex(":"), "netns", made.host)  # fmt: skip
        ip("-n", made.host, "link", "add", "up0", "type", "veth",
           "peer", "name", "out0", "netns", made.outside)  # fmt: skip
        configure(made.host, "h0", "10.1.0.1/24", "fd01::1/64")
        configure(made.host, "up0", "10.2.0.1/24", "fd02::1/64")
        configure(made.outside, "out0", f"{_PROXY4}/24", f"{_PROXY6}/64")
        configure(made.sandbox, "sb0", f"{_OWN4}/24", f"{_OWN6}/64")
        for name, via in ((made.sandbox, 1), (made.outside, 2)):
            ip("-n", name, "route", "add", "default", "via", f"10.{via}.0.1")
            ip("-n", name, "-6", "route", "add", "default", "via", f"fd0{via}::1")
        named(made.host).call(_forward)
        yield made


def _forward() -> None:
    for key in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        Path("/proc/sys/net", key).write_text("1", encoding="ascii")
    # As a device that writes checksums itself: the kernel does the same just before it.
    ethtool.switch("up0", ethtool.TX_CHECKSUM, on=False)


class _Outside:
    """Frames with the payload that have arrived outside."""

    def __init__(self, namespace: Namespace) -> None:
        self._sock = namespace.call(self._open)

    @staticmethod
    def _open() -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        sock.bind(("out0", 3))
        return sock

    def close(self) -> None:
        self._sock.close()

    def next(self, seconds: float) -> tuple[str, int] | None:
        """Return the destination of the next frame; None if there is none for some seconds."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._sock.settimeout(left)
            try:
                frame = self._sock.recv(2048)
            except TimeoutError:
                return None
            if _PAYLOAD in frame:
                start, size = (30, 4) if frame[12:14] == b"\x08\0" else (38, 16)
                address = ipaddress.ip_address(frame[start : start + size])
                return str(address), int.from_bytes(frame[start + size + 2 :][:2], "big")
        return None


@pytest.fixture
def outside(world: _World) -> Iterator[_Outside]:
    with contextlib.closing(_Outside(named(world.outside))) as found:
        yield found


def _segment(version: int, source: str | None = None) -> bytes:
    """Return a frame to the proxy."""
    own, to = (_OWN4, _PROXY4) if version == 4 else (_OWN6, _PROXY6)
    own = source or own
    packet = headers.tcp(own, to, PROXY_PORT, packets.PSH | packets.ACK)
    make = packets.ip4 if version == 4 else packets.ip6
    header = 20 if version == 4 else 40
    payload = packet[header:] + _PAYLOAD + bytes(2)
    packet = packets.summed(make(own, to, 6, payload))
    return packets.frame(_HOST_MAC, _MAC, ETH_IP if version == 4 else ETH_IP6, packet)


def _written_over(frame: bytes, start: int, wanted: int) -> bytes:
    """Return the frame with a last word with which the checksum from ``start`` is ``wanted``."""
    body = frame[start:]
    total = ~packets.checksum(body[:-2] + bytes(2)) & 0xFFFF
    word = ((~wanted & 0xFFFF) - total) % 0xFFFF
    return frame[:-2] + struct.pack("!H", word)


#: Frames with a request, and what they are after the device has written.
_ATTACKS: Final = {
    "port": (_written_over(_segment(4), 34, _OTHER_PORT), (34, 2), (_PROXY4, _OTHER_PORT)),
    "port, IPv6": (_written_over(_segment(6), 54, _OTHER_PORT), (54, 2), (_PROXY6, _OTHER_PORT)),
    "address": (_written_over(_segment(6), 38, 0x6666), (38, 2), (_OTHER6, PROXY_PORT)),
}
#: Requests for the checksum of the packet itself, as the kernel makes them.
_ORDINARY: Final = {
    "IPv4": (_segment(4), (34, 16), (_PROXY4, PROXY_PORT)),
    "IPv6": (_segment(6), (54, 16), (_PROXY6, PROXY_PORT)),
    "none": (_segment(4), None, (_PROXY4, PROXY_PORT)),
}


def _options(world: _World, state: Path) -> tuple[str, ...]:
    proxies = (f"{_PROXY4}:{PROXY_PORT}", f"[{_PROXY6}]:{PROXY_PORT}")
    return (
        *("--sandbox", conftest.SANDBOX, "--netns", world.sandbox, "--state-dir", str(state)),
        *(option for each in proxies for option in ("--proxy", each)),
    )


def _send(world: _World, frame: bytes, checksum: tuple[int, int] | None) -> None:
    named(world.sandbox).call(partial(xdp.send, "sb0", frame, checksum))


def _until(holds: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def _programs(world: _World, device: str) -> list[str]:
    """Return the hooks of programs on a device of the host."""

    def find() -> list[str]:
        (link,) = (each for each in rtnetlink.links() if each.name == device)
        return [each.hook for each in programs.tcx(link.ifindex, device)]

    return named(world.host).call(find)


def _connect(world: _World) -> None:
    """Send 1 MB on a connection to the proxy, in segments that the kernel leaves to devices."""

    def listen() -> socket.socket:
        return socket.create_server((_PROXY4, PROXY_PORT))

    def connect() -> socket.socket:
        return socket.create_connection((_PROXY4, PROXY_PORT), timeout=60)

    with (
        named(world.outside).call(listen) as server,
        named(world.sandbox).call(connect) as client,
        server.accept()[0] as accepted,
    ):
        accepted.settimeout(60)
        received = 0
        for _ in range(64):
            client.sendall(bytes(1 << 14))
            received += len(accepted.recv(1 << 20))
        while received < 1 << 20:
            received += len(accepted.recv(1 << 20))


def test_run_stops_checksums_over_other_fields(
    world: _World, outside: _Outside, tmp_path: Path
) -> None:
    output = tmp_path / "events.jsonl"
    options = (*_options(world, tmp_path / "state"), "--install", "--output", str(output))
    with command.running(*options, inside=named(world.host)) as running:
        assert _programs(world, "h0") == ["tcx ingress"]
        for frame, checksum, destination in _ORDINARY.values():
            _send(world, frame, checksum)
            assert outside.next(60) == destination
        _connect(world)
        for frame, checksum, _ in _ATTACKS.values():
            _send(world, frame, checksum)
        assert outside.next(1) is None
        _until(lambda: _stopped(output) >= len(_ATTACKS))
        assert _stopped(output) == len(_ATTACKS)
        assert running.stop(signal.SIGTERM)[0] == 0
    assert not _programs(world, "h0")


def _stopped(output: Path) -> int:
    """Return the frames in all events about stopped ones."""
    return sum(
        each["unmapped"]["frames"]
        for each in written.so_far(output)
        if each["metadata"]["event_code"] == "gate-blocked"
    )


@pytest.mark.parametrize("attack", _ATTACKS)
def test_guard_without_a_run_can_not_stop_them(
    world: _World, outside: _Outside, tmp_path: Path, attack: str
) -> None:
    """It is a limit (docs/reference/limits.md): nothing else shows that the attack works."""
    frame, checksum, destination = _ATTACKS[attack]
    done = command.run("install", *_options(world, tmp_path), inside=named(world.host))
    assert done.code == 0, done.stderr
    assert "ocsf_nft_h0" in conftest.nft(named(world.host), "list", "tables")
    _send(world, frame, checksum)
    assert outside.next(60) == destination


@pytest.fixture
def vm(world: _World) -> Iterator[int]:
    """Make a TAP device whose frames have a ``struct virtio_net_hdr``; yield its descriptor."""

    def make() -> int:
        made = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        flags = 0x0002 | 0x1000 | 0x4000  # IFF_TAP, IFF_NO_PI, IFF_VNET_HDR
        fcntl.ioctl(made, 0x400454CA, struct.pack("16sH22x", b"tap0", flags))  # TUNSETIFF
        return made

    descriptor = named(world.host).call(make)
    try:
        ip("-n", world.host, "link", "set", "tap0", "address", _HOST_MAC.hex(":"))
        configure(world.host, "tap0", "10.3.0.1/24")
        ip("-n", world.host, "neigh", "add", _VM4, "lladdr", _MAC.hex(":"), "dev", "tap0")
        yield descriptor
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("has_run", [True, False], ids=["run", "no run"])
def test_run_stops_those_of_a_vm(
    world: _World, outside: _Outside, vm: int, tmp_path: Path, *, has_run: bool
) -> None:
    output = tmp_path / "events.jsonl"
    options = (
        *("--sandbox", "vm", "--profile", "tap", "--device", "tap0", "--subnet", "10.3.0.1/24"),
        *("--strict", "--gateway-port", str(PROXY_PORT), "--allow", f"tcp:{_PROXY4}:{PROXY_PORT}"),
        *("--state-dir", str(tmp_path / "state")),
    )
    ordinary = _segment(4, _VM4)
    attack = _written_over(ordinary, 34, _OTHER_PORT)

    def send(frame: bytes, offset: int) -> None:
        os.write(vm, struct.pack("=BBHHHH", 1, 0, 0, 0, 34, offset) + frame)

    with contextlib.ExitStack() as cleanup:
        if has_run:
            run = ("--install", "--output", str(output))
            cleanup.enter_context(command.running(*options, *run, inside=named(world.host)))
        else:
            done = command.run("install", *options, inside=named(world.host))
            assert done.code == 0, done.stderr
        assert _programs(world, "tap0") == (["tcx ingress"] if has_run else [])
        send(ordinary, 16)
        assert outside.next(60) == (_PROXY4, PROXY_PORT)
        send(attack, 2)
        if has_run:
            assert outside.next(1) is None
            _until(lambda: _stopped(output) == 1)
        else:  # a limit, as above
            found = outside.next(60)
            assert found is not None
            # Another port than computed: address translation has changed the packet's checksum.
            assert (found[0], found[1] == PROXY_PORT) == (_PROXY4, False)
