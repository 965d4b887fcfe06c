"""The verdict on each packet at the rules of rules/sandbox.nft, one property at a time."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import pytest

from ocsf_nft.fence.counters import Counters
from ocsf_nft.fence.spec import FenceSpec
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.fence.values import endpoint, exception
from ocsf_nft.lab import GATEWAY4, GATEWAY6, INTERNET4, INTERNET6, PROXY_PORT, SANDBOX4, SANDBOX6
from tests.kernel import accounts, headers, link_cases, packets, verdicts
from tests.kernel.outcomes import Case
from tests.kernel.packets import ACK, ETH_ARP, ETH_IP, ETH_IP6, FIN, PSH, RST, SYN
from tests.kernel.verdicts import HOST4, HOST6, NESTED, NESTED4, NESTED6, Bench

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kernel

_SPEC: Final = FenceSpec(
    sandbox="lab",
    proxies=(endpoint(f"{GATEWAY4}:{PROXY_PORT}"), endpoint(f"[{GATEWAY6}]:{PROXY_PORT}")),
    exceptions=(exception(f"udp:{GATEWAY4}:53"), exception(f"udp:[{GATEWAY6}]:53")),
)
_PROXIED: Final = (
    headers.tcp(SANDBOX4, GATEWAY4, PROXY_PORT),
    headers.tcp(SANDBOX6, GATEWAY6, PROXY_PORT),
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with verdicts.bench(_SPEC, StateDirectory(tmp_path_factory.mktemp("rules"))) as made:
        yield made


def test_output_rules_check_packets_of_a_socket(bench: Bench) -> None:
    send, nested = bench.owned, partial(bench.owned, device=NESTED)
    proxied4, proxied6 = _PROXIED
    # The answer to the first of these would also leave by that link.
    assert not bench.wrong(
        (
            Case("on another link", partial(nested, proxied4), "egress egress"),
            Case("on another link over ip6", partial(nested, proxied6), "egress reset"),
            Case("as a frame", partial(bench.frame, ETH_IP, proxied4), "link"),
            Case("as a frame over ip6", partial(bench.frame, ETH_IP6, proxied6), "link"),
        )
    )
    assert not bench.wrong(
        Case(name, partial(send, packet), expected)
        for name, packet, expected in (
            ("to the proxy", proxied4, "out"),
            ("to the proxy over ip6", proxied6, "out"),
            ("not to be fragmented", headers.with_flags4(proxied4, 0x4000), "out"),
            ("first fragment", headers.with_flags4(proxied4, 0x2000), "egress reset"),
            ("second fragment", headers.with_flags4(proxied4, 0x0001), "egress"),
            ("last fragment", headers.with_flags4(proxied4, 0x1FFF), "egress"),
            ("options", headers.with_options4(proxied4), "egress reset"),
            ("extension header", headers.with_extension6(proxied6), "egress reset"),
            ("first fragment over ip6", headers.fragment6(proxied6, 0, 1), "egress reset"),
            ("late fragment over ip6", headers.fragment6(proxied6, 1), "egress"),
            ("exception", headers.udp(SANDBOX4, GATEWAY4, 53), "out"),
            ("exception over ip6", headers.udp(SANDBOX6, GATEWAY6, 53), "out"),
            # The answer would leave, to the address in the source field.
            ("forged source", headers.tcp(INTERNET4, GATEWAY4, PROXY_PORT), "egress egress"),
            ("forged ip6 source", headers.tcp(INTERNET6, GATEWAY6, PROXY_PORT), "egress egress"),
            ("port of tcp over udp", headers.udp(SANDBOX4, GATEWAY4, PROXY_PORT), "egress error"),
            ("port of tcp over udp 6", headers.udp(SANDBOX6, GATEWAY6, PROXY_PORT), "egress error"),
            ("another port", headers.tcp(SANDBOX4, GATEWAY4, 443), "egress reset"),
            ("another port over ip6", headers.tcp(SANDBOX6, GATEWAY6, 443), "egress reset"),
            ("internet", headers.tcp(SANDBOX4, INTERNET4, PROXY_PORT), "egress reset"),
            ("internet over ip6", headers.tcp(SANDBOX6, INTERNET6, PROXY_PORT), "egress reset"),
            ("solicitation", headers.neighbour(SANDBOX6, GATEWAY6), "egress error"),
            ("group's solicitation", headers.neighbour(SANDBOX6, "ff02::1:ff00:7"), "egress"),
        )
    )
    # A local address of the namespace is on no link.
    for own in (SANDBOX4, SANDBOX6):
        to_itself = partial(send, headers.tcp(own, own, 443), NESTED)
        assert bench.outcome(to_itself).split()[0] == "egress", own
    assert not bench.wrong(
        Case(f"to a nested namespace: {name}", partial(nested, packet), "egress")
        for name, packet in _answers().items()
    )


def _answers() -> dict[str, bytes]:
    """Return the fence's answers to a nested namespace."""
    return {
        "reset": headers.tcp(HOST4, NESTED4, 4000, RST),
        "reset of data": headers.tcp(HOST4, NESTED4, 4000, RST | ACK),
        "error": headers.icmp(HOST4, NESTED4, 3, 13),
        "reset over ip6": headers.tcp(HOST6, NESTED6, 4000, RST),
        "error over ip6": headers.icmp(HOST6, NESTED6, 1, 1),
    }


def _no_answers() -> dict[str, bytes]:
    return {
        "syn": headers.tcp(HOST4, NESTED4, 4000, SYN),
        "ack": headers.tcp(HOST4, NESTED4, 4000, ACK),
        "syn and rst": headers.tcp(HOST4, NESTED4, 4000, SYN | RST),
        "datagram": headers.udp(HOST4, NESTED4, 4000),
        **{
            f"icmp {kind}/{code}": headers.icmp(HOST4, NESTED4, kind, code)
            for kind, code in ((3, 12), (3, 14), (3, 1), (11, 13), (8, 13))
        },
        "syn and rst over ip6": headers.tcp(HOST6, NESTED6, 4000, SYN | RST),
        "ack over ip6": headers.tcp(HOST6, NESTED6, 4000, ACK),
        "datagram over ip6": headers.udp(HOST6, NESTED6, 4000),
        **{
            f"icmpv6 {kind}/{code}": headers.icmp(HOST6, NESTED6, kind, code)
            for kind, code in ((1, 0), (1, 2), (3, 1), (128, 1))
        },
    }


@pytest.mark.parametrize(("rule", "past_output"), [("egress", False), ("link", True)])
def test_answers_to_a_nested_namespace_pass_and_variants_do_not(
    bench: Bench, rule: str, past_output: bool
) -> None:
    def sent(packet: bytes, device: str) -> partial[None]:
        return partial(bench.unowned, packet, device, past_output=past_output)

    for name, packet in _answers().items():
        answer = bench.outcome(sent(packet, NESTED)).split()
        assert answer[0] == "out", (name, answer)
        assert bench.outcome(sent(packet, verdicts.UPLINK)).split()[0] == rule, name
    for name, packet in _no_answers().items():
        refused = bench.outcome(sent(packet, NESTED)).split()
        assert refused[0] == rule, (name, refused)


@pytest.mark.parametrize(("rule", "past_output"), [("egress", False), ("link", True)])
def test_neighbour_discovery_of_the_kernel_passes_and_variants_do_not(
    bench: Bench, rule: str, past_output: bool
) -> None:
    assert not link_cases.wrong_neighbours(bench, rule, past_output=past_output)
    assert not link_cases.wrong_nested_neighbours(bench, rule, past_output=past_output)


def test_link_rules_check_routed_packets(bench: Bench) -> None:
    """Such a packet passed `output` here, or in a nested namespace."""
    proxied4, proxied6 = _PROXIED
    for send in (bench.owned, bench.unowned):
        past = partial(send, past_output=True)
        nested = partial(past, device=NESTED)
        assert not bench.wrong(
            (
                Case("to the proxy", partial(past, proxied4), "out"),
                Case("to the proxy over ip6", partial(past, proxied6), "out"),
                Case("on another link", partial(nested, proxied4), "link"),
                Case("on another link over ip6", partial(nested, proxied6), "link"),
                Case("first", partial(past, headers.with_options4(proxied4)), "link"),
                Case("extension", partial(past, headers.with_extension6(proxied6)), "link"),
                Case("udp", partial(past, headers.udp(SANDBOX4, GATEWAY4, PROXY_PORT)), "link"),
                Case("udp6", partial(past, headers.udp(SANDBOX6, GATEWAY6, PROXY_PORT)), "link"),
                Case("internet", partial(past, headers.tcp(SANDBOX4, INTERNET4, 3128)), "link"),
                Case("internet6", partial(past, headers.tcp(SANDBOX6, INTERNET6, 3128)), "link"),
            )
        )
    assert not bench.wrong(
        Case(
            f"fragment field {field:#x}",
            partial(bench.owned, headers.with_flags4(proxied4, field), past_output=True),
            "out" if field == headers.DONT_FRAGMENT else "link",
        )
        for field in (0x4000, 0x2000, 0x0001, 0x1FFF)
    )
    assert not bench.wrong(
        Case(
            f"a socket's solicitation to {to}",
            partial(bench.owned, packet, past_output=True),
            found,
        )
        # A packet to a group also returns.
        for to, found in ((GATEWAY6, "link"), ("ff02::1", "link in"))
        for packet in (headers.neighbour(SANDBOX6, to),)
    )
    assert not bench.wrong(
        Case(name, partial(bench.owned, packet, NESTED, past_output=True), "link")
        for name, packet in _answers().items()
    )


def test_link_rules_check_frames_without_an_owner(bench: Bench) -> None:
    send, nested = bench.unowned_frame, partial(bench.unowned_frame, device=NESTED)
    assert not bench.wrong(link_cases.arp(bench, "link", GATEWAY4))
    stranger, padding = packets.arp(SANDBOX4, "10.200.0.77", bench.mac()), bytes(18)
    assert not bench.wrong([Case("a stranger", partial(send, ETH_ARP, stranger), "link")])
    # The kernel may look up any address in a nested namespace.
    tag = b"\x81\0\0\5"
    assert not bench.wrong(
        (
            Case("nested", partial(nested, ETH_ARP, stranger), "out"),
            Case("nested, padded", partial(nested, ETH_ARP, stranger + padding), "out"),
            Case("nested, longer", partial(nested, ETH_ARP, stranger + padding + b"x"), "link"),
            Case("nested, tagged", partial(nested, ETH_ARP, stranger, tag=tag), "link"),
            Case("nested, of another ethertype", partial(nested, 0x88B5, stranger), "link"),
        )
    )
    solicitation = headers.neighbour(SANDBOX6, GATEWAY6)
    assert not bench.wrong(
        Case(f"{name} as a frame, tag {tag!r}", partial(send, kind, packet, tag=tag), "link")
        for name, kind, packet in (
            ("ip4 to the proxy", ETH_IP, _PROXIED[0]),
            ("ip6 to the proxy", ETH_IP6, _PROXIED[1]),
            ("a solicitation", ETH_IP6, solicitation),
        )
        for tag in (b"", b"\x81\0\0\5")
    )
    assert not bench.wrong(
        Case(
            f"nested: tagged {name}",
            partial(nested, ETH_IP6 if " ip6" in name else ETH_IP, packet, tag=tag),
            "link",
        )
        for name, packet in _answers().items()
    )


def test_input_rules_check_incoming_packets(bench: Bench) -> None:
    for own, proxy, internet in (
        (SANDBOX4, GATEWAY4, INTERNET4),
        (SANDBOX6, GATEWAY6, INTERNET6),
    ):
        answer = partial(headers.tcp, proxy, own, 4000, source_port=PROXY_PORT)
        cases = [
            *((f"flags {flags}", answer(flags=flags), "in") for flags in (SYN | ACK, ACK, RST)),
            ("data", answer(flags=ACK | PSH), "in"),
            *((f"flags {flags}", answer(flags=flags), "ingress") for flags in (SYN, SYN | FIN)),
            ("exception", headers.udp(proxy, own, 4000, 53), "in"),
            ("another port", headers.tcp(proxy, own, 4000, ACK, 443), "ingress"),
            ("another protocol", headers.udp(proxy, own, 4000, PROXY_PORT), "ingress"),
            ("internet", headers.tcp(internet, own, 4000, ACK, PROXY_PORT), "ingress"),
        ]
        assert not bench.wrong(
            Case(name, partial(bench.arrives, packet), expected) for name, packet, expected in cases
        )
    extended = headers.with_extension6(headers.tcp(GATEWAY6, SANDBOX6, 4000, ACK, PROXY_PORT))
    assert bench.outcome(lambda: bench.arrives(extended)) == "ingress"


def test_input_rules_accept_the_errors_and_neighbours_that_the_sandbox_needs(bench: Bench) -> None:
    for kind in range(19):
        expected = "in" if kind in {3, 11, 12} else "ingress"
        packet = headers.icmp(INTERNET4, SANDBOX4, kind)
        assert bench.outcome(partial(bench.arrives, packet)) == expected, kind
    for kind in (*range(6), *range(127, 144)):
        needed = kind in {1, 2, 3, 4}
        for hop_limit, is_in in ((255, needed or kind in {134, 135, 136}), (254, needed)):
            packet = headers.neighbour(GATEWAY6, SANDBOX6, kind, hop_limit=hop_limit)
            found = bench.outcome(partial(bench.arrives, packet))
            assert found == ("in" if is_in else "ingress"), (kind, hop_limit)


def test_loopback_passes_for_every_user(bench: Bench) -> None:
    for own in ("127.0.0.1", SANDBOX4, "::1", SANDBOX6):
        for packet in (headers.tcp(own, own, 80), headers.udp(own, own, 80)):
            assert bench.outcome(partial(bench.looped, packet)) == "loop", own


def test_forward_rules_answer_a_nested_namespace_alone(bench: Bench) -> None:
    datagrams = {
        4: (headers.udp(NESTED4, INTERNET4, 53), headers.udp(INTERNET4, NESTED4, 53)),
        6: (headers.udp(NESTED6, INTERNET6, 53), headers.udp(INTERNET6, NESTED6, 53)),
    }
    for out, back in datagrams.values():
        assert not bench.wrong(
            (
                Case("from nested", partial(bench.from_nested, out), "forward out error"),
                Case("from outside", partial(bench.arrives, back), "forward"),
                Case("on loopback", partial(bench.on_loopback, out), "forward"),
                Case("forged", partial(bench.from_nested, _forged(out)), "forward"),
            )
        )
    for nested, internet in ((NESTED4, INTERNET4), (NESTED6, INTERNET6)):
        connection = headers.tcp(nested, internet, 443)
        expected = "forward out reset"
        assert bench.outcome(partial(bench.from_nested, connection), expected) == expected
        proxy = GATEWAY6 if ":" in internet else GATEWAY4
        to_proxy = headers.tcp(nested, proxy, PROXY_PORT)
        assert bench.outcome(partial(bench.from_nested, to_proxy), expected) == expected


def _forged(packet: bytes) -> bytes:
    """Return the packet with a source address of another link."""
    if packet[0] >> 4 == 4:
        return headers.udp("10.200.0.9", INTERNET4, 53)
    return headers.udp("fd00:200::9", INTERNET6, 53)


def test_rules_count_each_packet_in_one_element(bench: Bench) -> None:
    with Counters(bench.installed) as counters:
        reading = counters.read()
    for rule, of_rule in reading.rules.items():
        by_kind = accounts.elements_of(of_rule).values()
        counted = sum(each.packets for found in by_kind for each in found)
        assert counted + of_rule.overflow.packets == of_rule.refused.packets, rule
