"""SQL queries of docs/reference/events.md, run on events of every kind."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import pytest

from tests.queries import expected, siem_events
from tests.queries.answers import ANSWERS, QUERIES, VIEWS, answer, database_of, time_of
from tests.queries.expected import host, packets, sandbox

if TYPE_CHECKING:
    from pathlib import Path

    import duckdb

EVENTS: Final = siem_events.unique_events()


@pytest.fixture(scope="module", params=(*siem_events.VERSIONS, *siem_events.PARQUET))
def database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> duckdb.DuckDBPyConnection:
    folder: Path = tmp_path_factory.mktemp("duckdb")
    siem_events.write(folder, EVENTS, request.param)
    is_parquet = request.param in siem_events.PARQUET
    return database_of(folder, "parquet" if is_parquet else "jsonl")


#: Queries with a separate test.
_OTHERS: Final = {
    "Findings with their attempts",
    "Fences that are not active",
    "Events that were received twice",
}


def test_each_query_has_a_test() -> None:
    assert QUERIES.keys() == ANSWERS.keys() | VIEWS | _OTHERS


@pytest.mark.parametrize("title", ANSWERS)
def test_query_returns_the_expected_rows(database: duckdb.DuckDBPyConnection, title: str) -> None:
    expect, order = ANSWERS[title]
    found = answer(database, title)
    assert Counter(found) == Counter(expect(EVENTS))
    assert len(found) > 2
    assert found == sorted(found, key=order)


def test_count_of_a_finding_is_the_sum_of_its_attempts(database: duckdb.DuckDBPyConnection) -> None:
    found = answer(database, "Findings with their attempts")
    findings = {
        one["finding_info"]["uid"]: one
        for one in expected.findings(EVENTS)
        if one["finding_info"]["uid"] == one["metadata"]["correlation_uid"]
        and one["finding_info"]["related_events"][0]["type_uid"] // 100 == 4001
    }
    assert {row[0] for row in found} == findings.keys()
    events = {one["metadata"]["uid"]: one for one in EVENTS}
    for uid, count, count_of_events, uids in found:
        info = findings[uid]["finding_info"]
        assert count == count_of_events == packets(events[each] for each in uids)
        assert count == findings[uid]["count"]
        assert len(uids) == info.get("related_events_count")
        assert uids[-10:] == [each["uid"] for each in info["related_events"]]


def test_query_returns_each_inactive_fence(database: duckdb.DuckDBPyConnection) -> None:
    found = answer(database, "Fences that are not active")
    fallen = list(expected.inactive_fences(EVENTS))
    assert Counter((name, box, time) for name, box, time, *_ in found) == Counter(
        (host(one), sandbox(one), time_of(one["time"])) for one in fallen
    )
    # Of two events within a millisecond, the query may return either that is not active.
    messages = {one["message"] for one in EVENTS if one.get("state") not in {None, "Enabled"}}
    assert {message for *_, message, _ in found} <= messages
    fences = {(host(one), sandbox(one)) for one in expected.of_class(EVENTS, 5019)}
    assert 0 < len(found) < len(fences)


def test_query_returns_duplicate_events(database: duckdb.DuckDBPyConnection) -> None:
    found = answer(database, "Events that were received twice")
    assert len(found) == len(EVENTS[::3])
    assert Counter(found) == Counter((one["metadata"]["uid"], 2) for one in EVENTS[::3])
