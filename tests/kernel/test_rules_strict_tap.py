"""The verdict on each packet of a VM with a strict fence, at the rules of rules/strict_tap.nft."""

from __future__ import annotations

import dataclasses
import itertools
import socket
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest

from ocsf_nft.fence import installer
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.fence.values import exception
from ocsf_nft.lab import INTERNET4, INTERNET6, ip
from tests.kernel import conftest, headers, packets, tap, vm_bench
from tests.kernel.packets import ACK, ETH_ARP, RST, SYN
from tests.kernel.tap import GATEWAY4, GATEWAY6, PORT, UPLINK4, UPLINK6, VM4, VM6
from tests.kernel.vm_bench import DNS, VmBench

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.kernel

#: Exceptions beyond the host: each form, and a service that the host redirects to another machine.
_SERVICE4, _SERVICE6 = "203.0.113.99", "2001:db8::99"
_EXCEPTIONS: Final = tuple(
    map(
        exception,
        (
            f"udp:{GATEWAY4}:{DNS}", f"udp:[{GATEWAY6}]:{DNS}",
            f"tcp:{_SERVICE4}:443", f"tcp:[{_SERVICE6}]:443",
            f"udp:{_SERVICE4}:6000", f"udp:[{_SERVICE6}]:6000",
            f"udp:{_SERVICE4}:5000-5010", f"udp:[{_SERVICE6}]:5000-5010",
            "tcp:203.0.112.64/27:8000", "tcp:[2001:db8:9:8000::/49]:8000",
        ),
    )
)  # fmt: skip
#: Packets with this source port are redirected by a rule of the host.
_REDIRECTED: Final = 6003
_RIVAL: Final = f"""
table inet rival {{
    chain prerouting {{
        type nat hook prerouting priority dstnat
        meta nfproto ipv4 tcp sport {_REDIRECTED} dnat ip to {INTERNET4}:80
        meta nfproto ipv6 tcp sport {_REDIRECTED} dnat ip6 to [{INTERNET6}]:80
    }}
}}
"""
#: Each flow has a different port.
_SOURCE_PORTS: Final = itertools.count(20_000)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VmBench]:
    state = StateDirectory(tmp_path_factory.mktemp("rules"))
    with vm_bench.bench(state, is_strict=True, exceptions=_EXCEPTIONS) as made:
        conftest.load(made.site.host, _RIVAL)
        made.sent(ETH_ARP, packets.arp(VM4, GATEWAY4, tap.VM_MAC))
        yield made


def _unexpected(bench: VmBench, cases: dict[str, tuple[str, bytes]]) -> dict[str, str]:
    return {
        name: outcome
        for name, (expected, packet) in cases.items()
        if (outcome := bench.routed(packet)) != expected
    }


def test_strict_vm_reaches_the_gateways_port_and_exceptions_alone(bench: VmBench) -> None:
    bench.left()
    for own, gateway, uplink, service, inside, outside, to in (
        (VM4, GATEWAY4, UPLINK4, _SERVICE4, "203.0.112.66", "203.0.112.96", INTERNET4),
        (VM6, GATEWAY6, UPLINK6, _SERVICE6, "2001:db8:9:8000::9", "2001:db8:9:7fff::9", INTERNET6),
    ):
        echo = 128 if ":" in own else 8
        cases = {
            "the gateway": ("host", headers.tcp(own, gateway, PORT)),
            "an exception at the gateway": ("host", headers.udp(own, gateway, DNS)),
            "an exception": ("through", headers.tcp(own, service, 443)),
            "a range of ports": ("through", headers.udp(own, service, 5010)),
            "a network": ("through", headers.tcp(own, inside, 8000)),
            "redirected by the host": ("through", headers.tcp(own, service, 443, source_port=6003)),
            "another port of the gateway": ("vm-input", headers.tcp(own, gateway, 22)),
            "another address of the host": ("vm-input", headers.tcp(own, uplink, PORT)),
            "an echo to the gateway": ("vm-input", headers.icmp(own, gateway, echo)),
            "a connection": ("vm-forward", headers.tcp(own, to, 443)),
            "the proxy's port elsewhere": ("vm-forward", headers.tcp(own, to, PORT)),
            "DNS": ("vm-forward", headers.udp(own, to, DNS)),
            "an echo": ("vm-forward", headers.icmp(own, to, echo)),
            "another protocol": ("vm-forward", headers.other(own, to, 253)),
            "an acknowledgement": ("vm-forward", headers.tcp(own, to, 444, ACK)),
            "a reset": ("vm-forward", headers.tcp(own, to, 444, RST)),
            "an answer": ("vm-forward", headers.tcp(own, to, 444, SYN | ACK)),
            "another port of an exception": ("vm-forward", headers.tcp(own, service, 444)),
            "another protocol of an exception": ("vm-forward", headers.udp(own, service, 443)),
            "another protocol of a range": ("vm-forward", headers.tcp(own, service, 5000)),
            "after a range of ports": ("vm-forward", headers.udp(own, service, 5011)),
            "beside a network": ("vm-forward", headers.tcp(own, outside, 8000)),
            "redirected from elsewhere": (
                "vm-forward", headers.tcp(own, to, 443, source_port=_REDIRECTED)
            ),
        }  # fmt: skip
        assert _unexpected(bench, cases) == {}
        fragment = headers.other(own, to, 17, bytes(1480))
        if ":" in own:
            assert bench.routed(headers.fragment6(fragment, 0)) == "vm-forward"
    # Frames on the far side: only the flows to the exceptions, and the redirected one.
    left = bench.left()
    assert sorted(vm_bench.sources(left, headers.TCP)) == [UPLINK4] * 3 + [UPLINK6] * 3
    assert sorted(vm_bench.sources(left, headers.UDP)) == [UPLINK4, UPLINK6]
    for protocol in (1, 58, 253):
        assert {UPLINK4, UPLINK6}.isdisjoint(vm_bench.sources(left, protocol))


def test_strict_fence_refuses_a_destination_without_a_route(bench: VmBench) -> None:
    ip("-n", bench.site.host_name, "route", "add", "unreachable", "203.0.113.64/29")
    assert bench.routed(headers.udp(VM4, "203.0.113.65", 53)) == "vm-forward"
    assert bench.routed(headers.udp(VM4, "172.16.7.7", 53)) == "vm-forward"


def test_strict_vm_sends_errors_about_allowed_flows_alone(bench: VmBench) -> None:
    for own, gateway, service, to, kinds in (
        (VM4, GATEWAY4, _SERVICE4, INTERNET4, (3, 11, 12)),
        (VM6, GATEWAY6, _SERVICE6, INTERNET6, (1, 2, 3, 4)),
    ):
        port = next(_SOURCE_PORTS)
        assert bench.routed(headers.udp(own, gateway, DNS, port)) == "host"
        for number in (5000, 6000):
            assert bench.routed(headers.udp(own, service, number, port)) == "through"
        for kind in kinds:
            for source, number, receiver, expected in (
                (gateway, DNS, gateway, "host"), (gateway, DNS, to, "vm-forward"),
                (service, 5000, service, "through"), (service, 6000, service, "through"),
                (service, 5000, to, "vm-forward"), (service, 5001, service, "vm-forward"),
                (to, 5000, to, "vm-forward"),
            ):  # fmt: skip
                about = headers.udp(source, own, port, number)
                error = headers.icmp(own, receiver, kind, body=bytes(4) + about)
                assert bench.routed(error) == expected, (kind, source, number, receiver)


def test_strict_vm_resolves_the_gateway(bench: VmBench) -> None:
    asked = partial(headers.neighbour, VM6, kind=135, target=GATEWAY6)
    assert bench.routed(asked(GATEWAY6)) == "host"
    found = bench.sent(packets.ETH_IP6, asked("ff02::1:ff00:1"), to=b"33\xff\0\0\1")
    assert found == "link host"
    advert = headers.neighbour(VM6, "ff02::1", 136, target=VM6)
    assert bench.sent(packets.ETH_IP6, advert, to=b"33\0\0\0\1") == "link host"


def test_strict_permissive_fence_counts_each_packet_once(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "state")
    with vm_bench.bench(state, is_strict=True, is_permissive=True) as bench:
        bench.sent(ETH_ARP, packets.arp(VM4, GATEWAY4, tap.VM_MAC))
        for own, gateway, to in ((VM4, GATEWAY4, INTERNET4), (VM6, GATEWAY6, INTERNET6)):
            cases = {
                "a connection": ("vm-forward through", headers.tcp(own, to, 443)),
                "another port": ("vm-input host", headers.tcp(own, gateway, 22)),
                "the gateway": ("host", headers.tcp(own, gateway, PORT)),
            }
            assert _unexpected(bench, cases) == {}


def test_change_to_a_strict_fence_ends_open_flows(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "state")
    with vm_bench.bench(state, exceptions=_EXCEPTIONS) as bench:
        bench.sent(ETH_ARP, packets.arp(VM4, GATEWAY4, tap.VM_MAC))
        opened = [
            (
                headers.udp(own, to, port, 7000),
                headers.udp(to, uplink, 0, port),
                expected,
                _error(own, to, headers.udp(to, own, 7000, port)),
            )
            for own, uplink, to, port, expected in (
                (VM4, UPLINK4, INTERNET4, 53, False), (VM6, UPLINK6, INTERNET6, 53, False),
                (VM4, UPLINK4, _SERVICE4, 5000, True), (VM6, UPLINK6, _SERVICE6, 5000, True),
                (VM4, UPLINK4, _SERVICE4, 6000, True), (VM6, UPLINK6, _SERVICE6, 6000, True),
            )
        ]  # fmt: skip
        translated = []
        for packet, *_ in opened:
            bench.left()
            assert bench.routed(packet) == "through"
            translated.append(_translated_port(bench.left()))
        refused = bench.counts()["vm-forward"]
        before = state.read(vm_bench.SANDBOX)
        assert before is not None
        strict = tap.spec(vm_bench.SANDBOX, is_strict=True)
        for is_strict in (True, False, True):
            spec = dataclasses.replace(strict if is_strict else before.spec, exceptions=_EXCEPTIONS)
            installer.install(spec, bench.site.host, state, "nflog")
            assert bench.counts()["vm-forward"] == refused, "counters continue"
            for (packet, answer, is_allowed, error), port in zip(opened, translated, strict=True):
                passes = is_allowed or not is_strict
                assert bench.routed(packet) == ("through" if passes else "vm-forward")
                answered = _to_port(answer, port)
                assert bench.arrives(answered) == ("vm" if passes else "vm-ingress")
                assert bench.routed(error) == ("through" if passes else "vm-forward")
            refused = bench.counts()["vm-forward"]


def _error(own: str, to: str, about: bytes) -> bytes:
    return headers.icmp(own, to, 1 if ":" in own else 3, body=bytes(4) + about)


def _translated_port(frames: list[bytes]) -> int:
    found = [
        port
        for frame in frames
        for uplink in (UPLINK4, UPLINK6)
        if (port := vm_bench.source_port(frame, uplink, headers.UDP)) is not None
    ]
    assert len(found) == 1
    return found[0]


def _to_port(packet: bytes, port: int) -> bytes:
    """Return a UDP packet with another destination port."""
    header = 40 if packet[0] >> 4 == 6 else 20
    address = packet[8:24], packet[24:40]
    source, to = (packet[12:16], packet[16:20]) if header == 20 else address
    family = socket.AF_INET if header == 20 else socket.AF_INET6
    texts = socket.inet_ntop(family, source), socket.inet_ntop(family, to)
    return headers.udp(*texts, port, int.from_bytes(packet[header : header + 2], "big"))
