"""Open incidents of a killed run: the next run continues and ends them."""

from __future__ import annotations

import dataclasses
import json
import re
import sqlite3
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.accounting import incident_codec, state_db
from ocsf_nft.accounting.counter_id import CounterId
from ocsf_nft.accounting.open_incidents import OpenIncident
from ocsf_nft.accounting.sandbox_accounting import SandboxAccount
from ocsf_nft.accounting.scan_detection import FLOWS, WITHIN_NS
from ocsf_nft.attempt import Attempt, FanOut, Incident, IncidentEnd
from ocsf_nft.flow import Flow
from ocsf_nft.process import Attribution, Container, Process, Seen
from ocsf_nft.record import Origin, Record
from tests.accounting.kernel_model import RULE
from tests.accounting.reading import (
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
from tests.conformance.attributed import SEVERAL_IN_ONE_WINDOW
from tests.conformance.corpus import RECORDS
from tests.strategies import ATTRIBUTIONS, HOSTILE_TEXT, records

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ocsf_nft.flow import Key

Found = Attempt | FanOut | IncidentEnd


class Run:
    """An account and its state database, as in a run; several runs may use one file."""

    def __init__(self, path: Path) -> None:
        self.database = state_db.StateDatabase(path).open()
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
        self.database.commit(changed, [])
        return len(changed.opened)

    def kill(self) -> None:
        self.database.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / state_db.FILE


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
        (number,) = connection.execute("SELECT count(*) FROM opened").fetchone()
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


def test_incidents_of_old_counters_end_after_a_kill_before_their_report(
    path: Path,
) -> None:
    run = Run(path)
    flows = {key(tcp(port)): 1 for port in range(1, FLOWS + 1)}
    run.step(flows, 1)
    observe(run.account, reading({}, NOW + 2 * SECOND, epoch="boot:2"))
    run.commit()
    run.kill()
    run = Run(path)
    found = run.step({}, 3, epoch="boot:2")
    assert len(ended(found)) == FLOWS
    assert _fan_out(found).stage == "ended"
    assert len(found) == FLOWS + 1
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


def test_database_without_its_table_of_open_incidents_works(path: Path) -> None:
    run = Run(path)
    run.step({key(tcp()): 2}, 1)
    run.database.commit(changes(run.account), [b"event"])
    run.kill()
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE opened")
    connection.close()
    reader, account = (
        state_db.StateDatabase(path).open(read_only=True),
        SandboxAccount("sb", begun_ns=NOW),
    )
    reader.load(account)
    reader.close()
    assert [balance.reported for balance in account.balances()] == [2]
    run = Run(path)
    assert run.database.undelivered() == (b"event",)
    assert _incident(run.step({key(tcp()): 3}, 2)).packets == 1
    assert _stored_number(path) == 1
    run.kill()


def test_damaged_database_has_no_open_incidents(path: Path) -> None:
    run = Run(path)
    run.step({key(tcp(1)): 1, key(tcp(2)): 1}, 1)
    run.kill()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE opened SET epoch = 'boot:0' WHERE rowid = 1")
        connection.execute("UPDATE opened SET state = 'x' WHERE rowid = 2")
    connection.close()
    run = Run(path)
    assert path.with_suffix(".damaged").exists()
    assert run.step({}, 2, closing=True) == []
    run.kill()


COUNTER_ID = CounterId(sandbox="sb", rule=RULE, epoch="boot:1")


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
)
def test_codec_accepts_every_reported_incident(
    record: Record, by: Attribution | None, latest: tuple[str, ...]
) -> None:
    end = _end(record, by, latest)
    text = incident_codec.encode(OpenIncident(COUNTER_ID, key(tcp()), end))
    assert text.encode()  # the file accepts any text
    taken = incident_codec.decode(COUNTER_ID, text)
    assert incident_codec.encode(taken) == text
    assert taken.end == end or _has_surrogates(text)


def _stored_incident() -> Any:
    end = _end(RECORDS["tcp4"], SEVERAL_IN_ONE_WINDOW)
    return json.loads(incident_codec.encode(OpenIncident(COUNTER_ID, key(tcp()), end)))


def test_codec_ignores_the_process_field_of_an_earlier_version() -> None:
    state = _stored_incident()
    del state["incident_end"]["incident"]["attribution"]
    state["incident_end"]["process"] = {"pid": 4242, "name": "curl", "ancestors": []}
    taken = incident_codec.decode(COUNTER_ID, json.dumps(state))
    assert taken.end == _end(RECORDS["tcp4"], None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "guess"},
        {"method": None},
        {"confidence": "High"},
        {"reason": None},
        {"process": {"pid": None, "ancestors": []}},
        {"process": {"pid": 1, "tid": 1 << 32, "ancestors": []}},
        {"process": {"pid": 1, "sha256": 7, "ancestors": []}},
        {"process": {"pid": 1, "gid": -1, "ancestors": []}},
        {"seen": None},
        {"seen": [{"process": None}]},
        {"seen": [{"process": {"pid": 1, "ancestors": []}, "calls": 1 << 64}]},
        {"unnamed": None},
        {"unnamed": -1},
        {"user_name": 7},
        {"group_name": ["x"]},
    ],
)
def test_codec_refuses_an_invalid_attribution(wrong: dict[str, Any]) -> None:
    state = _stored_incident()
    state["incident_end"]["incident"]["attribution"] |= wrong
    with pytest.raises((TypeError, ValueError, AttributeError)):
        incident_codec.decode(COUNTER_ID, json.dumps(state))


@pytest.mark.parametrize(
    ("kind", "readers"),
    [
        (Record, incident_codec._RECORD),
        (Origin, incident_codec._ORIGIN),
        (Incident, incident_codec._INCIDENT),
        (IncidentEnd, incident_codec._INCIDENT_END),
        (Attribution, incident_codec._ATTRIBUTION),
        (Seen, incident_codec._SEEN),
        (Process, incident_codec._PROCESS),
        (Container, incident_codec._CONTAINER),
        (Flow, incident_codec._FLOW),
        (FanOut, incident_codec._FAN_OUT),
    ],
)
def test_codec_stores_every_field(kind: type[Any], readers: Mapping[str, object]) -> None:
    assert [each.name for each in dataclasses.fields(kind)] == list(readers)
