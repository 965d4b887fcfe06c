"""SQL queries of docs/reference/events.md, run on events of every kind."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import duckdb
import pytest

from tests.queries import expected, siem_events
from tests.queries.expected import at, grouped, host, packets, refused, sandbox
from tests.queries.page import queries

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.queries.expected import Event

QUERIES: Final = queries("sql")
EVENTS: Final = siem_events.unique_events()
_EPOCH: Final = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - DuckDB returns UTC without a time zone


def _time(milliseconds: int) -> dt.datetime:
    return _EPOCH + dt.timedelta(milliseconds=milliseconds)


@pytest.fixture(scope="module", params=siem_events.VERSIONS)
def database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> duckdb.DuckDBPyConnection:
    folder: Path = tmp_path_factory.mktemp("duckdb")
    siem_events.write(folder, EVENTS, request.param)
    connection = duckdb.connect()
    connection.execute(f"SET file_search_path = '{folder}'")
    connection.execute(QUERIES["Views"])
    return connection


def _answer(database: duckdb.DuckDBPyConnection, title: str) -> list[tuple[Any, ...]]:
    return database.execute(QUERIES[title]).fetchall()


def _where_to(event: Event) -> tuple[Any, ...]:
    return (
        sandbox(event),
        at(event, "dst_endpoint.ip"),
        at(event, "dst_endpoint.port"),
        at(event, "connection_info.protocol_name"),
    )


def _who(event: Event) -> tuple[Any, ...]:
    path = at(event, "actor.process.file.path") or at(event, "actor.process.name")
    user = at(event, "actor.user.name") or at(event, "actor.user.uid")
    return path or "not known", user or "not known"


def _attempts() -> list[tuple[Any, ...]]:
    return [
        (
            *where,
            packets(events),
            len(events),
            _time(min(event["start_time"] for event in events)),
            _time(max(event["end_time"] for event in events)),
        )
        for where, events in grouped(refused(EVENTS), _where_to).items()
    ]


def _programs() -> list[tuple[Any, ...]]:
    return [
        (
            *who,
            packets(events),
            len({at(event, "dst_endpoint.ip") for event in events} - {None}),
        )
        for who, events in grouped(refused(EVENTS), _who).items()
    ]


def _hours() -> list[tuple[Any, ...]]:
    hours = grouped(refused(EVENTS), lambda event: (event["time"] // 3_600_000, sandbox(event)))
    return [(_time(hour * 3_600_000), name, packets(e)) for (hour, name), e in hours.items()]


def _reaches() -> list[tuple[Any, ...]]:
    events = filter(expected.reached_for_metadata, expected.of_class(EVENTS, 4001))
    found = []
    for (where, name), theirs in grouped(events, lambda one: (host(one), sandbox(one))).items():
        first = min(theirs, key=lambda one: (one["start_time"], one["metadata"]["uid"]))
        time = _time(first["start_time"])
        found.append((where, name, time, first["message"], first["metadata"]["uid"]))
    return found


def _open() -> list[tuple[Any, ...]]:
    return [
        (
            host(one),
            sandbox(one),
            one["finding_info"]["title"],
            one["message"],
            one["severity_id"],
            one["count"],
            _time(one["start_time"]),
            one["finding_info"]["uid"],
        )
        for one in expected.open_findings(EVENTS)
    ]


def _gaps() -> list[tuple[Any, ...]]:
    return [
        (
            one["activity_name"],
            one["unmapped"].get("sandbox") or one["unmapped"]["transport"],
            _time(one["start_time"]),
            _time(one["end_time"]),
            one.get("count"),
            one["status_detail"],
        )
        for one in expected.gaps(EVENTS)
    ]


#: The expected answer of each query, and the key that sorts its rows.
ANSWERS: Final[dict[str, tuple[Callable[[], list[tuple[Any, ...]]], Callable[[Any], Any]]]] = {
    "Attempts by sandbox and destination": (_attempts, lambda row: -row[4]),
    "Programs and users": (_programs, lambda row: -row[2]),
    "Packets by hour": (_hours, lambda row: (row[0], row[1] is None, row[1])),
    "First attempt to reach a cloud metadata service": (_reaches, lambda row: row[2]),
    "Open findings": (_open, lambda row: (-row[4], -row[5])),
    "Anything missing": (_gaps, lambda row: row[3]),
}
#: Queries with a separate test.
_OTHERS: Final = {
    "Views",
    "Findings with their attempts",
    "Fences that are not active",
    "Events that were received twice",
}


def test_each_query_has_a_test() -> None:
    assert QUERIES.keys() == ANSWERS.keys() | _OTHERS


@pytest.mark.parametrize("title", ANSWERS)
def test_query_returns_the_expected_rows(database: duckdb.DuckDBPyConnection, title: str) -> None:
    expect, order = ANSWERS[title]
    answer = _answer(database, title)
    assert Counter(answer) == Counter(expect())
    assert len(answer) > 2
    assert answer == sorted(answer, key=order)


def test_count_of_a_finding_is_the_sum_of_its_attempts(database: duckdb.DuckDBPyConnection) -> None:
    answer = _answer(database, "Findings with their attempts")
    findings = {
        one["finding_info"]["uid"]: one
        for one in expected.findings(EVENTS)
        if one["finding_info"]["uid"] == one["metadata"]["correlation_uid"]
        and one["finding_info"]["related_events"][0]["type_uid"] // 100 == 4001
    }
    assert {row[0] for row in answer} == findings.keys()
    events = {one["metadata"]["uid"]: one for one in EVENTS}
    for uid, count, count_of_events, uids in answer:
        info = findings[uid]["finding_info"]
        assert count == count_of_events == packets(events[each] for each in uids)
        assert count == findings[uid]["count"]
        assert len(uids) == info.get("related_events_count")
        assert uids[-10:] == [each["uid"] for each in info["related_events"]]


def test_query_returns_each_inactive_fence(database: duckdb.DuckDBPyConnection) -> None:
    answer = _answer(database, "Fences that are not active")
    fallen = list(expected.inactive_fences(EVENTS))
    assert Counter((name, box, time) for name, box, time, *_ in answer) == Counter(
        (host(one), sandbox(one), _time(one["time"])) for one in fallen
    )
    # Of two events within a millisecond, the query may return either that is not active.
    messages = {one["message"] for one in EVENTS if one.get("state") not in {None, "Enabled"}}
    assert {message for *_, message, _ in answer} <= messages
    fences = {(host(one), sandbox(one)) for one in expected.of_class(EVENTS, 5019)}
    assert 0 < len(answer) < len(fences)


def test_query_returns_duplicate_events(database: duckdb.DuckDBPyConnection) -> None:
    answer = _answer(database, "Events that were received twice")
    assert len(answer) == len(EVENTS[::3])
    assert Counter(answer) == Counter((one["metadata"]["uid"], 2) for one in EVENTS[::3])
