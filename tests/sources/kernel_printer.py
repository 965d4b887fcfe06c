"""Printer of the kernel's text for a packet's bytes.

It is a port of net/netfilter/nf_log_syslog.c with all log flags set, function by function, with its
bugs. It shares no code with the tested readers. A test compares it with the kernel's real lines.
"""

from __future__ import annotations

import socket
import struct


class _Truncated(Exception):  # noqa: N818 - a return of the kernel, no error
    pass


def _at(data: bytes, offset: int, size: int) -> bytes | None:
    return data[offset : offset + size] if offset + size <= len(data) else None


def _incomplete(data: bytes, offset: int) -> str:
    return f"INCOMPLETE [{(len(data) - offset) & 0xFFFFFFFF} bytes] "


def mac(address: bytes) -> str:
    return ":".join(f"{octet:02x}" for octet in address)


def ipv4(data: bytes, owner: str = "", offset: int = 0) -> str:
    header = _at(data, offset, 20)
    if header is None:
        return "TRUNCATED"
    ihl, tos, length, ident, frag, ttl, protocol = struct.unpack_from("!BBHHHBB", header)
    ihl = (ihl & 15) * 4
    out = f"SRC={socket.inet_ntoa(header[12:16])} DST={socket.inet_ntoa(header[16:20])} "
    out += f"LEN={length} TOS=0x{tos & 0x1E:02X} PREC=0x{tos & 0xE0:02X} TTL={ttl} ID={ident} "
    out += "CE " if frag & 0x8000 else ""
    out += "DF " if frag & 0x4000 else ""
    out += "MF " if frag & 0x2000 else ""
    fragment_offset = frag & 0x1FFF
    out += f"FRAG:{fragment_offset} " if fragment_offset else ""
    if ihl > 20:
        options = _at(data, offset + 20, ihl - 20)
        if options is None:
            return out + "TRUNCATED"
        out += f"OPT ({options.hex().upper()}) "
    start = offset + ihl
    try:
        out += _ipv4_protocol(data, protocol, start, fragment_offset, offset)
    except _Truncated as end:
        return out + str(end)
    return out + owner


def _ipv4_protocol(
    data: bytes, protocol: int, start: int, fragment_offset: int, offset: int
) -> str:
    if protocol == 6:
        return tcp(data, start, fragment_offset)
    if protocol in {17, 136}:
        return udp(data, protocol, start, fragment_offset)
    if protocol == 1:
        return _icmp(data, start, fragment_offset, offset)
    if protocol == 51:
        if fragment_offset:
            return ""
        header = _at(data, start, 12)
        return "PROTO=AH " + (
            _incomplete(data, start) if header is None else f"SPI=0x{_word(header, 4):x} "
        )
    if protocol == 50:
        if fragment_offset:
            return "PROTO=ESP "
        header = _at(data, start, 8)
        return "PROTO=ESP " + (
            _incomplete(data, start) if header is None else f"SPI=0x{_word(header, 0):x} "
        )
    return f"PROTO={protocol} "


def _word(header: bytes, offset: int) -> int:
    return int.from_bytes(header[offset : offset + 4], "big")


def _icmp(data: bytes, start: int, fragment_offset: int, offset: int) -> str:
    out = "PROTO=ICMP "
    if fragment_offset:
        return out
    header = _at(data, start, 8)
    if header is None:
        return out + _incomplete(data, start)
    kind, code = header[0], header[1]
    out += f"TYPE={kind} CODE={code} "
    least = {3: 28, 4: 28, 5: 28, 11: 28, 12: 28, 13: 20, 14: 20, 17: 12, 18: 12}
    if kind in least and len(data) - start < least[kind]:
        return out + _incomplete(data, start)
    if kind in {0, 8}:
        out += "ID={} SEQ={} ".format(*struct.unpack_from("!HH", header, 4))
    elif kind == 12:
        out += f"PARAMETER={header[4]} "
    elif kind in {3, 4, 5, 11}:
        if kind == 5:
            out += f"GATEWAY={socket.inet_ntoa(header[4:8])} "
        if offset == 0:
            out += f"[{ipv4(data, offset=start + 8)}] "
        if (kind, code) == (3, 4):
            out += f"MTU={int.from_bytes(header[6:8], 'big')} "
    return out


def tcp(data: bytes, start: int, fragment_offset: int) -> str:
    out = "PROTO=TCP "
    if fragment_offset:
        return out
    header = _at(data, start, 20)
    if header is None:
        raise _Truncated(out + _incomplete(data, start))
    source, destination, sequence, acknowledgment, bits, window, _, urgent = struct.unpack(
        "!HHIIHHHH", header
    )
    out += f"SPT={source} DPT={destination} SEQ={sequence} ACK={acknowledgment} "
    # TCP_RESERVED_BITS is 0x0E000000 of the word that begins with the data offset.
    out += f"WINDOW={window} RES=0x{(bits << 16 & 0x0E000000) >> 22:02x} "
    names = ("AE", "CWR", "ECE", "URG", "ACK", "PSH", "RST", "SYN", "FIN")
    for bit, name in zip(range(8, -1, -1), names, strict=True):
        out += f"{name} " if bits >> bit & 1 else ""
    out += f"URGP={urgent} "
    size = (bits >> 12) * 4 - 20
    if size > 0:
        options = _at(data, start + 20, size)
        if options is None:
            raise _Truncated(out + "OPT (TRUNCATED)")
        out += f"OPT ({options.hex().upper()}) "
    return out


def udp(data: bytes, protocol: int, start: int, fragment_offset: int) -> str:
    out = "PROTO=UDP " if protocol == 17 else "PROTO=UDPLITE "
    if fragment_offset:
        return out
    header = _at(data, start, 8)
    if header is None:
        raise _Truncated(out + _incomplete(data, start))
    return out + "SPT={} DPT={} LEN={} ".format(*struct.unpack_from("!HHH", header))


def ipv6(  # noqa: C901 - one function of the kernel, one function here
    data: bytes, owner: str = "", offset: int = 0, *, recurse: bool = True
) -> str:
    header = _at(data, offset, 40)
    if header is None:
        return "TRUNCATED"
    word, payload, following, hops = struct.unpack_from("!IHBB", header)
    out = f"SRC={_ipv6_address(header[8:24])} DST={_ipv6_address(header[24:40])} "
    out += f"LEN={payload + 40} TC={word >> 20 & 0xFF} HOPLIMIT={hops} FLOWLBL={word & 0xFFFFF} "
    at, fragment = offset + 40, 0
    while following in {0, 43, 44, 50, 51, 60}:
        extension = _at(data, at, 2)
        if extension is None:
            return out + "TRUNCATED"
        out += "OPT ( "
        length = (extension[1] + 1) << 3
        if following == 44:
            out += "FRAG:"
            whole = _at(data, at, 8)
            if whole is None:
                return out + "TRUNCATED "
            field = int.from_bytes(whole[2:4], "big")
            out += f"{field & 0xFFF8} " + ("INCOMPLETE " if field & 1 else "")
            out += f"ID:{_word(whole, 4):08x} "
            fragment |= field & 0xFFF8
            length = 8
        elif following in {0, 43, 60}:
            if fragment:
                return out + ")"
        else:
            name, size, spi_offset = ("AH", 12, 4) if following == 51 else ("ESP", 8, 0)
            out += f"{name} "
            if fragment:
                return out + ")"
            whole = _at(data, at, size)
            if whole is None:
                return out + f"{_incomplete(data, at)})"
            out += f"SPI=0x{_word(whole, spi_offset):x} "
            if following == 50:
                return out + ")"
            length = (extension[1] + 2) << 2
        out += ") "
        following = extension[0]
        at += length
    try:
        out += _ipv6_protocol(data, following, at, fragment, recurse=recurse)
    except _Truncated as end:
        return out + str(end)
    return out + (owner if recurse else "")


def _ipv6_address(packed: bytes) -> str:
    return ":".join(packed[at : at + 2].hex() for at in range(0, 16, 2))


def _ipv6_protocol(data: bytes, protocol: int, at: int, fragment: int, *, recurse: bool) -> str:
    if protocol == 6:
        return tcp(data, at, fragment)
    if protocol in {17, 136}:
        return udp(data, protocol, at, fragment)
    if protocol != 58:
        return f"PROTO={protocol} "
    out = "PROTO=ICMPv6 "
    if fragment:
        return out
    header = _at(data, at, 8)
    if header is None:
        raise _Truncated(out + _incomplete(data, at))
    kind = header[0]
    out += f"TYPE={kind} CODE={header[1]} "
    if kind in {128, 129}:
        out += "ID={} SEQ={} ".format(*struct.unpack_from("!HH", header, 4))
    elif kind in {1, 2, 3, 4}:
        out += f"POINTER={_word(header, 4):08x} " if kind == 4 else ""
        out += f"[{ipv6(data, offset=at + 8, recurse=False)}] " if recurse else ""
        out += f"MTU={_word(header, 4)} " if kind == 2 else ""
    return out


def arp(data: bytes) -> str:
    header = _at(data, 0, 8)
    if header is None:
        return "TRUNCATED"
    hardware, protocol, hardware_bytes, protocol_bytes, operation = struct.unpack("!HHBBH", header)
    out = f"ARP HTYPE={hardware} PTYPE=0x{protocol:04x} OPCODE={operation}"
    if (hardware, hardware_bytes, protocol_bytes) != (1, 6, 4):
        return out
    payload = _at(data, 8, 20)
    if payload is None:
        return out + f" INCOMPLETE [{len(data) - 8} bytes]"
    return out + (
        f" MACSRC={mac(payload[:6])} IPSRC={socket.inet_ntoa(payload[6:10])}"
        f" MACDST={mac(payload[10:16])} IPDST={socket.inet_ntoa(payload[16:20])}"
    )
