"""Every way out that gets past the usual ruleset, as something to try inside a sandbox.

The list is that of ways that a ruleset with conntrack, `tcp` and `udp` rejects and an accepting
policy lets through, and of probes that it refuses without a word.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ocsf_nft.lab import (
    GATEWAY4,
    GATEWAY6,
    GATEWAY_MAC,
    INTERNET4,
    INTERNET6,
    PROXY_PORT,
    SANDBOX4,
    SANDBOX6,
)
from tests.kernel import packets
from tests.kernel.packets import ETH_ARP, ETH_IP, ETH_IP6, PAYLOAD

if TYPE_CHECKING:
    from collections.abc import Callable

_SOL_PACKET = 263
_PACKET_QDISC_BYPASS = 20
_IPPROTO_UDPLITE = 136
_PACKET_VNET_HDR = 15
_IPV6_FREEBIND = 78  # include/uapi/linux/in6.h
_IP6_HDRINCL = 36  # include/uapi/linux/in6.h: IPV6_HDRINCL

#: Numbers of the TCP flags.
_FIN, _SYN, _RST, _PSH, _ACK, _URG = 1, 2, 4, 8, 16, 32


@dataclass(frozen=True)
class Escape:
    """What is tried, and what its record must say.

    ``protocol`` is the IP protocol number, or the ethertype of a frame that is not IP. Run inside
    the sandbox's namespace, as root. ``is_owned``: it comes from a socket of somebody's.
    """

    name: str
    rule: str
    protocol: int
    attempt: Callable[[], None]
    is_owned: bool = True


def _refused() -> contextlib.suppress:
    """A refusal may already show as an error of the call that sends."""
    return contextlib.suppress(OSError)


def _send(family: int, kind: int, protocol: int, payload: bytes, to: tuple[str, int]) -> None:
    with socket.socket(family, kind, protocol) as sock, _refused():
        sock.sendto(payload, to)


def _raw4(protocol: int, payload: bytes = PAYLOAD, to: str = INTERNET4) -> Callable[[], None]:
    return lambda: _send(socket.AF_INET, socket.SOCK_RAW, protocol, payload, (to, 0))


def _raw6(protocol: int, payload: bytes = PAYLOAD, to: str = INTERNET6) -> Callable[[], None]:
    return lambda: _send(socket.AF_INET6, socket.SOCK_RAW, protocol, payload, (to, 0))


def _connect_from(source: str, to: str) -> Callable[[], None]:
    """Over IPv6 an address that is not this machine's can be bound to, and sent from."""

    def attempt() -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock, _refused():
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
            sock.bind((source, 0))
            sock.settimeout(0.2)
            sock.connect((to, PROXY_PORT))

    return attempt


def _solicit(tail: bytes, *, hop_limit: int = 255) -> Callable[[], None]:
    message = packets.solicitation(tail)

    def attempt() -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58) as sock:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, hop_limit)
            with _refused():
                sock.sendto(message, ("ff02::1", 0))

    return attempt


def _whole4(packet: bytes, to: str = INTERNET4) -> Callable[[], None]:
    return lambda: _send(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW, packet, (to, 0))


def _whole6(packet: bytes, to: str = INTERNET6) -> Callable[[], None]:
    def attempt() -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
            sock.setsockopt(socket.IPPROTO_IPV6, _IP6_HDRINCL, 1)
            with _refused():
                sock.sendto(packet, (to, 0))

    return attempt


def _connect(family: int, to: str) -> Callable[[], None]:
    def attempt() -> None:
        with socket.socket(family, socket.SOCK_STREAM) as sock, _refused():
            sock.settimeout(2)
            sock.connect((to, 443))

    return attempt


def _ping(family: int, protocol: int, kind: int, to: str) -> Callable[[], None]:
    echo = struct.pack("!BBHHH", kind, 0, 0, 0, 1)

    def attempt() -> None:
        Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 0")
        _send(family, socket.SOCK_DGRAM, protocol, echo, (to, 0))

    return attempt


def _join4() -> None:
    """An IGMP membership report leaves for whoever joins a group, without any privilege."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        group = socket.inet_aton("239.1.2.3") + socket.inet_aton(SANDBOX4)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)


def _join6() -> None:
    """The same with MLD."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        index = socket.if_nametoindex("sb0")
        group = socket.inet_pton(socket.AF_INET6, "ff05::7") + struct.pack("=I", index)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)


def _frame(
    kind: int, payload: Callable[[bytes], bytes], *, announced: int | None = None, bypass: bool
) -> Callable[[], None]:
    """A frame by AF_PACKET; ``announced`` is the protocol that its socket claims."""

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


def _rewritten_by_the_device() -> None:
    """The device writes a checksum over the first 16 bits of a link-local destination."""
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


def _constant(payload: bytes) -> Callable[[bytes], bytes]:
    return lambda _own: payload


_TO_PROXY4 = packets.ip4(SANDBOX4, GATEWAY4, 6, packets.tcp(PROXY_PORT, _SYN) + PAYLOAD)
_TO_PROXY6 = packets.ip6(SANDBOX6, GATEWAY6, 6, packets.tcp(PROXY_PORT, _SYN) + PAYLOAD)
_SOLICITATION = packets.ip6(
    SANDBOX6, "fe80::7", 58, packets.solicitation(PAYLOAD.ljust(16)), hop_limit=255
)
_LATE = 4  # a fragment's offset in units of 8 bytes
_MORE = 0x2000


def _fragment6(offset: int, more: int, payload: bytes) -> bytes:
    header = struct.pack("!BBHI", 6, 0, offset << 3 | more, 7)
    return packets.ip6(SANDBOX6, GATEWAY6, 44, header + payload)


def _vlan(inner: int, payload: bytes) -> bytes:
    return struct.pack("!HH", 5, inner) + payload


ESCAPES: tuple[Escape, ...] = (
    # Without any privilege.
    Escape("tcp4 connect", "egress", 6, _connect(socket.AF_INET, INTERNET4)),
    Escape("tcp6 connect", "egress", 6, _connect(socket.AF_INET6, INTERNET6)),
    Escape(
        "tcp4 connect to another port of the proxy", "egress", 6, _connect(socket.AF_INET, GATEWAY4)
    ),
    Escape(
        "udp4 dns",
        "egress",
        17,
        lambda: _send(socket.AF_INET, socket.SOCK_DGRAM, 0, PAYLOAD, (INTERNET4, 53)),
    ),
    Escape(
        "udp6 dns",
        "egress",
        17,
        lambda: _send(socket.AF_INET6, socket.SOCK_DGRAM, 0, PAYLOAD, (INTERNET6, 53)),
    ),
    Escape(
        "udp4 to the proxy's port",
        "egress",
        17,
        lambda: _send(socket.AF_INET, socket.SOCK_DGRAM, 0, PAYLOAD, (GATEWAY4, PROXY_PORT)),
    ),
    Escape(
        "udp4 larger than the MTU",
        "egress",
        17,
        lambda: _send(socket.AF_INET, socket.SOCK_DGRAM, 0, bytes(4000), (INTERNET4, 53)),
    ),
    Escape(
        "udp-lite4",
        "egress",
        _IPPROTO_UDPLITE,
        lambda: _send(
            socket.AF_INET, socket.SOCK_DGRAM, _IPPROTO_UDPLITE, PAYLOAD, (INTERNET4, 53)
        ),
    ),
    Escape(
        "udp-lite6",
        "egress",
        _IPPROTO_UDPLITE,
        lambda: _send(
            socket.AF_INET6, socket.SOCK_DGRAM, _IPPROTO_UDPLITE, PAYLOAD, (INTERNET6, 53)
        ),
    ),
    Escape("ping socket 4", "egress", 1, _ping(socket.AF_INET, 1, 8, INTERNET4)),
    Escape("ping socket 6", "egress", 58, _ping(socket.AF_INET6, 58, 128, INTERNET6)),
    Escape(
        "tcp6 to the proxy from a forged source", "egress", 6, _connect_from(INTERNET6, GATEWAY6)
    ),
    Escape("igmp join", "egress", 2, _join4, is_owned=False),
    Escape("mld join", "egress", 58, _join6, is_owned=False),
    # With CAP_NET_RAW: any protocol.
    Escape("raw icmp4", "egress", 1, _raw4(1, packets.icmp_echo())),
    Escape("raw icmp4 to the proxy", "egress", 1, _raw4(1, packets.icmp_echo(), GATEWAY4)),
    *(
        Escape(f"raw {name} over IPv{version}", "egress", number, raw(number))
        for version, raw in ((4, _raw4), (6, _raw6))
        for name, number in (
            ("sctp", 132),
            ("gre", 47),
            ("esp", 50),
            ("dccp", 33),
            ("protocol 253", 253),
        )
    ),
    Escape("ipip", "egress", 4, _raw4(4, _TO_PROXY4)),
    Escape("6in4", "egress", 41, _raw4(41, _TO_PROXY6)),
    Escape("ipv6 no next header", "egress", 59, _raw6(59)),
    *(
        Escape(f"tcp probe {name}", "egress", 6, _raw4(6, packets.tcp(443, flags)))
        for name, flags in (
            ("ack", _ACK),
            ("null", 0),
            ("fin", _FIN),
            ("rst", _RST),
            ("rst ack", _RST | _ACK),
            ("xmas", _FIN | _PSH | _URG),
        )
    ),
    Escape(
        "late fragment that looks like the proxy's port",
        "egress",
        6,
        _whole4(
            packets.ip4(SANDBOX4, GATEWAY4, 6, packets.tcp(PROXY_PORT, _ACK), fragment=_LATE),
            GATEWAY4,
        ),
    ),
    Escape(
        "tiny first fragment to the proxy",
        "egress",
        6,
        _whole4(
            packets.ip4(SANDBOX4, GATEWAY4, 6, packets.tcp(PROXY_PORT, _SYN)[:8], fragment=_MORE),
            GATEWAY4,
        ),
    ),
    Escape(
        "truncated tcp header to the proxy",
        "egress",
        6,
        _whole4(packets.ip4(SANDBOX4, GATEWAY4, 6, packets.tcp(PROXY_PORT, _SYN)[:2]), GATEWAY4),
    ),
    Escape(
        "ipv6 late fragment that looks like the proxy's port",
        "egress",
        6,
        _whole6(_fragment6(_LATE, 0, packets.tcp(PROXY_PORT, _ACK)), GATEWAY6),
    ),
    Escape(
        "ipv6 first fragment to the proxy",
        "egress",
        6,
        _whole6(_fragment6(0, 1, packets.tcp(PROXY_PORT, _SYN)), GATEWAY6),
    ),
    Escape(
        "ipv6 destination options before tcp to the proxy",
        "egress",
        6,
        _whole6(
            packets.ip6(
                SANDBOX6, GATEWAY6, 60, struct.pack("!BB6x", 6, 0) + packets.tcp(PROXY_PORT, _SYN)
            ),
            GATEWAY6,
        ),
    ),
    Escape(
        "tcp4 to the proxy from a forged source",
        "egress",
        6,
        _whole4(packets.ip4(INTERNET4, GATEWAY4, 6, packets.tcp(PROXY_PORT, _SYN)), GATEWAY4),
    ),
    Escape("neighbour solicitation with data", "egress", 58, _solicit(PAYLOAD.ljust(16))),
    Escape("neighbour solicitation with a long tail", "egress", 58, _solicit(bytes(64))),
    Escape(
        "neighbour solicitation longer than it says",
        "egress",
        58,
        _whole6(_SOLICITATION + bytes(1000), "ff02::1"),
    ),
    Escape(
        "neighbour solicitation that could be routed",
        "egress",
        58,
        _solicit(b"", hop_limit=64),
    ),
    Escape(
        "router solicitation",
        "egress",
        58,
        _raw6(58, struct.pack("!BBHI", 133, 0, 0, 0), "ff02::2"),
    ),
    # With CAP_NET_RAW: frames past the IP stack.
    *(
        Escape(
            f"frame: {name}{' past the qdisc' if bypass else ''}",
            "link",
            protocol or kind,
            _frame(kind, payload, announced=announced, bypass=bypass),
        )
        for bypass in (False, True)
        for name, protocol, kind, announced, payload in (
            (
                "ip to the internet",
                6,
                ETH_IP,
                None,
                _constant(packets.ip4(SANDBOX4, INTERNET4, 6, packets.tcp(443, _SYN))),
            ),
            (
                "ip6 to the internet",
                6,
                ETH_IP6,
                None,
                _constant(packets.ip6(SANDBOX6, INTERNET6, 6, packets.tcp(443, _SYN))),
            ),
            (
                "late fragment to the proxy",
                6,
                ETH_IP,
                None,
                _constant(
                    packets.ip4(
                        SANDBOX4, GATEWAY4, 6, packets.tcp(PROXY_PORT, _ACK), fragment=_LATE
                    )
                ),
            ),
            ("ethertype 88b5", None, 0x88B5, None, _constant(PAYLOAD)),
            (
                "ethertype 88b5 that claims to be ip to the proxy",
                None,
                0x88B5,
                ETH_IP,
                _constant(_TO_PROXY4),
            ),
            ("llc", None, 0x0026, 4, _constant(b"\xaa\xaa\x03" + PAYLOAD)),
            ("vlan to the proxy", None, 0x8100, None, _constant(_vlan(ETH_IP, _TO_PROXY4))),
            (
                "vlan that claims to be ip",
                None,
                0x8100,
                ETH_IP,
                _constant(_vlan(ETH_IP, _TO_PROXY4)),
            ),
            ("802.1ad to the proxy", None, 0x88A8, None, _constant(_vlan(ETH_IP, _TO_PROXY4))),
            (
                "qinq to the proxy",
                None,
                0x88A8,
                None,
                _constant(_vlan(0x8100, _vlan(ETH_IP, _TO_PROXY4))),
            ),
            (
                "neighbour solicitation with data",
                58,
                ETH_IP6,
                None,
                _constant(_SOLICITATION),
            ),
            (
                "neighbour solicitation longer than it says",
                58,
                ETH_IP6,
                None,
                _constant(_SOLICITATION + bytes(1000)),
            ),
            (
                "arp with data in the place of its sender",
                None,
                ETH_ARP,
                None,
                lambda _own: packets.arp("1.2.3.4", GATEWAY4, PAYLOAD),
            ),
            (
                "arp for a stranger",
                None,
                ETH_ARP,
                None,
                lambda own: packets.arp(SANDBOX4, "10.200.0.77", own),
            ),
            (
                "arp with a long tail",
                None,
                ETH_ARP,
                None,
                lambda own: packets.arp(SANDBOX4, GATEWAY4, own, bytes(64)),
            ),
        )
    ),
    Escape(
        "frame: neighbour solicitation with another destination written by the device",
        "link",
        58,
        _rewritten_by_the_device,
    ),
)
