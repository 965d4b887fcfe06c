"""The verdict on a VM's packets to exceptions that are networks, or that have a range of ports."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

import pytest

from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.fence.values import exception
from ocsf_nft.lab import INTERNET4, INTERNET6
from tests.fence.destinations import bounds
from tests.kernel import conftest, headers, packets, tap, vm_bench
from tests.kernel.packets import ETH_ARP

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.vm_bench import VmBench

pytestmark = pytest.mark.kernel

#: Their bounds are not those of bytes.
_REMOTE4: Final = ipaddress.ip_network("198.51.100.64/27")
_REMOTE6: Final = ipaddress.ip_network("2001:db8:9:8000::/49")
#: Networks with the host's own address (the VM's gateway), with the addresses of metadata services,
#: with the broadcast address of the VM's link, and on the internet.
_TAP_EXCEPTIONS: Final = tuple(
    map(
        exception,
        (
            "udp:172.16.7.0/31:5000-5010", "udp:[fd00:7::/127]:5000-5010",
            "tcp:169.254.169.128/25:80-81", "tcp:[fd00:ec2::/64]:80-81",
            "udp:172.16.7.6/31:5000-5010",
            f"tcp:{_REMOTE4}:8000-8100",
            f"tcp:[{_REMOTE6}]:8000-8100",
        ),
    )
)  # fmt: skip


#: The source ports of packets that the host redirects, and of those with a source that it changes.
_REDIRECTED, _FORGED = 6003, 6004
_RIVAL: Final = f"""
table inet rival {{
    chain prerouting {{
        type nat hook prerouting priority -100
        meta nfproto ipv4 tcp sport {_REDIRECTED} dnat ip to {INTERNET4}:80
        meta nfproto ipv4 udp sport {_REDIRECTED} dnat ip to {INTERNET4}:80
        meta nfproto ipv6 tcp sport {_REDIRECTED} dnat ip6 to [{INTERNET6}]:80
        meta nfproto ipv6 udp sport {_REDIRECTED} dnat ip6 to [{INTERNET6}]:80
    }}
    chain input {{
        type filter hook input priority -21
        udp sport {_FORGED} ip saddr set 172.16.7.9
        udp sport {_FORGED} ip6 saddr set 2001:db8::9
    }}
}}
"""


@pytest.fixture(scope="module")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VmBench]:
    directory = StateDirectory(tmp_path_factory.mktemp("rules"))
    with vm_bench.bench(directory, exceptions=_TAP_EXCEPTIONS) as made:
        conftest.load(made.site.host, _RIVAL)
        made.sent(ETH_ARP, packets.arp(tap.VM4, tap.GATEWAY4, tap.VM_MAC))
        yield made


def test_vm_reaches_ranges_on_the_host_and_among_forbidden_destinations(vm: VmBench) -> None:
    for own, gateway in ((tap.VM4, tap.GATEWAY4), (tap.VM6, tap.GATEWAY6)):
        for port, expected in (
            (5000, "host"),
            (5010, "host"),
            (4999, "vm-input"),
            (5011, "vm-input"),
        ):
            assert vm.routed(headers.udp(own, gateway, port)) == expected, (gateway, port)
        assert vm.routed(headers.tcp(own, gateway, 5000)) == "vm-input"
        assert vm.routed(headers.udp(own, gateway, 5000, _FORGED)) == "vm-input"
    for own, to, is_inside in (
        (tap.VM4, "169.254.169.128", True), (tap.VM4, "169.254.169.255", True),
        (tap.VM4, "169.254.169.127", False), (tap.VM4, "169.254.170.0", False),
        (tap.VM6, "fd00:ec2::254", True),
    ):  # fmt: skip
        for port in (80, 81):
            found = vm.routed(headers.tcp(own, to, port))
            assert found == ("through" if is_inside else "vm-forward"), (to, port)
        assert vm.routed(headers.tcp(own, to, 82)) == "vm-forward", to
        assert vm.routed(headers.udp(own, to, 80)) == "vm-forward", to


def test_host_may_redirect_packets_to_an_exception_alone(vm: VmBench) -> None:
    for own, network in ((tap.VM4, _REMOTE4), (tap.VM6, _REMOTE6)):
        first, last, before, after = bounds(network)
        for to, port, expected in (
            (first, 8000, "through"), (last, 8100, "through"), (first, 7999, "vm-forward"),
            (last, 8101, "vm-forward"), (before, 8000, "vm-forward"), (after, 8000, "vm-forward"),
        ):  # fmt: skip
            packet = headers.tcp(own, to, port, source_port=_REDIRECTED)
            assert vm.routed(packet) == expected, (to, port)
        assert vm.routed(headers.udp(own, first, 8000, _REDIRECTED)) == "vm-forward"
        assert vm.routed(headers.udp(own, first, 8000)) == "through"


def test_vm_sends_no_broadcast_to_the_host(vm: VmBench) -> None:
    """The host's address is not in the network that has the broadcast address."""
    assert vm.routed(headers.udp(tap.VM4, "172.16.7.7", 5000)) == "vm-input"
