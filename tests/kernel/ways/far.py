"""Observers of what left the seats: they search frames for the payloads of the attacks."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import struct
import subprocess
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from tests.kernel.far_side import _with_tag
from tests.kernel.ways.world import INTERNET_END, LAN_END, LOCAL, PASSED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ocsf_nft.netns import Namespace
    from tests.kernel.ways.variant import Seat
    from tests.kernel.ways.world import World

#: Points where frames are observed: at the host's end of a link, before any rule; there, after
#: the guard; on the host's way to its sockets; at the internet's end of the host's uplink; and at
#: machines on a bridge (``lan``: on that of the host's namespace).
Point: TypeAlias = Literal[
    "link", "passed", "local", "internet", "lan", "neighbour", "sandbox", "second"
]
#: A socket, its point, and a function that selects frames by their device.
Opened: TypeAlias = "tuple[socket.socket, Point, Callable[[str], bool]]"

_ETH_P_ALL: Final = 3
_SOL_PACKET, _PACKET_AUXDATA, _PACKET_IGNORE_OUTGOING = 263, 8, 23
_SO_RCVBUFFORCE: Final = 33
_RECEIVE_BYTES: Final = 64 << 20
_KEPT_FRAMES: Final = 4
_RULES: Final = """
table netdev watch {{
    chain passed {{
        type filter hook ingress devices = {{ {devices} }} priority 500; policy accept;
        dup to "{passed}"
    }}
}}
table ip watch {{
    chain local {{
        type filter hook input priority 500; policy accept;
        iifname "h*" dup to 192.0.2.99 device "{local}"
    }}
}}
table ip6 watch {{
    chain local {{
        type filter hook input priority 500; policy accept;
        iifname "h*" dup to 2001:db8:99::99 device "{local}"
    }}
}}
"""


@dataclass
class Arrivals:
    """Frames with payloads, by attack and point."""

    magic: bytes
    #: Attacks of which four bytes of payload are enough.
    short: frozenset[int]
    frames: dict[tuple[int, Point], list[bytes]] = field(default_factory=lambda: defaultdict(list))
    count: int = 0

    def __post_init__(self) -> None:
        self._pattern = re.compile(b"(?=" + re.escape(self.magic[2:]) + b"(..))", re.DOTALL)

    def take(self, point: Point, frame: bytes) -> None:
        """Store a frame under each attack whose payload it has."""
        self.count += 1
        for found in self._pattern.finditer(frame):
            job = int.from_bytes(found[1], "big")
            if job in self.short or self.magic + found[1] in frame:
                kept = self.frames[job, point]
                if len(kept) < _KEPT_FRAMES * 16:
                    kept.append(frame)


@contextlib.contextmanager
def watch(world: World, arrivals: Arrivals) -> Iterator[None]:
    """Observe frames until the end of the block, in a thread."""
    devices = ", ".join(f'"{seat.host_device}"' for seat in world.seats)
    rules = _RULES.format(devices=devices, passed=PASSED, local=LOCAL)
    world.host.call(
        lambda: subprocess.run(["nft", "-f", "/dev/stdin"], input=rules, text=True, check=True)
    )
    links = {seat.host_device for seat in world.seats}
    opened: list[Opened] = [
        (_capture(world.host, None), "link", links.__contains__),
        (_capture(world.host, f"{PASSED}1"), "passed", lambda _: True),
        (_capture(world.host, f"{LOCAL}1"), "local", lambda _: True),
        (_capture(world.internet, INTERNET_END), "internet", lambda _: True),
        (_capture(world.internet, LAN_END), "lan", lambda _: True),
    ]
    with reading(opened, arrivals):
        yield


@contextlib.contextmanager
def reading(opened: Sequence[Opened], arrivals: Arrivals) -> Iterator[None]:
    """Read frames of these sockets in a thread until the end of the block."""
    stop = threading.Event()
    thread = threading.Thread(target=_read, args=(opened, arrivals, stop), name="far side")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        for sock, _, _ in opened:
            sock.close()


def _capture(namespace: Namespace, device: str | None) -> socket.socket:
    def made() -> socket.socket:
        # A socket that is not bound captures on all devices of its namespace.
        kind = socket.htons(_ETH_P_ALL) if device is None else 0
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, kind)
        sock.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BYTES)
        if device is not None:
            sock.bind((device, _ETH_P_ALL))
        sock.setblocking(False)
        return sock

    return namespace.call(made)


def _read(
    opened: Sequence[Opened],
    arrivals: Arrivals,
    stop: threading.Event,
) -> None:
    sockets = {sock: (point, wanted) for sock, point, wanted in opened}
    while True:
        is_last = stop.is_set()
        ready, _, _ = select.select(list(sockets), [], [], 0.1)
        for sock in ready:
            point, wanted = sockets[sock]
            with contextlib.suppress(BlockingIOError):
                while True:
                    frame, ancillary, _flags, address = sock.recvmsg(65535 + 64, 256)
                    if wanted(address[0]):
                        arrivals.take(point, _with_tag(frame, ancillary))
        if is_last and not ready:
            return


@contextlib.contextmanager
def servers(world: World, ports: Sequence[int]) -> Iterator[None]:
    """Listen on these ports of the host and of the internet; the kernel answers."""
    with contextlib.ExitStack() as stack:
        for namespace in (world.host, world.internet):
            for port in ports:
                stack.enter_context(namespace.call(partial(_server, port)))
        yield


def _server(port: int) -> socket.socket:
    server = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    server.listen(4096)
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 128)
    return server


def is_to_proxy(frame: bytes, seat: Seat, own: bytes, gateway: bytes, port: int) -> bool:
    """Return whether the frame is an ordinary one to the seat's proxy."""
    if frame[:12] != gateway + own:
        return False
    (kind,) = struct.unpack_from("!H", frame, 12)
    body = frame[14:]
    if kind == 0x0800:
        ends = socket.inet_aton(seat.own4) + socket.inet_aton(seat.gateway4)
        (fragment,) = struct.unpack_from("!H", body, 6)
        is_plain = body[0] == 0x45 and not fragment & 0x3FFF and body[9] == 6
        return is_plain and body[12:20] == ends and body[22:24] == port.to_bytes(2, "big")
    if kind == 0x86DD:
        ends = b"".join(
            socket.inet_pton(socket.AF_INET6, each) for each in (seat.own6, seat.gateway6)
        )
        return body[6] == 6 and body[8:40] == ends and body[42:44] == port.to_bytes(2, "big")
    return False


def wait_until_quiet(arrivals: Arrivals, seconds: float) -> None:
    """Wait until no frame arrives for some time."""
    seen, since = -1, time.monotonic()
    while time.monotonic() - since < seconds:
        if arrivals.count != seen:
            seen, since = arrivals.count, time.monotonic()
        time.sleep(0.05)
