"""Tools of attackers: programs, sockets and frames."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.kernel import packets
from tests.kernel.ways.variant import (
    DEVICE,
    GATEWAY_MAC,
    INTERNET4,
    INTERNET6,
    MAC,
    PROXY_PORT,
    WEB_PORT,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.kernel.ways.variant import Seat

BROADCAST: Final = b"\xff" * 6
STRANGER: Final = bytes.fromhex("02aa00000077")
SOL_PACKET: Final = 263
IP_TRANSPARENT, IP_FREEBIND, IPV6_FREEBIND, IPV6_TRANSPARENT = 19, 15, 78, 75
IPV6_HDRINCL: Final = 36
CLONE_NEWNET, CLONE_NEWUSER = 0x40000000, 0x10000000
libc: Final = ctypes.CDLL(None, use_errno=True)


def refused() -> contextlib.suppress:
    """Ignore OSError: a refusal may be an error of the sending call."""
    return contextlib.suppress(OSError)


def run(*command: str, stdin: str | None = None) -> None:
    """Run a program; raise RuntimeError with its message if it fails."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()[:500]}")


def ip(*lines: str) -> None:
    """Run commands of the program ip."""
    run("ip", "-batch", "-", stdin="\n".join(lines))


def nft(rules: str) -> None:
    """Load rules."""
    run("nft", "-f", "-", stdin=rules)


def chain(chain: str, statement: str) -> None:
    """Add a base chain with a statement: ``FAMILY TYPE hook HOOK priority PRIORITY``."""
    family, kind = chain.split(" ", 1)
    policy = "" if kind.startswith("nat") else "policy accept;"
    nft(f"table {family} mine {{\nchain c {{\ntype {kind}; {policy}\n{statement}\n}}\n}}")


def tc(*lines: str) -> None:
    """Run commands of the program tc."""
    run("tc", "-batch", "-", stdin="\n".join(lines))


def sysctl(key: str, value: str) -> None:
    Path("/proc/sys/net", key).write_text(value, encoding="ascii")


def until_up(device: str) -> None:
    """Wait until a device can send: the kernel makes its queue some time after both ends are up."""
    end = time.monotonic() + 10
    while Path(f"/sys/class/net/{device}").exists() is False and time.monotonic() < end:
        command = ["ip", "link", "show", device]
        shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        if "state UP" in shown and "qdisc noop " not in shown:
            return
        time.sleep(0.01)


# Sockets.


def udp(
    seat: Seat, to: str = INTERNET4, port: int = 53, *, sock: socket.socket | None = None
) -> None:
    """Send the payload by a UDP socket."""
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    with sock or socket.socket(family, socket.SOCK_DGRAM) as used, refused():
        used.sendto(seat.payload, (to, port))


def tcp(
    seat: Seat, to: str = INTERNET4, port: int = WEB_PORT, *, source: str | None = None
) -> None:
    """Connect and send the payload; wait shortly for the connection."""
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    with socket.socket(family) as sock, refused():
        sock.settimeout(4)
        if source:
            sock.bind((source, 0))
        sock.connect((to, port))
        sock.sendall(seat.payload)


def to_proxy(seat: Seat, *, version: int = 4) -> None:
    """Send the payload on a connection to the proxy, as the policy allows."""
    tcp(seat, seat.gateway4 if version == 4 else seat.gateway6, PROXY_PORT)


def raw4(protocol: int, payload: bytes, to: str = INTERNET4) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol) as sock, refused():
        sock.sendto(payload, (to, 0))


def raw6(protocol: int, payload: bytes, to: str = INTERNET6) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, protocol) as sock, refused():
        sock.sendto(payload, (to, 0))


def whole4(packet: bytes, to: str = INTERNET4) -> None:
    """Send an IPv4 packet with its header."""
    raw4(socket.IPPROTO_RAW, packet, to)


def whole6(packet: bytes, to: str = INTERNET6) -> None:
    """Send an IPv6 packet with its header."""
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_HDRINCL, 1)
        with refused():
            sock.sendto(packet, (to, 0))


# Packets with the payload.


def udp4(seat: Seat, *, source: str | None = None, to: str = INTERNET4, port: int = 53) -> bytes:
    return packets.summed(packets.ip4(source or seat.own4, to, 17, packets.udp(port, seat.payload)))


def udp6(seat: Seat, *, source: str | None = None, to: str = INTERNET6, port: int = 53) -> bytes:
    return packets.summed(packets.ip6(source or seat.own6, to, 17, packets.udp(port, seat.payload)))


def syn4(
    seat: Seat, *, source: str | None = None, to: str | None = None, port: int = PROXY_PORT
) -> bytes:
    """Return a TCP segment to the proxy by default, with the payload in its data."""
    segment = packets.tcp(port, packets.SYN) + seat.payload
    return packets.summed(packets.ip4(source or seat.own4, to or seat.gateway4, 6, segment))


def syn6(
    seat: Seat, *, source: str | None = None, to: str | None = None, port: int = PROXY_PORT
) -> bytes:
    segment = packets.tcp(port, packets.SYN) + seat.payload
    return packets.summed(packets.ip6(source or seat.own6, to or seat.gateway6, 6, segment))


def syn_to_proxy(seat: Seat, version: int = 4) -> None:
    """Send a segment with the payload to the proxy by a raw socket."""
    if version == 4:
        whole4(syn4(seat), seat.gateway4)
    else:
        whole6(syn6(seat), seat.gateway6)


def frame(
    kind: int,
    body: bytes,
    *,
    to: bytes = GATEWAY_MAC,
    source: bytes = MAC,
    device: str = DEVICE,
    announced: int | None = None,
    bypass: bool = False,
) -> None:
    """Send a frame by AF_PACKET."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        if bypass:
            sock.setsockopt(SOL_PACKET, 20, 1)
        sock.bind((device, 0))
        with refused():
            protocol = kind if announced is None else announced
            sock.sendto(packets.frame(to, source, kind, body), (device, protocol))


def own_frame(kind: int, body: bytes, *, to: bytes = GATEWAY_MAC, source: bytes = MAC) -> bytes:
    return packets.frame(to, source, kind, body)


# Devices.

_tun: list[int] = []


def open_tun() -> None:
    """Open /dev/net/tun, which container engines pass on request (``--device``)."""
    _tun.append(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))


def tap(name: str) -> int:
    """Return the descriptor of a new TAP device."""
    (descriptor,) = _tun
    fcntl.ioctl(descriptor, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x1002))
    return descriptor


def set_up(device: str) -> None:
    """Set a device up without another program."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH14x", device.encode(), 0x1043)  # IFF_UP and the usual flags
        fcntl.ioctl(sock.fileno(), 0x8914, request)  # SIOCSIFFLAGS


# Namespaces.


@contextlib.contextmanager
def child_namespace(*, new_user: bool = False) -> Iterator[int]:
    """Yield a process in a new network namespace; it ends with the block.

    A caller without CAP_SYS_ADMIN makes a user namespace for it, as any user can.
    """
    ready, made = os.pipe()
    done, hold = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(hold)
        if new_user or libc.unshare(CLONE_NEWNET):
            libc.unshare(CLONE_NEWNET | CLONE_NEWUSER)
        os.write(made, b"1")
        os.read(done, 1)
        os._exit(0)
    os.close(done)
    os.read(ready, 1)
    try:
        yield pid
    finally:
        os.close(hold)
        os.waitpid(pid, 0)
        for each in (ready, made):
            os.close(each)


def inside(pid: int, *command: str, stdin: str | None = None) -> None:
    """Run a program in the network namespace of a process."""
    run("nsenter", f"--net=/proc/{pid}/ns/net", *command, stdin=stdin)


def work_inside(pid: int, work: Callable[[], None], *, user: bool = False) -> None:
    """Run a function in the network namespace of a process, as a new process.

    ``user``: it also enters the user namespace of that process.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            found = [
                os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY)
                for kind in (("user", "net") if user else ("net",))
            ]
            if all(libc.setns(descriptor, 0) == 0 for descriptor in found):
                work()
                code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError("the attack in the child namespace failed")


def ipv4_header(packet: bytes, **changes: int) -> bytes:
    """Return an IPv4 packet with other values of its one-byte header fields: tos, ttl, protocol."""
    at = {"tos": 1, "ttl": 8, "protocol": 9}
    header = bytearray(packet[:20])
    for name, value in changes.items():
        header[at[name]] = value
    header[10:12] = b"\0\0"
    header[10:12] = struct.pack("!H", packets.checksum(bytes(header)))
    return bytes(header) + packet[20:]
