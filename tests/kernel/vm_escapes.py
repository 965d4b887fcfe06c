"""Forbidden packets from and to a VM. A fence must refuse each of them.

Each differs from an allowed packet only in the property that its name states. So the fence can
refuse it for no other reason.
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass

from ocsf_nft.lab import INTERNET4, INTERNET6
from tests.kernel import packets
from tests.kernel.packets import ETH_ARP, ETH_IP, ETH_IP6, PAYLOAD
from tests.kernel.tap import (
    GATEWAY4,
    GATEWAY6,
    HOST_MAC,
    PORT,
    UPLINK4,
    UPLINK6,
    VM4,
    VM6,
    VM_MAC,
)

_SYN, _RST, _ACK = 2, 4, 16
_TCP, _UDP, _ICMP, _ICMP6 = 6, 17, 1, 58
_OTHER_MAC = b"\x02\0\0\0\x07\x77"
#: Each datagram has its own flow, and so its own log budget.
_PORTS = itertools.count(5000)
_OTHER4, _OTHER6 = "172.16.7.3", "fd00:7::3"


@dataclass(frozen=True)
class Forbidden:
    """A frame from the VM, or with ``is_from_outside`` a packet from the internet.

    ``protocol`` is the protocol in its record: the IP protocol, or the ethertype of other frames.
    """

    name: str
    rule: str
    protocol: int
    sent: bytes
    is_from_outside: bool = False


def _frame(kind: int, payload: bytes, to: bytes = HOST_MAC, source: bytes = VM_MAC) -> bytes:
    return packets.frame(to, source, kind, payload)


def _udp4(to: str, source: str = VM4, port: int = 0, source_port: int = 4000) -> bytes:
    port = port or next(_PORTS)
    datagram = struct.pack("!HHHH", source_port, port, 8 + len(PAYLOAD), 0) + PAYLOAD
    return packets.summed(packets.ip4(source, to, _UDP, datagram))


def _udp6(to: str, source: str = VM6, port: int = 0) -> bytes:
    return packets.summed(packets.ip6(source, to, _UDP, packets.udp(port or next(_PORTS))))


def _tcp4(to: str, port: int, flags: int = _SYN, source: str = VM4) -> bytes:
    return packets.summed(packets.ip4(source, to, _TCP, packets.tcp(port, flags) + PAYLOAD))


def _tcp6(to: str, port: int, flags: int = _SYN, source: str = VM6) -> bytes:
    return packets.summed(packets.ip6(source, to, _TCP, packets.tcp(port, flags) + PAYLOAD))


def _icmp4(to: str, kind: int, code: int, body: bytes, source: str = VM4) -> bytes:
    return packets.summed(packets.ip4(source, to, _ICMP, struct.pack("!BBH", kind, code, 0) + body))


def _icmp6(to: str, kind: int, body: bytes, source: str = VM6, hop_limit: int = 255) -> bytes:
    message = struct.pack("!BBH", kind, 0, 0) + body
    return packets.summed(packets.ip6(source, to, _ICMP6, message, hop_limit=hop_limit))


def _about(address: str) -> bytes:
    """Return the body of a neighbour message about an address."""
    return packets.ip6("::", address, 0, b"")[24:40].rjust(20, b"\0")


def _vlan(inner: int, payload: bytes) -> bytes:
    return struct.pack("!HH", 5, inner) + payload


def _option4(packet: bytes) -> bytes:
    """Return the packet with a loose source route through another address."""
    route = b"\x83\x07\x04" + packets.ip4(VM4, UPLINK4, 0, b"")[16:20] + b"\0"
    header = b"\x47" + packet[1:2] + struct.pack("!H", len(packet) + 8) + packet[4:10]
    header += b"\0\0" + packet[12:20] + route
    return header[:10] + struct.pack("!H", packets.checksum(header)) + header[12:] + packet[20:]


def _extended6(kind: int, header: bytes, packet: bytes) -> bytes:
    """Return the packet with an extension header before its payload."""
    payload = header + packet[40:]
    return packet[:4] + struct.pack("!HB", len(payload), kind) + packet[7:40] + payload


_ROUTE6 = bytes([_UDP, 2, 4, 1, 0, 0, 0, 0]) + packets.ip6("::", INTERNET6, 0, b"")[24:40]
_HOP_BY_HOP = bytes([_UDP, 0, 1, 4, 0, 0, 0, 0])


def _arp(source: str, target: str, hardware: bytes = VM_MAC, extra: bytes = b"") -> bytes:
    return _frame(ETH_ARP, packets.arp(source, target, hardware, extra))


_SOLICITATION = _icmp6("fe80::9", 135, _about(GATEWAY6))

#: Frames that no VM may send.
LINK: tuple[Forbidden, ...] = (
    Forbidden("an experimental ethertype", "vm-link", 0x88B5, _frame(0x88B5, PAYLOAD)),
    Forbidden("mpls", "vm-link", 0x8847, _frame(0x8847, b"\0\1\1\xff" + _udp4(INTERNET4))),
    Forbidden("pppoe", "vm-link", 0x8864, _frame(0x8864, b"\x11\0\0\1\0\6\0\x21" + PAYLOAD)),
    Forbidden("a vlan tag", "vm-link", 0x0800, _frame(0x8100, _vlan(ETH_IP, _udp4(INTERNET4)))),
    Forbidden("802.1ad", "vm-link", 0x0800, _frame(0x88A8, _vlan(ETH_IP, _udp4(INTERNET4)))),
    Forbidden(
        "a vlan in a vlan",
        "vm-link",
        0x8100,
        _frame(0x88A8, _vlan(0x8100, _vlan(ETH_IP, _udp4(INTERNET4)))),
    ),
    Forbidden(
        "another link address",
        "vm-link",
        _UDP,
        _frame(ETH_IP, _udp4(INTERNET4), source=_OTHER_MAC),
    ),
    Forbidden(
        "a group's link address",
        "vm-link",
        _UDP,
        _frame(ETH_IP, _udp4(INTERNET4), source=b"\x03\0\0\0\7\2"),
    ),
    Forbidden(
        "another station", "vm-link", _UDP, _frame(ETH_IP, _udp4(INTERNET4), to=_OTHER_MAC)
    ),
    *(
        Forbidden(f"from {name}", "vm-link", _UDP, _frame(ETH_IP, _udp4(INTERNET4, source)))
        for name, source in (
            ("an address of the internet", "203.0.113.99"),
            ("the gateway's address", GATEWAY4),
            ("the host's own address", UPLINK4),
            ("loopback", "127.0.0.1"),
            ("the network's address", "172.16.7.0"),
            ("the broadcast address", "172.16.7.7"),
            ("the subnet next to it", "172.16.7.9"),
        )
    ),
    Forbidden(
        "dhcp",
        "vm-link",
        _UDP,
        _frame(ETH_IP, _udp4("255.255.255.255", "0.0.0.0", 67, 68), to=b"\xff" * 6),
    ),
    *(
        Forbidden(f"to {name}", "vm-link", _UDP, _frame(ETH_IP, _udp4(to), to=mac))
        for name, to, mac in (
            ("loopback", "127.0.0.1", HOST_MAC),
            ("everybody", "255.255.255.255", b"\xff" * 6),
            ("a group", "224.0.0.251", b"\x01\0\x5e\0\0\xfb"),
            ("a reserved address", "240.0.0.1", HOST_MAC),
            ("this network", "0.1.2.3", HOST_MAC),
        )
    ),
    Forbidden("a source route", "vm-link", _UDP, _frame(ETH_IP, _option4(_udp4(INTERNET4)))),
    *(
        Forbidden(f"from {name}", "vm-link", _UDP, _frame(ETH_IP6, _udp6(INTERNET6, source)))
        for name, source in (
            ("an ip6 address of the internet", "2001:db8::99"),
            ("the gateway's ip6 address", GATEWAY6),
            ("the host's own ip6 address", UPLINK6),
            ("the ip6 network's address", "fd00:7::"),
            ("a link-local address to the internet", "fe80::7"),
            ("the unspecified address", "::"),
        )
    ),
    Forbidden(
        "an ip6 group", "vm-link", _UDP, _frame(ETH_IP6, _udp6("ff02::fb"), to=b"33\0\0\0\xfb")
    ),
    Forbidden(
        "an ip4 address in ip6", "vm-link", _UDP, _frame(ETH_IP6, _udp6(f"::ffff:{INTERNET4}"))
    ),
    Forbidden("ip6 loopback", "vm-link", _UDP, _frame(ETH_IP6, _udp6("::1"))),
    Forbidden("a routing header", "vm-link", _UDP,
              _frame(ETH_IP6, _extended6(43, _ROUTE6, _udp6(UPLINK6)))),
    Forbidden("hop-by-hop options", "vm-link", _UDP,
              _frame(ETH_IP6, _extended6(0, _HOP_BY_HOP, _udp6(INTERNET6)))),
    Forbidden("a router's advertisement", "vm-link", _ICMP6,
              _frame(ETH_IP6, _icmp6("ff02::1", 134, b"\x40\0\x07\x08" + bytes(8), "fe80::7"))),
    Forbidden("a router's advertisement to the gateway", "vm-link", _ICMP6,
              _frame(ETH_IP6, _icmp6(GATEWAY6, 134, b"\x40\0\x07\x08" + bytes(8)))),
    Forbidden("a redirect", "vm-link", _ICMP6,
              _frame(ETH_IP6, _icmp6(GATEWAY6, 137, bytes(36), "fe80::7"))),
    Forbidden("a claim to be the gateway", "vm-link", _ICMP6,
              _frame(ETH_IP6, _icmp6("ff02::1", 136, b"\x20" + _about(GATEWAY6)[1:]))),
    Forbidden("a test whether the gateway's address is free", "vm-link", _ICMP6,
              _frame(ETH_IP6, _icmp6("ff02::1:ff00:1", 135, _about(GATEWAY6), "::"))),
    Forbidden("a claim to be a stranger", "vm-link", _ICMP6,
              _frame(ETH_IP6, _icmp6("ff02::1", 136, _about("2001:db8::9")))),
    Forbidden("a solicitation that was routed", "vm-link", _ICMP6,
              _frame(ETH_IP6, _icmp6(GATEWAY6, 135, _about(GATEWAY6), hop_limit=254))),
    Forbidden("a solicitation with a long tail", "vm-link", _ICMP6,
              _frame(ETH_IP6, _icmp6(GATEWAY6, 135, _about(GATEWAY6) + bytes(64)))),
    *(
        Forbidden(f"a solicitation {name}", "vm-link", _ICMP6, _frame(ETH_IP6, packet))
        for name, packet in (
            ("with a code", _SOLICITATION[:41] + b"\1" + _SOLICITATION[42:]),
            ("longer than its length field", _SOLICITATION + bytes(99)),
            (
                "shorter than its length field",
                _icmp6("ff02::1:ff00:a", 135, _about(GATEWAY6) + bytes(64))[:80],
            ),
            ("of a stranger", _icmp6("ff02::1:ff00:b", 135, _about(VM6), "2001:db8::9")),
            ("for a stranger", _icmp6("ff02::1:ff00:c", 135, _about("2001:db8::9"))),
        )
    ),
    Forbidden("a solicitation to the internet", "vm-link", _ICMP6,
              _frame(ETH_IP6, _icmp6(INTERNET6, 135, _about(GATEWAY6)))),
    Forbidden("arp from the gateway's address", "vm-link", ETH_ARP, _arp(GATEWAY4, GATEWAY4)),
    Forbidden("arp from a stranger's address", "vm-link", ETH_ARP, _arp("10.9.9.9", GATEWAY4)),
    Forbidden("arp of another link address", "vm-link", ETH_ARP,
              _arp(VM4, GATEWAY4, _OTHER_MAC)),
    Forbidden("arp from the gateway's address about the vm", "vm-link", ETH_ARP,
              _arp(GATEWAY4, VM4)),
    Forbidden("an arp probe of another link address", "vm-link", ETH_ARP,
              _arp("0.0.0.0", VM4, _OTHER_MAC)),
    Forbidden("an answer to an arp probe", "vm-link", ETH_ARP,
              _arp("0.0.0.0", VM4).replace(b"\6\4\0\1", b"\6\4\0\2", 1)),
    Forbidden("arp for a stranger", "vm-link", ETH_ARP, _arp(VM4, "10.9.9.9")),
    Forbidden("arp of another operation", "vm-link", ETH_ARP,
              _arp(VM4, GATEWAY4).replace(b"\6\4\0\1", b"\6\4\0\3", 1)),
    Forbidden("arp with a tail", "vm-link", ETH_ARP, _arp(VM4, GATEWAY4, extra=bytes(19))),
    Forbidden("an arp probe for the gateway's address", "vm-link", ETH_ARP,
              _arp("0.0.0.0", GATEWAY4)),
)  # fmt: skip

#: Packets of the VM that the host must not forward.
FORWARD: tuple[Forbidden, ...] = (
    Forbidden("the cloud's metadata", "vm-forward", _TCP,
              _frame(ETH_IP, _tcp4("169.254.169.254", 80))),
    Forbidden("the cloud's metadata over ip6", "vm-forward", _TCP,
              _frame(ETH_IP6, _tcp6("fd00:ec2::254", 80))),
    Forbidden("the cloud's metadata as nat64", "vm-forward", _TCP,
              _frame(ETH_IP6, _tcp6("64:ff9b::a9fe:a9fe", 80))),
    Forbidden("the cloud's metadata as 6to4", "vm-forward", _TCP,
              _frame(ETH_IP6, _tcp6("2002:a9fe:a9fe::1", 80))),
    *(
        Forbidden(f"the metadata of another cloud at {address}", "vm-forward", _TCP,
                  _frame(ETH_IP6 if ":" in address else ETH_IP,
                         (_tcp6 if ":" in address else _tcp4)(address, 80)))
        for address in ("100.100.100.200", "168.63.129.16", "fd20:ce::254")
    ),
    Forbidden("a router's advertisement in a fragment", "vm-forward", _ICMP6,
              _frame(ETH_IP6, _extended6(44, bytes([_ICMP6, 0, 0, 0, 0, 0, 0, 1]),
                                         _icmp6(INTERNET6, 134, bytes(12) + PAYLOAD)))),
    Forbidden("the host's own link", "vm-forward", _UDP,
              _frame(ETH_IP, _udp4("169.254.1.1"))),
    Forbidden("its own subnet", "vm-forward", _UDP, _frame(ETH_IP, _udp4(_OTHER4))),
    Forbidden("its own ip6 subnet", "vm-forward", _UDP, _frame(ETH_IP6, _udp6(_OTHER6))),
    Forbidden("a redirect to the internet", "vm-forward", _ICMP,
              _frame(ETH_IP, _icmp4(INTERNET4, 5, 1, bytes(4) + _udp4(INTERNET4)))),
    Forbidden("what gives out addresses", "vm-forward", _UDP,
              _frame(ETH_IP, _udp4(INTERNET4, port=68, source_port=67))),
    Forbidden("a port that the host publishes", "vm-forward", _TCP,
              _frame(ETH_IP, _tcp4(GATEWAY4, 8080))),
    Forbidden("an address that the host publishes", "vm-forward", _TCP,
              _frame(ETH_IP, _tcp4("10.96.0.1", 443))),
    Forbidden("a reset of nothing", "vm-forward", _TCP,
              _frame(ETH_IP, _tcp4(INTERNET4, 444, _RST))),
    Forbidden("an answer to nothing", "vm-forward", _TCP,
              _frame(ETH_IP6, _tcp6(INTERNET6, 444, _SYN | _ACK))),
    Forbidden("an error about nothing", "vm-forward", _ICMP,
              _frame(ETH_IP, _icmp4(INTERNET4, 3, 3, bytes(4) + _udp4(VM4, INTERNET4)))),
    Forbidden("a checksum that is wrong", "vm-forward", _TCP,
              _frame(ETH_IP, _tcp4(INTERNET4, 445)[:36] + b"\0\0" + _tcp4(INTERNET4, 445)[38:])),
)  # fmt: skip

#: Packets of the VM to the host itself.
INPUT: tuple[Forbidden, ...] = (
    Forbidden("another port of the gateway", "vm-input", _TCP, _frame(ETH_IP, _tcp4(GATEWAY4, 22))),
    Forbidden("another port over ip6", "vm-input", _TCP, _frame(ETH_IP6, _tcp6(GATEWAY6, 22))),
    Forbidden("udp to the port", "vm-input", _UDP, _frame(ETH_IP, _udp4(GATEWAY4, port=PORT))),
    Forbidden("dns on the gateway", "vm-input", _UDP, _frame(ETH_IP6, _udp6(GATEWAY6))),
    Forbidden("a ping of the gateway", "vm-input", _ICMP,
              _frame(ETH_IP, _icmp4(GATEWAY4, 8, 0, bytes(4) + PAYLOAD))),
    Forbidden("a ping over ip6", "vm-input", _ICMP6,
              _frame(ETH_IP6, _icmp6(GATEWAY6, 128, bytes(4) + PAYLOAD))),
    Forbidden("the port on the uplink", "vm-input", _TCP, _frame(ETH_IP, _tcp4(UPLINK4, PORT))),
    Forbidden("the port on the uplink over ip6", "vm-input", _TCP,
              _frame(ETH_IP6, _tcp6(UPLINK6, PORT))),
    Forbidden("the subnet's broadcast address", "vm-input", _UDP,
              _frame(ETH_IP, _udp4("172.16.7.7"), to=b"\xff" * 6)),
    Forbidden("another protocol", "vm-input", 253,
              _frame(ETH_IP, packets.ip4(VM4, GATEWAY4, 253, PAYLOAD))),
    Forbidden("the port behind options", "vm-input", _TCP,
              _frame(ETH_IP6, _extended6(60, b"\6\0\1\4\0\0\0\0", _tcp6(GATEWAY6, PORT)))),
    Forbidden("an error about nothing of the host", "vm-input", _ICMP,
              _frame(ETH_IP, _icmp4(GATEWAY4, 3, 3, bytes(4) + _udp4(VM4, GATEWAY4)))),
    Forbidden("a redirect of the host", "vm-forward", _ICMP,
              _frame(ETH_IP, _icmp4(GATEWAY4, 5, 1, bytes(4) + _udp4(VM4, GATEWAY4)))),
)  # fmt: skip

#: Packets of the internet to the VM.
INGRESS: tuple[Forbidden, ...] = tuple(
    Forbidden(name, "vm-ingress", protocol, sent, is_from_outside=True)
    for name, protocol, sent in (
        ("a connection", _TCP, _tcp4(VM4, 22, source=INTERNET4)),
        ("a connection over ip6", _TCP, _tcp6(VM6, 22, source=INTERNET6)),
        ("a datagram", _UDP, _udp4(VM4, INTERNET4)),
        ("a datagram over ip6", _UDP, _udp6(VM6, INTERNET6)),
        ("a ping", _ICMP, _icmp4(VM4, 8, 0, bytes(4) + PAYLOAD, INTERNET4)),
        ("an answer to nothing", _TCP, _tcp4(VM4, 4000, _SYN | _ACK, INTERNET4)),
        ("an error about nothing", _ICMP,
         _icmp4(VM4, 3, 3, bytes(4) + _udp4(INTERNET4), INTERNET4)),
        ("another protocol", 253, packets.ip4(INTERNET4, VM4, 253, b"unasked")),
    )
)  # fmt: skip

FORBIDDEN = LINK + FORWARD + INPUT + INGRESS

#: Ordinary packets of a VM, hand-made as the others.
ALLOWED = {
    "arp for the gateway": _arp(VM4, GATEWAY4),
    "an arp probe for its own address": _arp("0.0.0.0", VM4),
    "a solicitation for the gateway": _frame(
        ETH_IP6, _icmp6("ff02::1:ff00:1", 135, _about(GATEWAY6)), to=b"33\xff\0\0\1"
    ),
    "a test whether its own address is free": _frame(
        ETH_IP6, _icmp6("ff02::1:ff00:2", 135, _about(VM6), "::"), to=b"33\xff\0\0\2"
    ),
    "a claim to be itself": _frame(
        ETH_IP6, _icmp6("ff02::1", 136, b"\x20" + _about(VM6)[1:]), to=b"33\0\0\0\1"
    ),
    "the gateway's port": _frame(ETH_IP, _tcp4(GATEWAY4, PORT)),
    "the gateway's port over ip6": _frame(ETH_IP6, _tcp6(GATEWAY6, PORT)),
}
#: Ordinary packets of a VM that reach the internet.
THROUGH = {
    "a datagram": _frame(ETH_IP, _udp4(INTERNET4, port=4321)),
    "a datagram over ip6": _frame(ETH_IP6, _udp6(INTERNET6, port=4321)),
    "a connection": _frame(ETH_IP, _tcp4(INTERNET4, 4321)),
    "a connection over ip6": _frame(ETH_IP6, _tcp6(INTERNET6, 4321)),
    "a ping": _frame(ETH_IP, _icmp4(INTERNET4, 8, 0, bytes(4) + PAYLOAD)),
    "another protocol": _frame(ETH_IP, packets.ip4(VM4, INTERNET4, 253, b"allowed")),
}
