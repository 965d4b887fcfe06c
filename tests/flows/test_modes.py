"""Accounts of both modes: allowed packets and refused packets are never mixed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.attempt import FanOut
from ocsf_nft.flows.sandbox_account import SandboxAccount
from tests.conformance.corpus import as_allowed
from tests.flows.kernel_model import RULE
from tests.flows.reading import NOW, SECOND, attempts, changes, key, observe, reading, tcp
from tests.flows.reading import record as refused
from tests.flows.stored import AccountFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ocsf_nft.attempt import Attempt
    from ocsf_nft.flow import Reading
    from ocsf_nft.record import Record

PERMISSIVE = f"{RULE}:permissive"


def both(enforcing: int, permissive: int | None, at_ns: int, port: int = 80) -> Reading:
    """Return a reading of one flow with counters of each mode; None: they do not exist yet."""
    one = reading({key(tcp(port)): enforcing} if enforcing else {}, at_ns)
    if permissive is None:
        return one
    other = reading({key(tcp(port)): permissive} if permissive else {}, at_ns, epoch="boot:9")
    return replace(
        one,
        epochs={**one.epochs, PERMISSIVE: "boot:9"},
        rules={**one.rules, PERMISSIVE: other.rules[RULE]},
    )


def permitted(number: int = 1, at_ns: int = NOW) -> Record:
    return as_allowed(refused(tcp(), number, at_ns))


@pytest.fixture
def account() -> SandboxAccount:
    begun = SandboxAccount("sb", begun_ns=NOW - SECOND)
    observe(begun, both(0, None, NOW))
    return begun


def due(account: SandboxAccount, *, closing: bool = False) -> list[Attempt]:
    return attempts(account.due(1000 * SECOND, closing=closing))


def test_each_mode_is_reported_with_its_own_count_and_verdict(account: SandboxAccount) -> None:
    observe(account, both(3, 5, NOW + SECOND))
    reported = {each.record.verdict: each for each in due(account, closing=True)}
    assert {verdict: each.packets for verdict, each in reported.items()} == {None: 3, "permit": 5}
    assert reported["permit"].record.prefix == "ocsf-nft:sb:egress:permissive:"
    assert reported[None].record.prefix == "ocsf-nft:sb:egress:"
    assert {each.record.rule for each in reported.values()} == {RULE}
    identities = {each.record.origin.identity for each in reported.values()}
    assert len(identities) == 2
    assert reported["permit"].record.origin.raw.startswith("flows4_egress_permissive {")


def test_record_belongs_to_the_account_of_its_mode(account: SandboxAccount) -> None:
    observe(account, both(0, 0, NOW))
    attempt = account.record(permitted(), 1000 * SECOND)
    assert attempt is not None
    assert attempt.record.verdict == "permit"
    observe(account, both(0, 1, NOW + SECOND))
    assert due(account, closing=True) == []
    numbers = [
        (each.mode, each.refused, each.allowed, each.reported) for each in account.balances()
    ]
    assert numbers == [("enforcing", 0, 0, 0), ("permissive", 0, 1, 1)]


def test_counters_of_a_second_mode_do_not_renew_the_first(account: SandboxAccount) -> None:
    observe(account, both(4, None, NOW + SECOND))
    after = both(4, 2, NOW + 2 * SECOND)
    assert account.renewed_rules(after) == ()
    observe(account, after)
    reported = due(account, closing=True)
    assert {(each.record.verdict, each.packets) for each in reported} == {(None, 4), ("permit", 2)}
    # No packet was allowed before the last reading without such counters.
    (allowed_now,) = (each for each in reported if each.record.verdict == "permit")
    assert allowed_now.start_ns >= NOW + SECOND


def test_record_of_a_mode_without_counters_is_of_a_new_mode(account: SandboxAccount) -> None:
    assert account.is_of_new_mode(permitted())
    assert not account.is_of_new_mode(refused(tcp()))
    assert not account.is_of_new_mode(replace(permitted(), rule="unknown"))
    assert account.record(permitted(), 1000 * SECOND) is None
    observe(account, both(0, 1, NOW + SECOND))
    assert not account.is_of_new_mode(permitted())


def test_unread_packets_are_counted_by_mode(account: SandboxAccount) -> None:
    observe(account, both(4, 2, NOW + SECOND))
    late = both(9, 12, NOW + 60 * SECOND)
    assert account.unread_since(late) == {"enforcing": 5, "permissive": 10}
    fresh = SandboxAccount("sb", begun_ns=NOW)
    observe(fresh, both(4, None, NOW + SECOND))
    assert fresh.unread_since(late) == {"enforcing": 5, "permissive": 12}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[AccountFile]:
    opened = AccountFile(tmp_path / "book").opened()
    yield opened
    opened.close()


def restarted(database: AccountFile, account: SandboxAccount) -> SandboxAccount:
    """Return the account after a restart."""
    database.put(changes(account))
    taken = SandboxAccount("sb", begun_ns=NOW)
    database.load(taken)
    return taken


def test_restart_keeps_the_modes_separate(database: AccountFile, account: SandboxAccount) -> None:
    observe(account, both(4, 2, NOW + SECOND))
    assert len(due(account)) == 2
    observe(account, both(9, 12, NOW + 2 * SECOND))
    taken = restarted(database, account)
    assert [
        each.name for each in (rule_account.counter_id for rule_account in taken.rules.values())
    ] == [
        RULE,
        PERMISSIVE,
    ]
    observe(taken, both(10, 14, NOW + 3 * SECOND))
    reported = due(taken, closing=True)
    assert {(each.record.verdict, each.packets) for each in reported} == {(None, 6), ("permit", 12)}
    assert [balance.counter_mismatch for balance in taken.balances()] == [0, 0]


def test_allowed_fan_out_has_its_verdict_before_and_after_a_restart(
    database: AccountFile, account: SandboxAccount
) -> None:
    counts = {key(tcp(port)): 1 for port in range(1, 40)}
    other = reading(counts, NOW + SECOND, epoch="boot:9")
    empty = reading({}, NOW + SECOND)
    both_modes = replace(
        empty,
        epochs={**empty.epochs, PERMISSIVE: "boot:9"},
        rules={**empty.rules, PERMISSIVE: other.rules[RULE]},
    )
    observe(account, both_modes)
    begun = [each for each in account.due(1000 * SECOND) if isinstance(each, FanOut)]
    assert [(each.stage, each.rule, each.verdict) for each in begun] == [("begun", RULE, "permit")]
    taken = restarted(database, account)
    ended = [each for each in taken.due(1000 * SECOND, closing=True) if isinstance(each, FanOut)]
    assert [(each.stage, each.verdict) for each in ended] == [("ended", "permit")]
    assert ended[0].identity == begun[0].identity


def test_changes_include_both_modes(account: SandboxAccount) -> None:
    observe(account, both(4, 2, NOW + SECOND))
    found = changes(account)
    assert set(found.renewed_rules) == {RULE, PERMISSIVE}
    assert {each.rule for each in found.parts} == {RULE, PERMISSIVE}
