"""DNS questions of flows: in attempts, in incidents, and after a restart."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.attempt import Attempt
from ocsf_nft.flows import codec, dns_questions
from ocsf_nft.flows.dns_questions import MAX_OF_FLOW, DnsQuestions
from ocsf_nft.flows.sandbox_account import SandboxAccount
from ocsf_nft.record import DnsQuestion
from tests.conformance.corpus import counter
from tests.flows.kernel_model import RULE, Packet
from tests.flows.reading import NOW, SECOND, attempts, changes, ended, key, observe, reading, record
from tests.flows.stored import FILE, AccountFile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ocsf_nft.record import Record

DNS = Packet(uid=1000, protocol=17, destination="192.0.2.53", port=53)
KEY = key(DNS)


def asked(number: int) -> DnsQuestion:
    return DnsQuestion(f"name{number}.example", 1)


def query(number: int) -> Record:
    return replace(record(DNS, number, NOW + number), question=asked(number))


@pytest.fixture
def account() -> SandboxAccount:
    found = SandboxAccount("sb", begun_ns=NOW - SECOND)
    observe(found, reading({}))
    return found


def _send(account: SandboxAccount, numbers: Sequence[int], second: int) -> list[Attempt]:
    """Return the attempts of the first packets and, after a reading, of all others."""
    found = [account.record(query(number), second * SECOND) for number in numbers]
    return [each for each in found if each is not None]


def _report(account: SandboxAccount, packets: int, second: int) -> list[Attempt]:
    observe(account, reading({KEY: packets}, NOW + second * SECOND))
    return attempts(account.due(second * SECOND))


def test_attempts_and_incident_have_the_questions_of_their_packets(account: SandboxAccount) -> None:
    (first,) = _send(account, [1], 1)
    assert first.questions == (asked(1),)
    assert not _send(account, [2, 3, 2, 1], 1)
    (window,) = _report(account, 9, 3)
    assert (window.packets, window.questions) == (8, (asked(2), asked(3), asked(1)))
    assert window.incident is not None
    assert window.incident.questions == (asked(1), asked(2), asked(3))
    _send(account, [2], 4)
    (window,) = _report(account, 10, 8)
    assert window.questions == (asked(2),)
    (end,) = ended(account.due(60 * SECOND))
    assert end.incident.questions == (asked(1), asked(2), asked(3))


def test_attempt_has_no_more_questions_than_packets(account: SandboxAccount) -> None:
    """Records may be read before the counters."""
    _send(account, [1, 2, 3, 4], 1)
    (window,) = _report(account, 3, 3)
    assert (window.packets, window.questions) == (2, (asked(2), asked(3)))
    (window,) = _report(account, 5, 8)
    assert window.questions == (asked(4),)


def test_attempt_of_a_record_has_its_own_question_alone() -> None:
    found = DnsQuestions()
    for number in (1, 2):
        found.add(KEY, asked(number))
    assert found.take(KEY, Attempt.of(record(DNS))) == ()
    assert found.take(KEY, Attempt.of(query(2))) == (asked(2),)
    assert found.unreported(KEY) == (asked(1),)


def test_questions_of_one_flow_are_limited(account: SandboxAccount) -> None:
    _send(account, range(2 * MAX_OF_FLOW), 1)
    (window,) = _report(account, 2 * MAX_OF_FLOW, 3)
    assert len(window.questions) == MAX_OF_FLOW - 1
    assert window.incident is not None
    assert len(window.incident.questions) == MAX_OF_FLOW


def test_questions_of_all_flows_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_questions, "_MAX_OF_RULE", 3 * dns_questions._size(asked(1)))
    found = DnsQuestions()
    flows = [key(replace(DNS, destination=f"192.0.2.{number}")) for number in range(3)]
    assert [found.add(flow, asked(n)) for flow in flows for n in (1, 2)] == [
        True, True, True, False, False, False,
    ]  # fmt: skip
    found.remove(flows[0])
    assert found.unreported(flows[0]) == ()
    assert found.add(flows[2], asked(1))
    attempt = replace(Attempt.of(counter(protocol=17, destination_port=53)), packets=9)
    assert found.take(flows[2], attempt) == (asked(1),)
    # A question that is known may be unreported again.
    assert found.add(flows[2], asked(1))
    assert not found.add(flows[2], asked(1))
    assert found.add(flows[2], asked(2))
    assert not found.add(flows[2], asked(3))


def test_long_names_of_all_flows_are_limited(account: SandboxAccount) -> None:
    """Each byte of a hostile name can take four characters."""
    for flow in range(8):
        for number in range(MAX_OF_FLOW):
            question = DnsQuestion(f"{number:04}" + "\\255" * 240, 1)
            packet = replace(DNS, destination=f"192.0.2.{flow}")
            account.record(replace(record(packet), question=question), SECOND)
    stored = changes(account).parts.values()
    # In JSON, a backslash takes two characters.
    assert sum(len(value or b"") for value in stored) < 1.5 * dns_questions._MAX_OF_RULE


def test_ended_flow_frees_its_questions(account: SandboxAccount) -> None:
    _send(account, [1, 2], 1)
    assert _report(account, 2, 3)
    assert ended(account.due(60 * SECOND))
    assert account.rules[RULE]._questions._flows == {}
    assert account.rules[RULE]._questions._size == 0


def test_questions_survive_a_kill(account: SandboxAccount, tmp_path: Path) -> None:
    path = tmp_path / "sb" / FILE
    database = AccountFile(path).opened()
    database.put(changes(account))
    _send(account, [1, 2], 1)
    assert _report(account, 2, 3)
    database.put(changes(account))
    _send(account, [3, 4], 3)
    database.put(changes(account))
    after = SandboxAccount("sb", begun_ns=NOW - SECOND)
    database.load(after)
    database.close()
    for number in (4, 5):
        after.record(query(number), SECOND)
    (window,) = _report(after, 6, 4)
    assert window.questions == (asked(3), asked(4), asked(5))
    assert window.incident is not None
    assert window.incident.questions == tuple(map(asked, range(1, 6)))


def test_incident_stored_by_an_older_version_has_no_questions(account: SandboxAccount) -> None:
    _send(account, [1, 2], 1)
    ((_, opened),) = account.rules[RULE].opened.items()
    assert opened is not None
    stored = json.loads(codec._json_of(opened))
    assert stored.pop("questions")
    del stored["end"]["incident"]["questions"], stored["end"]["record"]["question"]
    taken = codec._opened(stored)
    assert taken.questions == ()  # type: ignore[union-attr]
    assert taken.end.incident.questions == ()  # type: ignore[union-attr]
