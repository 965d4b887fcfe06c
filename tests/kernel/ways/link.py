"""Ways of CAP_NET_RAW on the link layer: frames of packet sockets, and of AF_XDP."""

from __future__ import annotations

import socket
import struct
from functools import partial
from typing import TYPE_CHECKING, Final

from tests.kernel import packets, xdp
from tests.kernel.packets import ETH_ARP, ETH_IP, ETH_IP6
from tests.kernel.ways import tools
from tests.kernel.ways.variant import DEVICE, MAC, Register, Seat

if TYPE_CHECKING:
    from collections.abc import Callable

VARIANTS: Final = Register("link layer", "raw")

_MULTICAST: Final = bytes.fromhex("01005e000001")
_MULTICAST6: Final = bytes.fromhex("333300000001")


def _arp(
    seat: Seat, *, hardware: bytes = MAC, source: str = "", target: str = "",
    target_hardware: bytes = bytes(6), operation: int = 1, tail: bytes = b"",
) -> bytes:  # fmt: skip
    return (
        struct.pack("!HHBBH", 1, ETH_IP, 6, 4, operation)
        + hardware
        + socket.inet_aton(source or seat.own4)
        + target_hardware
        + socket.inet_aton(target or seat.gateway4)
        + tail
    )


def _neighbour(
    seat: Seat, kind: int, *, target: str = "", option: bytes = b"", source: str = "",
    to: str = "ff02::1", flags: int = 0,
) -> bytes:  # fmt: skip
    body = struct.pack("!BBHI", kind, 0, 0, flags)
    body += socket.inet_pton(socket.AF_INET6, target or seat.gateway6) + option
    return packets.summed(packets.ip6(source or seat.own6, to, 58, body, hop_limit=255))


#: What a frame is: a sentence's end, its ethertype, and a function that makes the frame.
_FRAMES: Final[dict[str, tuple[str, Callable[[Seat], bytes]]]] = {
    "broadcast to the proxy": (
        "a packet to the proxy, to everybody's link address",
        lambda seat: tools.own_frame(ETH_IP, tools.syn4(seat), to=tools.BROADCAST),
    ),
    "multicast to the proxy": (
        "a packet to the proxy, to a group's link address",
        lambda seat: tools.own_frame(ETH_IP, tools.syn4(seat), to=_MULTICAST),
    ),
    "multicast6 to the proxy": (
        "a packet to the proxy's IPv6 address, to a group's link address",
        lambda seat: tools.own_frame(ETH_IP6, tools.syn6(seat), to=_MULTICAST6),
    ),
    "another station with the proxy's address": (
        "a packet to the proxy, to another station's link address",
        lambda seat: tools.own_frame(ETH_IP, tools.syn4(seat), to=tools.STRANGER),
    ),
    "station that is the payload": (
        "a packet to the proxy, to a link address that is the payload",
        lambda seat: tools.own_frame(ETH_IP, tools.syn4(seat), to=seat.token),
    ),
    "sender that is the payload": (
        "a packet to the proxy, from a link address that is the payload",
        lambda seat: tools.own_frame(ETH_IP, tools.syn4(seat), source=seat.token),
    ),
    "source that is the payload": (
        "a packet to the proxy, from an IPv4 address that is the payload",
        lambda seat: tools.own_frame(ETH_IP, tools.syn4(seat, source=seat.address)),
    ),
    "source6 that is the payload": (
        "a packet to the proxy, from an IPv6 address that is the payload",
        lambda seat: tools.own_frame(ETH_IP6, tools.syn6(seat, source=seat.address6)),
    ),
    "neighbour's source": (
        "a packet to the proxy, from another address of the subnet",
        lambda seat: tools.own_frame(ETH_IP, tools.syn4(seat, source=seat.stranger4)),
    ),
    "proxy's own source": (
        "a packet to the proxy, from the proxy's address",
        lambda seat: tools.own_frame(ETH_IP, tools.syn4(seat, source=seat.gateway4)),
    ),
    "arp sender that is the payload": (
        "an ARP request for the proxy, from a link address that is the payload",
        lambda seat: tools.own_frame(ETH_ARP, _arp(seat, hardware=seat.token)),
    ),
    "arp target that is the payload": (
        "an ARP request for the proxy, with the payload in its unused target link address",
        lambda seat: tools.own_frame(ETH_ARP, _arp(seat, target_hardware=seat.token)),
    ),
    "arp source that is the payload": (
        "an ARP request for the proxy, from an IPv4 address that is the payload",
        lambda seat: tools.own_frame(
            ETH_ARP, _arp(seat, source=seat.address), source=seat.token
        ),
    ),
    "arp answer with data": (
        "an ARP answer to the proxy about an address that is the payload",
        lambda seat: tools.own_frame(
            ETH_ARP, _arp(seat, source=seat.address, hardware=seat.token, operation=2)
        ),
    ),
    "arp padding": (
        "an ARP request for the proxy, with the payload in its padding",
        lambda seat: tools.own_frame(ETH_ARP, _arp(seat, tail=seat.token * 3)),
    ),
    "arp to another station": (
        "an ARP request for the proxy, to a station that is the payload",
        lambda seat: tools.own_frame(ETH_ARP, _arp(seat), to=seat.token),
    ),
    "claim of the proxy's address": (
        "an ARP request from the proxy's address, with a link address that is the payload",
        lambda seat: tools.own_frame(
            ETH_ARP, _arp(seat, source=seat.gateway4, hardware=seat.token), to=tools.BROADCAST
        ),
    ),
    "solicitation of the payload": (
        "a neighbour solicitation for an address that is the payload",
        lambda seat: tools.own_frame(
            ETH_IP6, _neighbour(seat, 135, target=seat.address6), to=_MULTICAST6
        ),
    ),
    "solicitation with an option": (
        "a neighbour solicitation with the payload in its link-address option",
        lambda seat: tools.own_frame(
            ETH_IP6, _neighbour(seat, 135, option=b"\1\1" + seat.token), to=_MULTICAST6
        ),
    ),
    "solicitation with a nonce": (
        "a neighbour solicitation with the payload as nonce",
        lambda seat: tools.own_frame(
            ETH_IP6, _neighbour(seat, 135, option=b"\x0e\1" + seat.token, source="::"),
            to=_MULTICAST6,
        ),
    ),
    "solicitation to the payload": (
        "a neighbour solicitation to a link-local address that is the payload",
        lambda seat: tools.own_frame(
            ETH_IP6, _neighbour(seat, 135, to="fe80::" + seat.token.hex(":", 2))
        ),
    ),
    "advertisement of the payload": (
        "a neighbour advertisement about an address that is the payload",
        lambda seat: tools.own_frame(
            ETH_IP6, _neighbour(seat, 136, target=seat.address6), to=_MULTICAST6
        ),
    ),
    "advertisement of the proxy": (
        "a neighbour advertisement that gives the proxy's address a link address of its choice",
        lambda seat: tools.own_frame(
            ETH_IP6,
            _neighbour(seat, 136, option=b"\2\1" + seat.token, flags=0x20000000),
            to=_MULTICAST6,
        ),
    ),
    "solicitation from the payload": (
        "a neighbour solicitation from a source that is the payload",
        lambda seat: tools.own_frame(
            ETH_IP6, _neighbour(seat, 135, source=seat.address6), to=_MULTICAST6
        ),
    ),
    "flow label": (
        "a packet to the proxy's IPv6 address, with a flow label of its choice, to a group",
        lambda seat: tools.own_frame(
            ETH_IP6, b"\x60\x0f\xff\xff" + tools.syn6(seat)[4:], to=_MULTICAST6
        ),
    ),
    "802.3 length": (
        "a frame with a length and spanning tree data",
        lambda seat: tools.own_frame(
            38, b"\x42\x42\x03" + seat.payload, to=bytes.fromhex("0180c2000000")
        ),
    ),
    "snap to the proxy": (
        "a packet to the proxy in an 802.3 frame (SNAP)",
        lambda seat: tools.own_frame(60, b"\xaa\xaa\x03\0\0\0\x08\0" + tools.syn4(seat)),
    ),
    "ethertype of ip in ip": (
        "a packet to the proxy that claims to be IPv6",
        lambda seat: tools.own_frame(ETH_IP6, tools.syn4(seat)),
    ),
    "trailer after the packet": (
        "a packet to the proxy, with the payload after the end of the packet",
        lambda seat: tools.own_frame(
            ETH_IP, packets.summed(
                packets.ip4(seat.own4, seat.gateway4, 6, packets.tcp(3128, packets.SYN))
            ) + seat.payload, to=tools.BROADCAST,
        ),
    ),
    **{
        name: (
            f"a frame of {name}",
            partial(
                lambda seat, kind, to: tools.own_frame(kind, seat.payload, to=to),
                kind=kind, to=bytes.fromhex(to),
            ),
        )
        for name, kind, to in (
            ("wake on lan", 0x0842, "ffffffffffff"),
            ("link layer discovery", 0x88CC, "0180c200000e"),
            ("flow control", 0x8808, "0180c2000001"),
            ("port authentication", 0x888E, "0180c2000003"),
            ("precision time", 0x88F7, "0180c200000e"),
            ("macsec", 0x88E5, "ffffffffffff"),
            ("mpls", 0x8847, "ffffffffffff"),
            ("pppoe discovery", 0x8863, "ffffffffffff"),
            ("reverse arp", 0x8035, "ffffffffffff"),
            ("loopback test", 0x9000, "02aa00000001"),
            ("fault management", 0x8902, "0180c2000030"),
            ("transparent bridging", 0x6558, "02aa00000001"),
        )
    },
}  # fmt: skip
#: Frames whose payload has room for four bytes only.
_SHORT: Final = {"source that is the payload", "arp source that is the payload"}


def _by_packet_socket(seat: Seat, make: Callable[[Seat], bytes]) -> None:
    made = make(seat)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.bind((DEVICE, 0))
        with tools.refused():
            sock.sendto(made, (DEVICE, int.from_bytes(made[12:14], "big")))


def _by_xdp(seat: Seat, make: Callable[[Seat], bytes]) -> None:
    xdp.send(DEVICE, make(seat))


#: Ethertypes of which AF_XDP sends one only: the guard treats all alike.
_BY_SOCKETS_ONLY: Final = {
    "link layer discovery", "flow control", "port authentication", "precision time", "macsec",
    "pppoe discovery", "reverse arp", "loopback test", "fault management", "transparent bridging",
}  # fmt: skip

for _name, (_what, _make) in _FRAMES.items():
    VARIANTS.append(
        f"sends {_what}, by a packet socket.",
        partial(_by_packet_socket, make=_make), "raw", f"packet socket: {_name}", _name in _SHORT,
    )  # fmt: skip
    if _name not in _BY_SOCKETS_ONLY:
        VARIANTS.append(
            f"sends {_what}, by AF_XDP.",
            partial(_by_xdp, make=_make), "raw", f"af xdp: {_name}", _name in _SHORT,
        )  # fmt: skip
