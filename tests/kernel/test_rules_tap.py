"""The verdict on each frame of a VM at the rules of rules/tap.nft, one property at a time."""

from __future__ import annotations

import ipaddress
import itertools
import socket
import struct
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest

from ocsf_nft.cloud_metadata import EXACT_FORMS, FREE_FORMS, SERVICES
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.ip_text import text_of
from ocsf_nft.lab import INTERNET4, INTERNET6
from tests.kernel import headers, packets, vm_bench
from tests.kernel.packets import ACK, ETH_ARP, ETH_IP, ETH_IP6, RST, SYN
from tests.kernel.tap import GATEWAY4, GATEWAY6, PORT, UPLINK4, UPLINK6, VM4, VM6, VM_MAC
from tests.kernel.vm_bench import DNS, METADATA4, METADATA6, METADATA_PORT, VmBench

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.kernel

_OTHER_MAC: Final = b"\x02\0\0\0\7\x77"
#: Each flow of the host has a different port.
_PORTS: Final = itertools.count(20_000)
_BROADCAST: Final = b"\xff" * 6
_GROUP6: Final = b"33\0\0\0\1"
#: Types of ICMPv6 that belong to the link alone.
_LINK_TYPES: Final = (130, 131, 132, 133, 134, 135, 136, 137, 138, 143)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VmBench]:
    with vm_bench.bench(StateDirectory(tmp_path_factory.mktemp("rules"))) as made:
        made.sent(ETH_ARP, packets.arp(VM4, GATEWAY4, VM_MAC))
        yield made


def _wrong(found: Callable[[bytes], str], cases: dict[str, tuple[str, bytes]]) -> dict[str, str]:
    return {
        name: outcome
        for name, (expected, packet) in cases.items()
        if (outcome := found(packet)) != expected
    }


def test_link_accepts_frames_of_the_vm_alone(bench: VmBench) -> None:
    datagram = headers.udp(VM4, INTERNET4, 53)
    send = partial(bench.sent, ETH_IP, datagram)
    assert send() == "link through"
    for tag in (b"\x81\0\0\5", b"\x81\0\0\0", b"\x81\0\x0f\xff", b"\x88\xa8\0\5"):
        assert send(tag=tag) == "vm-link", tag
    for source in (_OTHER_MAC, b"\3\0\0\0\7\2", b"\1\0\0\0\7\2"):
        assert send(source=source) == "vm-link", source
    assert send(to=_OTHER_MAC) == "vm-link"
    for to in (_BROADCAST, _GROUP6):  # no IP stack forwards that
        assert send(to=to) == "link"
    for kind in (0x88B5, 0x8847, 0x8864, 0x86DE):
        assert bench.sent(kind, datagram) == "vm-link", hex(kind)


def test_link_refuses_a_group_address_as_the_first_source(tmp_path: Path) -> None:
    """The fence stores the first link address, so this test has its own fence."""
    with vm_bench.bench(StateDirectory(tmp_path / "state")) as bench:
        datagram = headers.udp(VM4, INTERNET4, 53)
        assert bench.sent(ETH_IP, datagram, source=b"\3\0\0\0\7\2") == "vm-link"
        assert bench.sent(ETH_IP, datagram) == "link through"


def test_link_accepts_true_arp_alone(bench: VmBench) -> None:
    request = packets.arp(VM4, GATEWAY4, VM_MAC)
    probe = packets.arp("0.0.0.0", VM4, VM_MAC)
    padding = bytes(18)
    good = [
        request, probe, request[:7] + b"\2" + request[8:], request + padding,
        *(packets.arp(f"172.16.7.{own}", GATEWAY4, VM_MAC) for own in (3, 6)),
        *(packets.arp(VM4, f"172.16.7.{to}", VM_MAC) for to in (0, 7)),
    ]  # fmt: skip
    bad = [
        request + padding + b"x",
        probe[:7] + b"\2" + probe[8:],
        *(
            each[:at] + bytes([value]) + each[at + 1 :]
            for each in (request, probe)
            for at, value in (
                (1, 2), (1, 0), (1, 6), (2, 9), (3, 1), (4, 5), (4, 7), (5, 3), (5, 5), (7, 0),
                (7, 3),
            )
        ),
        *(packets.arp(own, to, _OTHER_MAC) for own, to in ((VM4, GATEWAY4), ("0.0.0.0", VM4))),
        *(packets.arp(f"172.16.7.{own}", GATEWAY4, VM_MAC) for own in (0, 1, 7, 8)),
        *(packets.arp(VM4, to, VM_MAC) for to in ("172.16.7.8", "172.16.6.255", "10.9.9.9")),
        *(packets.arp("0.0.0.0", to, VM_MAC) for to in (GATEWAY4, "172.16.7.8", "0.0.0.0")),
        *(packets.arp("0.0.0.1", VM4, VM_MAC) for _ in range(1)),
    ]  # fmt: skip
    send = partial(bench.sent, ETH_ARP, to=_BROADCAST)
    assert [frame for frame in good if send(frame) != "link"] == []
    assert [frame for frame in bad if send(frame) != "vm-link"] == []


def test_link_accepts_ip4_of_the_vm_to_unicast_destinations(bench: VmBench) -> None:
    to = partial(headers.udp, VM4)
    good = {
        f"to {address}": ("link through", to(address, 53))
        for address in (
            INTERNET4, "1.2.3.4", "126.1.2.3", "128.1.2.3", "192.1.2.3", "223.255.255.254",
            "63.1.2.3", "100.1.2.3",
        )
    }  # fmt: skip
    bad = {
        f"to {address}": ("vm-link", to(address, 53))
        for address in (
            "0.1.2.3", "0.200.2.3", "127.0.0.1", "127.200.0.1", "224.0.0.1", "239.1.2.3",
            "240.0.0.1", "250.0.0.1", "255.255.255.255",
        )
    }  # fmt: skip
    sources = {
        f"from 172.16.7.{own}": (
            "link through" if 2 <= own <= 6 else "vm-link",
            headers.udp(f"172.16.7.{own}", INTERNET4, 53),
        )
        for own in range(9)
    }
    options = {"options": ("vm-link", headers.with_options4(to(INTERNET4, 53)))}
    send = partial(bench.sent, ETH_IP)
    assert _wrong(send, good | bad | sources | options) == {}


def test_link_accepts_ip6_of_the_vm_to_unicast_destinations(bench: VmBench) -> None:
    to = partial(headers.udp, VM6)
    good = {
        f"to {address}": ("link through", to(address, 53))
        for address in (INTERNET6, "::1:102:304", "::fffe:102:304", "fd99::1", "fec0::9")
    }
    bad = {
        f"to {address}": ("vm-link", to(address, 53))
        for address in (
            "::1.2.3.4", "::200.2.3.4", "::1", "::ffff:1.2.3.4", "::ffff:200.2.3.4", "ff05::1",
            "ff85::1", "ff02::fb",
        )
    }  # fmt: skip
    sources = {
        f"from {own}": (expected, headers.udp(own, INTERNET6, 53))
        for own, expected in (
            ("fd00:7::3", "link through"), ("fd00:7::ffff:ffff:ffff:fffe", "link through"),
            (GATEWAY6, "vm-link"), ("fd00:7::", "vm-link"), ("fd00:7:0:1::2", "vm-link"),
            ("fd00:6:ffff:ffff::2", "vm-link"), ("fe80::2", "vm-link"), ("::", "vm-link"),
        )
    }  # fmt: skip
    datagram = to(INTERNET6, 53)
    routing = struct.pack("!BBBI", 0, 4, 0, 0)
    extended = {
        "hop-by-hop options": ("vm-link", headers.with_extension6(datagram, 0)),
        "options": ("link through", headers.with_extension6(datagram)),
        "a routing header": ("vm-link", headers.with_extension6(datagram, 43, routing)),
    }
    send = partial(bench.sent, ETH_IP6)
    assert _wrong(send, good | bad | sources | extended) == {}


def test_link_refuses_link_local_icmp_types(bench: VmBench) -> None:
    send = partial(bench.sent, ETH_IP6)
    for kind in _LINK_TYPES:
        packet = headers.neighbour(VM6, INTERNET6, kind)
        assert send(packet) == "vm-link", kind
        assert send(headers.with_extension6(packet)) == "vm-link", kind
        # The host reassembles fragments, so they do not bypass the rule.
        atomic = headers.fragment6(headers.neighbour(VM6, INTERNET6, kind), 0)
        assert send(atomic).startswith("link"), kind
    for kind in (1, 2, 3, 4, 128, 129, 139, 142, 144):
        packet = headers.icmp(VM6, INTERNET6, kind)
        assert send(packet).startswith("link"), kind


def test_link_accepts_true_neighbour_discovery_alone(bench: VmBench) -> None:
    def send(packet: bytes) -> str:
        return bench.sent(ETH_IP6, packet, to=_GROUP6)

    ask, answer = partial(headers.neighbour, kind=135), partial(headers.neighbour, kind=136)
    own, link = VM6, "fe80::2"
    asked = partial(ask, own, "ff02::1:ff00:1", target=GATEWAY6)
    good = {
        "question": asked(),
        "longest": asked(options=bytes(16)),
        "free": ask("::", "ff02::1:ff00:2", target=VM6),
        "free on the link": ask("::", "ff02::1:ff00:2", target=link),
        "free, beyond a half": ask("::", "ff02::1:ff00:2", target="fe80::8000:0:0:2"),
        "answer": answer(own, "ff02::1", target=VM6),
        "answer on the link": answer(own, "ff02::1", target=link),
        "answer beyond a half": answer(own, "ff02::1", target="fe80::8000:0:0:2"),
        **{f"from {each}": ask(each, GATEWAY6, target=GATEWAY6)
           for each in (own, link, "fe80::8000:0:0:2", "fd00:7::3")},
        **{f"to {each}": ask(own, each, target=GATEWAY6)
           for each in (GATEWAY6, "fe80::1", "fe80::8000:0:0:1", "ff02::1", "ff02::1:ff80:1")},
        **{f"about {each}": ask(own, GATEWAY6, target=each)
           for each in (VM6, "fe80::1", "fe80::8000:0:0:1", "fd00:7::")},
    }  # fmt: skip
    bad = {
        "code": asked(code=1),
        "routed": asked(hop_limit=254),
        "one byte more": asked(options=bytes(17)),
        "longer than its length field": asked(options=bytes(16)) + b"x",
        "answer about the gateway": answer(own, "ff02::1", target=GATEWAY6),
        "answer about a stranger": answer(own, "ff02::1", target="2001:db8::9"),
        "answer about another link": answer(own, "ff02::1", target="fe80:0:0:1::2"),
        "answer from no address": answer("::", "ff02::1", target=VM6),
        "free, of the gateway": ask("::", "ff02::1:ff00:1", target=GATEWAY6),
        "free, of a stranger": ask("::", "ff02::1:ff00:1", target="2001:db8::9"),
        "free, on another link": ask("::", "ff02::1:ff00:1", target="fe80:0:0:1::2"),
        "of a stranger about the vm": ask("2001:db8::9", GATEWAY6, target=VM6),
        "of an extension": headers.with_extension6(asked()),
        **{f"from {each}": ask(each, GATEWAY6, target=GATEWAY6)
           for each in (GATEWAY6, "fd00:7::", "2001:db8::9", "fe80:0:0:1::2", "fd00:7:0:1::2")},
        **{f"to {each}": ask(own, each, target=GATEWAY6)
           for each in (INTERNET6, "fe80:0:0:1::1", "ff02::2", "ff02::1:fe00:1", "fd00:7:0:1::1")},
        **{f"about {each}": ask(own, GATEWAY6, target=each)
           for each in ("2001:db8::9", "fe80:0:0:1::2", "fd00:7:0:1::2")},
    }  # fmt: skip
    assert {name for name, packet in good.items() if not send(packet).startswith("link")} == set()
    assert {name for name, packet in bad.items() if send(packet) != "vm-link"} == set()


def test_prerouting_refuses_metadata_destinations(bench: VmBench) -> None:
    allowed = (
        "169.253.9.9", "169.255.9.9", "100.100.100.201", "168.63.129.17", "fd00:ec2::253",
        "fd20:ce::255", "64:ff9b::a9ff:1", "64:ff9b::a9fd:1", "2002:a9ff::1", "2002:a9fd::1",
    )  # fmt: skip
    refused = (
        "169.254.0.1", "169.254.169.254", "169.254.200.1", "100.100.100.200", "168.63.129.16",
        "fd00:ec2::254", "fd20:ce::254", "64:ff9b::a9fe:1", "64:ff9b::a9fe:f001", "2002:a9fe::1",
        "2002:a9fe:a9fe::1",
    )  # fmt: skip
    for expected, addresses in (("through", allowed), ("vm-forward", refused)):
        for to in addresses:
            packet = headers.tcp(VM6 if ":" in to else VM4, to, 80)
            assert bench.routed(packet) == expected, to
    for own, to in ((VM4, METADATA4), (VM6, METADATA6)):
        assert bench.routed(headers.tcp(own, to, METADATA_PORT)) == "through"
        assert bench.routed(headers.udp(own, to, METADATA_PORT)) == "vm-forward"


def test_prerouting_refuses_each_form_of_a_metadata_address(bench: VmBench) -> None:
    services = [each.packed for each in SERVICES if not each.is_link_local]
    link_local = ipaddress.ip_address("169.254.9.9").packed
    embedded = [link_local, *(each for each in services if len(each) == 4)]
    for address in services:
        packet = headers.tcp(VM4 if len(address) == 4 else VM6, text_of(address), 80)
        assert bench.routed(packet) == "vm-forward", text_of(address)
    for form in (*EXACT_FORMS, *FREE_FORMS.values()):
        is_refused_on_link = form in EXACT_FORMS[:2]
        for ipv4, is_refused in (
            *((each, True) for each in embedded),
            (ipaddress.ip_address("100.101.102.103").packed, False),
        ):
            # All bits that the form leaves free are set.
            address = form.address_of(ipv4)
            filled = bytes(a | (~b & 0xFF) for a, b in zip(address, form.mask, strict=True))
            for each in {address, filled}:
                packet = headers.tcp(VM6, text_of(each), 80)
                found = bench.sent(ETH_IP6, packet)
                if is_refused_on_link:
                    assert found == "vm-link", text_of(each)
                else:
                    expected = "link vm-forward" if is_refused else "link through"
                    assert found == expected, text_of(each)


def test_prerouting_refuses_a_routing_header_in_a_later_fragment(bench: VmBench) -> None:
    fragment = partial(headers.other, VM6, INTERNET6, 60)
    # The link can't see the routing header: the first fragment has the options alone.
    options = struct.pack("!BB6x", 43, 0)
    assert bench.routed(headers.fragment6(fragment(options), 0, 1)) == ""
    routing = struct.pack("!BBBBI", headers.UDP, 0, 4, 0, 0)
    last = headers.fragment6(fragment(routing + headers.udp(VM6, INTERNET6, 53)[40:]), 1)
    assert bench.routed(last) == "vm-forward"


def test_prerouting_refuses_messages_of_routers_and_dhcp_servers(bench: VmBench) -> None:
    for kind in range(3, 19):
        packet = headers.icmp(VM4, INTERNET4, kind, body=bytes(4) + bytes(8))
        if kind in {5, 9}:
            assert bench.routed(packet) == "vm-forward", kind
    for message in (headers.icmp(VM4, GATEWAY4, 5, 1), headers.icmp(VM4, GATEWAY4, 9)):
        assert bench.routed(message) == "vm-forward"
    for own, to in ((VM4, INTERNET4), (VM6, INTERNET6)):
        for source_port, port, expected in (
            (67, 68, "vm-forward"), (547, 546, "vm-forward"), (67, 69, "through"),
            (66, 68, "through"), (68, 68, "through"), (67, 67, "through"), (546, 546, "through"),
            (547, 547, "through"), (548, 546, "through"), (547, 545, "through"),
        ):  # fmt: skip
            packet = headers.udp(own, to, port, source_port)
            assert bench.routed(packet) == expected, (source_port, port)
    first = headers.fragment6(headers.other(VM6, INTERNET6, 17, bytes(16)), 0, 1)
    assert bench.routed(first) == "", "judged before it is whole"


def test_forward_accepts_flows_that_the_vm_begins(bench: VmBench) -> None:
    for own, to in ((VM4, INTERNET4), (VM6, INTERNET6)):
        same_link = "172.16.7.3" if to == INTERNET4 else "fd00:7::3"
        cases = {
            "a connection": ("through", headers.tcp(own, to, 443)),
            "a datagram": ("through", headers.udp(own, to, 443)),
            "an echo": ("through", headers.icmp(own, to, 128 if ":" in to else 8)),
            "another protocol": ("through", headers.other(own, to, 253)),
            "a reset of nothing": ("vm-forward", headers.tcp(own, to, 444, RST)),
            "an answer to nothing": ("vm-forward", headers.tcp(own, to, 444, SYN | ACK)),
            "its own link": ("vm-forward", headers.udp(own, same_link, 9)),
        }
        assert _wrong(bench.routed, cases) == {}


def test_input_accepts_the_gateways_ports_alone(bench: VmBench) -> None:
    for own, gateway, uplink in ((VM4, GATEWAY4, UPLINK4), (VM6, GATEWAY6, UPLINK6)):
        cases = {
            "the port": ("host", headers.tcp(own, gateway, PORT)),
            "an exception": ("host", headers.udp(own, gateway, DNS)),
            "another port": ("vm-input", headers.tcp(own, gateway, 22)),
            "another protocol": ("vm-input", headers.udp(own, gateway, PORT)),
            "the uplink": ("vm-input", headers.tcp(own, uplink, PORT)),
            "an echo": ("vm-input", headers.icmp(own, gateway, 128 if ":" in own else 8)),
        }
        assert _wrong(bench.routed, cases) == {}
    extended = headers.with_extension6(headers.tcp(VM6, GATEWAY6, PORT))
    assert bench.routed(extended) == "vm-input"
    for kind in (135, 136):
        packet = headers.neighbour(VM6, GATEWAY6, kind, target=GATEWAY6 if kind == 135 else VM6)
        assert bench.routed(packet) == "host"


def test_input_accepts_errors_about_flows_of_the_vm(bench: VmBench) -> None:
    for own, gateway, kinds, others in (
        (VM4, GATEWAY4, (3, 11, 12), (4,)),
        (VM6, GATEWAY6, (1, 2, 3, 4), (5,)),
    ):
        question = headers.udp(own, gateway, DNS, 4000)
        assert bench.routed(question) == "host"
        answer = headers.udp(gateway, own, 4000, DNS)
        # The host needs no error about a flow that it began itself.
        begun = headers.udp(gateway, own, 9, next(_PORTS))
        bench.site.host.call(partial(_send, own, begun))
        about = headers.icmp(own, gateway, kinds[0], body=bytes(4) + begun)
        assert bench.routed(about) == "vm-input"
        unasked = headers.udp(gateway, own, 4999, DNS)
        for kind in (*kinds, *others):
            expected = "host" if kind in kinds else "vm-input"
            error = partial(headers.icmp, own, gateway, kind)
            found = bench.routed(error(body=bytes(4) + answer))
            assert found == expected, kind
            assert bench.routed(error(body=bytes(4) + unasked)) == "vm-input", kind


def test_forward_accepts_answers_to_the_vm_alone(bench: VmBench) -> None:
    for own, to, uplink in ((VM4, INTERNET4, UPLINK4), (VM6, INTERNET6, UPLINK6)):
        for protocol, question in (
            (headers.TCP, headers.tcp(own, to, 443, source_port=500)),
            (headers.UDP, headers.udp(own, to, 443, 500)),
            (132, _sctp(own, to)),
        ):
            bench.left()
            assert bench.routed(question) == "through"
            (port,) = {
                port
                for frame in bench.left()
                if (port := vm_bench.source_port(frame, uplink, protocol))
            }
            # Whatever port the VM chooses, this is never the port of a host's service.
            assert 32_768 <= port <= 60_999
            if protocol == headers.UDP:
                assert bench.arrives(headers.udp(to, uplink, port, 443)) == "vm"
                assert bench.arrives(headers.udp(to, uplink, port, 444)) == "uplink"
        for packet in (headers.udp(to, own, 9), headers.tcp(to, own, 22)):
            assert bench.arrives(packet) == "vm-ingress"


def test_postrouting_masquerades_protocols_without_ports(bench: VmBench) -> None:
    for own, to, uplink in ((VM4, INTERNET4, UPLINK4), (VM6, INTERNET6, UPLINK6)):
        echo = headers.icmp(own, to, 128 if ":" in own else 8, body=bytes(4) + b"x")
        for packet, protocol in (
            (headers.other(own, to, 253), 253),
            (echo, 58 if ":" in own else 1),
        ):
            bench.left()
            assert bench.routed(packet) == "through"
            assert set(vm_bench.sources(bench.left(), protocol)) == {uplink}


def test_fence_leaves_packets_of_others_alone(bench: VmBench) -> None:
    for vm, uplink, source, to in (
        ("172.16.7.3", UPLINK4, INTERNET4, "203.0.113.200"),
        ("fd00:7::3", UPLINK6, INTERNET6, "2001:db8::200"),
    ):
        for packet in (
            headers.udp(source, to, 53), headers.tcp(source, to, 80, ACK),
            headers.udp(source, to, 68, 67), headers.udp(source, to, 546, 547),
        ):  # fmt: skip
            assert bench.arrives(packet) == "other"
        for packet in (headers.udp(source, uplink, 53), headers.tcp(source, uplink, 80)):
            assert bench.arrives(packet) == "uplink"
        # The fence does not translate such an address on another link.
        bench.left()
        assert bench.arrives(headers.udp(vm, to, 53)) == "other"
        assert vm_bench.sources(bench.left(), headers.UDP) == [vm]


def _send(to: str, packet: bytes) -> None:
    """Send a datagram from the calling thread's namespace with the ports of a packet."""
    header = 40 if ":" in to else 20
    source_port, port = struct.unpack_from("!HH", packet, header)
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind(("", source_port))
        sock.sendto(packet[header + 8 :], (to, port))


def _sctp(source: str, to: str) -> bytes:
    """Return an INIT, which begins an association; conntrack checks its CRC32c."""
    chunk = struct.pack("!BBHIIHHI", 1, 0, 20, 7, 65_535, 1, 1, 7)
    header = struct.pack("!HHI", 500, 443, 0)
    return headers.other(
        source, to, 132, header + struct.pack("<I", _crc32c(header + bytes(4) + chunk)) + chunk
    )


def _crc32c(data: bytes) -> int:
    total = 0xFFFF_FFFF
    for byte in data:
        total ^= byte
        for _ in range(8):
            total = total >> 1 ^ (0x82F6_3B78 if total & 1 else 0)
    return total ^ 0xFFFF_FFFF
