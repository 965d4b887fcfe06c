"""The verdict on each frame at the rules of rules/guard.nft, one property at a time."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

import pytest

from ocsf_nft import lab as laboratory
from ocsf_nft.fence import nft, ruleset
from ocsf_nft.fence.spec import FenceSpec, HostEnd, HostLinks, Surroundings, device_table
from ocsf_nft.fence.values import endpoint, exception
from ocsf_nft.lab import (
    GATEWAY4,
    GATEWAY6,
    GATEWAY_MAC,
    INTERNET4,
    INTERNET6,
    PROXY_PORT,
    SANDBOX4,
    SANDBOX6,
    ip,
)
from tests.kernel import conftest, headers
from tests.kernel.outcomes import Case, Outcomes, send_frame
from tests.kernel.packets import ACK, ETH_ARP, ETH_IP, ETH_IP6, SYN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

_DEVICE: Final = "gw0"
_MAC: Final = b"\x02\0\0\0\0\x02"
_GATEWAY: Final = bytes.fromhex(GATEWAY_MAC.replace(":", ""))
_STRANGER: Final = b"\x02\0\0\0\0\x77"
_ALL: Final = b"\xff" * 6
_NOBODY: Final = bytes(6)
_TAG: Final = b"\x81\0\0\5"
#: A next hop that is another machine on the bridge, and its known link address.
_HOP4: Final = "10.200.0.9"
_HOP6: Final = "fd00:200::9"
_HOP: Final = b"\x02\0\0\0\0\x09"
_OWN_LINK6: Final = "fe80::2"
_STRANGER4: Final = "10.200.0.77"
_STRANGER6: Final = "fd00:200::77"
_DNS: Final = 53
_SPEC: Final = FenceSpec(
    sandbox="lab",
    proxies=(
        endpoint(f"{GATEWAY4}:{PROXY_PORT}"),
        endpoint(f"[{GATEWAY6}]:{PROXY_PORT}"),
        endpoint(f"[fe80::1]:{PROXY_PORT}"),
    ),
    guard_device=_DEVICE,
)


def _addresses(*texts: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...]:
    return tuple(map(ipaddress.ip_address, texts))


_AROUND: Final = Surroundings(
    neighbours=_addresses(GATEWAY4, _HOP4, GATEWAY6, _HOP6, "fe80::1"),
    addresses=_addresses(SANDBOX4, SANDBOX6),
    macs=(_MAC.hex(":"),),
    host=HostLinks(
        ends=(HostEnd(name=_DEVICE, ifindex=2),),
        gateway_macs=(GATEWAY_MAC,),
        direct_macs=(GATEWAY_MAC,),
        next_hops=_addresses(_HOP4, _HOP6),
        next_hop_macs=(_HOP.hex(":"),),
        link_locals=_addresses(_OWN_LINK6),
    ),
)
#: Network with other machines on the bridge, as an exception.
_NETWORK: Final = ("tcp:10.200.0.0/24:443", "tcp:[fd00:200::/64]:443")
#: Rival chains next to the guard: the earliest after it, which forwards every frame elsewhere, and
#: the first on the way to the sandbox, in which the gateway's kernel sends no frames of its own.
_RIVALS: Final = f"""
table netdev rival {{
    counter passed {{ }}
    counter arrived {{ }}
    chain ingress {{
        type filter hook ingress device {_DEVICE} priority -499
        counter name passed fwd to lo
    }}
    chain mute {{
        type filter hook egress device {_DEVICE} priority -500
        meta skuid >= 0 accept
        drop
    }}
    chain egress {{
        type filter hook egress device {_DEVICE} priority 501
        counter name arrived drop
    }}
}}
"""
#: The sandbox has no fence here, and its kernel must send no packets of its own.
_MUTE: Final = """
table netdev mute {
    chain egress {
        type filter hook egress device sb0 priority 0; policy drop
        meta skuid >= 0 accept
    }
}
"""
_TABLE: Final = device_table(_DEVICE)
_COUNTED: Final = {
    "guard": ("netdev", _TABLE, "refused_guard"),
    "guard-ingress": ("netdev", _TABLE, "refused_guard-ingress"),
    "maintenance": ("netdev", _TABLE, "maintenance"),
    "passes": ("netdev", "rival", "passed"),
    "arrives": ("netdev", "rival", "arrived"),
}
_PROXIED4: Final = headers.tcp(SANDBOX4, GATEWAY4, PROXY_PORT)
_PROXIED6: Final = headers.tcp(SANDBOX6, GATEWAY6, PROXY_PORT)
#: A frame: ethertype, payload, and what differs from the usual one of its direction.
_Frame: TypeAlias = tuple[int, bytes, dict[str, bytes]]


@contextlib.contextmanager
def _guarded(spec: FenceSpec, around: Surroundings) -> Iterator[tuple[Lab, Outcomes]]:
    """Make a lab with a guard and its rivals; yield it, and the outcomes of its frames."""
    with laboratory.throwaway() as made:
        conftest.load(made.sandbox_namespace, _MUTE)
        nft.load(made.gateway_namespace, ruleset.guard(spec, around, "nflog"))
        conftest.load(made.gateway_namespace, _RIVALS)
        with contextlib.closing(Outcomes(made.gateway_namespace, _COUNTED)) as outcomes:
            outcomes.quiet()
            yield made, outcomes


@pytest.fixture(scope="module")
def guarded() -> Iterator[tuple[Lab, Outcomes]]:
    with _guarded(_SPEC, _AROUND) as made:
        yield made


@pytest.fixture(scope="module")
def lab(guarded: tuple[Lab, Outcomes]) -> Lab:
    return guarded[0]


@pytest.fixture(scope="module")
def outcomes(guarded: tuple[Lab, Outcomes]) -> Outcomes:
    return guarded[1]


#: Offset of the reserved word of neighbour discovery, after the header of IPv6 and a checksum.
_RESERVED: Final = 44


def _with_bits(packet: bytes, offset: int, bits: int) -> bytes:
    """Return a packet with bits set in the 32-bit word at ``offset``."""
    word = int.from_bytes(packet[offset : offset + 4], "big") | bits
    return packet[:offset] + word.to_bytes(4, "big") + packet[offset + 4 :]


def _from_sandbox(lab: Lab, frame: _Frame) -> Callable[[], None]:
    kind, payload, more = frame
    work = partial(send_frame, _bytes(_GATEWAY, _MAC, kind, payload, more), lab.sandbox_device)
    return partial(lab.sandbox_namespace.call, work)


def _to_sandbox(lab: Lab, frame: _Frame) -> Callable[[], None]:
    kind, payload, more = frame
    work = partial(send_frame, _bytes(_MAC, _GATEWAY, kind, payload, more), lab.gateway_device)
    return partial(lab.gateway_namespace.call, work)


def _bytes(to: bytes, source: bytes, kind: int, payload: bytes, more: dict[str, bytes]) -> bytes:
    head = more.get("to", to) + more.get("source", source) + more.get("tag", b"")
    return head + kind.to_bytes(2, "big") + payload


def _arp(
    operation: int, from_mac: bytes, from4: str, to_mac: bytes, to4: str, extra: bytes = b""
) -> bytes:
    head = b"\0\1\x08\0\6\4" + operation.to_bytes(2, "big")
    ends = (from_mac, ipaddress.ip_address(from4).packed, to_mac, ipaddress.ip_address(to4).packed)
    return head + b"".join(ends) + extra


def _check(
    outcomes: Outcomes,
    send: Callable[[_Frame], Callable[[], None]],
    frames: dict[str, dict[str, _Frame]],
) -> None:
    assert not outcomes.wrong(
        Case(name, send(frame), expected)
        for expected, named in frames.items()
        for name, frame in named.items()
    )


def test_guard_accepts_packets_to_the_proxy_and_refuses_variants(
    lab: Lab, outcomes: Outcomes
) -> None:
    to_hop = {"to": _HOP}
    group = bytes.fromhex("333300000001")
    frames: dict[str, dict[str, _Frame]] = {
        "passes": {
            "to the proxy": (ETH_IP, _PROXIED4, {}),
            "to the proxy over ip6": (ETH_IP6, _PROXIED6, {}),
            "to the proxy through the next hop": (ETH_IP, _PROXIED4, to_hop),
            "to a link-local proxy": (
                ETH_IP6, headers.tcp("fe80::5", "fe80::1", PROXY_PORT), {}
            ),
            "not to be fragmented": (ETH_IP, headers.with_flags4(_PROXIED4, 0x4000), {}),
        },
        "guard": {
            "unknown": (0x88B5, bytes(46), {}),
            **{
                f"fragment {field:#x}": (ETH_IP, headers.with_flags4(_PROXIED4, field), {})
                for field in (0x2000, 0x0001, 0x1FFF)
            },
            "options": (ETH_IP, headers.with_options4(_PROXIED4), {}),
            "extension header": (ETH_IP6, headers.with_extension6(_PROXIED6), {}),
            "another port": (ETH_IP, headers.tcp(SANDBOX4, GATEWAY4, 443), {}),
            "another port over ip6": (ETH_IP6, headers.tcp(SANDBOX6, GATEWAY6, 443), {}),
            "another protocol": (ETH_IP, headers.udp(SANDBOX4, GATEWAY4, PROXY_PORT), {}),
            "another protocol over ip6": (
                ETH_IP6, headers.udp(SANDBOX6, GATEWAY6, PROXY_PORT), {}
            ),
            "internet": (ETH_IP, headers.tcp(SANDBOX4, INTERNET4, PROXY_PORT), {}),
            "internet over ip6": (ETH_IP6, headers.tcp(SANDBOX6, INTERNET6, PROXY_PORT), {}),
            "forged source": (ETH_IP, headers.tcp(_STRANGER4, GATEWAY4, PROXY_PORT), {}),
            "forged source over ip6": (
                ETH_IP6, headers.tcp(_STRANGER6, GATEWAY6, PROXY_PORT), {}
            ),
            "link-local source": (ETH_IP6, headers.tcp(_OWN_LINK6, GATEWAY6, PROXY_PORT), {}),
            **{
                f"{what} in place of the gateway": (kind, packet, {"to": to})
                for what, to in (("stranger", _STRANGER), ("all", _ALL), ("group", group))
                for kind, packet in ((ETH_IP, _PROXIED4), (ETH_IP6, _PROXIED6))
            },
            "forged link source": (ETH_IP, _PROXIED4, {"source": _STRANGER}),
            "forged link source over ip6": (ETH_IP6, _PROXIED6, {"source": _STRANGER}),
            "group as link source": (ETH_IP, _PROXIED4, {"source": b"\x03\0\0\0\0\2"}),
        },
    }  # fmt: skip
    _check(outcomes, partial(_from_sandbox, lab), frames)
    for kind, packet, _ in tuple(frames["passes"].values())[:2]:
        for tag in (_TAG, b"\x88\xa8\0\5", b"\x81\0\0\0", b"\x81\0\x0f\xff", _TAG + _TAG):
            send = _from_sandbox(lab, (kind, packet, {"tag": tag}))
            assert outcomes.outcome(send) == "guard", (kind, tag)


def test_guard_accepts_neighbour_discovery_and_refuses_variants(
    lab: Lab, outcomes: Outcomes
) -> None:
    about = partial(headers.neighbour, SANDBOX6)
    source, target = b"\1\1" + _MAC, b"\2\1" + _MAC
    group, group_mac = "ff02::1:ff00:1", bytes.fromhex("3333ff000001")
    solicited = {"to": group_mac}
    usual = about(group, target=GATEWAY6, options=source)
    answer = about(GATEWAY6, 136, target=SANDBOX6)

    def later(number: int) -> bytes:
        return headers.neighbour(f"fe80::{number:x}", "fe80::1", 135, target="fe80::1")

    frames: dict[str, dict[str, _Frame]] = {
        "passes": {
            "solicitation": (ETH_IP6, usual, solicited),
            "to the neighbour": (ETH_IP6, about(GATEWAY6, target=GATEWAY6, options=source), {}),
            "without an option": (ETH_IP6, about(GATEWAY6, target=GATEWAY6), {}),
            "from the link-local address": (
                ETH_IP6, headers.neighbour(_OWN_LINK6, "fe80::1", target="fe80::1"), {}
            ),
            "answer": (ETH_IP6, answer, {}),
            "answer with an option": (
                ETH_IP6, about(GATEWAY6, 136, target=SANDBOX6, options=target), {}
            ),
            "answer to the next hop": (
                ETH_IP6, about(_HOP6, 136, target=SANDBOX6), {"to": _HOP}
            ),
            "answer with flags": (ETH_IP6, _with_bits(answer, _RESERVED, 0xE0000000), {}),
            "from a later link-local address": (ETH_IP6, later(0x11), {}),
            "from another later link-local address": (ETH_IP6, later(0x12), {}),
            "from a later link-local address again": (ETH_IP6, later(0x11), {}),
        },
        "maintenance": {
            "is the address mine": (
                ETH_IP6,
                headers.neighbour("::", group, target="fe80::99", options=b"\x0e\1nonce."),
                solicited,
            ),
        },
        "guard": {
            "from a third later link-local address": (ETH_IP6, later(0x13), {}),
            "about a stranger": (
                ETH_IP6,
                about("ff02::1:ff00:77", target=_STRANGER6, options=source),
                {"to": bytes.fromhex("3333ff000077")},
            ),
            "to a stranger's group": (
                ETH_IP6, about("ff02::1:ff00:77", target=GATEWAY6, options=source), solicited
            ),
            "to a stranger's link group": (
                ETH_IP6, usual, {"to": bytes.fromhex("3333ff000077")}
            ),
            "to all": (ETH_IP6, about("ff02::1", target=GATEWAY6, options=source), {"to": _ALL}),
            "to a stranger": (ETH_IP6, about(GATEWAY6, target=GATEWAY6), {"to": _STRANGER}),
            "forged source": (
                ETH_IP6, headers.neighbour(_STRANGER6, group, target=GATEWAY6), solicited
            ),
            "another's address": (ETH_IP6, about(GATEWAY6, 136, target=_STRANGER6), {}),
            "answer to all": (
                ETH_IP6, about("ff02::1", 136, target=SANDBOX6), {"to": b"\x33\x33\0\0\0\1"}
            ),
            "forged option": (
                ETH_IP6, about(group, target=GATEWAY6, options=b"\1\1" + _STRANGER), solicited
            ),
            "unknown option": (
                ETH_IP6, about(group, target=GATEWAY6, options=b"\x0e\1" + _MAC), solicited
            ),
            "option of an answer": (
                ETH_IP6, about(group, target=GATEWAY6, options=target), solicited
            ),
            "two options": (
                ETH_IP6, about(group, target=GATEWAY6, options=source + source), solicited
            ),
            "code": (ETH_IP6, about(group, target=GATEWAY6, options=source, code=1), solicited),
            "hop limit": (
                ETH_IP6, about(group, target=GATEWAY6, options=source, hop_limit=254), solicited
            ),
            **{
                f"type {kind}": (ETH_IP6, about(group, kind, target=GATEWAY6), solicited)
                for kind in (133, 134, 137)
            },
            "extension header": (ETH_IP6, headers.with_extension6(usual), solicited),
            "longer than its length field": (ETH_IP6, usual + b"x", solicited),
            **{
                f"bit {bit} of the first word": (
                    ETH_IP6, _with_bits(usual, 0, 1 << bit), solicited
                )
                for bit in range(28)
            },
            **{
                f"reserved bit {bit}": (
                    ETH_IP6, _with_bits(usual, _RESERVED, 1 << bit), solicited
                )
                for bit in range(32)
            },
            **{
                f"reserved bit {bit} of an answer": (
                    ETH_IP6, _with_bits(answer, _RESERVED, 1 << bit), {}
                )
                for bit in range(29)
            },
            "traffic class of an answer": (ETH_IP6, _with_bits(answer, 0, 1 << 22), {}),
            "flow label of an answer": (ETH_IP6, _with_bits(answer, 0, 1), {}),
            "shorter than its length field": (
                ETH_IP6, usual[:4] + b"\0\x29" + usual[6:], solicited
            ),
            "tagged": (ETH_IP6, usual, solicited | {"tag": _TAG}),
        },
    }  # fmt: skip
    _check(outcomes, partial(_from_sandbox, lab), frames)


def test_guard_accepts_arp_for_the_proxy_and_refuses_variants(lab: Lab, outcomes: Outcomes) -> None:
    request = _arp(1, _MAC, SANDBOX4, _NOBODY, GATEWAY4)
    reply = _arp(2, _MAC, SANDBOX4, _GATEWAY, GATEWAY4)
    everybody = {"to": _ALL}
    bad = (
        b"\0\6" + request[2:], request[:2] + b"\x86\xdd" + request[4:],
        request[:4] + b"\7" + request[5:], request[:5] + b"\5" + request[6:],
        request[:7] + b"\0" + request[8:], request[:7] + b"\3" + request[8:],
        _arp(1, _STRANGER, SANDBOX4, _NOBODY, GATEWAY4),
        _arp(1, _MAC, _STRANGER4, _NOBODY, GATEWAY4),
        _arp(1, _MAC, SANDBOX4, _STRANGER, GATEWAY4),
        _arp(1, _MAC, SANDBOX4, _NOBODY, _STRANGER4),
        _arp(1, _MAC, SANDBOX4, _NOBODY, SANDBOX4),
    )  # fmt: skip
    frames: dict[str, dict[str, _Frame]] = {
        "passes": {
            "request": (ETH_ARP, request, everybody),
            "request to the gateway": (ETH_ARP, request, {}),
            "padded": (ETH_ARP, request + bytes(18), everybody),
            "about the next hop": (
                ETH_ARP, _arp(1, _MAC, SANDBOX4, _NOBODY, _HOP4), {"to": _HOP}
            ),
            "answer": (ETH_ARP, reply, {}),
            "answer to the next hop": (
                ETH_ARP, _arp(2, _MAC, SANDBOX4, _HOP, _HOP4), {"to": _HOP}
            ),
        },
        "guard": {
            **{f"bad {number}": (ETH_ARP, each, everybody) for number, each in enumerate(bad)},
            "request to a stranger": (ETH_ARP, request, {"to": _STRANGER}),
            "request to a group": (ETH_ARP, request, {"to": b"\x01\0\x5e\0\0\1"}),
            "answer to all": (ETH_ARP, reply, everybody),
            "answer to a stranger": (ETH_ARP, reply, {"to": _STRANGER}),
            "answer about a stranger": (
                ETH_ARP, _arp(2, _MAC, SANDBOX4, _STRANGER, GATEWAY4), {}
            ),
            "data in the padding": (ETH_ARP, request + b"x" + bytes(17), everybody),
            "data at the end of the padding": (ETH_ARP, request + bytes(17) + b"x", everybody),
            "shorter padding": (ETH_ARP, request + bytes(17), everybody),
            "longer": (ETH_ARP, request + bytes(19), everybody),
            "forged link source": (ETH_ARP, request, everybody | {"source": _STRANGER}),
            "tagged": (ETH_ARP, request, everybody | {"tag": _TAG}),
            "of another type": (0x88B5, request, everybody),
        },
    }  # fmt: skip
    _check(outcomes, partial(_from_sandbox, lab), frames)


def _error(source: str, own: str) -> bytes:
    """Return an ICMP error about a packet that ``own`` has sent."""
    if ":" in own:
        return headers.icmp(
            source, SANDBOX6, 1, body=bytes(4) + headers.tcp(own, GATEWAY6, PROXY_PORT)
        )
    return headers.icmp(source, SANDBOX4, 3, body=bytes(4) + headers.tcp(own, GATEWAY4, PROXY_PORT))


def test_guard_sends_only_replies_of_the_proxy(lab: Lab, outcomes: Outcomes) -> None:
    def reply(flags: int, source: str = GATEWAY4, port: int = PROXY_PORT) -> bytes:
        to = SANDBOX6 if ":" in source else SANDBOX4
        return headers.tcp(source, to, 4000, flags, port)

    usual, usual6 = reply(SYN | ACK), reply(ACK, GATEWAY6)
    frames: dict[str, dict[str, _Frame]] = {
        "arrives": {
            "reply": (ETH_IP, usual, {}),
            "reply over ip6": (ETH_IP6, usual6, {}),
            "reply of the next hop": (ETH_IP, usual, {"source": _HOP}),
            "first fragment": (ETH_IP, headers.with_flags4(usual, 0x2000), {}),
            "late fragment": (ETH_IP, headers.with_flags4(usual, 3), {}),
            "of a link-local proxy": (
                ETH_IP6, headers.tcp("fe80::1", _OWN_LINK6, 4000, ACK, PROXY_PORT), {}
            ),
            "error": (ETH_IP, _error(INTERNET4, SANDBOX4), {}),
            "error over ip6": (ETH_IP6, _error(INTERNET6, SANDBOX6), {}),
        },
        "maintenance": {
            "to another station": (ETH_IP, usual, {"to": _STRANGER}),
            "to all": (ETH_IP, usual, {"to": _ALL}),
            "to a group": (ETH_IP6, usual6, {"to": b"\x33\x33\0\0\0\1"}),
            "spanning tree": (0x0026, bytes(46), {"to": b"\x01\x80\xc2\0\0\0"}),
        },
        "guard-ingress": {
            "begin of a connection": (ETH_IP, reply(SYN), {}),
            "begin of a connection over ip6": (ETH_IP6, reply(SYN, GATEWAY6), {}),
            "of another port": (ETH_IP, reply(ACK, port=443), {}),
            "of another address": (ETH_IP, reply(ACK, INTERNET4), {}),
            "of another address over ip6": (ETH_IP6, reply(ACK, INTERNET6), {}),
            "of another protocol": (
                ETH_IP, headers.udp(GATEWAY4, SANDBOX4, 4000, PROXY_PORT), {}
            ),
            "of a stranger's link address": (ETH_IP, usual, {"source": _STRANGER}),
            "to another address": (
                ETH_IP, headers.tcp(GATEWAY4, _STRANGER4, 4000, ACK, PROXY_PORT), {}
            ),
            "late fragment of another address": (
                ETH_IP, headers.with_flags4(reply(ACK, INTERNET4), 3), {}
            ),
            "error about another's packet": (ETH_IP, _error(GATEWAY4, _STRANGER4), {}),
            "error about another's packet over ip6": (ETH_IP6, _error(GATEWAY6, _STRANGER6), {}),
            "echo": (ETH_IP, headers.icmp(GATEWAY4, SANDBOX4, 8), {}),
            "extension header": (ETH_IP6, headers.with_extension6(usual6), {}),
            "tagged": (ETH_IP, usual, {"tag": _TAG}),
            "unknown": (0x88B5, bytes(46), {}),
        },
    }  # fmt: skip
    _check(outcomes, partial(_to_sandbox, lab), frames)


@pytest.fixture
def routing() -> Iterator[tuple[Lab, Outcomes]]:
    """Guard a sandbox behind a bridge: only what the host itself has routed is from the gateway."""
    around = replace(_AROUND, host=replace(_AROUND.host, direct_macs=()))
    spec = replace(_SPEC, exceptions=(exception(f"udp:{GATEWAY4}:{_DNS}"),))
    with _guarded(spec, around) as made:
        yield made


def _routed(lab: Lab, to: bytes, packet: bytes) -> None:
    """Send a packet by the gateway's IP stack, with a link address of its destination."""
    is_ip6 = packet[0] >> 4 == 6
    family = socket.AF_INET6 if is_ip6 else socket.AF_INET
    address = socket.inet_ntop(family, packet[24:40] if is_ip6 else packet[16:20])
    ip(
        "-n", lab.gateway, "neighbour", "replace", address, "lladdr", to.hex(":"),
        "dev", _DEVICE, "nud", "permanent",
    )  # fmt: skip

    def send() -> None:
        with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
            sock.sendto(packet, (address, 0))

    lab.gateway_namespace.call(send)


def test_guard_sends_only_routed_replies_of_a_gateway_on_a_bridge(
    routing: tuple[Lab, Outcomes],
) -> None:
    """Another machine on the bridge could send with the gateway's link address."""
    lab, outcomes = routing
    usual = headers.tcp(GATEWAY4, SANDBOX4, 4000, ACK, PROXY_PORT)
    usual6 = headers.tcp(GATEWAY6, SANDBOX6, 4000, ACK, PROXY_PORT)
    answer = headers.udp(GATEWAY4, SANDBOX4, 4000, _DNS)
    cases: dict[str, dict[str, tuple[bytes, bytes]]] = {
        "arrives": {
            "reply": (_MAC, usual),
            "reply over ip6": (_MAC, usual6),
            "datagram": (_MAC, answer),
            "first fragment": (_MAC, headers.with_flags4(usual, 0x2000)),
            "late fragment": (_MAC, headers.with_flags4(usual, 3)),
        },
        "maintenance": {
            "to another station": (_STRANGER, usual),
            "to another station over ip6": (_STRANGER, usual6),
        },
        "guard-ingress": {
            "begin of a connection": (
                _MAC, headers.tcp(GATEWAY4, SANDBOX4, 4000, SYN, PROXY_PORT)
            ),
            "begin of a connection over ip6": (
                _MAC, headers.tcp(GATEWAY6, SANDBOX6, 4000, SYN, PROXY_PORT)
            ),
            "of another port": (_MAC, headers.tcp(GATEWAY4, SANDBOX4, 4000, ACK, 443)),
            "of another port over ip6": (_MAC, headers.tcp(GATEWAY6, SANDBOX6, 4000, ACK, 443)),
            "of another protocol": (_MAC, headers.udp(GATEWAY4, SANDBOX4, 4000, PROXY_PORT)),
            "to another address": (
                _MAC, headers.tcp(GATEWAY4, _STRANGER4, 4000, ACK, PROXY_PORT)
            ),
            "to another address over ip6": (
                _MAC, headers.tcp(GATEWAY6, _STRANGER6, 4000, ACK, PROXY_PORT)
            ),
        },
    }  # fmt: skip
    assert not outcomes.wrong(
        Case(name, partial(_routed, lab, *packet), expected)
        for expected, named in cases.items()
        for name, packet in named.items()
    )
    frames: dict[str, dict[str, _Frame]] = {
        "guard-ingress": {
            "not routed": (ETH_IP, usual, {}),
            "not routed, over ip6": (ETH_IP6, usual6, {}),
            "datagram that is not routed": (ETH_IP, answer, {}),
        }
    }
    _check(outcomes, partial(_to_sandbox, lab), frames)


def test_guard_sends_only_messages_of_neighbours(lab: Lab, outcomes: Outcomes) -> None:
    request = _arp(1, _GATEWAY, GATEWAY4, _NOBODY, SANDBOX4)
    reply = _arp(2, _GATEWAY, GATEWAY4, _MAC, SANDBOX4)
    everybody, router = {"to": _ALL}, {"to": b"\x33\x33\0\0\0\1"}
    group = {"to": bytes.fromhex("3333ff000002")}
    about = partial(headers.neighbour, GATEWAY6)
    frames: dict[str, dict[str, _Frame]] = {
        "arrives": {
            "request": (ETH_ARP, request, everybody),
            "padded request": (ETH_ARP, request + bytes(18), everybody),
            "reply": (ETH_ARP, reply, {}),
            "new link address": (
                ETH_ARP, _arp(1, _GATEWAY, GATEWAY4, _NOBODY, GATEWAY4), everybody
            ),
            "solicitation": (ETH_IP6, about("ff02::1:ff00:2", target=SANDBOX6), group),
            "solicitation of the link-local address": (
                ETH_IP6, about("ff02::1:ff00:2", target=_OWN_LINK6), group
            ),
            "advertisement": (ETH_IP6, about(SANDBOX6, 136, target=GATEWAY6), {}),
            "router": (ETH_IP6, headers.neighbour("fe80::1", "ff02::1", 134), router),
        },
        "maintenance": {
            "request for another": (
                ETH_ARP, _arp(1, _GATEWAY, GATEWAY4, _NOBODY, _STRANGER4), everybody
            ),
            "request of a stranger": (
                ETH_ARP, _arp(1, _STRANGER, _STRANGER4, _NOBODY, SANDBOX4),
                everybody | {"source": _STRANGER},
            ),
            "stranger as the gateway": (
                ETH_ARP, _arp(1, _STRANGER, GATEWAY4, _NOBODY, SANDBOX4),
                everybody | {"source": _STRANGER},
            ),
            "data in the padding": (ETH_ARP, request + bytes(17) + b"x", everybody),
            "solicitation of another": (
                ETH_IP6, about("ff02::1:ff00:2", target=_STRANGER6), group
            ),
            "solicitation of a stranger": (
                ETH_IP6, about("ff02::1:ff00:2", target=SANDBOX6), group | {"source": _STRANGER}
            ),
            "long solicitation": (
                ETH_IP6, about("ff02::1:ff00:2", target=SANDBOX6, options=bytes(24)), group
            ),
            "strange router": (
                ETH_IP6, headers.neighbour("fe80::7", "ff02::1", 134),
                router | {"source": _STRANGER},
            ),
        },
        "guard-ingress": {
            "reply of a stranger": (
                ETH_ARP, _arp(2, _STRANGER, _STRANGER4, _MAC, SANDBOX4), {"source": _STRANGER}
            ),
            "reply of a stranger as the gateway": (
                ETH_ARP, _arp(2, _STRANGER, GATEWAY4, _MAC, SANDBOX4), {"source": _STRANGER}
            ),
            "reply with a stranger's link address": (
                ETH_ARP, _arp(2, _STRANGER, GATEWAY4, _MAC, SANDBOX4), {}
            ),
            "data in the padding": (ETH_ARP, reply + b"x" + bytes(17), {}),
            "redirect": (ETH_IP6, about(SANDBOX6, 137, target=GATEWAY6), {}),
        },
    }  # fmt: skip
    _check(outcomes, partial(_to_sandbox, lab), frames)


def test_guard_learns_the_link_address_of_a_next_hop_only(lab: Lab, outcomes: Outcomes) -> None:
    standby, other = b"\x02\0\0\0\0\x0a", b"\x02\0\0\0\0\x0b"

    def sent(to: bytes) -> Callable[[], None]:
        return _from_sandbox(lab, (ETH_IP, _PROXIED4, {"to": to}))

    def announced(mac: bytes, address: str, source: bytes) -> Callable[[], None]:
        message = _arp(2, mac, address, _MAC, SANDBOX4)
        return _to_sandbox(lab, (ETH_ARP, message, {"source": source}))

    for mac, address, source, expected in (
        (other, GATEWAY4, other, "guard-ingress"),  # an address of the host itself
        (other, _STRANGER4, other, "guard-ingress"),
        (b"\x03\0\0\0\0\x0b", _HOP4, other, "guard-ingress"),
        (other, _HOP4, b"\x03\0\0\0\0\x0b", "guard-ingress"),
        (standby, _HOP4, standby, "arrives"),
    ):
        assert outcomes.outcome(sent(mac)) == "guard", address
        assert outcomes.outcome(announced(mac, address, source), expected) == expected
    for mac in (other, b"\x03\0\0\0\0\x0b"):
        assert outcomes.outcome(sent(mac)) == "guard"
    assert outcomes.outcome(sent(standby)) == "passes"
    assert outcomes.outcome(sent(_HOP)) == "passes"
    advertised = headers.neighbour(_HOP6, SANDBOX6, 136, target=_HOP6)
    send = _to_sandbox(lab, (ETH_IP6, advertised, {"source": other}))
    assert outcomes.outcome(send, "arrives") == "arrives"
    assert outcomes.outcome(sent(other)) == "passes"


@pytest.fixture
def excepting() -> Iterator[tuple[Lab, Outcomes]]:
    """Guard a sandbox with an exception that contains all machines on the bridge."""
    spec = replace(_SPEC, exceptions=tuple(map(exception, _NETWORK)))
    with _guarded(spec, _AROUND) as made:
        yield made


def _machine(number: int) -> tuple[bytes, str, str]:
    """Return the link address and the addresses of a machine in the exception."""
    return bytes([2, 0, 0, 1, 0, number]), f"10.200.0.{number}", f"fd00:200::{number}"


def _elements(lab: Lab, name: str) -> str:
    return conftest.nft(lab.gateway_namespace, "list", "set", "netdev", _TABLE, name)


def test_guard_learns_a_machine_in_an_exception_from_its_answers_only(
    excepting: tuple[Lab, Outcomes],
) -> None:
    lab, outcomes = excepting
    for number in range(100, 200):  # stations that ask each other
        mac, address, address6 = _machine(number)
        for kind, message in (
            (ETH_ARP, _arp(1, mac, address, _NOBODY, "10.200.0.99")),
            (ETH_ARP, _arp(1, mac, address, _NOBODY, address)),
            (ETH_IP6, headers.neighbour(address6, "ff02::1", 136, target=address6)),
            (ETH_IP6, headers.neighbour(address6, "ff02::1:ff00:99", target="fd00:200::99")),
        ):
            _to_sandbox(lab, (kind, message, {"to": _ALL, "source": mac}))()
    mac, address, address6 = _machine(50)
    frames: dict[str, _Frame] = {
        "ip": (ETH_IP, headers.tcp(SANDBOX4, address, 443), {"to": mac}),
        "ip6": (ETH_IP6, headers.tcp(SANDBOX6, address6, 443), {"to": mac}),
    }
    for each in frames.values():
        assert outcomes.outcome(_from_sandbox(lab, each), "guard") == "guard"
    assert "elements" not in _elements(lab, "excepted_macs")
    answer = _arp(2, mac, address, _MAC, SANDBOX4)
    send = _to_sandbox(lab, (ETH_ARP, answer, {"source": mac}))
    assert outcomes.outcome(send, "arrives") == "arrives"
    for each in frames.values():
        assert outcomes.outcome(_from_sandbox(lab, each), "passes") == "passes"
    # The kernel may ask with the sandbox's link-local address.
    for number, own in ((51, SANDBOX6), (52, _OWN_LINK6)):
        mac, _, address6 = _machine(number)
        advertised = headers.neighbour(address6, own, 136, target=address6)
        send = _to_sandbox(lab, (ETH_IP6, advertised, {"source": mac}))
        assert outcomes.outcome(send, "arrives") == "arrives"
        frame = (ETH_IP6, headers.tcp(SANDBOX6, address6, 443), {"to": mac})
        assert outcomes.outcome(_from_sandbox(lab, frame), "passes") == "passes"


def test_guard_keeps_the_machines_that_a_sandbox_uses(excepting: tuple[Lab, Outcomes]) -> None:
    """A machine that claims many link addresses crowds out neither these nor the next hops."""
    lab, outcomes = excepting
    mac, address, _ = _machine(50)
    answer = (ETH_ARP, _arp(2, mac, address, _MAC, SANDBOX4), {"source": mac})
    outcomes.outcome(_to_sandbox(lab, answer), "arrives")
    used = _from_sandbox(lab, (ETH_IP, headers.tcp(SANDBOX4, address, 443), {"to": mac}))
    assert outcomes.outcome(used, "passes") == "passes"
    # As after the timeout, and with no room any more.
    conftest.nft(lab.gateway_namespace, "flush", "set", "netdev", _TABLE, "excepted_macs")
    elements = ", ".join(f"06:00:00:00:{n >> 8:02x}:{n & 255:02x}" for n in range(4096))
    conftest.load(
        lab.gateway_namespace,
        f"add element netdev {_TABLE} excepted_macs {{ {elements} }}\n",
    )
    assert outcomes.outcome(used, "passes") == "passes"
    question = (ETH_ARP, _arp(1, _MAC, SANDBOX4, _NOBODY, address), {"to": mac})
    assert outcomes.outcome(_from_sandbox(lab, question), "passes") == "passes"
    assert outcomes.outcome(_to_sandbox(lab, answer), "arrives") == "arrives"
    reply = (ETH_IP, headers.tcp(address, SANDBOX4, 4000, ACK, 443), {"source": mac})
    assert outcomes.outcome(_to_sandbox(lab, reply), "arrives") == "arrives"
    standby = b"\x02\0\0\0\0\x0a"
    announced = (ETH_ARP, _arp(2, standby, _HOP4, _MAC, SANDBOX4), {"source": standby})
    assert outcomes.outcome(_to_sandbox(lab, announced), "arrives") == "arrives"
    proxied = _from_sandbox(lab, (ETH_IP, _PROXIED4, {"to": standby}))
    assert outcomes.outcome(proxied, "passes") == "passes"


def test_machine_in_an_exception_can_be_no_gateway(excepting: tuple[Lab, Outcomes]) -> None:
    lab, outcomes = excepting
    mac, address, address6 = _machine(50)
    from_machine = {"source": mac}
    frames: dict[str, dict[str, _Frame]] = {
        "arrives": {
            "answer": (ETH_ARP, _arp(2, mac, address, _MAC, SANDBOX4), from_machine),
            "advertisement": (
                ETH_IP6, headers.neighbour(address6, SANDBOX6, 136, target=address6), from_machine
            ),
            "reply": (
                ETH_IP, headers.tcp(address, SANDBOX4, 4000, ACK, 443), from_machine
            ),
            "reply over ip6": (
                ETH_IP6, headers.tcp(address6, SANDBOX6, 4000, ACK, 443), from_machine
            ),
            "late fragment": (
                ETH_IP,
                headers.with_flags4(headers.tcp(address, SANDBOX4, 4000, ACK, 443), 3),
                from_machine,
            ),
            "error": (ETH_IP, _error(address, SANDBOX4), from_machine),
            "its link-local address": (
                ETH_IP6, headers.neighbour("fe80::50", SANDBOX6, 136, target="fe80::50"),
                from_machine,
            ),
            "solicitation": (
                ETH_IP6, headers.neighbour("fe80::50", SANDBOX6, target=SANDBOX6), from_machine
            ),
        },
        "guard-ingress": {
            "gateway's address": (
                ETH_ARP, _arp(2, mac, GATEWAY4, _MAC, SANDBOX4), from_machine
            ),
            "gateway's address over ip6": (
                ETH_IP6, headers.neighbour(address6, SANDBOX6, 136, target=GATEWAY6), from_machine
            ),
            "gateway's link-local address": (
                ETH_IP6, headers.neighbour("fe80::1", SANDBOX6, 136, target="fe80::1"),
                from_machine,
            ),
            "router": (
                ETH_IP6, headers.neighbour("fe80::50", SANDBOX6, 134), from_machine
            ),
            "reply of the proxy": (
                ETH_IP, headers.tcp(GATEWAY4, SANDBOX4, 4000, ACK, PROXY_PORT), from_machine
            ),
            "reply of the proxy over ip6": (
                ETH_IP6, headers.tcp(GATEWAY6, SANDBOX6, 4000, ACK, PROXY_PORT), from_machine
            ),
            "begin of a connection": (
                ETH_IP, headers.tcp(address, SANDBOX4, 4000, SYN, 443), from_machine
            ),
            "begin of a connection over ip6": (
                ETH_IP6, headers.tcp(address6, SANDBOX6, 4000, SYN, 443), from_machine
            ),
            "another protocol's late fragment": (
                ETH_IP, headers.with_flags4(headers.udp(address, SANDBOX4, 4000, 443), 3),
                from_machine,
            ),
            "another port": (
                ETH_IP, headers.tcp(address, SANDBOX4, 4000, ACK, 444), from_machine
            ),
        },
    }  # fmt: skip
    _check(outcomes, partial(_to_sandbox, lab), frames)
    to_machine = {"to": mac}
    frames = {
        "passes": {
            "to the machine": (ETH_IP, headers.tcp(SANDBOX4, address, 443), to_machine),
            "to the machine over ip6": (ETH_IP6, headers.tcp(SANDBOX6, address6, 443), to_machine),
            "question": (ETH_ARP, _arp(1, _MAC, SANDBOX4, _NOBODY, address), to_machine),
            "answer": (ETH_ARP, _arp(2, _MAC, SANDBOX4, mac, address), to_machine),
            "advertisement": (
                ETH_IP6, headers.neighbour(SANDBOX6, address6, 136, target=SANDBOX6), to_machine
            ),
            "solicitation": (
                ETH_IP6, headers.neighbour(SANDBOX6, address6, target=address6), to_machine
            ),
        },
        "guard": {
            "proxied": (ETH_IP, _PROXIED4, to_machine),
            "proxied over ip6": (ETH_IP6, _PROXIED6, to_machine),
            "another port": (ETH_IP, headers.tcp(SANDBOX4, address, 444), to_machine),
            "fragment": (
                ETH_IP, headers.with_flags4(headers.tcp(SANDBOX4, address, 443), 0x2000),
                to_machine,
            ),
            "question about the gateway": (
                ETH_ARP, _arp(1, _MAC, SANDBOX4, _NOBODY, GATEWAY4), to_machine
            ),
            "to an unknown machine": (
                ETH_IP, headers.tcp(SANDBOX4, address, 443), {"to": _STRANGER}
            ),
        },
    }  # fmt: skip
    _check(outcomes, partial(_from_sandbox, lab), frames)
