"""The verdict on each frame at the rules of rules/guard.nft, one property at a time."""

from __future__ import annotations

import ipaddress
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest

from ocsf_nft import lab as laboratory
from ocsf_nft.fence import nft, ruleset
from ocsf_nft.fence.spec import FenceSpec, Surroundings, device_table
from ocsf_nft.fence.values import endpoint
from ocsf_nft.lab import (
    GATEWAY4,
    GATEWAY6,
    GATEWAY_MAC,
    INTERNET4,
    INTERNET6,
    PROXY_PORT,
    SANDBOX4,
    SANDBOX6,
)
from tests.kernel import conftest, headers, packets
from tests.kernel.outcomes import Case, Outcomes, send_frame
from tests.kernel.packets import ETH_ARP, ETH_IP, ETH_IP6

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

_DEVICE: Final = "gw0"
_MAC: Final = b"\x02\0\0\0\0\x02"
_TAG: Final = b"\x81\0\0\5"
_SPEC: Final = FenceSpec(
    sandbox="lab",
    proxies=(endpoint(f"{GATEWAY4}:{PROXY_PORT}"), endpoint(f"[{GATEWAY6}]:{PROXY_PORT}")),
    guard_device=_DEVICE,
)
_AROUND: Final = Surroundings(neighbours=tuple(map(ipaddress.ip_address, (GATEWAY4, GATEWAY6))))
#: A rival chain with the earliest priority after the guard. It forwards every frame elsewhere.
_AFTER: Final = f"""
table netdev rival {{
    counter passed {{ }}
    chain ingress {{
        type filter hook ingress device {_DEVICE} priority -499
        counter name passed fwd to lo
    }}
}}
"""
#: The sandbox has no fence here, and its kernel must send no packets of its own.
_MUTE: Final = """
table netdev mute {
    chain egress {
        type filter hook egress device sb0 priority 0; policy drop
        meta skuid >= 0 accept
    }
}
"""
_COUNTED: Final = {
    "guard": ("netdev", device_table(_DEVICE), "refused_guard"),
    "passes": ("netdev", "rival", "passed"),
}
_PROXIED4: Final = headers.tcp(SANDBOX4, GATEWAY4, PROXY_PORT)
_PROXIED6: Final = headers.tcp(SANDBOX6, GATEWAY6, PROXY_PORT)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with laboratory.throwaway() as made:
        conftest.load(made.sandbox_namespace, _MUTE)
        nft.load(made.gateway_namespace, ruleset.guard(_SPEC, _AROUND, "nflog"))
        conftest.load(made.gateway_namespace, _AFTER)
        yield made


@pytest.fixture(scope="module")
def outcomes(lab: Lab) -> Iterator[Outcomes]:
    made = Outcomes(lab.gateway_namespace, _COUNTED)
    made.quiet()
    yield made
    made.close()


def _sender(lab: Lab) -> Callable[..., Callable[[], None]]:
    gateway = bytes.fromhex(GATEWAY_MAC.replace(":", ""))

    def send(kind: int, payload: bytes, *, tag: bytes = b"", pad: int = 60) -> Callable[[], None]:
        frame = gateway + _MAC + tag + kind.to_bytes(2, "big") + payload
        work = partial(send_frame, frame.ljust(pad, b"\0"), lab.sandbox_device)
        return partial(lab.sandbox_namespace.call, work)

    return send


def test_guard_accepts_packets_to_the_proxy_and_refuses_variants(
    lab: Lab, outcomes: Outcomes
) -> None:
    send = _sender(lab)
    frames = {
        "passes": {
            "to the proxy": (ETH_IP, _PROXIED4),
            "to the proxy over ip6": (ETH_IP6, _PROXIED6),
            "not to be fragmented": (ETH_IP, headers.with_flags4(_PROXIED4, 0x4000)),
        },
        "guard": {
            "unknown": (0x88B5, bytes(46)),
            **{
                f"fragment {field:#x}": (ETH_IP, headers.with_flags4(_PROXIED4, field))
                for field in (0x2000, 0x0001, 0x1FFF)
            },
            "options": (ETH_IP, headers.with_options4(_PROXIED4)),
            "extension header": (ETH_IP6, headers.with_extension6(_PROXIED6)),
            "another port": (ETH_IP, headers.tcp(SANDBOX4, GATEWAY4, 443)),
            "another port over ip6": (ETH_IP6, headers.tcp(SANDBOX6, GATEWAY6, 443)),
            "another protocol": (ETH_IP, headers.udp(SANDBOX4, GATEWAY4, PROXY_PORT)),
            "another protocol over ip6": (ETH_IP6, headers.udp(SANDBOX6, GATEWAY6, PROXY_PORT)),
            "internet": (ETH_IP, headers.tcp(SANDBOX4, INTERNET4, PROXY_PORT)),
            "internet over ip6": (ETH_IP6, headers.tcp(SANDBOX6, INTERNET6, PROXY_PORT)),
        },
    }
    assert not outcomes.wrong(
        Case(name, send(*frame), expected)
        for expected, named in frames.items()
        for name, frame in named.items()
    )
    for frame in frames["passes"].values():
        for tag in (_TAG, b"\x88\xa8\0\5", b"\x81\0\0\0", b"\x81\0\x0f\xff", _TAG + _TAG):
            assert outcomes.outcome(send(*frame, tag=tag)) == "guard", (frame, tag)


def test_guard_accepts_neighbour_discovery_and_refuses_variants(
    lab: Lab, outcomes: Outcomes
) -> None:
    send = _sender(lab)
    about = partial(headers.neighbour, SANDBOX6)
    long = about(GATEWAY6, options=bytes(16))
    found = (GATEWAY6, "fe80::7", "fe80::8000:0:0:7", "ff02::1", "ff02::1:ff00:7", "ff02::1:ff80:7")
    not_found = (INTERNET6, "fe80:0:0:1::7", "ff02::2", "ff02::1:fe00:7")
    packet = {
        "passes": (about(GATEWAY6, 136), long, *map(about, found)),
        "guard": (
            *map(about, not_found),
            about(GATEWAY6, code=1), about(GATEWAY6, hop_limit=254),
            *(about(GATEWAY6, kind) for kind in (133, 134, 137)),
            about(GATEWAY6, options=bytes(17)),
            headers.with_extension6(about(GATEWAY6)),
            long + b"x",  # longer than its length field
            long[:4] + b"\0\x29" + long[6:],  # shorter than its length field
        ),
    }  # fmt: skip
    for expected, sent in packet.items():
        for each in sent:
            assert outcomes.outcome(send(ETH_IP6, each)) == expected, each
            assert outcomes.outcome(send(ETH_IP6, each, tag=_TAG)) == "guard"


def test_guard_accepts_arp_for_the_proxy_and_refuses_variants(lab: Lab, outcomes: Outcomes) -> None:
    send = _sender(lab)
    request = packets.arp(SANDBOX4, GATEWAY4, _MAC)
    padding = bytes(18)
    bad = (
        b"\0\6" + request[2:], request[:2] + b"\x86\xdd" + request[4:],
        request[:4] + b"\7" + request[5:], request[:5] + b"\5" + request[6:],
        request[:4] + b"\5" + request[5:], request[:5] + b"\3" + request[6:],
        request[:7] + b"\0" + request[8:], request[:7] + b"\3" + request[8:],
        packets.arp(SANDBOX4, "10.200.0.77", _MAC),
    )  # fmt: skip
    for each in bad:
        assert outcomes.outcome(send(ETH_ARP, each)) == "guard", each
    assert not outcomes.wrong(
        (
            Case("request", send(ETH_ARP, request), "passes"),
            Case("answer", send(ETH_ARP, request[:7] + b"\2" + request[8:]), "passes"),
            Case("padded", send(ETH_ARP, request + padding), "passes"),
            Case("longer", send(ETH_ARP, request + padding + b"x"), "guard"),
            Case("tagged", send(ETH_ARP, request, tag=_TAG), "guard"),
            Case("of another type", send(0x88B5, request), "guard"),
        )
    )
