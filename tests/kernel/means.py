"""Means of an escape: sockets of every kind, and frames that bypass the IP stack.

Each function makes an attempt inside the sandbox's namespace, or returns a function that makes it.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from ocsf_nft.lab import GATEWAY_MAC, INTERNET4, INTERNET6, PROXY_PORT, SANDBOX4, SANDBOX6
from tests.kernel import packets
from tests.kernel.packets import ETH_IP6, PAYLOAD

if TYPE_CHECKING:
    from collections.abc import Callable

_SOL_PACKET = 263
_PACKET_QDISC_BYPASS = 20
_PACKET_VNET_HDR = 15
_IPV6_FREEBIND = 78  # include/uapi/linux/in6.h
_IP6_HDRINCL = 36  # include/uapi/linux/in6.h: IPV6_HDRINCL


def _refused() -> contextlib.suppress:
    """Ignore OSError: a refusal may be an error of the sending call."""
    return contextlib.suppress(OSError)


def send(family: int, kind: int, protocol: int, payload: bytes, to: tuple[str, int]) -> None:
    with socket.socket(family, kind, protocol) as sock, _refused():
        sock.sendto(payload, to)


def raw4(protocol: int, payload: bytes = PAYLOAD, to: str = INTERNET4) -> Callable[[], None]:
    return lambda: send(socket.AF_INET, socket.SOCK_RAW, protocol, payload, (to, 0))


def raw6(protocol: int, payload: bytes = PAYLOAD, to: str = INTERNET6) -> Callable[[], None]:
    return lambda: send(socket.AF_INET6, socket.SOCK_RAW, protocol, payload, (to, 0))


def connect_from(source: str, to: str) -> Callable[[], None]:
    """Connect from an IPv6 address that this machine does not have (IPV6_FREEBIND)."""

    def attempt() -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock, _refused():
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
            sock.bind((source, 0))
            sock.settimeout(0.2)
            sock.connect((to, PROXY_PORT))

    return attempt


def solicit(tail: bytes, *, hop_limit: int = 255) -> Callable[[], None]:
    message = packets.solicitation(tail)

    def attempt() -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58) as sock:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, hop_limit)
            with _refused():
                sock.sendto(message, ("ff02::1", 0))

    return attempt


def whole4(packet: bytes, to: str = INTERNET4) -> Callable[[], None]:
    return lambda: send(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW, packet, (to, 0))


def whole6(packet: bytes, to: str = INTERNET6) -> Callable[[], None]:
    def attempt() -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
            sock.setsockopt(socket.IPPROTO_IPV6, _IP6_HDRINCL, 1)
            with _refused():
                sock.sendto(packet, (to, 0))

    return attempt


def connect(family: int, to: str) -> Callable[[], None]:
    def attempt() -> None:
        with socket.socket(family, socket.SOCK_STREAM) as sock, _refused():
            sock.settimeout(2)
            sock.connect((to, 443))

    return attempt


def ping(family: int, protocol: int, kind: int, to: str) -> Callable[[], None]:
    echo = struct.pack("!BBHHH", kind, 0, 0, 0, 1)

    def attempt() -> None:
        Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 0")
        send(family, socket.SOCK_DGRAM, protocol, echo, (to, 0))

    return attempt


def join4() -> None:
    """Join an IPv4 group: the kernel sends an IGMP membership report without any privilege."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        group = socket.inet_aton("239.1.2.3") + socket.inet_aton(SANDBOX4)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)


def join6() -> None:
    """Join an IPv6 group: the kernel sends an MLD report without any privilege."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        index = socket.if_nametoindex("sb0")
        group = socket.inet_pton(socket.AF_INET6, "ff05::7") + struct.pack("=I", index)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)


def frame(
    kind: int, payload: Callable[[bytes], bytes], *, announced: int | None = None, bypass: bool
) -> Callable[[], None]:
    """Send a frame by AF_PACKET; ``announced`` is the protocol that its socket claims."""

    def attempt() -> None:
        gateway = bytes.fromhex(GATEWAY_MAC.replace(":", ""))
        protocol = kind if announced is None else announced
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            sock.bind(("sb0", 0))
            own = sock.getsockname()[4]
            if bypass:
                sock.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
            with _refused():
                sock.sendto(packets.frame(gateway, own, kind, payload(own)), ("sb0", protocol))

    return attempt


def rewritten_by_the_device() -> None:
    """Let the device write a checksum over the first 16 bits of a link-local destination."""
    gateway = bytes.fromhex(GATEWAY_MAC.replace(":", ""))
    packet = packets.ip6(
        SANDBOX6, "fe80:db8::7", 58, packets.solicitation(PAYLOAD.ljust(16)), hop_limit=255
    )
    # struct virtio_net_hdr: NEEDS_CSUM, no segmentation, checksum from byte 38 at offset 0
    header = struct.pack("=BBHHHH", 1, 0, 0, 0, 38, 0)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.bind(("sb0", 0))
        sock.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        frame = packets.frame(gateway, sock.getsockname()[4], ETH_IP6, packet)
        with _refused():
            sock.sendto(header + frame, ("sb0", ETH_IP6))


def constant(payload: bytes) -> Callable[[bytes], bytes]:
    return lambda _own: payload
