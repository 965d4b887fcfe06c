"""The counts of a permissive fence: each attempt once, and no answer to an attempt.

Tests of rules/permissive.nft with the policies of a sandbox and of a pod, and of
rules/permissive_tap.nft.
"""

from __future__ import annotations

import itertools
import struct
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest

from ocsf_nft.fence.spec import FenceSpec
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.fence.values import endpoint, exception
from ocsf_nft.lab import GATEWAY4, GATEWAY6, INTERNET4, INTERNET6, PROXY_PORT, SANDBOX4, SANDBOX6
from tests.kernel import headers, link_cases, packets, tap, verdicts, vm_bench
from tests.kernel.outcomes import Case
from tests.kernel.packets import ACK, ETH_ARP, ETH_IP, ETH_IP6, FIN, PSH, RST, SYN
from tests.kernel.verdicts import NESTED4, NESTED6, Bench

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.vm_bench import VmBench

pytestmark = pytest.mark.kernel

_ENDPOINTS: Final = (endpoint(f"{GATEWAY4}:{PROXY_PORT}"), endpoint(f"[{GATEWAY6}]:{PROXY_PORT}"))
_SANDBOX: Final = FenceSpec(sandbox="lab", proxies=_ENDPOINTS, is_permissive=True)
_POD: Final = FenceSpec(
    sandbox="lab",
    proxy_uids=(4242,),
    exceptions=tuple(exception(f"tcp:{each}") for each in _ENDPOINTS),
    is_permissive=True,
)
#: The mark bit of a packet that the fence has checked already.
_JUDGED: Final = 0x4000_0000
_BOTH: Final = ((SANDBOX4, INTERNET4, NESTED4), (SANDBOX6, INTERNET6, NESTED6))
_WITH_PORTS: Final = (6, 17, 33, 132, 136)
_PORTS: Final = itertools.count(20_000)


@pytest.fixture(scope="module", params=[_SANDBOX, _POD], ids=["sandbox", "pod"])
def bench(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bench]:
    state = StateDirectory(tmp_path_factory.mktemp("rules"))
    with verdicts.bench(request.param, state) as made:
        yield made


@pytest.fixture(scope="module")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VmBench]:
    state = StateDirectory(tmp_path_factory.mktemp("rules"))
    with vm_bench.bench(state, is_permissive=True) as made:
        made.sent(ETH_ARP, packets.arp(tap.VM4, tap.GATEWAY4, tap.VM_MAC))
        yield made


def _with_ports(source: str, to: str, protocol: int, port: int, source_port: int) -> bytes:
    if protocol == headers.TCP:
        return headers.tcp(source, to, port, ACK, source_port)
    return headers.other(source, to, protocol, struct.pack("!HH12x", source_port, port))


def test_permissive_fence_counts_each_packet_of_a_socket(bench: Bench) -> None:
    for own, internet, _ in _BOTH:
        port = next(_PORTS)
        unreachable, echo = (1, 129) if ":" in own else (3, 0)
        for packet in (
            *(headers.tcp(own, internet, port, flags) for flags in (SYN, RST, SYN | ACK, FIN)),
            headers.udp(own, internet, port),
            headers.other(own, internet, 47),
            headers.icmp(own, internet, unreachable),
            headers.icmp(own, internet, echo),
        ):
            for _ in range(2):
                assert bench.outcome(partial(bench.owned, packet)) == "egress out"
    for packet in (headers.neighbour(SANDBOX6, GATEWAY6), headers.neighbour(SANDBOX6, INTERNET6)):
        assert bench.outcome(partial(bench.owned, packet)) == "egress out"


def test_permissive_fence_counts_no_kernel_packet_of_a_counted_attempt(bench: Bench) -> None:
    for own, internet, _ in _BOTH:
        port = next(_PORTS)
        flow, other = (partial(headers.tcp, own, internet, each) for each in (port, port + 1))
        unowned, owned = bench.unowned, bench.owned
        assert not bench.wrong(
            (
                Case("of no attempt", partial(unowned, flow(FIN | ACK)), "egress out"),
                # A counted packet is an attempt, also if the kernel sent it.
                Case("of that one", partial(unowned, flow(FIN | ACK)), "out"),
                Case("of another", partial(owned, other(SYN)), "egress out"),
                Case("its end", partial(unowned, other(FIN | ACK)), "out"),
                Case("its data", partial(unowned, other(PSH | ACK)), "out"),
                Case("datagram", partial(owned, headers.udp(own, internet, port)), "egress out"),
                Case("another", partial(unowned, headers.udp(own, internet, port)), "egress out"),
            )
        )
        unasked = next(_PORTS)
        for flags, expected in (
            (RST, "out reset"), (RST | ACK, "out reset"), (SYN | ACK, "out"),
            (SYN | RST, "egress out reset"), (SYN, "egress out"),
        ):  # fmt: skip
            packet = headers.tcp(own, internet, unasked + flags * 7, flags)
            assert bench.outcome(partial(unowned, packet)) == expected, flags
        answers = {1, 129} if ":" in own else {3, 0}
        for kind in (0, 1, 3, 4, 5, 8, 11, 128, 129, 130, 133, 134, 137):
            expected = "out" if kind in answers else "egress out"
            packet = headers.icmp(own, internet, kind)
            assert bench.outcome(partial(unowned, packet)) == expected, kind
            next(_PORTS)


def test_permissive_fence_counts_no_neighbour_discovery_of_the_kernel(bench: Bench) -> None:
    about = partial(headers.neighbour, SANDBOX6)
    send = bench.unowned
    assert not bench.wrong(
        (
            *(
                Case(f"to {to}", partial(send, about(to)), "out")
                for to in (GATEWAY6, "fe80::7", "ff02::1", INTERNET6)
            ),
            Case("an answer", partial(send, about(INTERNET6, 136)), "out"),
            Case("the longest", partial(send, about(INTERNET6, options=bytes(16))), "out"),
            *(
                Case(name, partial(send, packet), "egress out")
                for name, packet in (
                    ("a code", about(INTERNET6, code=1)),
                    ("routable", about(INTERNET6, hop_limit=254)),
                    ("one byte more", about(INTERNET6, options=bytes(17))),
                    ("a router's", about(INTERNET6, 134)),
                    ("an extension", headers.with_extension6(about(INTERNET6))),
                )
            ),
            Case(
                "longer than its length field",
                partial(send, about(INTERNET6, options=bytes(17)), is_length_too_small=True),
                "egress out",
            ),
            Case(
                "shorter than its length field",
                partial(send, about(INTERNET6), is_length_too_large=True),
                "egress out",
            ),
        )
    )


def test_permissive_fence_counts_no_answer_to_an_attempt(bench: Bench) -> None:
    for own, internet, _ in _BOTH:
        for protocol in _WITH_PORTS:
            port = next(_PORTS)
            answer = partial(_with_ports, internet, own, protocol, 4000)
            question = _with_ports(own, internet, protocol, port, 4000)
            assert not bench.wrong(
                (
                    Case("unasked", partial(bench.arrives, answer(port)), "ingress in"),
                    Case("question", partial(bench.owned, question), "egress out"),
                    Case("answer", partial(bench.arrives, answer(port)), "in"),
                    Case("of another port", partial(bench.arrives, answer(port + 1)), "ingress in"),
                )
            ), protocol
            next(_PORTS)
        port = next(_PORTS)
        asked = headers.tcp(own, internet, port)
        assert bench.outcome(partial(bench.owned, asked)) == "egress out"
        for flags, expected in ((SYN | ACK, "in"), (RST, "in"), (SYN, "ingress in")):
            packet = headers.tcp(internet, own, 4000, flags, port)
            assert bench.outcome(partial(bench.arrives, packet)) == expected, flags
        # Port 0 is a port. It does not mean a protocol without ports.
        assert bench.outcome(partial(bench.owned, headers.udp(own, internet, 0))) == "egress out"
        unasked = headers.udp(internet, own, 4000, next(_PORTS))
        assert bench.outcome(partial(bench.arrives, unasked)) == "ingress in"
        stranger = "2001:db8::99" if ":" in own else "203.0.113.99"
        for source, before, after in (
            (internet, "ingress in", "in"), (stranger, "ingress in", "ingress in"),
        ):  # fmt: skip
            answered = partial(bench.arrives, headers.other(source, own, 50))
            if source == internet:
                assert bench.outcome(answered) == before
                asked = headers.other(own, internet, 50)
                assert bench.outcome(partial(bench.owned, asked)) == "egress out"
            assert bench.outcome(answered) == after, source


def test_permissive_fence_counts_attempts_of_a_nested_namespace_and_no_answer(bench: Bench) -> None:
    for _, internet, nested in _BOTH:
        port = next(_PORTS)
        out = partial(headers.tcp, nested, internet, port)
        back = partial(headers.tcp, internet, nested, 4000, source_port=port)
        assert not bench.wrong(
            (
                Case("unasked", partial(bench.arrives, back(flags=ACK)), "forward out"),
                Case("out", partial(bench.from_nested, out()), "forward out"),
                Case("back", partial(bench.arrives, back(flags=SYN | ACK)), "out"),
                Case("begun there", partial(bench.arrives, back(flags=SYN)), "forward out"),
                Case("again", partial(bench.from_nested, out()), "forward out"),
            )
        )
        # Without ports:
        asked, answer = headers.other(nested, internet, 47), headers.other(internet, nested, 47)
        assert bench.outcome(partial(bench.from_nested, asked), "forward out") == "forward out"
        assert bench.outcome(partial(bench.arrives, answer), "out") == "out"


def test_permissive_fence_counts_packets_with_a_mark_of_their_sender(bench: Bench) -> None:
    for own, internet, _ in _BOTH:
        packet = headers.udp(own, internet, next(_PORTS))
        kind = ETH_IP6 if ":" in own else ETH_IP
        assert bench.outcome(partial(bench.owned, packet, mark=_JUDGED)) == "egress out"
        assert bench.outcome(partial(bench.frame, kind, packet, mark=_JUDGED)) == "link out"
        # Another rule has accepted it, so no chain has checked it before the link.
        assert bench.outcome(partial(bench.owned, packet, past_output=True)) == "link out"
    # A packet to a group also returns to the sandbox. It was counted when it left.
    group = headers.udp(SANDBOX6, "ff02::1", next(_PORTS))
    assert bench.outcome(partial(bench.owned, group), "egress out in") == "egress out in"
    if bench.installed.spec.proxy_uids:
        forged = headers.udp(INTERNET4, SANDBOX4, 9)
        segment = headers.tcp(INTERNET4, SANDBOX4, 9, ACK)
        assert bench.outcome(partial(bench.looped, segment, mark=_JUDGED)) == "ingress loop"
        assert bench.outcome(partial(bench.looped, forged, mark=_JUDGED)) == "loop"


def test_permissive_fence_counts_frames_except_arp_of_the_kernel(bench: Bench) -> None:
    assert not bench.wrong(link_cases.arp(bench, "link out", is_strict=False))


def test_permissive_fence_counts_each_packet_of_a_vm_once(vm: VmBench) -> None:
    for own, gateway, internet, forged, metadata, neighbour in (
        (tap.VM4, tap.GATEWAY4, INTERNET4, "203.0.113.99", "169.254.169.254", "172.16.7.3"),
        (tap.VM6, tap.GATEWAY6, INTERNET6, "2001:db8::99", "fd00:ec2::254", "fd00:7::3"),
    ):
        kind = ETH_IP6 if ":" in own else ETH_IP
        for packet, expected in (
            (headers.udp(own, internet, 9), "link through"),
            (headers.udp(forged, internet, 9), "link vm-link through"),
            (headers.udp(forged, gateway, 22), "link vm-link host"),
            (headers.udp(forged, metadata, 80), "link vm-link through"),
            (headers.udp(own, metadata, 80), "link vm-forward through"),
            # Both prerouting and forward refuse it, and it is counted once.
            (headers.tcp(own, metadata, 80, RST), "link vm-forward through"),
            (headers.udp(own, gateway, 22), "link vm-input host"),
            (headers.tcp(own, gateway, 22), "link vm-input host"),
        ):
            assert vm.sent(kind, packet) == expected, packet
        # It returns to the VM's own link, which has no observer.
        assert vm.sent(kind, headers.udp(own, neighbour, 9)).startswith("link vm-forward through")
        unasked = headers.udp(internet, own, 9)
        assert vm.arrives(unasked) == "vm-ingress vm"
