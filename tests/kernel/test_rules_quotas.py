"""Quotas of new flows per user, and the reserve for first flows, in rules/accounting.nft."""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import pytest

from ocsf_nft.fence.counters import Counters
from ocsf_nft.fence.spec import FenceSpec
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.fence.values import endpoint
from ocsf_nft.flow import Key, flow, user_of
from ocsf_nft.lab import GATEWAY4, INTERNET4, INTERNET6, PROXY_PORT, SANDBOX4, SANDBOX6
from tests.kernel import accounts, conftest, full_sets, headers, verdicts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocsf_nft.flow import RuleReading
    from tests.kernel.verdicts import Bench

pytestmark = pytest.mark.kernel

_SPEC: Final = FenceSpec(sandbox="lab", proxies=(endpoint(f"{GATEWAY4}:{PROXY_PORT}"),))
_BURST, _FIRST = 4096, 4
#: New flows of a burst for which a busy kernel may have no memory at hand, when they come.
_WITHOUT_MEMORY = 400
_USER, _OTHER_USER = 3000, 3001


@pytest.fixture
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with verdicts.bench(_SPEC, StateDirectory(tmp_path_factory.mktemp("rules"))) as made:
        yield made


@pytest.fixture
def reader(bench: Bench) -> Iterator[Counters]:
    with Counters(bench.installed) as opened:
        yield opened


def _send_as(uid: int, to: str, ports: range, data: bytes = b"x") -> Callable[[], None]:
    """Return a function that sends one datagram to each port, from a socket of a user."""

    def send() -> None:
        family = socket.AF_INET6 if ":" in to else socket.AF_INET
        os.seteuid(uid)
        try:
            sock = socket.socket(family, socket.SOCK_DGRAM)
        finally:
            os.seteuid(0)
        with sock:
            for port in ports:
                try:
                    sock.sendto(data, (to, port))
                except OSError:
                    continue

    return send


def _send(bench: Bench, uid: int, to: str, ports: range) -> None:
    bench.lab.sandbox_namespace.call(_send_as(uid, to, ports))


class _Counted:
    """Packets of a reading by user: in flows, by destination and port, and in ``others``."""

    def __init__(self, found: RuleReading) -> None:
        self.flows: dict[int | None, Counter[tuple[str | None, int | None]]] = {}
        #: Slots in the sets of flows.
        self.slots: Counter[int | None] = Counter()
        self.others: Counter[int | None] = Counter()
        for kind, elements in accounts.elements_of(found).items():
            for element in elements:
                key = Key(kind, element.data)
                if kind == "others":
                    self.others[user_of(key)] += element.packets
                else:
                    decoded = flow(key)
                    self.slots[decoded.uid] += 1
                    where = decoded.destination, decoded.port
                    self.flows.setdefault(decoded.uid, Counter())[where] += element.packets
        total = sum(sum(each.values()) for each in self.flows.values()) + self.others.total()
        # Each refused packet is counted exactly once more.
        assert total + found.overflow.packets == found.refused.packets


def _read(reader: Counters) -> _Counted:
    return _Counted(reader.read().rules["egress"])


def test_flood_of_new_flows_of_a_user_leaves_slots_to_all_others(
    bench: Bench, reader: Counters
) -> None:
    number = 2 * _BURST
    for to in (INTERNET4, INTERNET6):
        _send(bench, _USER, to, range(1, 1 + number))
    counted = _read(reader)
    # Both IP versions share the quota.
    assert _BURST - _WITHOUT_MEMORY <= counted.slots[_USER] < number
    assert counted.others[_USER] == 2 * number - counted.slots[_USER]
    # A flow with a slot is counted in it, also while its user has no quota.
    _send(bench, _USER, INTERNET4, range(1, 11))
    assert _read(reader).flows[_USER][INTERNET4, 1] == 2
    _send(bench, _OTHER_USER, INTERNET4, range(1, 13))
    bench.unowned(headers.udp(SANDBOX4, INTERNET4, 7000))
    after = _read(reader)
    assert after.flows[_OTHER_USER] == Counter({(INTERNET4, port): 1 for port in range(1, 13)})
    assert after.flows[None][INTERNET4, 7000] == 1
    assert after.others.keys() == {_USER}


@pytest.mark.parametrize("to", [INTERNET4, INTERNET6])
def test_first_flows_of_a_user_have_slots_when_others_fill_all_shared_ones(
    bench: Bench, reader: Counters, to: str
) -> None:
    full_sets.fill_shared(bench.lab.sandbox_namespace)
    for uid in (_USER, _OTHER_USER):
        _send(bench, uid, to, range(1, 9))
        _send(bench, uid, to, range(1, 9))
    counted = _read(reader)
    for uid in (_USER, _OTHER_USER):
        assert counted.flows[uid] == Counter({(to, port): 2 for port in range(1, 1 + _FIRST)})
        assert counted.others[uid] == 2 * (8 - _FIRST)


def test_packets_without_ports_have_the_same_quotas(bench: Bench, reader: Counters) -> None:
    full_sets.fill_shared(bench.lab.sandbox_namespace)
    for version in (4, 6):
        protocols = range(200, 206)
        own, to = (SANDBOX4, INTERNET4) if version == 4 else (SANDBOX6, INTERNET6)
        for protocol in protocols:
            for send in (bench.owned, bench.unowned):
                send(headers.other(own, to, protocol, bytes(16)))
    counted = _read(reader)
    assert counted.slots[0] == _FIRST
    assert counted.others[0] == 12 - _FIRST
    # The kernel sends router solicitations without a socket.
    without_socket = counted.flows[None]
    assert 1 <= without_socket[INTERNET4, None] + without_socket[INTERNET6, None] <= _FIRST
    assert counted.others[None] >= 12 - _FIRST


def test_users_beyond_all_limits_are_counted_without_their_flows(
    bench: Bench, reader: Counters
) -> None:
    full_sets.fill_shared(bench.lab.sandbox_namespace)
    full_sets.fill_reserve(bench.lab.sandbox_namespace)
    _send(bench, _USER, INTERNET4, range(1, 9))
    counted = _read(reader)
    assert counted.slots[_USER] == 0
    assert counted.others[_USER] == 8


def test_logged_packet_extends_the_time_of_its_shared_slot(bench: Bench, reader: Counters) -> None:
    element = f"{_USER} . udp . {INTERNET4} . 9"
    full_sets.fill(bench.lab.sandbox_namespace, "shared4", [f"{element} expires 30s"])
    _send(bench, _USER, INTERNET4, range(9, 10))  # the new flow uses the slot
    assert _seconds_left(bench) > 600
    full_sets.fill(bench.lab.sandbox_namespace, "shared4", [f"{element} expires 30s"])
    _send(bench, _USER, INTERNET4, range(9, 10))  # the known flow is logged
    assert _seconds_left(bench) > 600
    assert _read(reader).flows[_USER] == Counter({(INTERNET4, 9): 2})
    # A flow in the reserve gets no shared slot.
    conftest.nft(bench.lab.sandbox_namespace, "flush set inet ocsf_nft shared4_egress")
    _send(bench, _USER, INTERNET4, range(9, 10))
    assert not _shared(bench)


def _shared(bench: Bench) -> list[dict[str, Any]]:
    namespace = bench.lab.sandbox_namespace
    listed = conftest.nft(namespace, "-j", "list", "set", "inet", "ocsf_nft", "shared4_egress")
    found: list[dict[str, Any]] = json.loads(listed)["nftables"][1]["set"].get("elem", [])
    return found


def _seconds_left(bench: Bench) -> int:
    (found,) = _shared(bench)
    left: int = found["elem"]["expires"]
    return left
