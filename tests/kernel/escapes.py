"""Attempts that bypass or probe a common ruleset, for a run inside a sandbox.

The common ruleset has conntrack, `reject` for `tcp` and `udp`, and an accepting policy. It lets
some of these attempts through. It refuses the others, the probes, without a log entry.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ocsf_nft.lab import (
    GATEWAY4,
    GATEWAY6,
    INTERNET4,
    INTERNET6,
    PROXY_PORT,
    SANDBOX4,
    SANDBOX6,
)
from tests.kernel import means, packets
from tests.kernel.packets import (
    ACK,
    ETH_ARP,
    ETH_IP,
    ETH_IP6,
    FIN,
    PAYLOAD,
    PSH,
    RST,
    SYN,
    URG,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_IPPROTO_UDPLITE = 136


@dataclass(frozen=True)
class Escape:
    """An attempt to escape, and its expected record.

    ``attempt`` runs as root inside the sandbox's namespace. ``protocol`` is the IP protocol number,
    or the ethertype of a frame that is not IP. ``is_owned`` is true if a process's socket sends it.
    """

    name: str
    rule: str
    protocol: int
    attempt: Callable[[], None]
    is_owned: bool = True


_TO_PROXY4 = packets.ip4(SANDBOX4, GATEWAY4, 6, packets.tcp(PROXY_PORT, SYN) + PAYLOAD)
_TO_PROXY6 = packets.ip6(SANDBOX6, GATEWAY6, 6, packets.tcp(PROXY_PORT, SYN) + PAYLOAD)
_SOLICITATION = packets.ip6(
    SANDBOX6, "fe80::7", 58, packets.solicitation(PAYLOAD.ljust(16)), hop_limit=255
)
_LATE = 4  # fragment offset in units of 8 bytes
_MORE = 0x2000


def _fragment6(offset: int, more: int, payload: bytes) -> bytes:
    header = struct.pack("!BBHI", 6, 0, offset << 3 | more, 7)
    return packets.ip6(SANDBOX6, GATEWAY6, 44, header + payload)


def _vlan(inner: int, payload: bytes) -> bytes:
    return struct.pack("!HH", 5, inner) + payload


ESCAPES: tuple[Escape, ...] = (
    # Without any privilege.
    Escape("tcp4 connect", "egress", 6, means.connect(socket.AF_INET, INTERNET4)),
    Escape("tcp6 connect", "egress", 6, means.connect(socket.AF_INET6, INTERNET6)),
    Escape(
        "tcp4 connect to another port of the proxy",
        "egress",
        6,
        means.connect(socket.AF_INET, GATEWAY4),
    ),
    Escape(
        "udp4 dns",
        "egress",
        17,
        lambda: means.send(socket.AF_INET, socket.SOCK_DGRAM, 0, PAYLOAD, (INTERNET4, 53)),
    ),
    Escape(
        "udp6 dns",
        "egress",
        17,
        lambda: means.send(socket.AF_INET6, socket.SOCK_DGRAM, 0, PAYLOAD, (INTERNET6, 53)),
    ),
    Escape(
        "udp4 to the proxy's port",
        "egress",
        17,
        lambda: means.send(socket.AF_INET, socket.SOCK_DGRAM, 0, PAYLOAD, (GATEWAY4, PROXY_PORT)),
    ),
    Escape(
        "udp4 larger than the MTU",
        "egress",
        17,
        lambda: means.send(socket.AF_INET, socket.SOCK_DGRAM, 0, bytes(4000), (INTERNET4, 53)),
    ),
    Escape(
        "udp-lite4",
        "egress",
        _IPPROTO_UDPLITE,
        lambda: means.send(
            socket.AF_INET, socket.SOCK_DGRAM, _IPPROTO_UDPLITE, PAYLOAD, (INTERNET4, 53)
        ),
    ),
    Escape(
        "udp-lite6",
        "egress",
        _IPPROTO_UDPLITE,
        lambda: means.send(
            socket.AF_INET6, socket.SOCK_DGRAM, _IPPROTO_UDPLITE, PAYLOAD, (INTERNET6, 53)
        ),
    ),
    Escape("ping socket 4", "egress", 1, means.ping(socket.AF_INET, 1, 8, INTERNET4)),
    Escape("ping socket 6", "egress", 58, means.ping(socket.AF_INET6, 58, 128, INTERNET6)),
    Escape(
        "tcp6 to the proxy from a forged source",
        "egress",
        6,
        means.connect_from(INTERNET6, GATEWAY6),
    ),
    Escape("igmp join", "egress", 2, means.join4, is_owned=False),
    Escape("mld join", "egress", 58, means.join6, is_owned=False),
    # With CAP_NET_RAW, of any protocol.
    Escape("raw icmp4", "egress", 1, means.raw4(1, packets.icmp_echo())),
    Escape("raw icmp4 to the proxy", "egress", 1, means.raw4(1, packets.icmp_echo(), GATEWAY4)),
    *(
        Escape(f"raw {name} over IPv{version}", "egress", number, raw(number))
        for version, raw in ((4, means.raw4), (6, means.raw6))
        for name, number in (
            ("sctp", 132),
            ("gre", 47),
            ("esp", 50),
            ("dccp", 33),
            ("protocol 253", 253),
        )
    ),
    Escape("ipip", "egress", 4, means.raw4(4, _TO_PROXY4)),
    Escape("6in4", "egress", 41, means.raw4(41, _TO_PROXY6)),
    Escape("ipv6 no next header", "egress", 59, means.raw6(59)),
    # A port for each, because a flow may log only four packets.
    *(
        Escape(f"tcp probe {name}", "egress", 6, means.raw4(6, packets.tcp(4000 + flags, flags)))
        for name, flags in (
            ("ack", ACK),
            ("null", 0),
            ("fin", FIN),
            ("rst", RST),
            ("rst ack", RST | ACK),
            ("xmas", FIN | PSH | URG),
        )
    ),
    Escape(
        "late fragment with bytes of the proxy's port",
        "egress",
        6,
        means.whole4(
            packets.ip4(SANDBOX4, GATEWAY4, 6, packets.tcp(PROXY_PORT, ACK), fragment=_LATE),
            GATEWAY4,
        ),
    ),
    Escape(
        "tiny first fragment to the proxy",
        "egress",
        6,
        means.whole4(
            packets.ip4(SANDBOX4, GATEWAY4, 6, packets.tcp(PROXY_PORT, SYN)[:8], fragment=_MORE),
            GATEWAY4,
        ),
    ),
    Escape(
        "truncated tcp header to the proxy",
        "egress",
        6,
        means.whole4(
            packets.ip4(SANDBOX4, GATEWAY4, 6, packets.tcp(PROXY_PORT, SYN)[:2]), GATEWAY4
        ),
    ),
    Escape(
        "ipv6 late fragment with bytes of the proxy's port",
        "egress",
        6,
        means.whole6(_fragment6(_LATE, 0, packets.tcp(PROXY_PORT, ACK)), GATEWAY6),
    ),
    Escape(
        "ipv6 first fragment to the proxy",
        "egress",
        6,
        means.whole6(_fragment6(0, 1, packets.tcp(PROXY_PORT, SYN)), GATEWAY6),
    ),
    Escape(
        "ipv6 destination options before tcp to the proxy",
        "egress",
        6,
        means.whole6(
            packets.ip6(
                SANDBOX6, GATEWAY6, 60, struct.pack("!BB6x", 6, 0) + packets.tcp(PROXY_PORT, SYN)
            ),
            GATEWAY6,
        ),
    ),
    Escape(
        "tcp4 to the proxy from a forged source",
        "egress",
        6,
        means.whole4(packets.ip4(INTERNET4, GATEWAY4, 6, packets.tcp(PROXY_PORT, SYN)), GATEWAY4),
    ),
    Escape("neighbour solicitation with data", "egress", 58, means.solicit(PAYLOAD.ljust(16))),
    Escape("neighbour solicitation with a long tail", "egress", 58, means.solicit(bytes(64))),
    Escape(
        "neighbour solicitation longer than its length field",
        "egress",
        58,
        means.whole6(_SOLICITATION + bytes(1000), "ff02::1"),
    ),
    Escape(
        "neighbour solicitation that could be routed",
        "egress",
        58,
        means.solicit(b"", hop_limit=64),
    ),
    Escape(
        "router solicitation",
        "egress",
        58,
        means.raw6(58, struct.pack("!BBHI", 133, 0, 0, 0), "ff02::2"),
    ),
    # With CAP_NET_RAW, frames that bypass the IP stack.
    *(
        Escape(
            f"frame: {name}{' past the qdisc' if bypass else ''}",
            "link",
            protocol or kind,
            means.frame(kind, payload, announced=announced, bypass=bypass),
        )
        for bypass in (False, True)
        for name, protocol, kind, announced, payload in (
            (
                "ip to the internet",
                6,
                ETH_IP,
                None,
                means.constant(packets.ip4(SANDBOX4, INTERNET4, 6, packets.tcp(443, SYN))),
            ),
            (
                "ip6 to the internet",
                6,
                ETH_IP6,
                None,
                means.constant(packets.ip6(SANDBOX6, INTERNET6, 6, packets.tcp(443, SYN))),
            ),
            (
                "late fragment to the proxy",
                6,
                ETH_IP,
                None,
                means.constant(
                    packets.ip4(SANDBOX4, GATEWAY4, 6, packets.tcp(PROXY_PORT, ACK), fragment=_LATE)
                ),
            ),
            ("ethertype 88b5", None, 0x88B5, None, means.constant(PAYLOAD)),
            (
                "ethertype 88b5 that claims to be ip to the proxy",
                None,
                0x88B5,
                ETH_IP,
                means.constant(_TO_PROXY4),
            ),
            ("llc", None, 0x0026, 4, means.constant(b"\xaa\xaa\x03" + PAYLOAD)),
            ("vlan to the proxy", None, 0x8100, None, means.constant(_vlan(ETH_IP, _TO_PROXY4))),
            (
                "vlan that claims to be ip",
                None,
                0x8100,
                ETH_IP,
                means.constant(_vlan(ETH_IP, _TO_PROXY4)),
            ),
            ("802.1ad to the proxy", None, 0x88A8, None, means.constant(_vlan(ETH_IP, _TO_PROXY4))),
            (
                "qinq to the proxy",
                None,
                0x88A8,
                None,
                means.constant(_vlan(0x8100, _vlan(ETH_IP, _TO_PROXY4))),
            ),
            (
                "neighbour solicitation with data",
                58,
                ETH_IP6,
                None,
                means.constant(_SOLICITATION),
            ),
            (
                "neighbour solicitation longer than its length field",
                58,
                ETH_IP6,
                None,
                means.constant(_SOLICITATION + bytes(1000)),
            ),
            (
                "arp with data instead of its sender",
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
        means.rewritten_by_the_device,
    ),
)
