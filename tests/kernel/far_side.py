"""Frames that arrive on the gateway's end of the veth pair, judged without nftables."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
from typing import TYPE_CHECKING

from ocsf_nft.lab import GATEWAY4, GATEWAY6, GATEWAY_MAC, PROXY_PORT, SANDBOX4, SANDBOX6
from tests.kernel.packets import ETH_ARP, ETH_IP, ETH_IP6

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.lab import Lab

_ETH_P_ALL = 3
_SOL_PACKET = 263
_PACKET_AUXDATA = 8
_PACKET_OUTGOING = 4
_TP_STATUS_VLAN_VALID = 1 << 4
_GATEWAY_MAC = bytes.fromhex(GATEWAY_MAC.replace(":", ""))
_GATEWAY_FROM_SANDBOX4 = b"".join(ipaddress.IPv4Address(end).packed for end in (SANDBOX4, GATEWAY4))
_GATEWAY_FROM_SANDBOX6 = b"".join(ipaddress.IPv6Address(end).packed for end in (SANDBOX6, GATEWAY6))
_AUXDATA = struct.Struct("=IIIHHHH")  # struct tpacket_auxdata


class FarSide:
    """Frames that came out of the sandbox."""

    def __init__(self, sock: socket.socket, *, has_proxy: bool) -> None:
        self._sock = sock
        self._has_proxy = has_proxy

    def strays(self) -> list[bytes]:
        """Take the frames that have arrived so far, without those that the proxy needs."""
        return [frame for frame in self.frames() if not self._is_needed(frame)]

    def frames(self) -> list[bytes]:
        """Take all frames that have arrived so far."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, ancillary, _flags, address = self._sock.recvmsg(65535, 256)
                if address[2] != _PACKET_OUTGOING:
                    found.append(_with_tag(frame, ancillary))
        return found

    def _is_needed(self, frame: bytes) -> bool:
        return _is_of_the_kernel(frame) or (self._has_proxy and _is_to_the_proxy(frame))


@contextlib.contextmanager
def watch(lab: Lab, *, has_proxy: bool = True) -> Iterator[FarSide]:
    """Capture frames on the gateway's end. ``has_proxy``: frames to the proxy are no strays."""

    def open_socket() -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        sock.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        sock.bind((lab.gateway_device, _ETH_P_ALL))
        sock.setblocking(False)
        return sock

    with lab.gateway_namespace.call(open_socket) as sock:
        yield FarSide(sock, has_proxy=has_proxy)


def protocols(frame: bytes) -> set[int]:
    """Return a frame's ethertype, its IP protocol, and the protocol after an IPv6 extension."""
    (kind,) = struct.unpack_from("!H", frame, 12)
    found = {kind}
    if kind == ETH_IP:
        found.add(frame[23])
    elif kind == ETH_IP6:
        found |= {frame[20], frame[54]}
    return found


def _with_tag(frame: bytes, ancillary: list[tuple[int, int, bytes]]) -> bytes:
    """Restore an outer VLAN tag, which the kernel moves to ancillary data (packet(7))."""
    for _level, _kind, data in ancillary:
        status, *_, tag, kind = _AUXDATA.unpack_from(data)
        if status & _TP_STATUS_VLAN_VALID:
            return frame[:12] + struct.pack("!HH", kind, tag) + frame[12:]
    return frame


def _is_of_the_kernel(frame: bytes) -> bool:
    (kind,) = struct.unpack_from("!H", frame, 12)
    if kind == ETH_ARP:
        return _is_arp_of_the_kernel(frame)
    return kind == ETH_IP6 and frame[20] == 58 and _is_neighbour_discovery_of_the_kernel(frame)


def _is_to_the_proxy(frame: bytes) -> bool:
    (kind,) = struct.unpack_from("!H", frame, 12)
    body = frame[14:]
    if kind == ETH_IP:
        fragment, protocol = struct.unpack_from("!6xHxB", body)
        return (
            body[12:20] == _GATEWAY_FROM_SANDBOX4
            and not fragment & 0x3FFF
            and protocol == 6
            and body[(body[0] & 0xF) * 4 + 2 :][:2] == PROXY_PORT.to_bytes(2, "big")
        )
    return (
        kind == ETH_IP6
        and body[8:40] == _GATEWAY_FROM_SANDBOX6
        and body[6] == 6
        and body[42:44] == PROXY_PORT.to_bytes(2, "big")
    )


def _is_arp_of_the_kernel(frame: bytes) -> bool:
    """Return whether no field holds a value that a sender chose (RFC 826)."""
    kind = frame[14:22]
    hardware, sender, target_mac, target, rest = struct.unpack(
        f"6s4s6s4s{len(frame) - 42}s", frame[22:]
    )
    return (
        len(frame) <= 60
        and frame[:6] in {b"\xff" * 6, _GATEWAY_MAC}
        and kind in {struct.pack("!HHBBH", 1, ETH_IP, 6, 4, operation) for operation in (1, 2)}
        and (hardware, sender) == (frame[6:12], ipaddress.IPv4Address(SANDBOX4).packed)
        and target_mac in {bytes(6), _GATEWAY_MAC}
        and target == ipaddress.IPv4Address(GATEWAY4).packed
        and not any(rest)
    )


def _is_neighbour_discovery_of_the_kernel(frame: bytes) -> bool:
    """Return whether it has only a target and the sandbox's link-layer address (RFC 4861)."""
    body = frame[14:]
    length, _following, hop_limit = struct.unpack_from("!4xHBB", body)
    kind, code, _checksum, flags = struct.unpack_from("!BBHI", body, 40)
    to, target, options = body[24:40], body[48:64], body[64:]
    solicited_node = ipaddress.IPv6Address("ff02::1:ff00:0").packed[:13] + target[13:]
    return (
        (hop_limit, code, len(body)) == (255, 0, 40 + length)
        and kind in {135, 136}
        and (kind == 136 or (not flags and to in {target, solicited_node}))
        # The link-layer address, or the nonce of duplicate address detection (RFC 7527).
        and (
            options in {b"", b"\1\1" + frame[6:12], b"\2\1" + frame[6:12]}
            or options[:2] == b"\x0e\1"
        )
        and len(options) <= 8
    )
