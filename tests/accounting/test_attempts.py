"""What a ledger tells of records and readings, case by case."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.accounting.priority import Gravity
from ocsf_nft.accounting.sandbox_accounting import Ledger
from ocsf_nft.flow import Key, keys
from ocsf_nft.process import Attribution
from tests.accounting.kernel_model import RULE, Packet
from tests.accounting.reading import NOW, SECOND, attempts, key, observe, reading, record, tcp

if TYPE_CHECKING:
    from ocsf_nft.attempt import Attempt

METADATA = "169.254.169.254"


@pytest.fixture
def ledger() -> Ledger:
    begun = Ledger("sb", begun_ns=NOW - SECOND, gravity=Gravity(destinations=frozenset({METADATA})))
    observe(begun, reading({}))
    return begun


def _due(ledger: Ledger, seconds: float = 0.0, *, closing: bool = False) -> list[Attempt]:
    """By a clock that has nothing to do with that of the records."""
    return attempts(ledger.due(int((1000 + seconds) * SECOND), closing=closing))


def _record(ledger: Ledger, packet: Packet, number: int = 1, at_ns: int = NOW) -> Attempt | None:
    return ledger.record(record(packet, number, at_ns), 1000 * SECOND)


def _others(packet: Packet) -> Key:
    return keys(record(packet))[-2]


def test_the_first_record_is_told_at_once_and_not_again_when_it_is_counted(ledger: Ledger) -> None:
    told = _record(ledger, tcp())
    assert told is not None
    assert (told.packets, told.record.origin.transport) == (1, "nflog")
    observe(ledger, reading({key(tcp()): 1}, NOW + SECOND))
    assert _due(ledger, 1, closing=True) == []


def test_who_sent_what_names_no_port_is_not_who_sent_to_one_of_them(ledger: Ledger) -> None:
    """A header of a raw socket may be cut short: the record has no port, and another counter."""
    one, other = tcp(443), tcp(80)
    by = [Attribution(rung="capture", sureness="high", reason=why) for why in ("one", "other")]
    assert ledger.record(record(one), 1000 * SECOND, by[0]) is not None
    observe(ledger, reading({key(one): 1}, NOW + SECOND))
    assert _due(ledger, 1) == []
    cut = dataclasses.replace(other, port=None)
    assert ledger.record(record(cut, 2), 1002 * SECOND, by[1]) is None
    observe(ledger, reading({key(one): 2, key(other): 1}, NOW + 3 * SECOND))
    told = _due(ledger, 20)
    assert {(each.record.destination_port, each.packets) for each in told} == {(443, 1), (80, 1)}
    assert [each.attribution for each in told] == [None, None]


def test_what_names_no_port_takes_no_name_from_what_is_to_be_told(ledger: Ledger) -> None:
    assert _record(ledger, tcp()) is not None
    by = Attribution(rung="capture", sureness="high", reason="it was seen")
    assert ledger.record(record(tcp(), 2), 1001 * SECOND, by) is None
    cut = dataclasses.replace(tcp(), port=None)
    assert ledger.record(record(cut, 3), 1002 * SECOND, None) is None
    observe(ledger, reading({key(tcp()): 3}, NOW + 3 * SECOND))
    assert [(each.packets, each.attribution) for each in _due(ledger, 20)] == [(2, by)]


def test_a_flow_that_goes_on_is_told_at_growing_intervals(ledger: Ledger) -> None:
    assert _record(ledger, tcp()) is not None
    told = []
    for second in range(1, 40):
        observe(ledger, reading({key(tcp()): 1 + 10 * second}, NOW + second * SECOND))
        told += [(second, each.packets) for each in _due(ledger, second)]
    assert [second for second, _ in told] == [1, 3, 7, 15, 31]
    told += [(0, each.packets) for each in _due(ledger, 39, closing=True)]
    assert 1 + sum(packets for _, packets in told) == 391


def test_a_flow_that_ended_is_told_to_its_end(ledger: Ledger) -> None:
    for second in range(27):
        packets = min(second + 1, 18)
        observe(ledger, reading({key(tcp()): packets}, NOW + min(second, 17) * SECOND))
        told = _due(ledger, second)
        assert bool(told) is (second in {0, 1, 3, 7, 15})
    (last,) = _due(ledger, 27)  # ten seconds after its last, not 32 after it was told
    assert (last.packets, last.end_ns) == (2, NOW + 17 * SECOND)


@pytest.mark.parametrize("step", [-3600 * SECOND, 3600 * SECOND])
def test_a_clock_that_is_set_stops_no_telling_and_tells_nothing_twice(
    ledger: Ledger, step: int
) -> None:
    told = []
    for second in range(1, 40):
        at_ns = NOW + second * SECOND + (step if second >= 20 else 0)
        observe(ledger, reading({key(tcp()): 10 * second}, at_ns))
        told += [(second, each) for each in _due(ledger, second)]
    assert [second for second, _ in told] == [1, 2, 4, 8, 16, 32]
    assert sum(each.packets for _, each in told) == 320
    assert all(each.start_ns <= each.end_ns <= each.record.received_ns for _, each in told)


def test_a_late_record_of_what_was_told_is_not_told_again(ledger: Ledger) -> None:
    observe(ledger, reading({key(tcp()): 1}, NOW + SECOND))
    assert [each.packets for each in _due(ledger)] == [1]
    assert _record(ledger, tcp(), at_ns=NOW + 2 * SECOND) is None
    for second in (3, 4):
        observe(ledger, reading({key(tcp()): 1}, NOW + second * SECOND))
    assert _due(ledger, 5, closing=True) == []


def test_a_late_record_of_what_was_told_without_its_name_is_not_told_again(ledger: Ledger) -> None:
    unplaced = {_others(tcp()): 1}
    observe(ledger, reading(unplaced, NOW + SECOND))
    assert [each.merged is not None for each in _due(ledger)] == [True]
    assert _record(ledger, tcp(), at_ns=NOW + 2 * SECOND) is None
    for second in (3, 4):
        observe(ledger, reading(unplaced, NOW + second * SECOND))
    assert _due(ledger, 5, closing=True) == []


def test_a_record_of_what_is_without_a_name_since_is_told_when_it_is_counted(
    ledger: Ledger,
) -> None:
    observe(ledger, reading({_others(tcp()): 1}, NOW + SECOND))
    assert len(_due(ledger)) == 1
    assert _record(ledger, tcp(443), at_ns=NOW + 2 * SECOND) is None
    observe(ledger, reading({_others(tcp()): 2}, NOW + 3 * SECOND))
    (told,) = _due(ledger, 1)
    assert (told.packets, told.merged, told.record.destination_port) == (1, None, 443)


@pytest.mark.parametrize("overflow", [0, 1])
def test_what_a_record_told_is_taken_off_where_it_was_counted(
    ledger: Ledger, overflow: int
) -> None:
    assert _record(ledger, tcp()) is not None
    counts = {} if overflow else {_others(tcp()): 1}
    for second in (1, 2):
        observe(ledger, reading(counts, NOW + second * SECOND, overflow=overflow))
        assert _due(ledger, second) == []
    assert _due(ledger, 3, closing=True) == []
    (balance,) = ledger.balances()
    assert (balance.reported, balance.in_flight, balance.imbalance) == (1, 0, 0)


def test_what_two_readings_leave_out_by_turns_is_told_once(ledger: Ledger) -> None:
    """The kernel leaves out some elements of a set from which others are forgotten."""
    one, other = key(tcp(1)), key(tcp(2))
    told = []
    steps = (({other: 1}, 2), ({one: 1}, 3), ({one: 1, other: 2}, 3))
    for second, (counts, refused) in enumerate(steps, 1):
        observe(ledger, reading(counts, NOW + second * SECOND, refused=refused))
        told += _due(ledger, second)
    observe(ledger, reading({one: 1, other: 2}, NOW + 4 * SECOND))
    told += _due(ledger, 5, closing=True)
    assert [(each.packets, each.merged) for each in told] == [(1, None)] * 3


def test_what_was_forgotten_before_it_was_read_is_told_as_such(ledger: Ledger) -> None:
    for second in range(1, 10):
        observe(ledger, reading({}, NOW + (700 + second) * SECOND, refused=5))
        found = _due(ledger, second)
        assert bool(found) is (second == 8), second
        assert [each.packets for each in found if each.merged is not None] == [5] * len(found)
    (balance,) = ledger.balances()
    assert (balance.overflowed, balance.imbalance) == (5, 0)


def test_status_counts_what_was_forgotten_as_on_its_way(ledger: Ledger) -> None:
    for second in (701, 702):
        observe(ledger, reading({}, NOW + second * SECOND, refused=5))
    (balance,) = ledger.balances()
    assert (balance.in_flight, balance.imbalance) == (5, 0)


def test_a_user_with_too_many_flows_is_told_as_one_but_not_the_others(ledger: Ledger) -> None:
    flood = {key(tcp(port)): 1 for port in range(1, 1501)}
    special = {key(tcp(80, METADATA)): 1, key(tcp(80, uid=7)): 1}
    observe(ledger, reading(flood | special, NOW + SECOND))
    told = _due(ledger)
    (many,) = [each for each in told if each.merged is not None]
    assert many.merged is not None
    assert (many.packets, many.merged.why, many.merged.flows) == (501, "many", 501)
    assert (many.record.uid, len(many.merged.sample)) == (1000, 10)
    single = [each.record for each in told if each.merged is None]
    assert len(single) == 1001
    assert {METADATA} < {each.destination for each in single}
    assert 7 in {each.uid for each in single}


def test_what_is_grave_has_a_few_places_when_a_user_has_no_more(ledger: Ledger) -> None:
    observe(ledger, reading({key(tcp(port)): 1 for port in range(1, 1501)}, NOW + SECOND))
    _due(ledger)
    grave = {key(tcp(port, METADATA)): 1 for port in range(1, 41)}
    more = {key(tcp(port, "198.51.100.9")): 1 for port in range(1, 41)}
    flood = {key(tcp(port)): 1 for port in range(1, 1501)}
    observe(ledger, reading(flood | grave | more, NOW + 2 * SECOND))
    single = [each.record.destination for each in _due(ledger) if each.merged is None]
    assert single == [METADATA] * 16


def test_who_goes_to_what_is_grave_ever_again_takes_no_place_of_others(ledger: Ledger) -> None:
    grave = {key(tcp(port, METADATA, uid=uid)): 1 for uid in range(20) for port in range(1, 1101)}
    observe(ledger, reading(grave, NOW + SECOND))
    told = [each for each in _due(ledger) if each.merged is None]
    assert len(told) == 4000 + 256


def test_who_had_too_many_flows_is_forgotten_when_it_is_over(ledger: Ledger) -> None:
    """So there is room for the next one who has."""
    flood = {key(tcp(port)): 1 for port in range(1, 1501)}
    observe(ledger, reading(flood, NOW + SECOND))
    assert _due(ledger)
    assert ledger.rules[RULE].many
    assert _due(ledger, 20) == _due(ledger, 40) == []
    assert not ledger.rules[RULE].many


def test_windows_of_a_flow_do_not_overlap_though_readings_take_time(ledger: Ledger) -> None:
    observe(ledger, reading({key(tcp()): 1}, NOW + 5 * SECOND))
    (first,) = _due(ledger)
    observe(ledger, reading({key(tcp()): 2}, NOW + 6 * SECOND, idle_ms=2000))
    (second,) = _due(ledger, 1, closing=True)
    assert second.start_ns >= first.end_ns


def test_new_counters_are_told_from_their_beginning_and_the_old_to_their_end(
    ledger: Ledger,
) -> None:
    for second, packets in ((1, 1), (2, 4)):
        observe(ledger, reading({key(tcp()): packets}, NOW + second * SECOND))
        assert len(_due(ledger)) == (1 if second == 1 else 0)
    observe(ledger, reading({key(tcp()): 2}, NOW + 3 * SECOND, epoch="boot:2"))
    told = _due(ledger, 0.2)
    assert sorted(each.packets for each in told) == [2, 3]
    assert len({each.record.origin.identity for each in told}) == 2


def test_a_record_of_a_rule_without_counters_is_none_of_ours() -> None:
    assert Ledger("sb", begun_ns=NOW).record(record(tcp()), 0) is None


def test_long_work_is_done_in_parts_before_what_is_due_is_told(ledger: Ledger) -> None:
    flood = {key(tcp(port)): 1 for port in range(1, 5001)}
    for second in (1, 2):
        counts = dict.fromkeys(flood, 2 * second)
        observe(ledger, reading(counts, NOW + second * SECOND))
        assert sum(1 for _ in ledger.fold((1000 + second) * SECOND)) == 10
        told = _due(ledger, second, closing=True)
        assert sum(each.packets for each in told) == 10_000
        assert len(told) == 1001


def test_a_set_that_is_emptied_again_and_again_fills_no_memory(ledger: Ledger) -> None:
    told, refused, places = 0, 0, 16_384
    for number in range(8):
        counts = {
            key(tcp(1 + place % 60_000, f"10.{number}.{place // 60_000}.1")): 1
            for place in range(places)
        }
        refused += places
        observe(ledger, reading(counts, NOW + number * 2 * SECOND, refused=refused))
        told += sum(each.packets for each in _due(ledger, number * 2))
    # The newest come on top, and what is missed once may have been left out.
    assert sum(map(len, ledger.rules["egress"].entries.values())) <= 4 * places + 2 * places
    told += sum(each.packets for each in _due(ledger, 20, closing=True))
    assert told == refused
    assert ledger.balances()[0].imbalance == 0


def test_what_may_be_of_a_record_that_leads_elsewhere_waits_for_two_readings(
    ledger: Ledger,
) -> None:
    """A record may name another flow of its user than the counter that has its packet.

    On a busy machine they are far between.
    """
    assert _record(ledger, tcp(1)) is not None
    for second in (5, 10):
        observe(ledger, reading({key(tcp(2)): 1}, NOW + second * SECOND))
        assert _due(ledger, second) == _due(ledger, second + 4) == []
    (balance,) = ledger.balances()
    assert (balance.reported, balance.in_flight, balance.imbalance) == (1, 0, 0)


def test_what_is_held_back_for_a_record_is_told_though_nobody_can_read_any_more(
    ledger: Ledger,
) -> None:
    assert _record(ledger, tcp(1)) is not None
    observe(ledger, reading({key(tcp(2)): 5}, NOW + SECOND))
    assert _due(ledger, 1) == _due(ledger, 30) == []
    assert [each.packets for each in _due(ledger, 62)] == [5]


@pytest.mark.parametrize("elsewhere", [{"counts": {key(tcp(2)): 1}}, {"counts": {}, "overflow": 1}])
def test_a_balance_needs_two_readings_and_no_telling(
    ledger: Ledger, elsewhere: dict[str, Any]
) -> None:
    assert _record(ledger, tcp(1)) is not None
    for second in (1, 2):
        observe(ledger, reading(**elsewhere, at_ns=NOW + second * SECOND))
    (balance,) = ledger.balances()
    assert (balance.reported, balance.in_flight, balance.imbalance) == (1, 0, 0)


def test_what_was_held_back_for_a_record_is_told_when_that_is_found_elsewhere(
    ledger: Ledger,
) -> None:
    assert _record(ledger, tcp()) is not None
    observe(ledger, reading({_others(tcp()): 3}, NOW + SECOND))
    assert _due(ledger, 1) == _due(ledger, 3) == []
    observe(ledger, reading({_others(tcp()): 3}, NOW + 4 * SECOND))
    assert [each.packets for each in _due(ledger, 4)] == [2]
    observe(ledger, reading({_others(tcp()): 3, key(tcp()): 1}, NOW + 5 * SECOND))
    assert [each.packets for each in _due(ledger, 5, closing=True)] == [1]
    (balance,) = ledger.balances()
    assert (balance.reported, balance.in_flight, balance.imbalance) == (4, 0, 0)


def test_what_a_record_told_before_counters_were_made_anew_is_of_the_new_ones(
    ledger: Ledger,
) -> None:
    assert _record(ledger, tcp(), at_ns=NOW + SECOND) is not None
    observe(ledger, reading({key(tcp()): 1}, NOW + 2 * SECOND, epoch="boot:2"))
    assert _due(ledger, 1, closing=True) == []
    (balance,) = ledger.balances()
    assert (balance.reported, balance.in_flight, balance.imbalance) == (1, 0, 0)


def test_what_old_counters_owe_is_an_attempt_of_its_own_whatever_the_new_ones_take_over(
    ledger: Ledger,
) -> None:
    assert _record(ledger, tcp(1)) is not None
    observe(ledger, reading({key(tcp(2)): 1}, NOW + SECOND))
    told = [*_due(ledger, 3), *_due(ledger, 6)]
    observe(ledger, reading({key(tcp(2)): 1, key(tcp(3)): 1}, NOW + 2 * SECOND))
    observe(ledger, reading({key(tcp(1)): 1}, NOW + 3 * SECOND, epoch="boot:2"))
    told += _due(ledger, 7)
    assert [each.packets for each in told] == [1, 1]
    assert len({each.record.origin.identity for each in told}) == 2


def test_attempts_of_two_rules_are_two_however_alike(ledger: Ledger) -> None:
    one = reading({_others(tcp()): 1}, NOW + SECOND)
    rules = dict.fromkeys((RULE, "another"), one.rules[RULE])
    epochs = dict.fromkeys(rules, one.epochs[RULE])
    observe(ledger, dataclasses.replace(one, rules=rules, epochs=epochs))
    told = _due(ledger)
    assert len({each.record.origin.identity for each in told}) == len(told) == 2
    # What IP version it was says it all.
    assert {(each.record.ip_version, each.record.ethertype) for each in told} == {(4, None)}


@pytest.mark.parametrize(("epoch", "refused"), [("boot:1", 3), ("boot:2", 8)])
def test_a_pause_is_told_with_all_that_new_counters_say(
    ledger: Ledger, epoch: str, refused: int
) -> None:
    observe(ledger, reading({key(tcp()): 5}, NOW + SECOND))
    late = reading({key(tcp()): 8}, NOW + 60 * SECOND, epoch=epoch)
    assert ledger.unread_since(late) == {"enforcing": refused, "permissive": 0}
