"""Open incidents of a killed run: the next run continues and ends them."""

from __future__ import annotations

import dataclasses
import json
import re
import sqlite3
from itertools import islice
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.attempt import Attempt, FanOut, Incident, IncidentEnd
from ocsf_nft.flows import codec
from ocsf_nft.flows.incidents import OpenIncident
from ocsf_nft.flows.sandbox_account import SandboxAccount
from ocsf_nft.flows.scans import FLOWS, WITHIN_NS
from tests.conformance.attributed import SEVERAL_IN_ONE_WINDOW
from tests.conformance.corpus import RECORDS
from tests.flows.reading import (
    NOW,
    SECOND,
    attempts,
    changes,
    ended,
    key,
    observe,
    reading,
    tcp,
)
from tests.flows.stored import FILE, AccountFile
from tests.strategies import ATTRIBUTIONS, HOSTILE_TEXT, QUESTIONS, records

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ocsf_nft.flow import Key
    from ocsf_nft.process import Attribution
    from ocsf_nft.record import DnsQuestion, Record

Found = Attempt | FanOut | IncidentEnd


class Run:
    """An account and its state database, as in a run; several runs may use one file."""

    def __init__(self, path: Path) -> None:
        self.database = AccountFile(path).opened()
        self.account = SandboxAccount("sb", begun_ns=NOW - SECOND)
        self.database.load(self.account)

    def step(
        self,
        counts: Mapping[Key, int],
        second: int,
        *,
        epoch: str = "boot:1",
        closing: bool = False,
    ) -> list[Found]:
        observe(self.account, reading(counts, NOW + second * SECOND, epoch=epoch))
        found = list(self.account.due(second * SECOND, closing=closing))
        self.commit()
        return found

    def commit(self) -> int:
        changed = changes(self.account)
        self.database.put(changed)
        return sum(key.kind == "open" for key in changed.parts)

    def kill(self) -> None:
        self.database.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / FILE


def _reported_incidents(found: list[Found]) -> list[Incident]:
    return [each.incident for each in attempts(found) if each.incident is not None]


def _incident(found: list[Found]) -> Incident:
    (incident,) = _reported_incidents(found)
    return incident


def _fan_out(found: list[Found]) -> FanOut:
    (fan_out,) = [each for each in found if isinstance(each, FanOut)]
    return fan_out


def _stored_number(path: Path) -> int:
    with sqlite3.connect(path) as connection:
        (number,) = connection.execute("SELECT count(*) FROM part WHERE kind = 'open'").fetchone()
    connection.close()
    return int(number)


def test_incident_continues_after_a_kill_and_ends_once(path: Path) -> None:
    run = Run(path)
    first = _incident(run.step({key(tcp()): 2}, 1))
    for second in (100, 200):  # the clock may differ
        run.kill()
        run = Run(path)
        before, first = first, _incident(run.step({key(tcp()): second}, second))
        assert first.identity == before.identity
        assert (first.windows, first.packets) == (before.windows + 1, second)
        assert first.latest[:-1] == before.latest
        assert first.start_ns == before.start_ns
    assert run.step({key(tcp()): 200}, 209) == []
    (end,) = ended(run.step({key(tcp()): 200}, 210))
    assert end.incident == first
    run.kill()
    run = Run(path)
    assert run.step({key(tcp()): 200}, 300, closing=True) == []
    assert _stored_number(path) == 0
    run.kill()


def test_record_of_an_attempt_is_not_that_of_the_next_attempt_after_a_restart(path: Path) -> None:
    run = Run(path)
    run.step({}, 0)
    record = tcp().record(1, NOW + SECOND)
    assert run.account.record(record, SECOND) is not None
    run.step({key(tcp()): 1}, 2)
    run.kill()
    run = Run(path)
    (attempt,) = attempts(run.step({key(tcp()): 2}, 3))
    assert (attempt.packets, attempt.record.origin.transport) == (1, "counters")
    run.kill()


def test_incident_without_more_packets_ends_after_the_usual_pause(path: Path) -> None:
    run = Run(path)
    counts = {key(tcp()): 1}
    (reported,) = run.step(counts, 1)
    run.kill()
    run = Run(path)
    assert run.step(counts, 5000) == run.step(counts, 5009) == []
    (end,) = run.step(counts, 5010)
    assert isinstance(end, IncidentEnd)
    assert isinstance(reported, Attempt)
    assert (end.record, end.incident, end.end_ns) == (
        reported.record,
        reported.incident,
        reported.end_ns,
    )
    assert end.record.origin == reported.record.origin
    assert run.step(counts, 5030, closing=True) == []
    run.kill()


def test_report_interval_continues_after_a_kill(path: Path) -> None:
    run = Run(path)
    for second in range(1, 20):
        run.step({key(tcp()): second}, second)
    run.kill()
    run = Run(path)
    reported = [second for second in range(20, 90) if run.step({key(tcp()): second}, second)]
    assert reported == [20, 52]  # the sixth report at once, the next one after 32 seconds
    run.kill()


def test_closed_incidents_are_not_open_for_the_next_run(path: Path) -> None:
    run = Run(path)
    flows = {key(tcp(port)): 1 for port in range(1, FLOWS + 1)}
    assert len(run.step(flows, 1)) == FLOWS + 1
    assert _stored_number(path) == FLOWS + 1
    assert len(run.step(flows, 2, closing=True)) == FLOWS + 1
    assert _stored_number(path) == 0
    run.kill()


def test_ends_not_reported_before_a_kill_are_reported_by_the_next_run(
    path: Path,
) -> None:
    run = Run(path)
    flows = {key(tcp(port)): 1 for port in range(1, FLOWS)}
    identities = {each.identity for each in _reported_incidents(run.step(flows, 1))}
    assert len(identities) == FLOWS - 1
    reported = ended(islice(run.account.due(100 * SECOND, closing=True), 5))
    run.commit()
    run.kill()
    run = Run(path)
    reported += ended(run.step(flows, 101, closing=True))
    assert sorted(each.incident.identity for each in reported) == sorted(identities)
    run.kill()


def test_incidents_of_old_counters_end_in_the_transaction_that_removes_them(path: Path) -> None:
    run = Run(path)
    flows = {key(tcp(port)): 1 for port in range(1, FLOWS + 1)}
    run.step(flows, 1)
    assert _stored_number(path) == FLOWS + 1
    observe(run.account, reading({}, NOW + 2 * SECOND, epoch="boot:2"))
    found = list(run.account.due_of_ended(2 * SECOND))
    assert len(ended(found)) == FLOWS
    assert _fan_out(found).stage == "ended"
    assert len(found) == FLOWS + 1
    run.commit()
    assert _stored_number(path) == 0
    run.kill()


def test_incident_ends_if_the_counters_were_replaced_between_two_runs(path: Path) -> None:
    run = Run(path)
    old = _incident(run.step({key(tcp()): 1}, 1))
    run.kill()
    run = Run(path)
    found = run.step({key(tcp()): 2}, 2, epoch="boot:2")
    assert [each.incident for each in ended(found)] == [old]
    assert _incident(found).identity != old.identity
    assert _stored_number(path) == 1
    run.kill()


def test_fan_out_continues_after_a_kill_with_totals_that_never_decrease(path: Path) -> None:
    flows = {key(tcp(port, f"192.0.2.{port}")): 2 for port in range(1, FLOWS + 1)}
    more = flows | {key(tcp(port, "192.0.2.1")): 1 for port in range(1000, 1005)}
    run = Run(path)
    begun = _fan_out(run.step(flows, 1))
    assert begun.stage == "begun"
    found = run.step(more, 1)  # not reported yet, and not new for the next run
    assert not any(isinstance(each, FanOut) for each in found)
    run.kill()
    run = Run(path)
    quiet = run.step(more, 60)
    assert not any(isinstance(each, FanOut) for each in quiet)
    last = more | {key(tcp(2000)): 1}
    update = _fan_out(run.step(last, 62))
    assert (update.stage, update.identity) == ("goes on", begun.identity)
    assert (update.flows, update.packets) == (FLOWS + 6, 2 * FLOWS + 6)
    assert (update.destinations, update.ports) == (FLOWS, FLOWS + 5)
    assert (update.sample, update.start_ns) == (begun.sample, begun.start_ns)
    run.kill()
    run = Run(path)
    over_ns = WITHIN_NS // SECOND
    assert not any(isinstance(each, FanOut) for each in run.step(last, 100))
    end = _fan_out(run.step(last, 100 + over_ns))
    assert end == dataclasses.replace(update, stage="ended")
    assert run.step(last, 300, closing=True) == []
    assert _stored_number(path) == 0
    run.kill()


def test_only_what_changed_is_written(path: Path) -> None:
    run = Run(path)
    flows = {key(tcp(port)): 1 for port in range(1, FLOWS + 1)}
    observe(run.account, reading(flows, NOW + SECOND))
    assert len(list(run.account.due(SECOND))) == FLOWS + 1
    assert run.commit() == FLOWS + 1
    assert run.commit() == 0
    more = flows | {key(tcp(1)): 2}
    observe(run.account, reading(more, NOW + 2 * SECOND))
    assert len(list(run.account.due(2 * SECOND))) == 1
    assert run.commit() == 2  # the incident, and the fan-out with one more packet
    run.kill()
    run = Run(path)
    assert list(run.account.due(3 * SECOND)) == []
    assert run.commit() == 0
    run.kill()


def _has_surrogates(text: str) -> bool:
    """Return whether a text has surrogates.

    Two separate halves are one character after they are decoded from JSON.
    """
    return re.search(r"\\ud[89ab]", text) is not None


def _end(record: Record, by: Attribution | None, latest: tuple[str, ...] = ()) -> IncidentEnd:
    incident = Incident(
        identity=record.origin.identity,
        windows=3,
        packets=9,
        found_at=2,
        start_ns=record.time_ns,
        latest=latest,
        attribution=by,
    )
    return IncidentEnd(record=record, incident=incident, end_ns=record.received_ns)


@given(
    record=records(),
    by=st.none() | ATTRIBUTIONS,
    latest=st.lists(HOSTILE_TEXT, max_size=10).map(tuple),
    questions=st.lists(QUESTIONS, max_size=3).map(tuple),
)
def test_codec_accepts_every_reported_incident(
    record: Record,
    by: Attribution | None,
    latest: tuple[str, ...],
    questions: tuple[DnsQuestion, ...],
) -> None:
    end = _end(record, by, latest)
    incident = dataclasses.replace(end.incident, questions=questions)
    end = dataclasses.replace(end, incident=incident)
    opened = OpenIncident(key(tcp()), end, questions)
    text = codec._json_of(opened)
    taken = codec._opened(json.loads(text))
    assert codec._json_of(taken) == text
    assert taken == opened or _has_surrogates(text.decode())


def test_codec_accepts_an_incident_with_every_field() -> None:
    opened = OpenIncident(key(tcp()), _end(RECORDS["tcp4"], SEVERAL_IN_ONE_WINDOW))
    assert codec._opened(json.loads(codec._json_of(opened))) == opened
