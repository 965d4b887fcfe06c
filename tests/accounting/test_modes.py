"""What a permissive fence let pass and what an enforcing one refused are never in one account."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.accounting.sandbox_accounting import Ledger
from ocsf_nft.accounting.state_db import Book, Changes
from ocsf_nft.attempt import FanOut
from tests.accounting.kernel_model import RULE
from tests.accounting.reading import NOW, SECOND, attempts, changes, key, observe, reading, tcp
from tests.accounting.reading import record as refused
from tests.conformance.corpus import let_pass

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ocsf_nft.attempt import Attempt
    from ocsf_nft.flow import Reading
    from ocsf_nft.record import Record

PERMISSIVE = f"{RULE}:permissive"


def both(enforcing: int, permissive: int | None, at_ns: int, port: int = 80) -> Reading:
    """As many packets of one flow by the counters of each mode; None: there are none yet."""
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
    return let_pass(refused(tcp(), number, at_ns))


@pytest.fixture
def ledger() -> Ledger:
    begun = Ledger("sb", begun_ns=NOW - SECOND)
    observe(begun, both(0, None, NOW))
    return begun


def due(ledger: Ledger, *, closing: bool = False) -> list[Attempt]:
    return attempts(ledger.due(1000 * SECOND, closing=closing))


def test_each_is_told_with_its_own_count_and_its_own_verdict(ledger: Ledger) -> None:
    observe(ledger, both(3, 5, NOW + SECOND))
    told = {each.record.verdict: each for each in due(ledger, closing=True)}
    assert {verdict: each.packets for verdict, each in told.items()} == {None: 3, "permit": 5}
    assert told["permit"].record.prefix == "ocsf-nft:sb:egress:permissive:"
    assert told[None].record.prefix == "ocsf-nft:sb:egress:"
    assert {each.record.rule for each in told.values()} == {RULE}
    identities = {each.record.origin.identity for each in told.values()}
    assert len(identities) == 2
    assert told["permit"].record.origin.raw.startswith("flows4_egress_permissive {")


def test_a_record_leads_to_the_account_of_its_mode(ledger: Ledger) -> None:
    observe(ledger, both(0, 0, NOW))
    attempt = ledger.record(permitted(), 1000 * SECOND)
    assert attempt is not None
    assert attempt.record.verdict == "permit"
    observe(ledger, both(0, 1, NOW + SECOND))
    assert due(ledger, closing=True) == []
    numbers = [
        (each.mode, each.refused, each.let_pass, each.reported) for each in ledger.balances()
    ]
    assert numbers == [("enforcing", 0, 0, 0), ("permissive", 0, 1, 1)]


def test_counters_that_begin_beside_the_others_are_not_made_anew(ledger: Ledger) -> None:
    observe(ledger, both(4, None, NOW + SECOND))
    after = both(4, 2, NOW + 2 * SECOND)
    assert ledger.renewed(after) == ()
    observe(ledger, after)
    told = due(ledger, closing=True)
    assert {(each.record.verdict, each.packets) for each in told} == {(None, 4), ("permit", 2)}
    # Nothing was let pass before the last reading that had no such counters.
    (let_pass_now,) = (each for each in told if each.record.verdict == "permit")
    assert let_pass_now.start_ns >= NOW + SECOND


def test_whoever_has_no_such_counters_yet_is_known_to_lack_them(ledger: Ledger) -> None:
    assert ledger.lacks(permitted())
    assert not ledger.lacks(refused(tcp()))
    assert not ledger.lacks(replace(permitted(), rule="nobody's"))
    assert ledger.record(permitted(), 1000 * SECOND) is None
    observe(ledger, both(0, 1, NOW + SECOND))
    assert not ledger.lacks(permitted())


def test_what_came_unread_is_told_by_mode(ledger: Ledger) -> None:
    observe(ledger, both(4, 2, NOW + SECOND))
    late = both(9, 12, NOW + 60 * SECOND)
    assert ledger.unread_since(late) == {"enforcing": 5, "permissive": 10}
    fresh = Ledger("sb", begun_ns=NOW)
    observe(fresh, both(4, None, NOW + SECOND))
    assert fresh.unread_since(late) == {"enforcing": 5, "permissive": 12}


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    opened = Book(tmp_path / "book").open()
    yield opened
    opened.close()


def kept(book: Book, ledger: Ledger) -> Ledger:
    """What a restart makes of a ledger."""
    book.commit(changes(ledger), [])
    taken = Ledger("sb", begun_ns=NOW)
    book.load(taken)
    return taken


def test_a_restart_mixes_nothing(book: Book, ledger: Ledger) -> None:
    observe(ledger, both(4, 2, NOW + SECOND))
    assert len(due(ledger)) == 2
    observe(ledger, both(9, 12, NOW + 2 * SECOND))
    taken = kept(book, ledger)
    assert [each.name for each in (account.whose for account in taken.rules.values())] == [
        RULE,
        PERMISSIVE,
    ]
    observe(taken, both(10, 14, NOW + 3 * SECOND))
    told = due(taken, closing=True)
    assert {(each.record.verdict, each.packets) for each in told} == {(None, 6), ("permit", 12)}
    assert [balance.imbalance for balance in taken.balances()] == [0, 0]


def test_a_fan_out_that_was_let_pass_is_told_so_before_and_after_a_restart(
    book: Book, ledger: Ledger
) -> None:
    counts = {key(tcp(port)): 1 for port in range(1, 40)}
    other = reading(counts, NOW + SECOND, epoch="boot:9")
    empty = reading({}, NOW + SECOND)
    both_modes = replace(
        empty,
        epochs={**empty.epochs, PERMISSIVE: "boot:9"},
        rules={**empty.rules, PERMISSIVE: other.rules[RULE]},
    )
    observe(ledger, both_modes)
    begun = [each for each in ledger.due(1000 * SECOND) if isinstance(each, FanOut)]
    assert [(each.stage, each.rule, each.verdict) for each in begun] == [("begun", RULE, "permit")]
    taken = kept(book, ledger)
    ended = [each for each in taken.due(1000 * SECOND, closing=True) if isinstance(each, FanOut)]
    assert [(each.stage, each.verdict) for each in ended] == [("ended", "permit")]
    assert ended[0].identity == begun[0].identity


def test_what_changed_is_of_both(ledger: Ledger) -> None:
    observe(ledger, both(4, 2, NOW + SECOND))
    found: Changes = changes(ledger)
    assert {name for name, _, _ in found.rules} == {RULE, PERMISSIVE}
    assert {name for name, *_ in found.counted} == {RULE, PERMISSIVE}
