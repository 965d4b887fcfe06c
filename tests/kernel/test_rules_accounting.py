"""The element that counts each refused packet, and its log budget, in rules/accounting.nft."""

from __future__ import annotations

import ipaddress
import itertools
import struct
import time
from functools import partial
from typing import TYPE_CHECKING, Final, cast

import pytest

from ocsf_nft.fence import rule_counters
from ocsf_nft.fence.counters import Counters
from ocsf_nft.fence.spec import FenceSpec
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.fence.values import endpoint
from ocsf_nft.flow import KINDS, Key
from ocsf_nft.lab import GATEWAY4, GATEWAY6, INTERNET4, INTERNET6, PROXY_PORT, SANDBOX4, SANDBOX6
from tests.kernel import accounts, conftest, headers, verdicts
from tests.kernel.packets import ETH_IP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocsf_nft.flow import Kind, Reading
    from tests.kernel.verdicts import Bench

pytestmark = pytest.mark.kernel

_SPEC: Final = FenceSpec(sandbox="lab", proxies=(endpoint(f"{GATEWAY4}:{PROXY_PORT}"),))
_ROOT, _NO_OWNER = 0, 0xFFFF_FFFF
_WITH_PORTS: Final = {6: "tcp", 17: "udp", 33: "dccp", 132: "sctp", 136: "udplite"}
_WITHOUT_PORTS: Final = {1: "icmp", 47: "gre", 50: "esp", 58: "icmpv6", 253: "experiment"}
_FLOW_BURST, _OTHER_BURST, _OVERFLOW_BURST = 4, 10, 200
_DNS_BURST, _DNS_RATE, _DNS_SLOTS = 400, 10, 64
_UNKNOWN: Final = 0x88B5
_SECONDS: Final = 5.0
#: Each packet goes to a different port, so that it has its own element.
_PORTS: Final = itertools.count(5000)


@pytest.fixture
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with verdicts.bench(_SPEC, StateDirectory(tmp_path_factory.mktemp("rules"))) as made:
        yield made


@pytest.fixture
def reader(bench: Bench) -> Iterator[Counters]:
    with Counters(bench.installed) as opened:
        yield opened


def _key(uid: int, protocol: int, to: str, port: int) -> Key:
    """Return the element of a flow in the layout of nftables."""
    address = ipaddress.ip_address(to).packed
    kind: Kind = "flows4" if len(address) == 4 else "flows6"
    data = struct.pack("=I", uid) + struct.pack("!B3x", protocol) + address
    return Key(kind, data + struct.pack("!H2x", port))


def _other_key(uid: int, ethertype: int, protocol: int) -> Key:
    return Key("others", struct.pack("=I", uid) + struct.pack("!H2xB3x", ethertype, protocol))


def _elements(reading: Reading, rule: str) -> dict[Key, int]:
    elements = accounts.elements_of(reading.rules[rule])
    return {
        Key(kind, element.data): element.packets for kind in KINDS for element in elements[kind]
    }


def _counted(
    bench: Bench, reader: Counters, rule: str, send: Callable[[], None], times: int = 1
) -> tuple[dict[Key, int], int, int]:
    """Send; return the increase of the elements, the overflow and the log counter."""
    before, expected = reader.read(), bench.counts()[rule] + times
    for _ in range(times):
        send()
    end = time.monotonic() + _SECONDS
    while bench.counts()[rule] < expected:
        assert time.monotonic() < end, "not counted"
        time.sleep(0.005)
    after = reader.read()
    elements = _elements(before, rule)
    grown = {
        key: count - elements.get(key, 0)
        for key, count in _elements(after, rule).items()
        if count != elements.get(key, 0)
    }
    overflow = after.rules[rule].overflow.packets - before.rules[rule].overflow.packets
    return grown, overflow, after.rules[rule].logged - before.rules[rule].logged


def _packets(source: str, to: str) -> Iterator[tuple[str, bytes, int, int]]:
    """Yield packets of one family: name, packet, and protocol and port of their element."""
    for number, name in _WITH_PORTS.items():
        port = next(_PORTS)
        yield (
            name,
            headers.other(source, to, number, struct.pack("!HH12x", 4000, port)),
            number,
            port,
        )
    for number, name in _WITHOUT_PORTS.items():
        yield name, headers.other(source, to, number, b"\1\2\3\4" * 4), number, 0
    yield from (_fragments6 if ":" in to else _fragments4)(source, to)


def _fragments4(source: str, to: str) -> Iterator[tuple[str, bytes, int, int]]:
    for name, field in (
        ("first", 0x2000),
        ("second", 0x0001),
        ("last", 0x1FFF),
        ("middle", 0x3F00),
    ):
        packet = headers.udp(source, to, next(_PORTS))
        yield f"{name} fragment", headers.with_flags4(packet, field), 17, 0
    port = next(_PORTS)
    whole = headers.with_flags4(headers.udp(source, to, port), headers.DONT_FRAGMENT)
    yield "not to be fragmented", whole, 17, port


def _fragments6(source: str, to: str) -> Iterator[tuple[str, bytes, int, int]]:
    for name, offset, more in (("first", 0, 1), ("last", 1, 0)):
        packet = headers.udp(source, to, next(_PORTS))
        yield f"{name} fragment", headers.fragment6(packet, offset, more), 17, 0
    port = next(_PORTS)
    packet = headers.with_extension6(headers.udp(source, to, port))
    yield "options before the datagram", packet, 17, port


@pytest.mark.parametrize(
    ("rule", "uid"), [("egress", _ROOT), ("egress", _NO_OWNER), ("forward", _NO_OWNER)]
)
def test_accounting_counts_each_packet_by_its_flow_and_logs_it(
    bench: Bench, reader: Counters, rule: str, uid: int
) -> None:
    send: Callable[[bytes], None] = bench.arrives
    if rule == "egress":
        send = bench.owned if uid == _ROOT else bench.unowned
    wrong = {}
    # A packet that arrives and is forwarded does not come from the sandbox itself.
    own4, own6 = (GATEWAY4, GATEWAY6) if rule == "forward" else (SANDBOX4, SANDBOX6)
    for own, to in ((own4, INTERNET4), (own6, INTERNET6)):
        flows: set[Key] = set()
        for name, packet, protocol, port in _packets(own, to):
            # A copy without an owner leaves without fragmentation.
            if (
                uid == _NO_OWNER
                and rule == "egress"
                and name.endswith(" fragment")
                and ":" not in to
            ):
                continue
            key = _key(uid, protocol, to, port)
            found = _counted(bench, reader, rule, partial(send, packet))
            expected = ({key: 1}, 0, 1)
            if found != expected and not (key in flows and found[:2] == expected[:2]):
                wrong[f"{name} to {to}"] = found
            flows.add(key)
    assert not wrong


def test_accounting_counts_other_frames_by_their_ethertype(bench: Bench, reader: Counters) -> None:
    for send, uid in ((bench.frame, _ROOT), (bench.unowned_frame, _NO_OWNER)):
        for kind, payload in ((_UNKNOWN, bytes(46)), (ETH_IP, bytes(2)), (0x8847, bytes(46))):
            found = _counted(bench, reader, "link", partial(send, kind, payload))
            assert found == ({_other_key(uid, kind, 0): 1}, 0, 1), (uid, hex(kind))


@pytest.mark.parametrize("is_owned", [True, False], ids=["owned", "unowned"])
def test_accounting_logs_the_first_packets_of_each_flow_and_counts_all(
    bench: Bench, reader: Counters, is_owned: bool
) -> None:
    uid = _ROOT if is_owned else _NO_OWNER
    send = bench.owned if is_owned else bench.unowned
    frame = bench.frame if is_owned else bench.unowned_frame
    times = 3 * _OTHER_BURST
    for own, to in ((SANDBOX4, INTERNET4), (SANDBOX6, INTERNET6)):
        for packet, protocol, port in (
            (headers.udp(own, to, 7000), 17, 7000),
            (headers.other(own, to, 47, bytes(16)), 47, 0),
        ):
            began = time.monotonic()
            found = _counted(bench, reader, "egress", partial(send, packet), times)
            assert found[0] == {_key(uid, protocol, to, port): times}
            assert _FLOW_BURST <= found[2] <= _FLOW_BURST + time.monotonic() - began
    began = time.monotonic()
    found = _counted(bench, reader, "link", partial(frame, _UNKNOWN, bytes(46)), times)
    assert found[0] == {_other_key(uid, _UNKNOWN, 0): times}
    assert _OTHER_BURST <= found[2] <= _OTHER_BURST + time.monotonic() - began


@pytest.mark.parametrize("is_owned", [True, False], ids=["owned", "unowned"])
def test_accounting_logs_hundreds_of_packets_of_a_flow_to_port_53(
    bench: Bench, reader: Counters, is_owned: bool
) -> None:
    """The flow's usual budget follows, and flows without a slot have that one alone."""
    uid = _ROOT if is_owned else _NO_OWNER
    send = bench.owned if is_owned else bench.unowned
    at_once, times = _DNS_BURST + _FLOW_BURST, _DNS_BURST + 3 * _FLOW_BURST
    for version, own, to, other in (
        (4, SANDBOX4, INTERNET4, "192.0.2.1"),
        (6, SANDBOX6, INTERNET6, "2001:db8::1"),
    ):
        packet = headers.udp(own, to, 53)
        began = time.monotonic()
        found = _counted(bench, reader, "egress", partial(send, packet), times)
        seconds = time.monotonic() - began
        assert found[:2] == ({_key(uid, 17, to, 53): times}, 0)
        assert at_once <= found[2] <= min(times, at_once + (_DNS_RATE + 1) * seconds)
        # Another flow has its own budget.
        packet = headers.other(
            own, to, 6, struct.pack("!HHIIBBHHH", 4000, 53, 0, 0, 80, 2, 1, 0, 0)
        )
        found = _counted(bench, reader, "egress", partial(send, packet), 3 * _FLOW_BURST)
        assert found[1:] == (0, 3 * _FLOW_BURST)
        elements = (f"7 . udp . {ipaddress.ip_address(to) + n}" for n in range(_DNS_SLOTS))
        name = f"inet ocsf_nft logged_dns{version}_egress"
        conftest.nft(bench.lab.sandbox_namespace, "flush", "set", *name.split())
        conftest.load(
            bench.lab.sandbox_namespace, f"add element {name} {{ {', '.join(elements)} }}\n"
        )
        began = time.monotonic()
        packet = headers.udp(own, other, 53)
        found = _counted(bench, reader, "egress", partial(send, packet), 3 * _FLOW_BURST)
        assert found[:2] == ({_key(uid, 17, other, 53): 3 * _FLOW_BURST}, 0)
        assert _FLOW_BURST <= found[2] <= _FLOW_BURST + time.monotonic() - began


def test_accounting_of_full_sets_counts_by_sender_and_then_in_total(
    bench: Bench, reader: Counters
) -> None:
    times = 3 * _OTHER_BURST
    for kind, own, to, ethertype in (
        ("flows6", SANDBOX6, INTERNET6, 0x86DD),
        ("flows4", SANDBOX4, INTERNET4, 0x0800),
    ):
        conftest.nft(bench.lab.sandbox_namespace, "flush set inet ocsf_nft flows6_egress")
        make = type(ipaddress.ip_address(to))
        _fill(bench, kind, (f"7 . udp . {make(number)} . 9" for number in range(1 << 15)))
        packet = headers.udp(own, to, 7000)
        for send, uid in ((bench.owned, _ROOT), (bench.unowned, _NO_OWNER)):
            began = time.monotonic()
            found = _counted(bench, reader, "egress", partial(send, packet), times)
            assert found[:2] == ({_other_key(uid, ethertype, 17): times}, 0)
            assert _OTHER_BURST <= found[2] <= _OTHER_BURST + time.monotonic() - began
    _fill(bench, "others", (f"{n} . arp . tcp" for n in range(1 << 10)))
    packet = headers.other(SANDBOX4, INTERNET4, 47, bytes(16))
    grown, overflow, logged = _counted(bench, reader, "egress", partial(bench.unowned, packet), 1)
    assert (grown, overflow, logged) == ({}, 1, 1)
    times = 2 * _OVERFLOW_BURST
    began = time.monotonic()
    grown, overflow, logged = _counted(bench, reader, "egress", partial(bench.owned, packet), times)
    assert (grown, overflow) == ({}, times)
    seconds = time.monotonic() - began
    assert _OVERFLOW_BURST - 1 <= logged <= min(times, _OVERFLOW_BURST + 100 * seconds)


def _fill(bench: Bench, kind: str, elements: Iterator[str]) -> None:
    """Fill a set of the rule `egress` up to its size."""
    namespace = bench.lab.sandbox_namespace
    name = f"inet ocsf_nft {kind}_egress"
    conftest.nft(namespace, "flush", "set", *name.split())
    listed = ", ".join(itertools.islice(elements, rule_counters.SIZES[cast("Kind", kind)]))
    conftest.load(namespace, f"add element {name} {{ {listed} }}\n")
