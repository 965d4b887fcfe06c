"""Counters of a fence are exact, also while packets, flows and tables change."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ocsf_nft import privileges
from ocsf_nft.errors import AbsentError, UnsupportedError
from ocsf_nft.fence import installer
from ocsf_nft.fence.counter_elements import ElementParser
from ocsf_nft.fence.counters import Counters
from ocsf_nft.flow import KINDS, Count, Flow, Key, flow
from ocsf_nft.lab import GATEWAY_MAC, INTERNET4, INTERNET6, SANDBOX4
from ocsf_nft.privileges import Capability
from tests.kernel import accounts, attempts, flooding, full_sets, packets
from tests.kernel.conftest import SANDBOX, nft, without_ipv6

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.fence.spec import FenceSpec
    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.flow import Element, Reading, RuleReading
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

_UID = 4242
_FLOOD = Path(__file__).with_name("flood.py")
_MANY_FLOWS = """
import contextlib, os, socket
socks = []
for uid in (1001, 1002, 1003):  # each with less than its quota
    os.seteuid(uid)
    socks.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    os.seteuid(0)
for number in range(12_000):
    with contextlib.suppress(OSError):
        socks[number // 4000].sendto(b"flood", (f"203.0.{number // 250}.{number % 250 + 1}", 9))
"""


@pytest.fixture
def installed(lab: Lab, spec: FenceSpec, state: StateDirectory) -> InstalledFence:
    return installer.install(spec, lab.sandbox_namespace, state, "nflog")


@pytest.fixture
def reader(installed: InstalledFence) -> Iterator[Counters]:
    with Counters(installed) as opened:
        yield opened


def flow_counts(rule: RuleReading) -> dict[Flow, Count]:
    """Return each flow and its count."""
    elements = accounts.elements_of(rule)
    found = {
        flow(Key(kind, element.data)): Count(element.packets, element.bytes)
        for kind in KINDS
        for element in elements[kind]
    }
    assert len(found) == sum(map(len, elements.values()))
    return found


def accounted(rule: RuleReading) -> int:
    return sum(count.packets for count in flow_counts(rule).values()) + rule.overflow.packets


def at_rest(reader: Counters) -> Reading:
    """Return a reading during which no packet arrived: the kernel sends some by itself."""
    for _ in range(20):
        reading = reader.read()
        if all(rule.refused_before == rule.refused for rule in reading.rules.values()):
            return reading
    raise AssertionError("packets arrive during each reading")


def test_each_flow_is_read_with_its_own_count(lab: Lab, reader: Counters) -> None:
    namespace = lab.sandbox_namespace
    namespace.call(attempts.allow_ping)
    attempts.attempt(namespace, _UID, 3, *(kind for kind, *_ in attempts.UNPRIVILEGED))
    attempts.attempt(namespace, 0, 2, "raw4", "raw6", "udp4")
    reading = at_rest(reader)
    assert reading.rules.keys() == {"egress", "forward", "ingress", "link"}
    egress = reading.rules["egress"]
    found = {
        one: count
        for one, count in flow_counts(egress).items()
        if one.destination in {INTERNET4, INTERNET6}
    }
    assert {one: count.packets for one, count in found.items()} == {
        Flow(uid=uid, protocol=protocol, destination=destination, port=port): packets_sent
        for uid, protocol, destination, port, packets_sent in (
            (_UID, 6, INTERNET4, 443, 3),
            (_UID, 6, INTERNET6, 443, 3),
            (_UID, 17, INTERNET4, 443, 3),
            (_UID, 17, INTERNET6, 443, 3),
            (_UID, 1, INTERNET4, None, 3),
            (_UID, 58, INTERNET6, None, 3),
            (0, attempts.EXPERIMENT, INTERNET4, None, 2),
            (0, attempts.EXPERIMENT, INTERNET6, None, 2),
            (0, 17, INTERNET4, 443, 2),
        )
    }
    udp = Flow(uid=_UID, protocol=17, destination=INTERNET4, port=443)
    assert found[udp].bytes == 3 * (20 + 8 + len("bypass"))
    for rule in reading.rules.values():
        assert accounted(rule) == rule.refused.packets
        assert rule.overflow == Count()


def test_frames_and_incoming_packets_are_counted_in_their_own_rules(
    lab: Lab, reader: Counters
) -> None:
    def send_frames() -> None:
        gateway = bytes.fromhex(GATEWAY_MAC.replace(":", ""))
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            sock.bind((lab.sandbox_device, 0))
            own = sock.getsockname()[4]
            packet = packets.ip4(SANDBOX4, INTERNET4, 17, packets.udp(53))
            for kind, payload in ((packets.ETH_IP, packet), (0x88B5, b"by af_packet")):
                with contextlib.suppress(OSError):
                    sock.sendto(
                        packets.frame(gateway, own, kind, payload), (lab.sandbox_device, kind)
                    )

    def send_in() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"in", (SANDBOX4, 9001))

    lab.sandbox_namespace.call(send_frames)
    lab.gateway_namespace.call(send_in)
    incoming = Flow(uid=None, protocol=17, destination=SANDBOX4, port=9001)
    # The packet waits for its neighbour's address, and for a processor.
    rules = _until_counted(reader, "ingress", incoming, 1).rules
    link = flow_counts(rules["link"])
    assert link[Flow(uid=0, protocol=17, destination=INTERNET4, port=53)].packets == 1
    assert link[Flow(uid=0, protocol=None, ethertype=0x88B5)].packets == 1
    assert flow_counts(rules["ingress"])[incoming] == Count(1, 30)
    assert rules["forward"].refused == Count()


def _until_counted(reader: Counters, rule: str, one: Flow, number: int) -> Reading:
    """Wait until a rule has counted a number of a flow's packets, and return that reading."""
    end = time.monotonic() + 60
    while True:
        reading = at_rest(reader)
        if flow_counts(reading.rules[rule]).get(one, Count()).packets >= number:
            return reading
        assert time.monotonic() < end, "too few packets arrived"
        time.sleep(0.01)


def test_guard_is_read_in_its_namespace(lab: Lab, spec: FenceSpec, state: StateDirectory) -> None:
    guarded = dataclasses.replace(spec, guard_device=lab.gateway_device)
    one = Flow(uid=None, protocol=attempts.EXPERIMENT, destination=INTERNET4)

    def here() -> Reading:
        installed = installer.install(guarded, lab.sandbox_namespace, state, "nflog")
        try:
            with Counters(installed) as reader:
                nft(lab.sandbox_namespace, "flush ruleset")
                attempts.attempt(lab.sandbox_namespace, 0, 4, "raw4")
                return _until_counted(reader, "guard", one, 4)
        finally:
            installer.remove(SANDBOX, state)

    reading = lab.gateway_namespace.call(here)
    assert reading.rules.keys() == reading.epochs.keys() == {"guard", "guard-ingress"}
    assert flow_counts(reading.rules["guard"])[one].packets == 4


def test_flood_is_accounted_for_at_any_time(lab: Lab, reader: Counters) -> None:
    # The flow exists before the first reading, when no packet is on its way.
    attempts.attempt(lab.sandbox_namespace, 0, 1, "flood")
    senders = [
        lab.sandbox_namespace.call(
            lambda: subprocess.Popen(
                [sys.executable, str(_FLOOD), INTERNET4, "600"], stdout=subprocess.DEVNULL
            )
        )
        for _ in range(2)
    ]
    try:
        readings, begun = 0, reader.read().rules["egress"].refused.packets
        end: float | None = None
        while readings <= 10 or end is None or time.monotonic() < end:
            egress = reader.read().rules["egress"]
            counted = accounted(egress)
            # A packet in progress on a processor is in the total and not yet in its flow.
            assert egress.refused_before.packets - len(senders) <= counted <= egress.refused.packets
            assert all(sender.poll() is None for sender in senders)
            # The kernel sends a few packets by itself.
            if egress.refused.packets > begun + 1_000:
                readings += 1
                end = end or time.monotonic() + 1
    finally:
        for sender in senders:
            sender.terminate()
            sender.wait()
    egress = at_rest(reader).rules["egress"]
    assert accounted(egress) == egress.refused.packets


def test_new_flows_during_a_reading_are_read_once_and_none_is_missed(
    lab: Lab, reader: Counters
) -> None:
    sender = lab.sandbox_namespace.call(
        lambda: subprocess.Popen([sys.executable, "-c", _MANY_FLOWS])
    )
    known: set[Flow] = set()
    while sender.poll() is None:
        egress = reader.read().rules["egress"]
        flows = flow_counts(egress)
        assert known <= flows.keys()
        assert accounted(egress) <= egress.refused.packets
        known |= flows.keys()
    egress = at_rest(reader).rules["egress"]
    assert len(flow_counts(egress)) >= 12_000
    assert accounted(egress) == egress.refused.packets


def test_elements_of_this_kernel_are_parsed_at_once(
    lab: Lab, reader: Counters, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.sandbox_namespace.call(attempts.allow_ping)
    kinds = [kind for kind, *_ in (*attempts.UNPRIVILEGED, *attempts.PRIVILEGED)]
    attempts.attempt(lab.sandbox_namespace, 0, 1, *kinds)
    expected = accounts.elements_of(reader.read().rules["egress"])

    def one_by_one(_elements: ElementParser, payload: memoryview) -> list[Element]:
        assert not payload, "an element has another layout than the one before"
        return []

    monkeypatch.setattr(ElementParser, "parse_one_by_one", one_by_one)
    found = accounts.elements_of(reader.read().rules["egress"])
    for kind in KINDS:
        before, after = ({each.data for each in of[kind]} for of in (expected, found))
        assert before <= after
        # The kernel joins IPv6 multicast groups by itself.
        assert {flow(Key(kind, data)).protocol for data in after - before} <= {58}
    assert len(found["flows4"]) >= 4
    assert len(found["flows6"]) >= 4


def test_element_has_the_time_since_its_last_packet(lab: Lab, reader: Counters) -> None:
    nft(
        lab.sandbox_namespace,
        f"add element inet ocsf_nft flows4_egress {{ 1 . 17 . {INTERNET4} . 1 expires 9m }}",
    )
    nft(
        lab.sandbox_namespace,
        f"add element inet ocsf_nft flows4_egress {{ 2 . 17 . {INTERNET4} . 1 timeout 2h }}",
    )
    attempts.attempt(lab.sandbox_namespace, 3, 1, "udp4")
    idle = {
        flow(Key("flows4", element.data)).uid: element.idle_ms
        for element in accounts.elements_of(reader.read().rules["egress"])["flows4"]
    }
    assert 60_000 <= idle[1] < 90_000
    assert idle[2] < 30_000
    assert idle[3] < 30_000


def test_deleted_table_has_no_rules(lab: Lab, reader: Counters) -> None:
    nft(lab.sandbox_namespace, "delete table inet ocsf_nft")
    assert reader.read().rules.keys() == reader.read().epochs.keys() == {"link"}
    nft(lab.sandbox_namespace, "delete table netdev ocsf_nft")
    assert not reader.read().rules


def test_rule_is_left_out_while_records_of_its_latest_packets_are_on_their_way(
    lab: Lab, reader: Counters
) -> None:
    lab.sandbox_namespace.call(without_ipv6)
    unchanged = dict.fromkeys(at_rest(reader).rules, 0)
    attempts.attempt(lab.sandbox_namespace, _UID, 2, "udp4")
    assert reader.read({**unchanged, "egress": 1}).explained == ["egress"]
    assert reader.read({**unchanged, "egress": 2}).explained == ["egress"]
    attempts.attempt(lab.sandbox_namespace, _UID + 1, 2, "udp4")
    assert reader.read({**unchanged, "egress": 3}).explained == ["egress"]
    # The fourth record did not come until the next reading.
    assert reader.read({**unchanged, "egress": 3}).rules["egress"].elements is not None


@pytest.mark.parametrize("other", [0, 1, 3])
def test_rule_is_left_out_only_if_log_records_explain_its_growth(
    lab: Lab, reader: Counters, other: int
) -> None:
    lab.sandbox_namespace.call(without_ipv6)
    first = at_rest(reader)
    unchanged = dict.fromkeys(first.rules, 0)
    assert {each.elements for each in reader.read(unchanged).rules.values()} == {None}
    attempts.attempt(lab.sandbox_namespace, _UID, 2, "udp4")
    for _ in range(2):  # the number is that since the last reading of the flows
        found = reader.read({**unchanged, "egress": 2})
        assert found.rules.keys() == found.epochs.keys() == first.rules.keys() - {"egress"}
        assert found.explained == ["egress"]
    egress = reader.read({**unchanged, "egress": other}).rules["egress"]
    assert egress.refused.packets == first.rules["egress"].refused.packets + 2
    assert accounted(egress) == egress.refused.packets


def test_recreated_table_is_read_although_log_records_explain_its_total(
    lab: Lab, spec: FenceSpec, state: StateDirectory, reader: Counters
) -> None:
    lab.sandbox_namespace.call(without_ipv6)
    first = at_rest(reader)
    nft(lab.sandbox_namespace, "delete table inet ocsf_nft")
    assert reader.read(dict.fromkeys(first.rules, 0)).rules.keys() == {"link"}
    installer.install(spec, lab.sandbox_namespace, state, "nflog")
    found = reader.read(dict.fromkeys(first.rules, 0))
    assert found.rules.keys() == first.rules.keys()
    renewed = {each for each in first.rules if found.epochs[each] != first.epochs[each]}
    assert renewed == first.rules.keys() - {"link"}


def test_recreated_chains_do_not_change_the_epoch_of_the_counters(
    lab: Lab, reader: Counters
) -> None:
    before = reader.read()
    nft(lab.sandbox_namespace, "flush chain inet ocsf_nft forward; "
        "delete chain inet ocsf_nft forward; "
        "add chain inet ocsf_nft forward { type filter hook forward priority 0; policy drop; }; "
        "add rule inet ocsf_nft forward jump account_forward")  # fmt: skip
    assert reader.read().epochs == before.epochs


def test_recreated_table_has_counters_of_another_epoch(
    lab: Lab, spec: FenceSpec, state: StateDirectory, reader: Counters
) -> None:
    before = reader.read().epochs
    installer.remove(SANDBOX, state)
    installer.install(spec, lab.sandbox_namespace, state, "nflog")
    after = reader.read().epochs
    assert before.keys() == after.keys()
    assert not set(before.values()) & set(after.values())


@pytest.mark.parametrize(
    ("part", "changed"),
    [
        ("set inet ocsf_nft others_forward", set()),  # the total stays
        ("counter inet ocsf_nft refused_forward", {"forward"}),
    ],
    ids=["set", "counter"],
)
def test_recreated_counter_changes_only_the_epoch_of_its_rule(
    lab: Lab, reader: Counters, part: str, changed: set[str]
) -> None:
    before = reader.read().epochs
    form = "{ typeof meta skuid . meta protocol . meta l4proto; flags dynamic; }"
    nft(lab.sandbox_namespace, "flush table inet ocsf_nft")
    nft(lab.sandbox_namespace, f"delete {part}; add {part} {form if 'set' in part else ''}")
    after = reader.read().epochs
    assert {rule for rule in before if before[rule] != after[rule]} == changed


def test_counters_of_two_namespaces_are_never_the_same(
    lab: Lab, spec: FenceSpec, state: StateDirectory, reader: Counters, tmp_path: Path
) -> None:
    other = type(state)(tmp_path / "other")
    twin = installer.install(spec, lab.gateway_namespace, other, "nflog")
    with Counters(twin) as second:
        assert not set(reader.read().epochs.values()) & set(second.read().epochs.values())


def test_replaced_namespace_is_not_read(installed: InstalledFence) -> None:
    moved = dataclasses.replace(installed, identity="0:0")
    with pytest.raises(AbsentError, match="no longer the namespace"):
        Counters(moved).open()


def test_without_the_privilege_nothing_is_opened_or_read(
    lab: Lab, installed: InstalledFence, reader: Counters
) -> None:
    def without() -> None:
        privileges.keep_only({Capability.SYS_ADMIN})
        with pytest.raises(UnsupportedError, match="with CAP_NET_ADMIN over it"):
            Counters(installed).open()
        with pytest.raises(UnsupportedError, match="with CAP_NET_ADMIN over it"):
            reader.read()

    lab.sandbox_namespace.call(without)
    assert reader.read().rules.keys() == {"egress", "forward", "ingress", "link"}


def test_packets_without_a_free_element_are_counted_and_share_one_log_limit(
    fenced: Lab, installed: InstalledFence
) -> None:
    """Several floods of thousands of users fill the sets of a rule."""
    fenced.sandbox_namespace.call(without_ipv6)
    full_sets.fill_shared(fenced.sandbox_namespace)
    full_sets.fill_reserve(fenced.sandbox_namespace)
    full_sets.fill_others(fenced.sandbox_namespace)
    with Counters(installed) as counters:
        began = counters.read().rules["egress"]
        before = time.monotonic()
        assert flooding.start(fenced.sandbox_namespace, "users", "5000", "1000").wait(60) == 0
        took = time.monotonic() - before
        ended = counters.read().rules["egress"]
    assert ended.overflow.packets - began.overflow.packets == 1000
    assert ended.refused.packets - began.refused.packets == 1000
    # 200 at once and 100 a second, minus those that earlier packets have used.
    assert 0 < ended.logged - began.logged <= 200 + 100 * took + 1
    by_kind = accounts.elements_of(ended).values()
    in_elements = sum(element.packets for found in by_kind for element in found)
    assert in_elements + ended.overflow.packets == ended.refused.packets
