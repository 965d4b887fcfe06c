"""Packets with valid checksums for tests/kernel/test_rules_*.py."""

from __future__ import annotations

import ipaddress
import struct

from tests.kernel import packets
from tests.kernel.packets import PAYLOAD

TCP, UDP, ICMP, ICMP6 = 6, 17, 1, 58
MORE_FRAGMENTS, DONT_FRAGMENT = 0x2000, 0x4000


def tcp(
    source: str, to: str, port: int, flags: int = packets.SYN, source_port: int = 4000
) -> bytes:
    """Return a TCP segment."""
    return _packet(source, to, TCP, packets.tcp(port, flags, source_port))


def udp(source: str, to: str, port: int, source_port: int = 4000) -> bytes:
    """Return a UDP datagram."""
    header = struct.pack("!HHHH", source_port, port, 8 + len(PAYLOAD), 0)
    return _packet(source, to, UDP, header + PAYLOAD)


def icmp(source: str, to: str, kind: int, code: int = 0, body: bytes = bytes(12)) -> bytes:
    """Return an ICMP message; an ICMPv6 message for an IPv6 address."""
    message = struct.pack("!BBH", kind, code, 0) + body
    return _packet(source, to, ICMP6 if ":" in to else ICMP, message)


def neighbour(
    source: str,
    to: str,
    kind: int = 135,
    *,
    target: str = "::",
    code: int = 0,
    hop_limit: int = 255,
    options: bytes = b"",
) -> bytes:
    """Return a neighbour discovery message: type 135 solicits, type 136 advertises."""
    body = bytes(4) + ipaddress.IPv6Address(target).packed + options
    message = struct.pack("!BBH", kind, code, 0) + body
    return packets.summed(packets.ip6(source, to, ICMP6, message, hop_limit=hop_limit))


def other(source: str, to: str, protocol: int, payload: bytes = PAYLOAD) -> bytes:
    """Return a packet of a protocol by its number."""
    make = packets.ip6 if ":" in to else packets.ip4
    return make(source, to, protocol, payload)


def with_flags4(packet: bytes, field: int) -> bytes:
    """Return the IPv4 packet with this flags and fragment offset field."""
    return _header4(packet[:6] + struct.pack("!H", field) + packet[8:20]) + packet[20:]


def with_options4(packet: bytes) -> bytes:
    """Return the IPv4 packet with four no-operation options."""
    length = struct.pack("!H", len(packet) + 4)
    return _header4(b"\x46" + packet[1:2] + length + packet[4:20] + b"\1\1\1\0") + packet[20:]


def with_extension6(packet: bytes, kind: int = 60, header: bytes = bytes(7)) -> bytes:
    """Insert an extension header; ``header`` holds the bytes after its first one."""
    payload = packet[6:7] + header + packet[40:]
    return packet[:4] + struct.pack("!HB", len(payload), kind) + packet[7:40] + payload


def fragment6(packet: bytes, offset: int, more: int = 0) -> bytes:
    """Return the IPv6 packet as a fragment; ``offset`` in units of 8 bytes."""
    return with_extension6(packet, 44, struct.pack("!BHI", 0, offset << 3 | more, 7))


def _packet(source: str, to: str, protocol: int, payload: bytes) -> bytes:
    make = packets.ip6 if ":" in to else packets.ip4
    return packets.summed(make(source, to, protocol, payload))


def _header4(header: bytes) -> bytes:
    empty = header[:10] + b"\0\0" + header[12:]
    return empty[:10] + struct.pack("!H", packets.checksum(empty)) + empty[12:]
