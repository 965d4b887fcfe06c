"""Hand-made packets and frames, for attempts that are not possible with ordinary sockets."""

from __future__ import annotations

import ipaddress
import struct

ETH_IP = 0x0800
ETH_ARP = 0x0806
ETH_IP6 = 0x86DD
PAYLOAD = b"bypass"
#: Numbers of the TCP flags.
FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip4(
    source: str, destination: str, protocol: int, payload: bytes, *, fragment: int = 0
) -> bytes:
    """Return an IPv4 packet; ``fragment`` is the header's field of flags and fragment offset."""
    header = struct.pack(
        "!BBHHHBBH4s4s",
        0x45,
        0,
        20 + len(payload),
        1,
        fragment,
        64,
        protocol,
        0,
        ipaddress.IPv4Address(source).packed,
        ipaddress.IPv4Address(destination).packed,
    )
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload


def ip6(
    source: str, destination: str, following: int, payload: bytes, *, hop_limit: int = 64
) -> bytes:
    """Return an IPv6 packet."""
    return (
        struct.pack("!IHBB", 6 << 28, len(payload), following, hop_limit)
        + ipaddress.IPv6Address(source).packed
        + ipaddress.IPv6Address(destination).packed
        + payload
    )


def tcp(port: int, flags: int, source_port: int = 4000) -> bytes:
    """Return a TCP header without options; its checksum is zero, as no firewall checks it."""
    return struct.pack("!HHIIBBHHH", source_port, port, 1, 1, 5 << 4, flags, 8192, 0, 0)


def udp(port: int, payload: bytes = PAYLOAD) -> bytes:
    """Return a UDP datagram without a checksum."""
    return struct.pack("!HHHH", 4000, port, 8 + len(payload), 0) + payload


def icmp_echo() -> bytes:
    """Return an ICMP echo request."""
    body = struct.pack("!BBHHH", 8, 0, 0, 7, 1) + PAYLOAD
    return body[:2] + struct.pack("!H", checksum(body)) + body[4:]


def solicitation(options: bytes) -> bytes:
    """Return an ICMPv6 neighbour solicitation for the unspecified address."""
    return struct.pack("!BBHI", 135, 0, 0, 0) + bytes(16) + options


def frame(destination: bytes, source: bytes, kind: int, payload: bytes) -> bytes:
    """Return an Ethernet frame, padded to the minimum size."""
    return (destination + source + struct.pack("!H", kind) + payload).ljust(60, b"\0")


def arp(source: str, target: str, source_mac: bytes, extra: bytes = b"") -> bytes:
    """Return an ARP request, followed by ``extra`` bytes."""
    return (
        struct.pack("!HHBBH", 1, ETH_IP, 6, 4, 1)
        + source_mac
        + ipaddress.IPv4Address(source).packed
        + bytes(6)
        + ipaddress.IPv4Address(target).packed
        + extra
    )


def summed(packet: bytes) -> bytes:
    """Return the packet with a valid checksum: TCP, UDP or ICMP without extension headers."""
    if packet[0] >> 4 == 4:
        start, protocol, ends = (packet[0] & 15) * 4, packet[9], packet[12:20]
    else:
        start, protocol, ends = 40, packet[6], packet[8:40]
    offset = start + {1: 2, 6: 16, 17: 6, 58: 2}[protocol]
    body = packet[start:offset] + b"\0\0" + packet[offset + 2 :]
    pseudo = b"" if protocol == 1 else ends + struct.pack("!II", len(body), protocol)
    return packet[:offset] + struct.pack("!H", checksum(pseudo + body)) + packet[offset + 2 :]
