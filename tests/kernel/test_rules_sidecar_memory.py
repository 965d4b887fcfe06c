"""The flow sets of a pod's fence: packets that pass in and out for flows of its proxy."""

from __future__ import annotations

import re
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.fence.state import StateDirectory
from tests.kernel import conftest, headers, verdicts
from tests.kernel.packets import ACK, ETH_IP, ETH_IP6, FIN, PSH, RST, SYN
from tests.kernel.test_rules_sidecar import (
    _BOTH,
    _EXCEPTION,
    _PORTS,
    _PROXY,
    _SPEC,
    _WITH_PORTS,
    _WORKLOAD,
    _with_ports,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.verdicts import Bench

pytestmark = pytest.mark.kernel

#: The kernel's timeouts have the resolution of its timer.
_TICK_SECONDS = 0.02


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with verdicts.bench(_SPEC, StateDirectory(tmp_path_factory.mktemp("rules"))) as made:
        yield made


def test_kernel_may_send_every_packet_of_a_proxy_flow_except_the_first(bench: Bench) -> None:
    for own, _, internet in _BOTH:
        port = next(_PORTS)
        flow = partial(headers.tcp, own, internet, 443, source_port=port)
        other = partial(headers.tcp, own, internet, 443, source_port=next(_PORTS))
        late = partial(bench.unowned, flow(flags=FIN | ACK))
        assert bench.outcome(late) == "egress reset"
        assert bench.outcome(partial(bench.owned, flow(), uid=_PROXY)) == "out"
        for flags in (FIN | ACK, ACK, ACK | PSH):
            assert bench.outcome(partial(bench.unowned, flow(flags=flags))) == "out", flags
        assert bench.outcome(partial(bench.unowned, flow(flags=RST))) == "out reset"
        for flags in (SYN, SYN | ACK, SYN | RST):
            found = bench.outcome(partial(bench.unowned, flow(flags=flags)))
            assert found.split()[0] == "egress", flags
        assert bench.outcome(partial(bench.unowned, other(flags=FIN | ACK))) == "egress reset"
        datagram = headers.udp(own, internet, 443, port)
        assert bench.outcome(partial(bench.unowned, datagram)) == "egress error"
        # This ends when another user sends from the proxy's port.
        assert bench.outcome(partial(bench.owned, flow(), uid=_WORKLOAD)) == "egress reset"
        assert bench.outcome(late) == "egress reset"


def test_links_store_the_flows_of_the_proxy_and_of_the_exceptions(bench: Bench) -> None:
    unowned = partial(bench.unowned, past_output=True)
    for own, gateway, internet in _BOTH:
        for to, port, uid in ((internet, 443, _PROXY), (gateway, _EXCEPTION, _WORKLOAD)):
            flow = partial(headers.tcp, own, to, port, source_port=next(_PORTS))
            late = partial(unowned, flow(flags=FIN | ACK))
            assert bench.outcome(late) == "link"
            assert bench.outcome(partial(bench.owned, flow(), past_output=True, uid=uid)) == "out"
            assert bench.outcome(late) == "out"
            for flags in (SYN, SYN | ACK):
                assert bench.outcome(partial(unowned, flow(flags=flags))) == "link"
            datagram = headers.udp(own, to, port, next(_PORTS))
            assert bench.outcome(partial(unowned, datagram)) == "link"
            kind = ETH_IP6 if ":" in own else ETH_IP
            frame = partial(bench.unowned_frame, kind, flow(flags=FIN | ACK))
            assert bench.outcome(frame) == "link"
            # A packet of the kernel keeps the flow in the set, also if a user began the flow.
            assert bench.outcome(late) == "out"


def test_links_store_no_flows_of_datagrams(bench: Bench) -> None:
    for own, gateway, internet in _BOTH:
        version = 6 if ":" in own else 4
        for name, to, uid in (("proxied", internet, _PROXY), ("excepted", gateway, _WORKLOAD)):
            port = next(_PORTS)
            send = partial(bench.owned, headers.udp(own, to, 53, port), uid=uid)
            assert bench.outcome(partial(send, past_output=True)) == "out"
            table = ("netdev", "ocsf_nft", f"{name}{version}")
            listed = conftest.nft(bench.lab.sandbox_namespace, "list", "set", *table)
            assert f". {port} ." not in listed, name


def test_packets_of_the_kernel_keep_a_flow_in_the_set(bench: Bench) -> None:
    for own, gateway, internet in _BOTH:
        version = 6 if ":" in own else 4
        for family, name, to, port, uid in (
            ("inet", "proxied", internet, 443, _PROXY),
            ("netdev", "proxied", internet, 443, _PROXY),
            ("netdev", "excepted", gateway, _EXCEPTION, _WORKLOAD),
        ):
            source_port = next(_PORTS)
            flow = partial(headers.tcp, own, to, port, source_port=source_port)
            past = family == "netdev"
            expiry = partial(_expiry, bench, f"{family} ocsf_nft {name}{version}", source_port)
            bench.owned(flow(), uid=uid, past_output=past)
            # On a busy machine reading takes longer than a short pause.
            for pause in (0.05, 0.2, 1, 4):
                _, latest = expiry()
                time.sleep(pause)
                bench.unowned(flow(flags=FIN | ACK), past_output=past)
                earliest, _ = expiry()
                if earliest > latest + _TICK_SECONDS:
                    break
            else:
                pytest.fail(f"a packet of the kernel does not keep the flow in {family} {name}")


def _expiry(bench: Bench, name: str, port: int) -> tuple[float, float]:
    """Return the earliest and the latest time when a set removes the flow of a source port."""
    began = time.monotonic()
    listed = conftest.nft(bench.lab.sandbox_namespace, "list", "set", *name.split())
    ended = time.monotonic()
    (found,) = re.findall(rf"\b{port} \. [^,}}]*? expires ([0-9ms]+)", listed)
    minutes, seconds, milliseconds = re.fullmatch(
        r"(?:(\d+)m(?!s))?(?:(\d+)s)?(?:(\d+)ms)?", found
    ).groups("0")  # type: ignore[union-attr]
    left = int(minutes) * 60 + int(seconds) + int(milliseconds) / 1000
    return began + left, ended + left


def test_kernel_may_end_connections_to_the_exceptions(bench: Bench) -> None:
    for own, gateway, internet in _BOTH:
        flow = partial(headers.tcp, own, gateway, _EXCEPTION)
        assert bench.outcome(partial(bench.owned, flow(), uid=_WORKLOAD)) == "out"
        assert bench.outcome(partial(bench.unowned, flow(flags=FIN | ACK))) == "out"
        assert bench.outcome(partial(bench.unowned, flow(flags=SYN))) == "egress reset"
        elsewhere = headers.tcp(own, internet, _EXCEPTION, FIN | ACK)
        assert bench.outcome(partial(bench.unowned, elsewhere)) == "egress reset"
        assert (
            bench.outcome(partial(bench.unowned, headers.udp(own, gateway, 53))) == "egress error"
        )


def test_answers_to_the_proxy_pass_from_destinations_of_its_flows(bench: Bench) -> None:
    for own, _, internet in _BOTH:
        for protocol in _WITH_PORTS:
            port = next(_PORTS)
            answer = _with_ports(internet, own, protocol, port, 443)
            assert bench.outcome(partial(bench.arrives, answer)) == "ingress"
            question = _with_ports(own, internet, protocol, 443, port)
            assert bench.outcome(partial(bench.owned, question, uid=_PROXY)) == "out"
            assert bench.outcome(partial(bench.arrives, answer)) == "in", protocol
            for to, source_port in ((port + 1, 443), (port, 444)):
                packet = _with_ports(internet, own, protocol, to, source_port)
                assert bench.outcome(partial(bench.arrives, packet)) == "ingress", protocol
        begun = headers.tcp(internet, own, port, SYN, 443)
        assert bench.outcome(partial(bench.arrives, begun)) == "ingress"


def test_datagrams_of_other_users_leave_the_flows_of_the_proxy_in_the_set(bench: Bench) -> None:
    for own, _, internet in _BOTH:
        port = next(_PORTS)
        question = headers.udp(own, internet, 443, port)
        assert bench.outcome(partial(bench.owned, question, uid=_PROXY)) == "out"
        assert bench.outcome(partial(bench.owned, question, uid=_WORKLOAD)) == "egress error"
        answer = headers.udp(internet, own, port, 443)
        assert bench.outcome(partial(bench.arrives, answer)) == "in"


def test_new_flows_of_the_proxy_pass_although_the_sets_are_full(bench: Bench) -> None:
    sandbox = bench.lab.sandbox_namespace
    for own, _, internet in _BOTH:
        version = 6 if ":" in own else 4
        proxied, addressed = (f"inet ocsf_nft {name}{version}" for name in ("proxied", "addressed"))
        destinations = (
            f"2001:db8::1:{number:x}" if version == 6 else f"198.18.{number >> 8}.{number & 255}"
            for number in range(1 << 14)
        )
        conftest.nft(sandbox, f"flush set {proxied}; flush set {addressed}")
        flows = (f"{own} . {port} . {internet} . 443 . tcp" for port in range(1 << 16))
        for name, elements in (
            (proxied, flows),
            (addressed, (f"{to} . udp" for to in destinations)),
        ):
            conftest.load(sandbox, f"add element {name} {{ {', '.join(elements)} }}")
        for packet in (headers.udp(own, internet, 53), headers.other(own, internet, 47)):
            assert bench.outcome(partial(bench.owned, packet, uid=_PROXY)) == "out"
        conftest.nft(sandbox, f"flush set {proxied}; flush set {addressed}")


def test_answers_without_ports_pass_from_destinations_of_the_proxy(bench: Bench) -> None:
    for own, _, internet in _BOTH:
        stranger = "2001:db8::99" if ":" in own else "203.0.113.99"
        answer = headers.other(internet, own, 50)
        assert bench.outcome(partial(bench.arrives, answer)) == "ingress"
        question = headers.other(own, internet, 50)
        assert bench.outcome(partial(bench.owned, question, uid=_PROXY)) == "out"
        assert bench.outcome(partial(bench.arrives, answer)) == "in"
        for packet in (headers.other(stranger, own, 50), headers.other(internet, own, 51)):
            assert bench.outcome(partial(bench.arrives, packet)) == "ingress"
