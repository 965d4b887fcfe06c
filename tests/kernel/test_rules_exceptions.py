"""The verdict on packets to exceptions that are networks, or that have a range of ports."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import subprocess
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocsf_nft import netns
from ocsf_nft.fence import nft, ruleset
from ocsf_nft.fence.spec import (
    FenceSpec,
    HostEnd,
    HostLinks,
    Surroundings,
    Tap,
    device_table,
)
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.fence.values import Destination, endpoint, exception, subnet
from ocsf_nft.lab import (
    GATEWAY4,
    GATEWAY6,
    GATEWAY_MAC,
    PROXY_PORT,
    SANDBOX4,
    SANDBOX6,
    ip,
)
from ocsf_nft.netns import HOST
from tests.fence.destinations import DESTINATIONS, PORTS, bounds
from tests.kernel import conftest, headers, packets, verdicts
from tests.kernel.outcomes import SO_MARK, Case, Outcomes, send_frame
from tests.kernel.packets import ACK, ETH_ARP, ETH_IP, ETH_IP6, SYN
from tests.kernel.verdicts import NESTED, Bench

if TYPE_CHECKING:
    from collections.abc import Iterator


pytestmark = pytest.mark.kernel

#: Networks behind the router. Their bounds are not those of bytes.
_REMOTE4: Final = ipaddress.ip_network("198.51.100.64/27")
_REMOTE6: Final = ipaddress.ip_network("2001:db8:9:8000::/49")
#: The network of the link, and a part of it that has its broadcast address.
_ON_LINK4: Final = ipaddress.ip_network("10.200.0.128/25")
_ON_LINK6: Final = ipaddress.ip_network("fd00:200::1:0/112")
_BROADCAST: Final = "10.200.0.255"
_EXCEPTIONS: Final = tuple(
    map(
        exception,
        (
            f"tcp:{_REMOTE4}:8000-8100", f"tcp:[{_REMOTE6}]:8000-8100",
            f"udp:{_REMOTE4}:53", f"udp:[{_REMOTE6}]:53",
            f"udp:{_ON_LINK4}:53", f"udp:[{_ON_LINK6}]:53",
            f"tcp:{GATEWAY4}:9000-9001", f"tcp:[{GATEWAY6}]:9000-9001",
        ),
    )
)  # fmt: skip
_USER: Final = 1001
_SPECS: Final = {
    "sandbox": FenceSpec(
        sandbox="lab", proxies=(endpoint(f"{GATEWAY4}:{PROXY_PORT}"),), exceptions=_EXCEPTIONS
    ),
    "sidecar": FenceSpec(sandbox="lab", proxy_uids=(4242,), exceptions=_EXCEPTIONS),
}
_BOTH: Final = (
    (SANDBOX4, _REMOTE4, GATEWAY4, "10.200.0.200"),
    (SANDBOX6, _REMOTE6, GATEWAY6, "fd00:200::1:7"),
)
#: The mark of a packet that bypasses the chain `output` of the bench.
_PAST_OUTPUT: Final = 2


@pytest.fixture(scope="module", params=list(_SPECS))
def bench(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bench]:
    directory = StateDirectory(tmp_path_factory.mktemp("rules"))
    with verdicts.bench(_SPECS[request.param], directory) as made:
        yield made


def _flows() -> Iterator[tuple[str, bytes, bool]]:
    """Yield packets to destinations in and next to an exception, and True if one is inside."""
    for own, network, gateway, on_link in _BOTH:
        first, last, before, after = bounds(network)
        for to, port, is_inside in (
            (first, 8000, True), (last, 8100, True), (first, 8050, True),
            (before, 8000, False), (after, 8100, False), (first, 7999, False), (last, 8101, False),
            (first, 53, False),
            (gateway, 9000, True), (gateway, 9001, True), (gateway, 8999, False),
            (gateway, 9002, False), (on_link, 53, False),
        ):  # fmt: skip
            yield f"tcp to {to}:{port}", headers.tcp(own, to, port), is_inside
        for to, port, is_inside in (
            (first, 53, True), (last, 53, True), (before, 53, False), (after, 53, False),
            (first, 52, False), (first, 54, False), (first, 8000, False), (on_link, 53, True),
            (gateway, 9000, False),
        ):  # fmt: skip
            yield f"udp to {to}:{port}", headers.udp(own, to, port), is_inside


def _with_neighbours(bench: Bench) -> None:
    for _, _, _, on_link in _BOTH:
        for device in (verdicts.UPLINK, NESTED):
            ip("-n", bench.lab.sandbox, "neigh", "replace", on_link, "lladdr",
                        GATEWAY_MAC, "dev", device)  # fmt: skip


def test_packets_of_a_socket_reach_the_exceptions_alone(bench: Bench) -> None:
    _with_neighbours(bench)
    send = partial(bench.owned, uid=_USER)
    assert not bench.wrong(
        Case(
            name,
            partial(send, packet),
            "out" if is_inside else f"egress {'reset' if name.startswith('tcp') else 'error'}",
        )
        for name, packet, is_inside in _flows()
    )
    assert not bench.wrong(
        Case(
            f"{name} past output",
            partial(send, packet, past_output=True),
            "out" if is_inside else "link",
        )
        for name, packet, is_inside in _flows()
    )
    for name, packet, is_inside in _flows():
        if is_inside:
            nested = partial(send, packet, NESTED)
            assert bench.outcome(nested).split()[0] == "egress", name
            assert bench.outcome(partial(nested, past_output=True)).split()[0] == "link", name
            frame = partial(bench.frame, ETH_IP6 if packet[0] >> 4 == 6 else ETH_IP, packet)
            assert bench.outcome(partial(frame, uid=_USER)) == "link", name


def test_link_of_a_pod_knows_the_connections_to_exceptions(bench: Bench) -> None:
    """The kernel ends a connection with packets that have no owner."""
    if bench.installed.spec.profile != "sidecar":
        return
    for own, network, _, _ in _BOTH:
        end = partial(headers.tcp, own, str(network[1]), 8000, source_port=40_001)
        last = partial(bench.unowned, end(flags=ACK), past_output=True)
        assert bench.outcome(last) == "link"
        begin = partial(bench.owned, end(), past_output=True, uid=_USER)
        assert bench.outcome(begin) == "out"
        assert bench.outcome(last) == "out"


def test_packets_to_exceptions_have_a_plain_header_and_a_true_source(bench: Bench) -> None:
    (own4, network4, _, _), (own6, network6, _, _) = _BOTH
    plain4 = headers.tcp(own4, str(network4[1]), 8000)
    plain6 = headers.tcp(own6, str(network6[1]), 8000)
    odd = {
        "first fragment": headers.with_flags4(plain4, 0x2000),
        "late fragment": headers.with_flags4(plain4, 1),
        "options": headers.with_options4(plain4),
        "extension header": headers.with_extension6(plain6),
        "first fragment over ip6": headers.fragment6(plain6, 0, 1),
    }
    for name, packet in odd.items():
        for past_output, rule in ((False, "egress"), (True, "link")):
            send = partial(bench.owned, packet, past_output=past_output, uid=_USER)
            assert bench.outcome(send).split()[0] == rule, name
    for forged in (
        headers.tcp("203.0.113.9", str(network4[1]), 8000),
        headers.tcp("2001:db8::9", str(network6[1]), 8000),
    ):
        assert bench.outcome(partial(bench.owned, forged, uid=_USER)).split()[0] == "egress"


@pytest.mark.parametrize(("rule", "mark"), [("egress", 0), ("link", _PAST_OUTPUT)])
def test_broadcast_address_of_the_link_is_not_part_of_an_exception(
    bench: Bench, rule: str, mark: int
) -> None:
    """It would reach machines of the link that are not in the network of the exception."""

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sock.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
            try:
                sock.sendto(b"x", (_BROADCAST, 53))
            except PermissionError:
                assert rule == "egress"

    found = bench.outcome(lambda: bench.lab.sandbox_namespace.call(send))
    # The kernel also delivers a broadcast to the namespace itself, where `input` refuses it.
    assert set(found.split()) - {"ingress"} == {rule}


def test_answers_of_exceptions_enter_alone(bench: Bench) -> None:
    for own, network, gateway, _ in _BOTH:
        first, last, before, after = bounds(network)
        cases = [
            *(
                (headers.tcp(source, own, 4000, ACK, port), "in")
                for source, port in ((first, 8000), (last, 8100), (gateway, 9001))
            ),
            *(
                (headers.tcp(source, own, 4000, ACK, port), "ingress")
                for source, port in (
                    (before, 8000), (after, 8000), (first, 7999), (first, 8101), (gateway, 9002),
                )
            ),
            (headers.tcp(first, own, 4000, SYN, 8000), "ingress"),
            (headers.tcp(first, own, 4000, SYN | ACK, 8000), "in"),
            (headers.udp(first, own, 4000, 53), "in"),
            (headers.udp(first, own, 4000, 54), "ingress"),
            (headers.udp(before, own, 4000, 53), "ingress"),
        ]  # fmt: skip
        assert not bench.wrong(
            Case(packet.hex(), partial(bench.arrives, packet), expected)
            for packet, expected in cases
        )
    extended = headers.with_extension6(headers.tcp(str(_REMOTE6[1]), SANDBOX6, 4000, ACK, 8000))
    assert bench.outcome(lambda: bench.arrives(extended)) == "ingress"


def test_kernel_may_resolve_the_addresses_of_an_exception_alone(bench: Bench) -> None:
    """In a pod, the proxy may send to any neighbour, so the kernel may resolve any address."""
    if bench.installed.spec.profile == "sidecar":
        return
    first, last, before, after = bounds(_ON_LINK4)
    for to, expected in ((first, "out"), (last, "out"), (before, "link"), (after, "link")):
        request = packets.arp(SANDBOX4, to, bench.mac())
        assert bench.outcome(partial(bench.unowned_frame, ETH_ARP, request)) == expected, to
        longer = request[:5] + b"\5" + request[6:]
        assert bench.outcome(partial(bench.unowned_frame, ETH_ARP, longer)) == "link", to
    first, last, before, after = bounds(_ON_LINK6)
    for past_output, rule in ((False, "egress"), (True, "link")):
        for to, is_found in ((first, True), (last, True), (before, False), (after, False)):
            for probe in (
                headers.neighbour(SANDBOX6, to, target=to),
                headers.neighbour(SANDBOX6, "ff02::1:ff00:77", target=to),
                headers.neighbour(SANDBOX6, to, 136, target=SANDBOX6),
            ):
                found = bench.outcome(partial(bench.unowned, probe, past_output=past_output))
                assert found.split()[0] == ("out" if is_found else rule), (to, probe)
        stranger = headers.neighbour(SANDBOX6, first, target=before)
        found = bench.outcome(partial(bench.unowned, stranger, past_output=past_output))
        assert found.split()[0] == rule


def test_guard_accepts_frames_to_exceptions_alone() -> None:
    """Evaluated by the kernel, in a namespace with the guarded device."""
    spec = FenceSpec(
        sandbox="a",
        proxies=(endpoint("10.0.0.1:3128"),),
        exceptions=_EXCEPTIONS,
        guard_device="g0",
    )
    around = Surroundings(
        addresses=tuple(map(ipaddress.ip_address, (SANDBOX4, SANDBOX6))),
        macs=("02:00:00:00:00:02",),
        host=HostLinks(
            ends=(HostEnd(name="g0", ifindex=2),),
            gateway_macs=("02:00:00:00:00:01",),
            direct_macs=("02:00:00:00:00:01",),
        ),
    )
    text = ruleset.guard(spec, around, "nflog")
    observer = (
        "table netdev observer { counter passed { }; chain ingress { type filter hook ingress "
        "device g0 priority 0; counter name passed drop; }; }\n"
    )

    def check() -> None:
        conftest.without_ipv6()  # the kernel sends no packets by itself
        for arguments in (
            ("add", "g0", "type", "veth", "peer", "name", "g1"), ("set", "g0", "up"),
            ("set", "g1", "up"),
        ):  # fmt: skip
            subprocess.run(["ip", "link", *arguments], check=True)
        nft.load(HOST, text + observer)
        counted = {
            "guard": ("netdev", device_table("g0"), "refused_guard"),
            "passes": ("netdev", "observer", "passed"),
        }
        with contextlib.closing(Outcomes(HOST, counted)) as outcomes:
            send = partial(_frame_of, outcomes)
            for name, packet, is_inside in _flows():
                assert send(packet) == ("passes" if is_inside else "guard"), name
            to_all = headers.udp(SANDBOX4, _BROADCAST, 53)
            assert send(to_all, to=b"\xff" * 6) == "guard"
            for to, expected in (("10.200.0.128", "passes"), ("10.200.0.127", "guard")):
                request = packets.arp(SANDBOX4, to, b"\x02\0\0\0\0\2")
                assert send(request, kind=ETH_ARP, to=b"\xff" * 6) == expected
            for address, expected in (("fd00:200::1:0", "passes"), ("fd00:200::2:0", "guard")):
                solicited = headers.neighbour(SANDBOX6, address, target=address)
                assert send(solicited) == expected

    netns.in_scratch(check)


def _frame_of(
    outcomes: Outcomes,
    packet: bytes,
    *,
    kind: int | None = None,
    to: bytes = b"\2\0\0\0\0\1",
) -> str:
    if kind is None:
        kind = ETH_IP6 if packet[0] >> 4 == 6 else ETH_IP
    frame = packets.frame(to, b"\2\0\0\0\0\2", kind, packet).ljust(60, b"\0")
    return outcomes.outcome(lambda: send_frame(frame, "g1"))


_OVERLAPPING: Final = st.lists(
    st.builds(
        lambda protocol, length, host, ports: Destination(
            protocol,
            ipaddress.ip_network((f"10.77.{host}.0", length), strict=False),
            *ports,
        ),
        st.sampled_from(["tcp", "udp"]),
        st.integers(8, 32),
        st.integers(0, 255),
        PORTS,
    )
    | DESTINATIONS,
    max_size=6,
).map(tuple)
_TAP: Final = Tap(device="v0", subnets=(subnet("172.16.7.1/29"), subnet("fd00:7::1/64")))


@settings(max_examples=25, deadline=None)
@given(_OVERLAPPING)
def test_overlapping_exceptions_load(exceptions: tuple[Destination, ...]) -> None:
    proxies = (endpoint("10.0.0.1:3128"),)
    around = Surroundings(links=("v0",), ifindex=1)
    namespace = FenceSpec(sandbox="a", proxies=proxies, exceptions=exceptions, guard_device="g0")
    pod = FenceSpec(sandbox="a", proxy_uids=(7,), exceptions=exceptions)
    vm = FenceSpec(sandbox="a", proxies=proxies, exceptions=exceptions, tap=_TAP)
    texts = [
        ruleset.fence(replace(each, is_permissive=is_permissive), around, "nflog")
        for each in (namespace, pod, vm)
        for is_permissive in (False, True)
    ]
    texts.append(ruleset.guard(namespace, around, "nflog"))

    def load() -> None:
        for text in texts:
            nft.load(HOST, f"flush ruleset\n{text}")

    netns.in_scratch(load)
