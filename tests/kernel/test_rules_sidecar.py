"""The verdict on each packet at the rules of rules/sidecar.nft, one property at a time."""

from __future__ import annotations

import itertools
import struct
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from ocsf_nft.fence.spec import FenceSpec
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.fence.values import endpoint, exception
from ocsf_nft.lab import GATEWAY4, GATEWAY6, INTERNET4, INTERNET6, SANDBOX4, SANDBOX6
from tests.kernel import headers, link_cases, packets, verdicts
from tests.kernel.outcomes import Case
from tests.kernel.packets import ACK, ETH_ARP, ETH_IP, ETH_IP6, FIN, RST, SYN
from tests.kernel.verdicts import HOST4, HOST6, NESTED, NESTED4, NESTED6, Bench

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kernel

_PROXY, _ROOT, _WORKLOAD = 4242, 0, 1001
_USERS: Final = (_ROOT, _WORKLOAD)
_EXCEPTION: Final = 9443
_SPEC: Final = FenceSpec(
    sandbox="lab",
    proxies=(endpoint("127.0.0.1:3128"),),
    proxy_uids=(_PROXY,),
    exceptions=(
        exception(f"tcp:{GATEWAY4}:{_EXCEPTION}"), exception(f"tcp:[{GATEWAY6}]:{_EXCEPTION}"),
        exception(f"udp:{GATEWAY4}:53"), exception(f"udp:[{GATEWAY6}]:53"),
        exception(f"tcp:{HOST4}:{_EXCEPTION}"), exception(f"tcp:[{HOST6}]:{_EXCEPTION}"),
    ),
)  # fmt: skip
_BOTH: Final = ((SANDBOX4, GATEWAY4, INTERNET4), (SANDBOX6, GATEWAY6, INTERNET6))
_WITH_PORTS: Final = (6, 17, 33, 132, 136)
#: Each flow has a different port.
_PORTS: Final = itertools.count(20_000)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with verdicts.bench(_SPEC, StateDirectory(tmp_path_factory.mktemp("rules"))) as made:
        yield made


def _with_ports(source: str, to: str, protocol: int, port: int, source_port: int) -> bytes:
    if protocol == headers.TCP:
        return headers.tcp(source, to, port, SYN | ACK if source_port == 443 else SYN, source_port)
    return headers.other(source, to, protocol, struct.pack("!HH12x", source_port, port))


def test_proxy_alone_sends_to_any_destination(bench: Bench) -> None:
    for own, _, internet in _BOTH:
        sent = [
            *(_with_ports(own, internet, protocol, 443, next(_PORTS)) for protocol in _WITH_PORTS),
            headers.icmp(own, internet, 128 if ":" in own else 8),
            headers.other(own, internet, 47),
        ]
        for packet in sent:
            for device in (verdicts.UPLINK, NESTED):
                send = partial(bench.owned, packet, device)
                assert bench.outcome(partial(send, uid=_PROXY)) == "out"
                for uid in _USERS:
                    assert bench.outcome(partial(send, uid=uid)).split()[0] == "egress", uid
    for kind, payload in (
        (0x88B5, bytes(46)),
        (ETH_IP, headers.udp(SANDBOX4, INTERNET4, 53)),
        (ETH_IP6, headers.udp(SANDBOX6, INTERNET6, 53)),
    ):
        send_frame = partial(bench.frame, kind, payload)
        assert bench.outcome(partial(send_frame, uid=_PROXY)) == "out"
        for uid in _USERS:
            assert bench.outcome(partial(send_frame, uid=uid)) == "link"
        assert bench.outcome(partial(bench.unowned_frame, kind, payload)) == "link"


@pytest.mark.parametrize("uid", _USERS)
def test_exceptions_pass_for_every_user_and_variants_do_not(bench: Bench, uid: int) -> None:
    send = partial(bench.owned, uid=uid)
    nested = partial(send, device=NESTED)
    for own, gateway, internet in _BOTH:
        excepted = headers.tcp(own, gateway, _EXCEPTION)
        assert not bench.wrong(
            Case(name, partial(send, packet), expected)
            for name, packet, expected in (
                ("exception", excepted, "out"),
                ("datagram", headers.udp(own, gateway, 53), "out"),
                ("another port", headers.tcp(own, gateway, 443), "egress reset"),
                ("another protocol", headers.udp(own, gateway, _EXCEPTION), "egress error"),
                ("another destination", headers.udp(own, internet, 53), "egress error"),
                ("forged", headers.tcp(internet, gateway, _EXCEPTION), "egress egress"),
            )
        )
        assert bench.outcome(partial(nested, excepted)).split()[0] == "egress"
    # A local address of the namespace is on no link, also as an exception.
    for own, other in ((SANDBOX4, HOST4), (SANDBOX6, HOST6)):
        for to, device in ((own, NESTED), (other, verdicts.UPLINK)):
            to_itself = partial(send, headers.tcp(own, to, _EXCEPTION), device)
            assert bench.outcome(to_itself).split()[0] == "egress", to
    link_local = headers.udp("fe80::7", INTERNET6, 53)
    assert bench.outcome(partial(send, link_local)).split()[0] == "egress"
    excepted4 = headers.tcp(SANDBOX4, GATEWAY4, _EXCEPTION)
    for field, expected in ((0x4000, "out"), (0x2000, "egress"), (1, "egress"), (0x1FFF, "egress")):
        packet = headers.with_flags4(excepted4, field)
        assert bench.outcome(partial(send, packet)).split()[0] == expected, hex(field)
    extended = headers.with_extension6(headers.tcp(SANDBOX6, GATEWAY6, _EXCEPTION))
    for packet in (headers.with_options4(excepted4), extended):
        assert bench.outcome(partial(send, packet)).split()[0] == "egress"


def test_link_rules_check_packets_that_bypassed_output(bench: Bench) -> None:
    excepted4, excepted6 = (headers.tcp(own, to, _EXCEPTION) for own, to, _ in _BOTH)
    for uid in _USERS:
        past = partial(bench.owned, past_output=True, uid=uid)
        cases = [
            *((packet, "out", verdicts.UPLINK) for packet in (excepted4, excepted6)),
            *((packet, "link", NESTED) for packet in (excepted4, excepted6)),
            (headers.with_options4(excepted4), "link", verdicts.UPLINK),
            (headers.with_extension6(excepted6), "link", verdicts.UPLINK),
            *(
                (headers.with_flags4(excepted4, field), expected, verdicts.UPLINK)
                for field, expected in (
                    (0x4000, "out"), (0x2000, "link"), (1, "link"), (0x1FFF, "link"),
                )
            ),
            *((headers.udp(own, to, 53), "out", verdicts.UPLINK) for own, to, _ in _BOTH),
            *((headers.udp(own, to, 54), "link", verdicts.UPLINK) for own, to, _ in _BOTH),
            *((headers.tcp(own, to, _EXCEPTION), "link", verdicts.UPLINK) for own, _, to in _BOTH),
        ]  # fmt: skip
        for packet, expected, device in cases:
            assert bench.outcome(partial(past, packet, device)) == expected, packet
        for kind, packet in ((ETH_IP, excepted4), (ETH_IP6, excepted6)):
            assert bench.outcome(partial(bench.frame, kind, packet, uid=uid)) == "link"


@pytest.mark.parametrize(("rule", "past_output"), [("egress", False), ("link", True)])
def test_neighbour_discovery_of_the_kernel_passes_and_variants_do_not(
    bench: Bench, rule: str, past_output: bool
) -> None:
    assert not link_cases.wrong_neighbours(bench, rule, past_output=past_output, has_networks=True)
    about = partial(headers.neighbour, SANDBOX6)
    for packet in (about(GATEWAY6), about(GATEWAY6, 136)):
        owned = partial(bench.owned, packet, past_output=past_output)
        for uid in _USERS:
            assert bench.outcome(partial(owned, uid=uid)).split()[0] == rule
        assert bench.outcome(partial(bench.unowned_frame, ETH_IP6, packet)) == "link"


def test_arp_of_the_kernel_passes_and_variants_do_not(bench: Bench) -> None:
    assert not bench.wrong(link_cases.arp(bench, "link"))
    # An address that is on no link of an uplink: data that a process with CAP_NET_ADMIN chooses.
    for target in (INTERNET4, NESTED4, "10.200.1.1"):
        request = packets.arp(SANDBOX4, target, bench.mac())
        for frame in (request, request[:7] + b"\2" + request[8:]):
            send = partial(bench.unowned_frame, ETH_ARP, frame)
            assert bench.outcome(send) == "link", target


def test_input_rules_check_incoming_packets(bench: Bench) -> None:
    for own, gateway, internet in _BOTH:
        answer = partial(headers.tcp, gateway, own, 4000, source_port=_EXCEPTION)
        cases = [
            *((f"flags {flags}", answer(flags=flags), "in") for flags in (SYN | ACK, ACK, RST)),
            *((f"flags {flags}", answer(flags=flags), "ingress") for flags in (SYN, SYN | FIN)),
            ("exception", headers.udp(gateway, own, 4000, 53), "in"),
            ("another port", headers.tcp(gateway, own, 4000, ACK, 443), "ingress"),
            ("another protocol", headers.udp(gateway, own, 4000, _EXCEPTION), "ingress"),
            ("internet", headers.tcp(internet, own, 4000, ACK, _EXCEPTION), "ingress"),
        ]
        assert not bench.wrong(
            Case(name, partial(bench.arrives, packet), expected) for name, packet, expected in cases
        )
    for source in ("fe80::7", "febf::7"):  # loopback alone knows such a neighbour
        packet = headers.tcp(source, SANDBOX6, 443)
        assert bench.outcome(partial(bench.arrives, packet)) == "ingress", source
        assert bench.outcome(partial(bench.arrives, headers.udp(source, SANDBOX6, 9))) == "ingress"
    late = partial(headers.fragment6, headers.udp(INTERNET6, SANDBOX6, 9))
    for offset, expected in ((0, "ingress"), (1, "in"), (2, "in")):
        packet = late(offset, 1)
        assert bench.outcome(partial(bench.arrives, packet)) == expected, offset


@pytest.mark.parametrize("is_addressed", [False, True])
def test_input_rules_accept_errors_neighbours_and_requested_echoes(
    bench: Bench, is_addressed: bool
) -> None:
    stranger4, stranger6 = ("198.18.7.7", "2001:db8:7::7")
    if is_addressed:
        for own, to, kind in ((SANDBOX4, stranger4, 8), (SANDBOX6, stranger6, 128)):
            asked = headers.icmp(own, to, kind)
            assert bench.outcome(partial(bench.owned, asked, uid=_PROXY)) == "out"
    for kind in range(19):
        is_in = kind in {3, 11, 12} or (kind == 0 and is_addressed)
        packet = headers.icmp(stranger4, SANDBOX4, kind)
        found = bench.outcome(partial(bench.arrives, packet))
        assert found == ("in" if is_in else "ingress"), kind
    for kind in (*range(6), *range(127, 144)):
        needed = kind in {1, 2, 3, 4} or (kind == 129 and is_addressed)
        for hop_limit, is_in in ((255, needed or kind in {134, 135, 136}), (254, needed)):
            packet = headers.neighbour(stranger6, SANDBOX6, kind, hop_limit=hop_limit)
            found = bench.outcome(partial(bench.arrives, packet))
            assert found == ("in" if is_in else "ingress"), (kind, hop_limit)


def test_forward_rules_count_and_do_not_answer(bench: Bench) -> None:
    for nested, internet in ((NESTED4, INTERNET4), (NESTED6, INTERNET6)):
        for packet in (headers.tcp(nested, internet, 443), headers.udp(nested, internet, 53)):
            assert bench.outcome(partial(bench.from_nested, packet), "forward") == "forward"
        back = headers.udp(internet, nested, 53)
        assert bench.outcome(partial(bench.arrives, back)) == "forward"


@pytest.mark.parametrize("uid", _USERS)
def test_loopback_passes_for_every_user_except_with_forged_sources(bench: Bench, uid: int) -> None:
    send = partial(bench.looped, uid=uid)
    for source, to in (
        ("127.0.0.1", "127.0.0.1"), ("127.200.0.1", "127.0.0.1"), (SANDBOX4, SANDBOX4),
        (HOST4, SANDBOX4), ("::1", "::1"), (SANDBOX6, SANDBOX6), ("fe80::7", SANDBOX6),
        ("fea0::7", SANDBOX6),
    ):  # fmt: skip
        assert bench.outcome(partial(send, headers.tcp(source, to, 80))) == "loop", source
        assert bench.outcome(partial(send, headers.udp(source, to, 80))) == "loop", source
        assert bench.outcome(partial(send, headers.tcp(source, to, 80, RST))) == "loop"
    for source, to in (
        (INTERNET4, SANDBOX4),
        ("126.0.0.1", SANDBOX4),
        (INTERNET6, SANDBOX6),
        ("fec0::7", SANDBOX6),
    ):
        segment = headers.tcp(source, to, 80, ACK)
        assert bench.outcome(partial(send, segment)) == "ingress", source
        reset = headers.tcp(source, to, 80, RST)
        assert bench.outcome(partial(send, reset)) == "egress", source
        # The reset that refuses a packet has such a source.
        assert bench.outcome(partial(bench.on_loopback, reset)) == "loop", source


def test_loopback_addresses_from_outside_are_refused(bench: Bench) -> None:
    """Some cluster networks set the sysctls that let the kernel accept such a packet."""

    def take(value: str) -> None:
        for name in ("route_localnet", "accept_local"):
            Path("/proc/sys/net/ipv4/conf/sb0", name).write_text(value, encoding="ascii")

    sandbox = bench.lab.sandbox_namespace
    sandbox.call(lambda: take("1"))
    packet = headers.udp("127.0.0.1", SANDBOX4, 53)
    try:
        assert bench.outcome(partial(bench.arrives, packet)) == "ingress"
    finally:
        sandbox.call(lambda: take("0"))


def test_answers_to_the_proxy_from_inside_are_refused(bench: Bench) -> None:
    for own, _, internet in _BOTH:
        port = next(_PORTS)
        for protocol in (6, 17):
            question = _with_ports(own, internet, protocol, 443, port)
            forged = _with_ports(internet, own, protocol, port, 443)
            if protocol == 17:
                assert bench.outcome(partial(bench.looped, forged)) == "loop"
            assert bench.outcome(partial(bench.owned, question, uid=_PROXY)) == "out"
            assert bench.outcome(partial(bench.looped, forged)) == "ingress", protocol
