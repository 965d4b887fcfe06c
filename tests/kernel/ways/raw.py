"""Ways of CAP_NET_RAW by the IP stack: whole packets, options, and forged sources."""

from __future__ import annotations

import ctypes
import mmap
import socket
import struct
import time
from functools import partial
from typing import Final

from tests.kernel import packets
from tests.kernel.packets import ACK, ETH_IP, ETH_IP6, RST, SYN
from tests.kernel.ways import tools
from tests.kernel.ways.variant import (
    DEVICE,
    GATEWAY_MAC,
    INTERNET4,
    INTERNET6,
    PROXY_PORT,
    Register,
    Seat,
)

VARIANTS: Final = Register("raw packets", "raw")
_add = VARIANTS.add

_TCP, _UDP, _ICMP, _ICMP6 = 6, 17, 1, 58


def _protocol4(seat: Seat, number: int, to: str) -> None:
    tools.raw4(number, seat.payload, to)


for _name, _number, _to in (
    ("pim", 103, "224.0.0.13"),
    ("vrrp", 112, "224.0.0.18"),
    ("ospf", 89, "224.0.0.5"),
    ("igmp", 2, "224.0.0.22"),
    ("etherip", 97, INTERNET4),
    ("l2tp", 115, INTERNET4),
    ("ipcomp", 108, INTERNET4),
    ("rsvp", 46, INTERNET4),
):
    VARIANTS.append(
        f"sends packets of protocol {_number} ({_name}) by a raw socket.",
        partial(_protocol4, number=_number, to=_to), "raw", f"raw {_name}",
    )  # fmt: skip


def _extension6(seat: Seat, kind: int, to: str) -> None:
    header = bytes([_TCP, 1, 0x1E, 12]) + seat.token * 2
    segment = packets.tcp(PROXY_PORT, SYN)
    tools.whole6(packets.ip6(seat.own6, to or seat.gateway6, kind, header + segment))


for _name, _number in (
    ("hop by hop", 0), ("destination options", 60), ("mobility", 135), ("hip", 139), ("shim6", 140),
    ("authentication", 51),
):  # fmt: skip
    VARIANTS.append(
        f"puts the payload into an IPv6 header of a packet to the proxy: {_name}.",
        partial(_extension6, kind=_number, to=""), "raw", f"ip6 {_name} to the proxy",
    )  # fmt: skip


@_add("sets destination options on a TCP socket that connects to the proxy.")
def sticky_destination_options(seat: Seat) -> None:
    option = bytes([0, 1, 0x1E, 12]) + seat.token * 2
    with socket.socket(socket.AF_INET6) as sock, tools.refused():
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, option)
        sock.settimeout(0.1)
        sock.connect((seat.gateway6, PROXY_PORT))


@_add("sets a loose source route on a packet to the proxy.")
def loose_source_route(seat: Seat) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, tools.refused():
        route = b"\x83\x0b\x04" + socket.inet_aton(INTERNET4) + seat.short + b"\0"
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, route)
        sock.sendto(seat.payload, (seat.gateway4, PROXY_PORT))


@_add("connects to the proxy from an address that is the payload (IP_TRANSPARENT).", is_short=True)
def transparent_source(seat: Seat) -> None:
    with socket.socket() as sock, tools.refused():
        sock.setsockopt(socket.IPPROTO_IP, tools.IP_TRANSPARENT, 1)
        sock.bind((seat.address, 0))
        sock.settimeout(0.1)
        sock.connect((seat.gateway4, PROXY_PORT))


@_add("sends datagrams from a foreign address (IP_TRANSPARENT).")
def transparent_datagram(seat: Seat) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, tools.refused():
        sock.setsockopt(socket.IPPROTO_IP, tools.IP_TRANSPARENT, 1)
        sock.bind((INTERNET4, 5000))
        sock.sendto(seat.payload, (seat.gateway4, PROXY_PORT))


@_add("marks its packets (SO_MARK).")
def marked(seat: Seat) -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, 36, 0x7FFFFFFF)
    tools.udp(seat, sock=sock)


def _syn_with(seat: Seat, segment: bytes, version: int = 4) -> None:
    if version == 4:
        tools.whole4(
            packets.summed(packets.ip4(seat.own4, seat.gateway4, _TCP, segment)), seat.gateway4
        )
    else:
        tools.whole6(
            packets.summed(packets.ip6(seat.own6, seat.gateway6, _TCP, segment)), seat.gateway6
        )


@_add("sends a SYN to the proxy with data.")
def data_in_a_syn(seat: Seat) -> None:
    _syn_with(seat, packets.tcp(PROXY_PORT, SYN) + seat.payload)


@_add("sends a SYN to the proxy with data over IPv6.")
def data_in_a_syn6(seat: Seat) -> None:
    _syn_with(seat, packets.tcp(PROXY_PORT, SYN) + seat.payload, 6)


@_add("writes the payload into the sequence number of a SYN to the proxy.", is_short=True)
def sequence_number(seat: Seat) -> None:
    segment = packets.tcp(PROXY_PORT, SYN)
    _syn_with(seat, segment[:4] + seat.short + segment[8:])


@_add("writes the payload into an option of a SYN to the proxy.")
def tcp_option(seat: Seat) -> None:
    segment = packets.tcp(PROXY_PORT, SYN)
    options = b"\xfd\x08" + seat.token + b"\1" * 4
    _syn_with(seat, segment[:12] + bytes([8 << 4]) + segment[13:] + options)


@_add("writes the payload into timestamps of a segment to the proxy.", is_short=True)
def tcp_timestamps(seat: Seat) -> None:
    segment = packets.tcp(PROXY_PORT, ACK)
    options = b"\1\1\x08\x0a" + seat.short + seat.short
    _syn_with(seat, segment[:12] + bytes([8 << 4]) + segment[13:] + options)


@_add("resets a connection to the proxy that does not exist, with data.")
def reset_with_data(seat: Seat) -> None:
    _syn_with(seat, packets.tcp(PROXY_PORT, RST) + seat.payload)


@_add("writes the payload into ports, identification, window and urgent pointer.", is_short=True)
def header_fields(seat: Seat) -> None:
    segment = packets.tcp(PROXY_PORT, SYN)
    segment = segment[:8] + seat.short + segment[12:]
    packet = packets.summed(packets.ip4(seat.own4, seat.gateway4, _TCP, segment))
    tools.whole4(tools.ipv4_header(packet, tos=seat.short[2], ttl=seat.short[3]), seat.gateway4)


def _icmp4(seat: Seat, kind: int, code: int, to: str = INTERNET4) -> None:
    body = struct.pack("!BBHI", kind, code, 0, 0) + tools.udp4(seat)
    packet = packets.summed(packets.ip4(seat.own4, to, _ICMP, body))
    tools.whole4(packet, to)


for _name, _kind, _code in (
    ("unreachable", 3, 3), ("fragmentation needed", 3, 4), ("redirect", 5, 1),
    ("time exceeded", 11, 0),
    ("timestamp", 13, 0), ("echo reply", 0, 0), ("admin prohibited", 3, 13),
):  # fmt: skip
    VARIANTS.append(
        f"sends an ICMP message that quotes a chosen packet: {_name}.",
        partial(_icmp4, kind=_kind, code=_code), "raw", f"icmp {_name}",
    )  # fmt: skip


def _icmp6(seat: Seat, kind: int, code: int, to: str) -> None:
    body = struct.pack("!BBHI", kind, code, 0, 0) + tools.udp6(seat)
    packet = packets.ip6(seat.own6, to, _ICMP6, body, hop_limit=255)
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, tools.IPV6_HDRINCL, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, DEVICE.encode())
        with tools.refused():
            sock.sendto(packets.summed(packet), (to, 0))


for _name, _kind, _code, _to in (
    ("admin prohibited", 1, 1, INTERNET6), ("packet too big", 2, 0, INTERNET6),
    ("router solicitation", 133, 0, "ff02::2"), ("router advertisement", 134, 0, "ff02::1"),
    ("redirect", 137, 0, "ff02::1"), ("mld report", 143, 0, "ff02::16"),
    ("node information", 139, 0, INTERNET6), ("inverse solicitation", 141, 0, "ff02::1"),
):  # fmt: skip
    VARIANTS.append(
        f"sends an ICMPv6 message with a chosen body: {_name}.",
        partial(_icmp6, kind=_kind, code=_code, to=_to), "raw", f"icmp6 {_name}",
    )  # fmt: skip


@_add("claims an address that is the payload (neighbour advertisement by a raw socket).")
def raw_advertisement(seat: Seat) -> None:
    body = struct.pack("!BBHI", 136, 0, 0, 0x20000000)
    body += socket.inet_pton(socket.AF_INET6, seat.address6) + b"\2\1" + seat.token
    packet = packets.summed(packets.ip6(seat.own6, "ff02::1", _ICMP6, body, hop_limit=255))
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, tools.IPV6_HDRINCL, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, DEVICE.encode())
        with tools.refused():
            sock.sendto(packet, ("ff02::1", 0))


# A frame that a process puts on loopback arrives as from outside: the kernel answers its source.


def _on_loopback(kind: int, packet: bytes) -> None:
    tools.frame(kind, packet, to=bytes(6), source=bytes(6), device="lo")
    time.sleep(0.05)


@_add("puts an echo request from the internet on loopback: the kernel's reply has the payload.")
def echo_on_loopback(seat: Seat) -> None:
    body = struct.pack("!BBHHH", 8, 0, 0, 7, 1) + seat.payload
    _on_loopback(ETH_IP, packets.summed(packets.ip4(INTERNET4, seat.own4, _ICMP, body)))


@_add("does the same over IPv6.")
def echo6_on_loopback(seat: Seat) -> None:
    body = struct.pack("!BBHHH", 128, 0, 0, 7, 1) + seat.payload
    _on_loopback(ETH_IP6, packets.summed(packets.ip6(INTERNET6, seat.own6, _ICMP6, body)))


@_add("puts a datagram from the internet on loopback: the kernel's error quotes it.")
def error_on_loopback(seat: Seat) -> None:
    packet = packets.ip4(INTERNET4, seat.own4, _UDP, packets.udp(9, seat.payload))
    _on_loopback(ETH_IP, packets.summed(packet))


@_add("does the same over IPv6, from an address that is the payload.")
def error6_on_loopback(seat: Seat) -> None:
    packet = packets.ip6(seat.address6, seat.own6, _UDP, packets.udp(9, seat.payload))
    _on_loopback(ETH_IP6, packets.summed(packet))


@_add(
    "puts a SYN from an address that is the payload on loopback: the reset goes there.",
    is_short=True,
)
def reset_on_loopback(seat: Seat) -> None:
    packet = packets.ip4(seat.address, seat.own4, _TCP, packets.tcp(9, SYN))
    _on_loopback(ETH_IP, packets.summed(packet))


@_add("puts a SYN of the proxy on loopback: the kernel's reset goes to the proxy.", is_short=True)
def reset_to_the_proxy(seat: Seat) -> None:
    segment = struct.pack("!HH", PROXY_PORT, 9) + seat.short + seat.short
    segment += struct.pack("!BBHHH", 5 << 4, ACK, 8192, 0, 0)
    _on_loopback(ETH_IP, packets.summed(packets.ip4(seat.gateway4, seat.own4, _TCP, segment)))


# Frames of AF_PACKET in unusual ways.


@_add("sends by a packet socket without a link header (SOCK_DGRAM).")
def cooked_packet_socket(seat: Seat) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0) as sock, tools.refused():
        sock.sendto(tools.udp4(seat), (DEVICE, ETH_IP, 0, 0, GATEWAY_MAC))


@_add("sends to the proxy by a packet socket without a link header, to everybody's link address.")
def cooked_broadcast(seat: Seat) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0) as sock, tools.refused():
        sock.sendto(tools.syn4(seat), (DEVICE, ETH_IP, 0, 0, tools.BROADCAST))


@_add("sends by the packet socket of Linux 2.0 (SOCK_PACKET).")
def old_packet_socket(seat: Seat) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with socket.socket(socket.AF_INET, 10, socket.htons(3)) as sock:
        found = tools.own_frame(ETH_IP, tools.udp4(seat))
        address = struct.pack("=H14sH", 1, DEVICE.encode(), socket.htons(3))
        libc.sendto(sock.fileno(), found, len(found), 0, address, len(address))


def _ring(seat: Seat, frame: bytes) -> None:
    """Send a frame by a memory-mapped ring (PACKET_TX_RING, version 2)."""
    del seat
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.setsockopt(tools.SOL_PACKET, 10, 1)  # PACKET_VERSION, TPACKET_V2
        sock.setsockopt(tools.SOL_PACKET, 13, struct.pack("=IIII", 4096, 1, 2048, 2))
        sock.bind((DEVICE, 0))
        ring = mmap.mmap(sock.fileno(), 4096)
        struct.pack_into("=II", ring, 0, 1, len(frame))  # TP_STATUS_SEND_REQUEST, tp_len
        ring[32 : 32 + len(frame)] = frame
        with tools.refused():
            sock.sendto(b"", (DEVICE, ETH_IP))
        time.sleep(0.02)
        ring.close()


@_add("sends by a memory-mapped ring (PACKET_TX_RING).")
def packet_ring(seat: Seat) -> None:
    _ring(seat, tools.own_frame(ETH_IP, tools.udp4(seat)))


@_add("sends to the proxy by a memory-mapped ring, to everybody's link address.")
def packet_ring_broadcast(seat: Seat) -> None:
    _ring(seat, tools.own_frame(ETH_IP, tools.syn4(seat), to=tools.BROADCAST))


def _offloaded(seat: Seat, kind: int, packet: bytes, header: bytes) -> None:
    del seat
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.bind((DEVICE, 0))
        sock.setsockopt(tools.SOL_PACKET, 15, 1)  # PACKET_VNET_HDR
        with tools.refused():
            sock.sendto(header + tools.own_frame(kind, packet), (DEVICE, kind))


@_add("lets the device cut one large frame into TCP segments (PACKET_VNET_HDR).")
def offloaded_segments(seat: Seat) -> None:
    segment = packets.tcp(443, ACK) + seat.payload * 200
    packet = packets.summed(packets.ip4(seat.own4, INTERNET4, _TCP, segment))
    _offloaded(seat, ETH_IP, packet, struct.pack("=BBHHHH", 1, 1, 54, 1000, 34, 16))


@_add("does the same with segments to the proxy.")
def offloaded_segments_to_the_proxy(seat: Seat) -> None:
    segment = packets.tcp(PROXY_PORT, ACK) + seat.payload * 200
    packet = packets.summed(packets.ip4(seat.own4, seat.gateway4, _TCP, segment))
    _offloaded(seat, ETH_IP, packet, struct.pack("=BBHHHH", 1, 1, 54, 1000, 34, 16))


@_add("lets the device write a checksum over the destination of a packet to the proxy.")
def offloaded_checksum(seat: Seat) -> None:
    packet = tools.syn6(seat)
    _offloaded(seat, ETH_IP6, packet, struct.pack("=BBHHHH", 1, 0, 0, 0, 38, 0))


@_add("sends the UDP segments of an IPv6 flow by the device (UDP_L4).")
def offloaded_datagrams(seat: Seat) -> None:
    packet = packets.ip6(seat.own6, INTERNET6, _UDP, packets.udp(443, seat.payload * 100))
    _offloaded(seat, ETH_IP6, packet, struct.pack("=BBHHHH", 1, 5, 62, 200, 54, 6))
