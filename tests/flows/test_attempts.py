"""Reports of an account for single records and readings."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.flows.sandbox_account import SandboxAccount
from ocsf_nft.process import Attribution
from tests.flows.kernel_model import RULE, Packet, keys
from tests.flows.reading import NOW, SECOND, attempts, key, observe, reading, record, tcp

if TYPE_CHECKING:
    from ocsf_nft.attempt import Attempt
    from ocsf_nft.flow import Key

METADATA = "169.254.169.254"


@pytest.fixture
def account() -> SandboxAccount:
    begun = SandboxAccount("sb", begun_ns=NOW - SECOND, preferred=frozenset({METADATA}))
    observe(begun, reading({}))
    return begun


def _due(account: SandboxAccount, seconds: float = 0.0, *, closing: bool = False) -> list[Attempt]:
    """Return the attempts that are due; the clock is independent of that of the records."""
    return attempts(account.due(int((1000 + seconds) * SECOND), closing=closing))


def _record(
    account: SandboxAccount, packet: Packet, number: int = 1, at_ns: int = NOW
) -> Attempt | None:
    return account.record(record(packet, number, at_ns), 1000 * SECOND)


def _others(packet: Packet) -> Key:
    return keys(record(packet))[-2]


def test_first_record_is_reported_at_once_and_not_again_by_its_counter(
    account: SandboxAccount,
) -> None:
    reported = _record(account, tcp())
    assert reported is not None
    assert (reported.packets, reported.record.origin.transport) == (1, "nflog")
    observe(account, reading({key(tcp()): 1}, NOW + SECOND))
    assert _due(account, 1, closing=True) == []


def test_sender_of_a_record_without_port_is_not_the_sender_of_a_flow_with_one(
    account: SandboxAccount,
) -> None:
    """A raw socket may cut its header short: the record has no port, and another counter."""
    one, other = tcp(443), tcp(80)
    by = [Attribution(method="capture", confidence="high", reason=why) for why in ("one", "other")]
    assert account.record(record(one), 1000 * SECOND, by[0]) is not None
    observe(account, reading({key(one): 1}, NOW + SECOND))
    assert _due(account, 1) == []
    cut = dataclasses.replace(other, port=None)
    assert account.record(record(cut, 2), 1002 * SECOND, by[1]) is None
    observe(account, reading({key(one): 2, key(other): 1}, NOW + 3 * SECOND))
    reported = _due(account, 20)
    assert {(each.record.destination_port, each.packets) for each in reported} == {
        (443, 1),
        (80, 1),
    }
    assert [each.attribution for each in reported] == [None, None]


def test_record_without_port_leaves_the_attribution_of_pending_packets(
    account: SandboxAccount,
) -> None:
    assert _record(account, tcp()) is not None
    by = Attribution(method="capture", confidence="high", reason="it was seen")
    assert account.record(record(tcp(), 2), 1001 * SECOND, by) is None
    cut = dataclasses.replace(tcp(), port=None)
    assert account.record(record(cut, 3), 1002 * SECOND, None) is None
    observe(account, reading({key(tcp()): 3}, NOW + 3 * SECOND))
    assert [(each.packets, each.attribution) for each in _due(account, 20)] == [(2, by)]


def test_continuing_flow_is_reported_at_growing_intervals(account: SandboxAccount) -> None:
    assert _record(account, tcp()) is not None
    reported = []
    for second in range(1, 40):
        observe(account, reading({key(tcp()): 1 + 10 * second}, NOW + second * SECOND))
        reported += [(second, each.packets) for each in _due(account, second)]
    assert [second for second, _ in reported] == [1, 3, 7, 15, 31]
    reported += [(0, each.packets) for each in _due(account, 39, closing=True)]
    assert 1 + sum(packets for _, packets in reported) == 391


def test_ended_flow_is_reported_completely(account: SandboxAccount) -> None:
    for second in range(27):
        packets = min(second + 1, 18)
        observe(account, reading({key(tcp()): packets}, NOW + min(second, 17) * SECOND))
        reported = _due(account, second)
        assert bool(reported) is (second in {0, 1, 3, 7, 15})
    (last,) = _due(account, 27)  # ten seconds after its last packet, not 32 after the report
    assert (last.packets, last.end_ns) == (2, NOW + 17 * SECOND)


@pytest.mark.parametrize("step", [-3600 * SECOND, 3600 * SECOND])
def test_setting_the_clock_neither_stops_nor_repeats_reports(
    account: SandboxAccount, step: int
) -> None:
    reported = []
    for second in range(1, 40):
        at_ns = NOW + second * SECOND + (step if second >= 20 else 0)
        observe(account, reading({key(tcp()): 10 * second}, at_ns))
        reported += [(second, each) for each in _due(account, second)]
    assert [second for second, _ in reported] == [1, 2, 4, 8, 16, 32]
    assert sum(each.packets for _, each in reported) == 320
    assert all(each.start_ns <= each.end_ns <= each.record.received_ns for _, each in reported)


def test_late_record_of_a_reported_packet_is_not_reported(account: SandboxAccount) -> None:
    observe(account, reading({key(tcp()): 1}, NOW + SECOND))
    assert [each.packets for each in _due(account)] == [1]
    assert _record(account, tcp(), at_ns=NOW + 2 * SECOND) is None
    for second in (3, 4):
        observe(account, reading({key(tcp()): 1}, NOW + second * SECOND))
    assert _due(account, 5, closing=True) == []


def test_late_record_of_a_packet_reported_without_its_flow_is_not_reported(
    account: SandboxAccount,
) -> None:
    without_slot = {_others(tcp()): 1}
    observe(account, reading(without_slot, NOW + SECOND))
    assert [each.aggregation is not None for each in _due(account)] == [True]
    assert _record(account, tcp(), at_ns=NOW + 2 * SECOND) is None
    for second in (3, 4):
        observe(account, reading(without_slot, NOW + second * SECOND))
    assert _due(account, 5, closing=True) == []


def test_record_after_a_report_without_flow_is_reported_when_its_packet_is_counted(
    account: SandboxAccount,
) -> None:
    observe(account, reading({_others(tcp()): 1}, NOW + SECOND))
    assert len(_due(account)) == 1
    assert _record(account, tcp(443), at_ns=NOW + 2 * SECOND) is None
    observe(account, reading({_others(tcp()): 2}, NOW + 3 * SECOND))
    (reported,) = _due(account, 1)
    assert (reported.packets, reported.aggregation, reported.record.destination_port) == (
        1,
        None,
        443,
    )


@pytest.mark.parametrize("overflow", [0, 1])
def test_record_is_subtracted_from_the_counter_that_has_its_packet(
    account: SandboxAccount, overflow: int
) -> None:
    assert _record(account, tcp()) is not None
    counts = {} if overflow else {_others(tcp()): 1}
    for second in (1, 2):
        observe(account, reading(counts, NOW + second * SECOND, overflow=overflow))
        assert _due(account, second) == []
    assert _due(account, 3, closing=True) == []
    (balance,) = account.balances()
    assert (balance.reported, balance.pending, balance.counter_mismatch) == (1, 0, 0)


def test_packets_omitted_by_alternate_readings_are_reported_once(account: SandboxAccount) -> None:
    """The kernel omits some elements of a set while it evicts others."""
    one, other = key(tcp(1)), key(tcp(2))
    reported = []
    steps = (({other: 1}, 2), ({one: 1}, 3), ({one: 1, other: 2}, 3))
    for second, (counts, refused) in enumerate(steps, 1):
        observe(account, reading(counts, NOW + second * SECOND, refused=refused))
        reported += _due(account, second)
    observe(account, reading({one: 1, other: 2}, NOW + 4 * SECOND))
    reported += _due(account, 5, closing=True)
    assert [(each.packets, each.aggregation) for each in reported] == [(1, None)] * 3


def test_packets_evicted_before_a_reading_are_reported_as_evicted(account: SandboxAccount) -> None:
    for second in range(1, 10):
        observe(account, reading({}, NOW + (700 + second) * SECOND, refused=5))
        found = _due(account, second)
        assert bool(found) is (second == 8), second
        assert [each.packets for each in found if each.aggregation is not None] == [5] * len(found)
    (balance,) = account.balances()
    assert (balance.aggregated, balance.counter_mismatch) == (5, 0)


def test_balance_counts_evicted_packets_as_pending(account: SandboxAccount) -> None:
    for second in (701, 702):
        observe(account, reading({}, NOW + second * SECOND, refused=5))
    (balance,) = account.balances()
    assert (balance.pending, balance.counter_mismatch) == (5, 0)


def test_flows_of_a_user_with_too_many_are_aggregated_and_those_of_others_are_not(
    account: SandboxAccount,
) -> None:
    flood = {key(tcp(port)): 1 for port in range(1, 1501)}
    special = {key(tcp(80, METADATA)): 1, key(tcp(80, uid=7)): 1}
    observe(account, reading(flood | special, NOW + SECOND))
    reported = _due(account)
    (many,) = [each for each in reported if each.aggregation is not None]
    assert many.aggregation is not None
    assert (many.packets, many.aggregation.reason, many.aggregation.flows) == (501, "many", 501)
    assert (many.record.uid, len(many.aggregation.sample)) == (1000, 10)
    single = [each.record for each in reported if each.aggregation is None]
    assert len(single) == 1001
    assert {METADATA} < {each.destination for each in single}
    assert 7 in {each.uid for each in single}


def test_priority_destination_has_slots_beyond_a_users_limit(account: SandboxAccount) -> None:
    observe(account, reading({key(tcp(port)): 1 for port in range(1, 1501)}, NOW + SECOND))
    _due(account)
    grave = {key(tcp(port, METADATA)): 1 for port in range(1, 41)}
    more = {key(tcp(port, "198.51.100.9")): 1 for port in range(1, 41)}
    flood = {key(tcp(port)): 1 for port in range(1, 1501)}
    observe(account, reading(flood | grave | more, NOW + 2 * SECOND))
    single = [each.record.destination for each in _due(account) if each.aggregation is None]
    assert single == [METADATA] * 16


def test_priority_destinations_take_no_slots_of_other_users(
    account: SandboxAccount,
) -> None:
    grave = {key(tcp(port, METADATA, uid=uid)): 1 for uid in range(20) for port in range(1, 1101)}
    observe(account, reading(grave, NOW + SECOND))
    reported = [each for each in _due(account) if each.aggregation is None]
    # Four more of each of the users for whom there was no room.
    assert len(reported) == 4000 + 256 + 4 * 17


def test_aggregate_of_a_user_is_evicted_when_it_is_over(account: SandboxAccount) -> None:
    """The eviction makes room for the aggregate of another user."""
    flood = {key(tcp(port)): 1 for port in range(1, 1501)}
    observe(account, reading(flood, NOW + SECOND))
    assert _due(account)
    assert account.rules[RULE].by_user
    assert _due(account, 20) == _due(account, 40) == []
    assert not account.rules[RULE].by_user


def test_windows_of_a_flow_do_not_overlap_if_readings_take_time(
    account: SandboxAccount,
) -> None:
    observe(account, reading({key(tcp()): 1}, NOW + 5 * SECOND))
    (first,) = _due(account)
    observe(account, reading({key(tcp()): 2}, NOW + 6 * SECOND, idle_ms=2000))
    (second,) = _due(account, 1, closing=True)
    assert second.start_ns >= first.end_ns


def test_old_and_new_counters_are_both_reported_completely(
    account: SandboxAccount,
) -> None:
    for second, packets in ((1, 1), (2, 4)):
        observe(account, reading({key(tcp()): packets}, NOW + second * SECOND))
        assert len(_due(account)) == (1 if second == 1 else 0)
    observe(account, reading({key(tcp()): 2}, NOW + 3 * SECOND, epoch="boot:2"))
    reported = _due(account, 0.2)
    assert sorted(each.packets for each in reported) == [2, 3]
    assert len({each.record.origin.identity for each in reported}) == 2


def test_record_of_a_rule_without_counters_is_no_attempt() -> None:
    assert SandboxAccount("sb", begun_ns=NOW).record(record(tcp()), 0) is None


def test_aggregation_yields_to_other_tasks_before_the_report(account: SandboxAccount) -> None:
    flood = {key(tcp(port)): 1 for port in range(1, 5001)}
    for second in (1, 2):
        counts = dict.fromkeys(flood, 2 * second)
        observe(account, reading(counts, NOW + second * SECOND))
        assert sum(1 for _ in account.aggregate_overflow((1000 + second) * SECOND)) == 10
        reported = _due(account, second, closing=True)
        assert sum(each.packets for each in reported) == 10_000
        assert len(reported) == 1001


def test_set_that_is_emptied_repeatedly_does_not_fill_memory(account: SandboxAccount) -> None:
    reported, refused, size = 0, 0, 16_384
    for number in range(8):
        counts = {
            key(tcp(1 + number_in_set % 60_000, f"10.{number}.{number_in_set // 60_000}.1")): 1
            for number_in_set in range(size)
        }
        refused += size
        observe(account, reading(counts, NOW + number * 2 * SECOND, refused=refused))
        reported += sum(each.packets for each in _due(account, number * 2))
    # The newest elements are added, and elements missed once may have been omitted.
    assert sum(map(len, account.rules["egress"].counters.entries.values())) <= 4 * size + 2 * size
    reported += sum(each.packets for each in _due(account, 20, closing=True))
    assert reported == refused
    assert account.balances()[0].counter_mismatch == 0


def test_packets_that_may_belong_to_another_flows_record_wait_for_two_readings(
    account: SandboxAccount,
) -> None:
    """A record may name another flow of its user than the counter that has its packet.

    On a busy machine the readings are far apart.
    """
    assert _record(account, tcp(1)) is not None
    for second in (5, 10):
        observe(account, reading({key(tcp(2)): 1}, NOW + second * SECOND))
        assert _due(account, second) == _due(account, second + 4) == []
    (balance,) = account.balances()
    assert (balance.reported, balance.pending, balance.counter_mismatch) == (1, 0, 0)


def test_packets_held_back_for_a_record_are_reported_if_no_reading_succeeds(
    account: SandboxAccount,
) -> None:
    assert _record(account, tcp(1)) is not None
    observe(account, reading({key(tcp(2)): 5}, NOW + SECOND))
    assert _due(account, 1) == _due(account, 30) == []
    assert [each.packets for each in _due(account, 62)] == [5]


@pytest.mark.parametrize("elsewhere", [{"counts": {key(tcp(2)): 1}}, {"counts": {}, "overflow": 1}])
def test_balance_is_right_after_two_readings_without_a_report(
    account: SandboxAccount, elsewhere: dict[str, Any]
) -> None:
    assert _record(account, tcp(1)) is not None
    for second in (1, 2):
        observe(account, reading(**elsewhere, at_ns=NOW + second * SECOND))
    (balance,) = account.balances()
    assert (balance.reported, balance.pending, balance.counter_mismatch) == (1, 0, 0)


def test_packets_held_back_for_a_record_are_reported_when_its_counter_is_found(
    account: SandboxAccount,
) -> None:
    assert _record(account, tcp()) is not None
    observe(account, reading({_others(tcp()): 3}, NOW + SECOND))
    assert _due(account, 1) == _due(account, 3) == []
    observe(account, reading({_others(tcp()): 3}, NOW + 4 * SECOND))
    assert [each.packets for each in _due(account, 4)] == [2]
    observe(account, reading({_others(tcp()): 3, key(tcp()): 1}, NOW + 5 * SECOND))
    assert [each.packets for each in _due(account, 5, closing=True)] == [1]
    (balance,) = account.balances()
    assert (balance.reported, balance.pending, balance.counter_mismatch) == (4, 0, 0)


def test_record_before_new_counters_belongs_to_the_new_counters(
    account: SandboxAccount,
) -> None:
    assert _record(account, tcp(), at_ns=NOW + SECOND) is not None
    found = reading({key(tcp()): 1}, NOW + 2 * SECOND, epoch="boot:2", idle_ms=1_000)
    observe(account, found)
    assert _due(account, 1, closing=True) == []
    (balance,) = account.balances()
    assert (balance.reported, balance.pending, balance.counter_mismatch) == (1, 0, 0)


def test_unreported_packets_of_old_counters_are_a_separate_attempt(
    account: SandboxAccount,
) -> None:
    assert _record(account, tcp(1)) is not None
    observe(account, reading({key(tcp(2)): 1}, NOW + SECOND))
    reported = [*_due(account, 3), *_due(account, 6)]
    observe(account, reading({key(tcp(2)): 1, key(tcp(3)): 1}, NOW + 2 * SECOND))
    observe(account, reading({key(tcp(1)): 1}, NOW + 3 * SECOND, epoch="boot:2"))
    reported += _due(account, 7)
    assert [each.packets for each in reported] == [1, 1]
    assert len({each.record.origin.identity for each in reported}) == 2


def test_equal_attempts_of_two_rules_have_different_identities(account: SandboxAccount) -> None:
    one = reading({_others(tcp()): 1}, NOW + SECOND)
    rules = dict.fromkeys((RULE, "another"), one.rules[RULE])
    epochs = dict.fromkeys(rules, one.epochs[RULE])
    observe(account, dataclasses.replace(one, rules=rules, epochs=epochs))
    reported = _due(account)
    assert len({each.record.origin.identity for each in reported}) == len(reported) == 2
    # The IP version includes the ethertype.
    assert {(each.record.ip_version, each.record.ethertype) for each in reported} == {(4, None)}


@pytest.mark.parametrize(("epoch", "refused"), [("boot:1", 3), ("boot:2", 8)])
def test_pause_includes_all_packets_of_new_counters(
    account: SandboxAccount, epoch: str, refused: int
) -> None:
    observe(account, reading({key(tcp()): 5}, NOW + SECOND))
    late = reading({key(tcp()): 8}, NOW + 60 * SECOND, epoch=epoch)
    assert account.unread_since(late) == {"enforcing": refused, "permissive": 0}
