"""What arrives on the other end of the veth pair: judged frame by frame, without nftables."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
from typing import TYPE_CHECKING

from ocsf_nft.lab import GATEWAY4, GATEWAY6, PROXY_PORT
from tests.kernel.packets import ETH_ARP, ETH_IP, ETH_IP6

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.lab import Lab

_ETH_P_ALL = 3
_SOL_PACKET = 263
_PACKET_AUXDATA = 8
_PACKET_OUTGOING = 4
_TP_STATUS_VLAN_VALID = 1 << 4
_AUXDATA = struct.Struct("=IIIHHHH")  # struct tpacket_auxdata


class FarSide:
    """Frames that came out of the sandbox and had no business to."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def strays(self) -> list[bytes]:
        """Take what has arrived until now, less what the proxy needs."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, ancillary, _flags, address = self._sock.recvmsg(65535, 256)
                tagged = any(
                    _AUXDATA.unpack_from(data)[0] & _TP_STATUS_VLAN_VALID
                    for _level, _kind, data in ancillary
                )
                if address[2] != _PACKET_OUTGOING and (tagged or not _is_needed(frame)):
                    found.append(frame)
        return found


@contextlib.contextmanager
def watch(lab: Lab) -> Iterator[FarSide]:
    """Capture on the gateway's end."""

    def open_socket() -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        sock.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        sock.bind((lab.gateway_device, _ETH_P_ALL))
        sock.setblocking(False)
        return sock

    with lab.gateway_namespace.call(open_socket) as sock:
        yield FarSide(sock)


def _is_needed(frame: bytes) -> bool:
    (kind,) = struct.unpack_from("!H", frame, 12)
    body = frame[14:]
    if kind == ETH_ARP:
        return len(frame) <= 60 and body[24:28] == ipaddress.IPv4Address(GATEWAY4).packed
    if kind == ETH_IP:
        fragment, protocol = struct.unpack_from("!6xHxB", body)
        return (
            body[16:20] == ipaddress.IPv4Address(GATEWAY4).packed
            and not fragment & 0x3FFF
            and protocol == 6
            and body[(body[0] & 0xF) * 4 + 2 :][:2] == PROXY_PORT.to_bytes(2, "big")
        )
    if kind == ETH_IP6:
        length, following, hop_limit = struct.unpack_from("!4xHBB", body)
        if following == 58:
            return hop_limit == 255 and body[40] in {135, 136} and length <= 40
        return (
            body[24:40] == ipaddress.IPv6Address(GATEWAY6).packed
            and following == 6
            and body[42:44] == PROXY_PORT.to_bytes(2, "big")
        )
    return False
