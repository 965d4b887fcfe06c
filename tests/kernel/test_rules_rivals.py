"""Chains of other tables do not change what a fence refuses and counts.

An earlier chain may change the destination of a packet: the fence checks the packet that leaves.
A later chain may drop or forward a packet: the fence has already refused and counted it. On a link,
no chain is later: :mod:`tests.kernel.test_rules_last`.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest

from ocsf_nft.fence.spec import FenceSpec
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.fence.values import endpoint, exception
from ocsf_nft.lab import GATEWAY4, GATEWAY6, INTERNET4, INTERNET6, PROXY_PORT, SANDBOX4, SANDBOX6
from tests.kernel import conftest, headers, packets, verdicts
from tests.kernel.outcomes import Case
from tests.kernel.packets import ACK
from tests.kernel.verdicts import NESTED4, NESTED6, Bench

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

pytestmark = pytest.mark.kernel

_ENDPOINTS: Final = (f"{GATEWAY4}:{PROXY_PORT}", f"[{GATEWAY6}]:{PROXY_PORT}")
_SANDBOX: Final = FenceSpec(sandbox="lab", proxies=tuple(map(endpoint, _ENDPOINTS)))
_SIDECAR: Final = FenceSpec(
    sandbox="lab",
    proxies=(endpoint("127.0.0.1:3128"),),
    proxy_uids=(4242,),
    exceptions=tuple(exception(f"tcp:{address}") for address in _ENDPOINTS),
)
#: The ports of packets that a rival rewrites, drops later, redirects by NAT, or drops before.
_TURNED, _DROPPED, _TRANSLATED, _STOPPED = 6001, 6002, 6003, 6004
#: The ports of packets that a rival gives another source, another link address, or that of a group.
_FORGED, _FROM_OTHER, _TO_GROUP = 6005, 6006, 6007
#: The port of packets that a rival rewrites late.
_LATE: Final = 6008
_RIVALS: Final = f"""
table inet rival {{
    chain output_before {{
        type filter hook output priority -1
        tcp sport {_TURNED} ip daddr set {INTERNET4}
        tcp sport {_TURNED} ip6 daddr set {INTERNET6}
    }}
    chain output_after {{
        type filter hook output priority 1
        th sport {_DROPPED} drop
    }}
    chain nat {{
        type nat hook output priority -100
        meta nfproto ipv4 tcp sport {_TRANSLATED} dnat ip to {INTERNET4}
        meta nfproto ipv6 tcp sport {_TRANSLATED} dnat ip6 to {INTERNET6}
    }}
    chain source_nat {{
        type nat hook postrouting priority 100
        meta nfproto ipv4 tcp sport {_FORGED} snat ip to 10.200.0.9
        meta nfproto ipv6 tcp sport {_FORGED} snat ip6 to fd00:200::9
    }}
    chain forward_before {{
        type filter hook forward priority -1
        udp sport {_TURNED} ip saddr set 10.200.0.9
        udp sport {_TURNED} ip6 saddr set fd00:200::9
        udp sport {_STOPPED} drop
    }}
    chain forward_after {{
        type filter hook forward priority 1
        th sport {_DROPPED} drop
    }}
    chain input_before {{
        type filter hook input priority -1
        tcp dport {_TURNED} ip saddr set {INTERNET4}
        tcp dport {_TURNED} ip6 saddr set {INTERNET6}
    }}
    chain input_after {{
        type filter hook input priority 1
        th dport {_DROPPED} drop
    }}
}}
table netdev rival {{
    chain before {{
        type filter hook egress device {verdicts.UPLINK} priority -1
        ether type ip udp sport {_TURNED} ip daddr set {INTERNET4}
        ether type ip6 udp sport {_TURNED} ip6 daddr set {INTERNET6}
        ether type ip udp sport {_FORGED} ip saddr set 10.200.0.9
        ether type ip6 udp sport {_FORGED} ip6 saddr set fd00:200::9
        udp sport {_FROM_OTHER} ether saddr set 02:00:00:00:bb:01
        udp sport {_TO_GROUP} ether daddr set 03:00:00:00:00:01
    }}
    chain late {{
        type filter hook egress device {verdicts.UPLINK} priority 2147483646
        udp sport {_LATE} udp dport set 54
    }}
    chain after {{
        type filter hook egress device {verdicts.UPLINK} priority 2147483647
        ether type ip udp sport {_DROPPED} fwd to x0
        ether type ip6 udp sport {_DROPPED} fwd to x0
    }}
}}
"""
_BOTH: Final = (
    (SANDBOX4, GATEWAY4, INTERNET4, NESTED4),
    (SANDBOX6, GATEWAY6, INTERNET6, NESTED6),
)


@pytest.fixture(scope="module", params=[_SANDBOX, _SIDECAR], ids=["sandbox", "sidecar"])
def bench(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bench]:
    allowed = (exception(f"udp:{GATEWAY4}:53"), exception(f"udp:[{GATEWAY6}]:53"))
    spec = dataclasses.replace(request.param, exceptions=request.param.exceptions + allowed)
    with verdicts.bench(spec, StateDirectory(tmp_path_factory.mktemp("rules"))) as made:
        conftest.load(made.lab.sandbox_namespace, _RIVALS)
        # As the service does with each new link.
        attach = "{ type filter hook egress device x0 priority 2147483647; }"
        conftest.nft(made.lab.sandbox_namespace, f"add chain netdev ocsf_nft egress {attach}")
        made.quiet()
        yield made


def test_rivals_in_output_neither_hide_nor_change_a_packet(bench: Bench) -> None:
    for own, proxy, internet, _ in _BOTH:
        tcp = partial(headers.tcp, own, proxy, PROXY_PORT)
        assert not bench.wrong(
            (
                Case("as it is", partial(bench.owned, tcp()), "out"),
                Case("turned", partial(bench.owned, tcp(source_port=_TURNED)), "egress reset"),
                Case("by NAT", partial(bench.owned, tcp(source_port=_TRANSLATED)), "egress reset"),
                Case("by NAT later", partial(bench.owned, tcp(source_port=_FORGED)), "link"),
                Case(
                    "dropped afterwards",
                    partial(bench.owned, headers.udp(own, internet, 53, _DROPPED)),
                    "egress error",
                ),
            )
        )


def test_rivals_in_input_neither_hide_nor_change_a_packet(bench: Bench) -> None:
    for own, proxy, internet, _ in _BOTH:
        from_proxy = partial(headers.tcp, proxy, own, flags=ACK, source_port=PROXY_PORT)
        assert not bench.wrong(
            (
                Case("as it is", partial(bench.arrives, from_proxy(4000)), "in"),
                Case("turned", partial(bench.arrives, from_proxy(_TURNED)), "ingress"),
                Case(
                    "dropped afterwards",
                    partial(bench.arrives, headers.udp(internet, own, _DROPPED)),
                    "ingress",
                ),
            )
        )


def test_rivals_in_forward_neither_hide_a_packet_nor_change_its_answer(bench: Bench) -> None:
    answered = "forward" if bench.installed.spec.proxy_uids else "forward out error"
    for _, _, internet, nested in _BOTH:
        for name, port, expected in (
            ("as it is", 4000, answered),
            ("turned", _TURNED, "forward"),
            ("dropped afterwards", _DROPPED, answered),
        ):
            packet = headers.udp(nested, internet, 53, port)
            assert bench.outcome(partial(bench.from_nested, packet), expected) == expected, name
        # The fence counts the last packet alone. A rival has dropped the others before.
        sent = [headers.udp(nested, internet, 53, port) for port in (_STOPPED, _STOPPED, 4000)]
        send_all = partial(_for_each, bench.from_nested, sent)
        assert bench.outcome(send_all, answered) == answered


def _for_each(send: Callable[[bytes], None], sent: Iterable[bytes]) -> None:
    for packet in sent:
        send(packet)


def test_rivals_on_a_link_neither_hide_nor_change_a_packet(bench: Bench) -> None:
    past = partial(bench.owned, past_output=True)
    for own, proxy, internet, _ in _BOTH:
        kind = packets.ETH_IP6 if ":" in own else packets.ETH_IP
        assert not bench.wrong(
            (
                Case("as it is", partial(past, headers.udp(own, proxy, 53)), "out"),
                *(
                    Case(name, partial(past, headers.udp(own, proxy, 53, port)), "link")
                    for name, port in (
                        ("turned", _TURNED),
                        ("forged", _FORGED),
                        ("from another machine", _FROM_OTHER),
                        ("to a group", _TO_GROUP),
                        ("turned late", _LATE),
                    )
                ),
                Case(
                    "sent elsewhere",
                    partial(bench.frame, kind, headers.udp(own, internet, 53, _DROPPED)),
                    "link",
                ),
            )
        )
