"""The documented limits of fan-outs, aggregation and quotas, each by its number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ocsf_nft.attempt import FanOut
from ocsf_nft.flow import Count, CounterId, flow
from ocsf_nft.flows import rule_account
from ocsf_nft.flows.flow_counter import FlowCounter
from ocsf_nft.flows.overflow import Admission, Aggregates, Quota
from ocsf_nft.flows.sandbox_account import Balance, SandboxAccount
from ocsf_nft.flows.scans import FanOuts
from tests.flows.kernel_model import Packet
from tests.flows.reading import NOW, SECOND, attempts, key, observe, reading, record, tcp

if TYPE_CHECKING:
    from ocsf_nft.flows.incidents import Opened

COUNTER_ID = CounterId(sandbox="sb", rule="egress", epoch="boot:1")
MINUTE = 60 * SECOND


def _add_flows(fan_outs: FanOuts, flows: int, *, uid: int = 1000, at_ns: int = NOW) -> None:
    for port in range(1, flows + 1):
        fan_outs.add_flow(key(tcp(port, uid=uid)), at_ns)


def _due(fan_outs: FanOuts, now_ns: int) -> list[tuple[str, int | None]]:
    return [(each.stage, each.uid) for each in fan_outs.due(now_ns)]


@pytest.mark.parametrize(("flows", "begun"), [(19, 0), (20, 1)])
def test_fan_out_begins_with_twenty_flows(flows: int, begun: int) -> None:
    fan_outs = FanOuts(COUNTER_ID, {})
    _add_flows(fan_outs, flows)
    assert len(list(fan_outs.due(0))) == begun


@pytest.mark.parametrize(("late_ns", "begun"), [(0, 1), (1, 0)])
def test_fan_out_begins_only_within_a_minute(late_ns: int, begun: int) -> None:
    fan_outs = FanOuts(COUNTER_ID, {})
    start = 1000 * SECOND
    _add_flows(fan_outs, 1)
    assert _due(fan_outs, start) == []
    _add_flows(fan_outs, 1)
    assert _due(fan_outs, start + MINUTE + late_ns) == []
    _add_flows(fan_outs, 18)
    assert len(_due(fan_outs, start + MINUTE + 2)) == begun


def test_fan_out_ends_a_minute_after_its_last_flow() -> None:
    fan_outs = FanOuts(COUNTER_ID, {})
    _add_flows(fan_outs, 20)
    stages = [stage for stage, _ in _due(fan_outs, 0)]
    for half in range(1, 11):
        _add_flows(fan_outs, 1, at_ns=NOW + half * 30 * SECOND)
        stages += [stage for stage, _ in _due(fan_outs, half * 30 * SECOND)]
    assert stages == ["begun", *["goes on"] * 7]
    assert _due(fan_outs, 6 * MINUTE - 1) == [("goes on", 1000)]
    (end,) = fan_outs.due(6 * MINUTE)
    assert (end.stage, end.start_ns, end.end_ns) == ("ended", NOW, NOW + 5 * MINUTE)


def test_fan_out_goes_on_when_its_interval_is_over_and_not_earlier() -> None:
    fan_outs = FanOuts(COUNTER_ID, {})
    _add_flows(fan_outs, 20)
    assert len(_due(fan_outs, 0)) == 1
    _add_flows(fan_outs, 1)
    assert _due(fan_outs, SECOND - 1) == []
    assert _due(fan_outs, SECOND) == [("goes on", 1000)]
    assert _due(fan_outs, MINUTE - 1) == []


def test_fan_out_counts_4096_destinations_and_ports_at_least() -> None:
    fan_outs = FanOuts(COUNTER_ID, {})
    for number in range(1, 4200):
        fan_outs.add_flow(key(tcp(number, f"10.0.{number >> 8}.{number & 255}")), NOW)
    (found,) = fan_outs.due(0)
    assert (found.flows, found.destinations, found.ports) == (4199, 4096, 4096)


def test_destinations_and_ports_of_all_fan_outs_are_limited_but_for_the_first_of_each() -> None:
    fan_outs = FanOuts(COUNTER_ID, {})
    for uid in range(20):
        for number in range(1, 4097):
            packet = tcp(number, f"10.0.{number >> 8}.{number & 255}", uid=uid)
            fan_outs.add_flow(key(packet), NOW)
    found = list(fan_outs.due(0))
    assert [each.flows for each in found] == [4096] * 20
    assert sum(each.destinations + each.ports for each in found) == (1 << 16) + 2 * 12 * 20
    assert (found[-1].destinations, found[-1].ports) == (20, 20)
    assert [each.stage for each in fan_outs.due(MINUTE)] == ["ended"] * 20
    for number in range(1, 101):
        fan_outs.add_flow(key(tcp(number)), NOW)
    (found_later,) = fan_outs.due(MINUTE)
    assert (found_later.destinations, found_later.ports) == (1, 100)


def test_flows_known_from_records_alone_are_limited_and_reported_after_a_reading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that has removed the counters can make records without an end."""
    monkeypatch.setattr(rule_account, "_MAX_UNREAD", 100)
    account = SandboxAccount("sb", begun_ns=NOW)
    observe(account, reading({}))
    flows = [tcp(port) for port in range(1, 151)]
    found = [
        attempt
        for number, each in enumerate(flows)
        if (attempt := account.record(record(each, number, NOW + SECOND), SECOND)) is not None
    ]
    assert len(found) == len(account.rules["egress"].counters.unread) == 100
    observe(account, reading({key(each): 1 for each in flows}, NOW + 2 * SECOND))
    found += attempts(account.due(2 * SECOND))
    assert [(each.packets, each.record.origin.transport) for each in found] == [(1, "nflog")] * 150
    (balance,) = account.balances()
    assert (balance.reported, balance.pending, balance.counter_mismatch) == (150, 0, 0)


def test_fan_out_of_frames_has_neither_destinations_nor_ports() -> None:
    fan_outs = FanOuts(COUNTER_ID, {})
    for number in range(20):
        frame = Packet(
            uid=1000, protocol=None, destination=None, port=None, ethertype=0x8000 + number
        )
        fan_outs.add_flow(key(frame), NOW)
    (found,) = fan_outs.due(0)
    assert (found.flows, found.destinations, found.ports) == (20, 0, 0)


def test_fan_out_of_a_user_beyond_the_limit_replaces_the_oldest_that_has_not_begun() -> None:
    fan_outs = FanOuts(COUNTER_ID, {})
    _add_flows(fan_outs, 20, uid=1)
    for uid in range(2, 1025):
        _add_flows(fan_outs, 1, uid=uid)
    _add_flows(fan_outs, 20, uid=5000)
    assert sorted(fan_outs._activities, key=str) == sorted([1, *range(3, 1025), 5000], key=str)
    assert _due(fan_outs, 0) == [("begun", 1), ("begun", 5000)]


def test_fan_out_of_a_user_beyond_the_limit_replaces_none_of_1024_that_have_begun() -> None:
    fan_outs = FanOuts(COUNTER_ID, {})
    for uid in range(1024):
        _add_flows(fan_outs, 20, uid=uid)
    _add_flows(fan_outs, 20, uid=5000)
    assert len(fan_outs._activities) == 1024
    assert 5000 not in fan_outs._activities


def test_unchanged_fan_out_is_stored_once() -> None:
    opened: Opened = {}
    fan_outs = FanOuts(COUNTER_ID, opened)
    _add_flows(fan_outs, 20)
    list(fan_outs.due(0))
    assert len(opened) == 1
    opened.clear()
    list(fan_outs.due(SECOND))
    assert opened == {}


def test_fan_out_after_a_restart_is_not_reported_again_without_a_change() -> None:
    fan_outs = FanOuts(COUNTER_ID, {})
    opened: Opened = {}
    before = FanOuts(COUNTER_ID, opened)
    _add_flows(before, 20)
    list(before.due(0))
    (stored,) = opened.values()
    assert isinstance(stored, FanOut)
    fan_outs.resume(stored)
    found: list[FanOut] = [
        each for second in range(61) for each in fan_outs.due((1000 + second) * SECOND)
    ]
    assert [each.stage for each in found] == ["ended"]


def _aggregates(users: int) -> Aggregates:
    aggregates = Aggregates()
    for uid in range(users):
        counter = FlowCounter(
            since_ns=NOW, unreported_packets=2, unreported_bytes=120, last_ns=NOW + SECOND
        )
        aggregates.add(key(tcp(uid=uid)), counter)
        assert (counter.unreported_packets, counter.since_ns) == (0, NOW + SECOND)
        assert counter.is_aggregated
    return aggregates


def test_aggregated_flows_of_256_users_have_a_sum_each_and_all_others_one() -> None:
    aggregates = _aggregates(300)
    assert len(aggregates) == 257
    assert aggregates[None].counter.unreported_packets == 2 * (300 - 256)
    assert {aggregates[uid].counter.unreported_packets for uid in range(256)} == {2}


def test_aggregated_user_keeps_its_sum_when_there_are_256() -> None:
    aggregates = _aggregates(256)
    more = FlowCounter(since_ns=NOW, unreported_packets=3, last_ns=NOW + SECOND)
    aggregates.add(key(tcp(81, uid=7)), more)
    assert (len(aggregates), aggregates[7].counter.unreported_packets, aggregates[7].flows) == (
        256,
        5,
        2,
    )


def test_aggregated_flow_that_grows_keeps_its_sum_from_ending() -> None:
    aggregates, counter = Aggregates(), FlowCounter(since_ns=NOW, unreported_packets=2)
    aggregates.add(key(tcp(uid=0)), counter)
    assert not aggregates[0].report.is_over(100 * SECOND)
    counter.grow_by(Count(3, 0), NOW + SECOND)
    aggregates.add(key(tcp(uid=0)), counter)
    assert not aggregates[0].report.is_over(200 * SECOND)
    assert aggregates[0].report.is_over(210 * SECOND)
    assert aggregates[0].flows == 1


def test_quota_of_an_idle_user_is_evicted_first() -> None:
    quota = Quota()
    for uid in range(4096):
        assert quota.grants(uid, NOW)
    assert quota.grants(3, NOW + SECOND // 20)  # a known user needs no new slot
    assert quota.grants(9999, NOW + SECOND // 10)
    assert quota._earned_ns.keys() == {3, 9999}


def test_quota_searches_idle_users_once_a_second() -> None:
    quota = Quota()
    for uid in range(4096):
        assert quota.grants(uid, NOW)
    assert not quota.grants(9999, NOW)
    assert not quota.grants(9999, NOW + SECOND - 1)
    assert quota.grants(9999, NOW + SECOND)


def _admitted(admission: Admission, uid: int, flows: int, reports: int, now_ns: int) -> int:
    """Return how many new flows of a user have events of their own."""
    admitted = 0
    for port in range(1, flows + 1):
        new = key(tcp(port, uid=uid))
        admitted += admission.admit(new, flow(new), reports + admitted, now_ns)
    return admitted


def test_first_flows_of_a_user_have_events_while_others_have_all() -> None:
    admission = Admission(frozenset())
    assert _admitted(admission, 7, 10, 4000, NOW) == 4
    assert _admitted(admission, 8, 10, 4004, NOW) == 4
    # One more every five minutes.
    assert _admitted(admission, 7, 10, 4008, NOW + 300 * SECOND - 1) == 0
    assert _admitted(admission, 7, 10, 4008, NOW + 300 * SECOND) == 1
    admission.release(key(tcp(1, uid=8)))
    assert len(admission._first) == 7  # the last one had the key of an earlier one


def test_user_beyond_the_usual_quota_takes_no_first_flows() -> None:
    admission = Admission(frozenset())
    assert _admitted(admission, 7, 1100, 0, NOW) == 1000
    assert not admission._first


def test_first_flows_of_3072_users_have_events() -> None:
    admission = Admission(frozenset())
    found = [_admitted(admission, uid, 5, 4000 + 4 * uid, NOW) for uid in range(3073)]
    assert found == [*[4] * 3072, 0]
    assert len(admission._first) == 4 * 3072


def test_balance_of_a_mode_excludes_the_other_mode() -> None:
    balance = Balance(sandbox="sb", rule="egress", reported=0, aggregated=0, pending=0, dropped=0)
    assert (balance.refused, balance.allowed, balance.counter_mismatch) == (0, 0, 0)
