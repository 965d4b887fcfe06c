"""Chains of other tables on the host of a VM, as in test_rules_rivals.py for a sandbox."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.lab import INTERNET4, INTERNET6
from tests.kernel import conftest, headers, packets, vm_bench
from tests.kernel.packets import ETH_ARP, ETH_IP, ETH_IP6, RST
from tests.kernel.tap import (
    DEVICE,
    GATEWAY4,
    GATEWAY6,
    PORT,
    UPLINK,
    UPLINK4,
    UPLINK6,
    VM4,
    VM6,
    VM_MAC,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.vm_bench import VmBench

pytestmark = pytest.mark.kernel

#: The ports of packets that a rival redirects, drops or translates.
_TURNED, _DROPPED, _TRANSLATED = 6001, 6002, 6003
_OPERATOR4, _OPERATOR6 = "198.51.100.77", "2001:db8:1::77"
_RIVALS: Final = f"""
table inet rival {{
    chain prerouting_before {{
        type filter hook prerouting priority -301
        udp sport {_TURNED} ip daddr set 169.254.169.254
        udp sport {_TURNED} ip6 daddr set fd00:ec2::254
    }}
    chain prerouting_after {{
        type filter hook prerouting priority -299
        udp sport {_DROPPED} drop
    }}
    chain published {{
        type nat hook prerouting priority -100
        meta nfproto ipv4 tcp dport 8080 dnat ip to {INTERNET4}:80
        meta nfproto ipv6 tcp dport 8080 dnat ip6 to [{INTERNET6}]:80
        meta nfproto ipv4 tcp sport {_TRANSLATED} dnat ip to {INTERNET4}:80
        meta nfproto ipv6 tcp sport {_TRANSLATED} dnat ip6 to [{INTERNET6}]:80
    }}
    chain forward_before {{
        type filter hook forward priority -21
        tcp sport {_TURNED} ip saddr set 172.16.7.9
        tcp sport {_TURNED} ip6 saddr set 2001:db8::9
    }}
    chain forward_after {{
        type filter hook forward priority -19
        tcp sport {_DROPPED} drop
    }}
    chain input_before {{
        type filter hook input priority -21
        tcp sport {_TURNED} ip saddr set 172.16.7.9
        tcp sport {_TURNED} ip6 saddr set 2001:db8::9
    }}
    chain input_after {{
        type filter hook input priority -19
        tcp sport {_DROPPED} drop
    }}
    chain postrouting_before {{
        type nat hook postrouting priority 99
        meta nfproto ipv4 udp sport {_TRANSLATED} snat ip to {_OPERATOR4}
        meta nfproto ipv6 udp sport {_TRANSLATED} snat ip6 to {_OPERATOR6}
    }}
    chain postrouting_after {{
        type nat hook postrouting priority 101
        oifname {UPLINK} masquerade
    }}
}}
table netdev rival {{
    chain ingress {{
        type filter hook ingress device {DEVICE} priority -499
        ether type 0x88b5 fwd to {UPLINK}
    }}
}}
"""
_BOTH: Final = (
    (VM4, GATEWAY4, INTERNET4, UPLINK4, _OPERATOR4),
    (VM6, GATEWAY6, INTERNET6, UPLINK6, _OPERATOR6),
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VmBench]:
    with vm_bench.bench(StateDirectory(tmp_path_factory.mktemp("rules"))) as made:
        conftest.load(made.site.host, _RIVALS)
        made.sent(ETH_ARP, packets.arp(VM4, GATEWAY4, VM_MAC))
        yield made


def test_rivals_in_prerouting_neither_hide_nor_change_a_destination(bench: VmBench) -> None:
    for own, _, internet, _, _ in _BOTH:
        metadata = "fd00:ec2::254" if ":" in own else "169.254.169.254"
        assert bench.routed(headers.udp(own, internet, 80)) == "through"
        assert bench.routed(headers.udp(own, internet, 80, _TURNED)) == "vm-forward"
        assert bench.routed(headers.udp(own, metadata, 80, _DROPPED)) == "vm-forward"


def test_rivals_in_forward_neither_hide_nor_change_a_packet(bench: VmBench) -> None:
    for own, _, internet, _, _ in _BOTH:
        assert bench.routed(headers.tcp(own, internet, 80)) == "through"
        assert bench.routed(headers.tcp(own, internet, 80, source_port=_TURNED)) == "vm-forward"
        # It belongs to no connection.
        assert bench.routed(headers.tcp(own, internet, 81, RST, _DROPPED)) == "vm-forward"


def test_destination_nat_of_the_host_is_refused_except_for_the_gateways_port(
    bench: VmBench,
) -> None:
    for own, gateway, internet, uplink, _ in _BOTH:
        for to in (gateway, uplink, internet):
            assert bench.routed(headers.tcp(own, to, 8080)) == "vm-forward", to
        # That port may belong to a container.
        turned = headers.tcp(own, gateway, PORT, source_port=_TRANSLATED)
        assert bench.routed(turned) == "through"


def test_rivals_in_input_neither_hide_nor_change_a_packet(bench: VmBench) -> None:
    for own, gateway, _, _, _ in _BOTH:
        assert bench.routed(headers.tcp(own, gateway, PORT)) == "host"
        assert bench.routed(headers.tcp(own, gateway, PORT, source_port=_TURNED)) == "vm-input"
        assert bench.routed(headers.tcp(own, gateway, 22, source_port=_DROPPED)) == "vm-input"


def test_rivals_on_the_link_forward_no_frame_past_the_fence(bench: VmBench) -> None:
    assert bench.sent(0x88B5, bytes(46)) == "vm-link"
    assert not [frame for frame in bench.left() if frame[12:14] == b"\x88\xb5"]


def test_rivals_in_postrouting_translate_only_before_the_fence(bench: VmBench) -> None:
    """The operator's source NAT applies. A later masquerade does not preserve a port of the VM."""
    for own, _, internet, uplink, operator in _BOTH:
        kind = ETH_IP6 if ":" in own else ETH_IP
        bench.left()
        for port, source in ((500, uplink), (_TRANSLATED, operator)):
            assert bench.routed(headers.udp(own, internet, 80, port)) == "through"
            left = [frame for frame in bench.left() if frame[12:14] == kind.to_bytes(2, "big")]
            (found,) = [each for frame in left if (each := vm_bench.source_port(frame, source, 17))]
            assert (port == 500) == (32_768 <= found <= 60_999)
