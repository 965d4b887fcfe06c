"""Incidents of a flow: beginning, running totals and end."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.attempt import Attempt
from ocsf_nft.flow import Key
from ocsf_nft.flows import codec
from ocsf_nft.flows.incidents import OpenIncident, extend_incident
from ocsf_nft.flows.sandbox_account import SandboxAccount
from ocsf_nft.process import Attribution, Process, Seen
from tests.conformance.attributed import done_by
from tests.flows.kernel_model import keys
from tests.flows.reading import (
    NOW,
    SECOND,
    attempts,
    ended,
    key,
    observe,
    reading,
    record,
    tcp,
)

if TYPE_CHECKING:
    from ocsf_nft.attempt import FanOut, Incident, IncidentEnd
    from ocsf_nft.record import Record


@pytest.fixture
def account() -> SandboxAccount:
    begun = SandboxAccount("sb", begun_ns=NOW - SECOND)
    observe(begun, reading({}))
    return begun


def _due(
    account: SandboxAccount, second: int, *, closing: bool = False
) -> list[Attempt | FanOut | IncidentEnd]:
    return list(account.due((1000 + second) * SECOND, closing=closing))


def _step(
    account: SandboxAccount, packets: int, second: int
) -> list[Attempt | FanOut | IncidentEnd]:
    observe(account, reading({key(tcp()): packets}, NOW + second * SECOND))
    return _due(account, second)


def _incidents(found: list[Attempt | FanOut | IncidentEnd]) -> list[Incident]:
    return [each.incident for each in attempts(found) if each.incident is not None]


def test_attempts_of_a_flow_share_an_incident_with_running_totals(account: SandboxAccount) -> None:
    first = account.record(record(tcp()), 1000 * SECOND)
    assert first is not None
    reported = [first]
    for second in range(1, 40):
        reported += attempts(_step(account, 1 + 10 * second, second))
    incidents = _incidents([*reported])
    assert len(incidents) == len(reported) == 6
    assert len({each.identity for each in incidents}) == 1
    assert [each.windows for each in incidents] == [1, 2, 3, 4, 5, 6]
    assert [each.packets for each in incidents] == [1, 11, 31, 71, 151, 311]
    assert {each.found_at for each in incidents} == {None}
    assert {each.start_ns for each in incidents} == {NOW}
    assert incidents[-1].latest == tuple(each.record.origin.identity for each in reported)


def test_incident_lists_its_last_ten_attempts(account: SandboxAccount) -> None:
    reported = [
        each for second in range(1, 600) for each in attempts(_step(account, second, second))
    ]
    last = _incidents([*reported])[-1]
    assert last.windows == len(reported) > 10
    assert last.latest == tuple(each.record.origin.identity for each in reported[-10:])


def test_incident_ends_once_after_a_pause(account: SandboxAccount) -> None:
    found = [each for second in range(1, 40) for each in _step(account, min(second, 5), second)]
    (end,) = ended(found)
    last = attempts(found)[-1]
    assert found[-1] is end
    assert (end.incident, end.end_ns, end.record) == (last.incident, last.end_ns, last.record)
    assert end.incident.packets == 5
    assert ended(_due(account, 60, closing=True)) == []


def test_packets_after_the_end_begin_another_incident(account: SandboxAccount) -> None:
    _step(account, 1, 1)
    (end,) = ended(_step(account, 1, 12))
    (reported,) = attempts(_step(account, 3, 20))
    assert reported.incident is not None
    assert reported.incident.identity != end.incident.identity
    assert (reported.incident.windows, reported.incident.packets) == (1, 2)


def test_closing_ends_all_open_incidents(account: SandboxAccount) -> None:
    counts = {key(tcp(port)): port for port in range(1, 6)}
    observe(account, reading(counts, NOW + SECOND))
    found = _due(account, 1, closing=True)
    identities = [each.identity for each in _incidents(found)]
    assert len(identities) == 5
    assert [each.incident.identity for each in ended(found)] == identities
    assert _due(account, 1, closing=True) == []
    (again,) = _incidents(_step(account, 9, 2))
    assert again.identity not in identities
    assert again.windows == 1


def test_flow_without_a_report_has_no_end(account: SandboxAccount) -> None:
    without_slot = keys(record(tcp()))[-2]
    observe(account, reading({without_slot: 1}, NOW + SECOND))
    assert [each.incident for each in attempts(_due(account, 1))] == [None]
    assert account.record(record(tcp(443)), 1001 * SECOND) is None
    for second in (2, 3, 20):
        observe(account, reading({without_slot: 1}, NOW + second * SECOND))
        assert _due(account, second) == []


def test_flow_without_slot_that_a_record_reported_has_an_end(
    account: SandboxAccount,
) -> None:
    without_slot = keys(record(tcp()))[-2]
    observe(account, reading({without_slot: 1}, NOW + SECOND))
    _due(account, 1)
    assert account.record(record(tcp(443)), 1001 * SECOND) is None
    observe(account, reading({without_slot: 2}, NOW + 2 * SECOND))
    (incident,) = _incidents(_due(account, 2))
    (end,) = ended(_due(account, 20))
    assert (end.incident, end.record.destination_port) == (incident, 443)


def test_aggregated_flows_have_no_incident(account: SandboxAccount) -> None:
    flood = {key(tcp(port)): 1 for port in range(1, 1501)}
    observe(account, reading(flood, NOW + SECOND, overflow=3))
    found = _due(account, 1, closing=True)
    assert {each.aggregation is None: each.incident is None for each in attempts(found)} == {
        True: False,
        False: True,
    }
    assert len(ended(found)) == len(_incidents(found)) == 1000


def test_new_counters_end_the_incidents_of_the_old_ones(account: SandboxAccount) -> None:
    (old,) = _incidents(_step(account, 1, 1))
    observe(account, reading({key(tcp()): 4}, NOW + 2 * SECOND))
    observe(account, reading({key(tcp()): 2}, NOW + 3 * SECOND, epoch="boot:2"))
    found = _due(account, 2)
    last, new = _incidents(found)
    assert [(last.identity, last.packets), (new.windows, new.packets)] == [
        (old.identity, 4),
        (1, 2),
    ]
    assert new.identity != old.identity
    assert [each.incident for each in ended(found)] == [last]
    assert [each.incident for each in ended(_due(account, 2, closing=True))] == [new]


def test_incident_does_not_end_before_its_start_if_the_clock_is_set_back(
    account: SandboxAccount,
) -> None:
    observe(account, reading({}, NOW + 7199 * SECOND))
    _step(account, 1, 7200)
    at_ms = (NOW + 7201 * SECOND) // 1_000_000
    observe(account, reading({key(tcp()): 2}, NOW, at_ms=at_ms))
    (end,) = ended(_due(account, 7202, closing=True))
    assert end.incident.windows == 2
    assert end.incident.start_ns <= end.end_ns


def test_incident_total_of_forged_counters_is_limited(account: SandboxAccount) -> None:
    most = (1 << 64) - 1
    for second, packets in ((1, most), (2, 0), (4, most)):
        found = _incidents(_step(account, packets, second))
    assert [each.packets for each in found] == [1 << 62]


def test_finding_remains_a_finding_with_any_later_record() -> None:
    asked: list[tuple[Record, int]] = []

    def is_finding(record: Record, packets: int, _questions: object) -> bool:
        asked.append((record, packets))
        return record.destination_port == 443 and packets >= 10

    end: IncidentEnd | None = None
    found = []
    for packets, port in ((4, 443), (4, 53), (4, 443), (1, 53), (1, 443)):
        own_record = replace(record(tcp()), destination_port=port)
        attempt = replace(Attempt.of(own_record), packets=packets)
        end = extend_incident(end, Key("flows4", b"\0"), attempt, is_finding)
        found.append(end.incident.found_at)
    assert found == [None, None, 3, 3, 3]
    assert [packets for _, packets in asked] == [4, 8, 12]


def _by(pid: int) -> Attribution:
    return done_by(Process(pid=pid, path=f"/run/{pid}"))


def _merged_attribution(*attributions: Attribution | None) -> Attribution | None:
    end: IncidentEnd | None = None
    for attribution in attributions:
        attempt = Attempt.of(record(tcp()), attribution)
        end = extend_incident(end, Key("flows4", b"\0"), attempt, lambda *_: False)
    assert end is not None
    return end.incident.attribution


def test_incident_has_one_process_only_if_that_made_all_attempts() -> None:
    assert _merged_attribution(_by(1)) == _merged_attribution(_by(1), _by(1)) == _by(1)
    several = _merged_attribution(_by(1), _by(2), _by(2))
    assert several is not None
    assert several.process is None
    assert [(each.process.pid, each.calls) for each in several.seen] == [(1, 1), (2, 2)]
    assert _merged_attribution(None) is None


def test_attribution_of_an_attempt_is_requested_once_and_is_in_its_incident() -> None:
    asked: list[Attempt] = []

    def add_attribution(attempt: Attempt) -> Attempt:
        asked.append(attempt)
        return replace(attempt, attribution=_by(len(asked)))

    account = SandboxAccount("sb", begun_ns=NOW - SECOND, add_attribution=add_attribution)
    observe(account, reading({}))
    reported = [each for second in range(1, 6) for each in _step(account, second, second)]
    reported += _due(account, 6, closing=True)
    found = attempts(reported)
    assert len(asked) == len(found) > 2
    assert [each.attribution for each in found] == [_by(number + 1) for number in range(len(found))]
    (end,) = ended(reported)
    last = found[-1].incident
    assert last is not None
    assert end.incident == last
    assert last.attribution is not None
    assert [each.process.pid for each in last.attribution.seen] == [
        number + 1 for number in range(len(found))
    ]


def _with_long_texts(pid: int) -> Process:
    """Return a process of a hostile program: with 16 ancestors, and a kilobyte in each text."""
    found = Process(
        pid=pid,
        path=f"/{'p' * 1000}/tool",
        cmd_line="c" * 1000,
        working_directory="/" + "d" * 1000,
        created_ns=NOW + pid,
    )
    return replace(found, ancestors=tuple(replace(found, pid=each) for each in range(16)))


def _extended(*attributions: Attribution) -> IncidentEnd:
    end: IncidentEnd | None = None
    for each in attributions:
        attempt = Attempt.of(record(tcp()), each)
        end = extend_incident(end, key(tcp()), attempt, lambda *_: False)
    assert end is not None
    return end


def test_stored_size_of_an_incident_is_limited() -> None:
    """It is stored again with each attempt, and a user may have 1,000 incidents at once."""
    seen = tuple(Seen(process=_with_long_texts(pid), calls=1) for pid in range(100, 132))
    several = Attribution(method="capture", confidence="high", reason="", seen=seen)
    one = replace(several, process=seen[0].process, seen=())
    for attributions in ((one,), (several,), (one, several), (several, several)):
        end = _extended(*attributions)
        assert len(codec._json_of(OpenIncident(key(tcp()), end))) < 32 * 1024
        by = end.incident.attribution
        assert by is not None
        if by.seen:
            assert [each.process.pid for each in by.seen] == list(range(116, 132))
            assert by.unnamed == 16
            assert {str(each.process.path)[-5:] for each in by.seen} == {"/tool"}


def test_program_with_a_long_path_is_the_same_in_each_attempt() -> None:
    one = Attribution(method="capture", confidence="high", reason="", process=_with_long_texts(100))
    by = _extended(one, one, one).incident.attribution
    assert by is not None
    assert by.process is not None
    assert (by.process.pid, by.confidence, by.seen) == (100, "high", ())


def test_incident_has_all_ancestors_of_its_only_process() -> None:
    path = "/usr/bin/tool"
    above = tuple(Process(pid=pid, path=path, working_directory="/") for pid in range(16))
    one = Process(pid=100, path=path, cmd_line="x" * 400, created_ns=NOW, ancestors=above)
    by = Attribution(method="capture", confidence="high", reason="", process=one)
    assert _extended(by).incident.process == one
    sole = replace(by, confidence="medium", seen=(Seen(process=one, calls=1),))
    unknown = Attribution(method="user", confidence="high", reason="")
    assert _extended(sole, unknown).incident.process == one
