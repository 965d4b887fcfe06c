"""Expected answers of the queries of DuckDB, and the database that they run in."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, Final

import duckdb

from tests.queries import expected
from tests.queries.expected import at, grouped, host, packets, refused, sandbox
from tests.queries.page import queries

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import TypeAlias

    from tests.queries.expected import Event

    Events: TypeAlias = list[Event]
    Row: TypeAlias = tuple[Any, ...]

QUERIES: Final = queries("sql")
_EPOCH: Final = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - DuckDB returns UTC without a time zone
#: Statements that make the views of JSON Lines and of Parquet files.
_SOURCES: Final = {"jsonl": "Events in JSON Lines", "parquet": "Events in Parquet files"}
#: Titles of the statements that make the views.
VIEWS: Final = {*_SOURCES.values(), "Views"}


def database_of(folder: Path, source: str) -> duckdb.DuckDBPyConnection:
    """Return a database with the views of the events in a folder: ``jsonl`` or ``parquet``."""
    connection = duckdb.connect()
    connection.execute(f"SET file_search_path = '{folder}'")
    connection.execute(QUERIES[_SOURCES[source]])
    connection.execute(QUERIES["Views"])
    return connection


def answer(database: duckdb.DuckDBPyConnection, title: str) -> list[Row]:
    """Return the rows that a query returns."""
    return database.execute(QUERIES[title]).fetchall()


def time_of(milliseconds: int) -> dt.datetime:
    """Return a time as DuckDB does."""
    return _EPOCH + dt.timedelta(milliseconds=milliseconds)


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


def _attempts(events: Events) -> list[Row]:
    return [
        (
            *where,
            packets(parts),
            len(parts),
            time_of(min(event["start_time"] for event in parts)),
            time_of(max(event["end_time"] for event in parts)),
        )
        for where, parts in grouped(refused(events), _where_to).items()
    ]


def _programs(events: Events) -> list[Row]:
    return [
        (
            *who,
            packets(parts),
            len({at(event, "dst_endpoint.ip") for event in parts} - {None}),
        )
        for who, parts in grouped(refused(events), _who).items()
    ]


def _hours(events: Events) -> list[Row]:
    hours = grouped(refused(events), lambda event: (event["time"] // 3_600_000, sandbox(event)))
    return [(time_of(hour * 3_600_000), name, packets(e)) for (hour, name), e in hours.items()]


def _reaches(events: Events) -> list[Row]:
    reaching = filter(expected.reached_for_metadata, expected.of_class(events, 4001))
    found = []
    for (where, name), theirs in grouped(reaching, lambda one: (host(one), sandbox(one))).items():
        first = min(theirs, key=lambda one: (one["start_time"], one["metadata"]["uid"]))
        time = time_of(first["start_time"])
        found.append((where, name, time, first["message"], first["metadata"]["uid"]))
    return found


def _open(events: Events) -> list[Row]:
    return [
        (
            host(one),
            sandbox(one),
            one["finding_info"]["title"],
            one["message"],
            one["severity_id"],
            one["count"],
            time_of(one["start_time"]),
            one["finding_info"]["uid"],
        )
        for one in expected.open_findings(events)
    ]


def _gaps(events: Events) -> list[Row]:
    return [
        (
            one["activity_name"],
            one["unmapped"].get("sandbox") or one["unmapped"]["transport"],
            time_of(one["start_time"]),
            time_of(one["end_time"]),
            one.get("count"),
            one["status_detail"],
        )
        for one in expected.gaps(events)
    ]


#: The expected answer of each query, and the key that sorts its rows.
ANSWERS: Final[dict[str, tuple[Callable[[Events], list[Row]], Callable[[Row], Any]]]] = {
    "Attempts by sandbox and destination": (_attempts, lambda row: -row[4]),
    "Programs and users": (_programs, lambda row: -row[2]),
    "Packets by hour": (_hours, lambda row: (row[0], row[1] is None, row[1])),
    "First attempt to reach a cloud metadata service": (_reaches, lambda row: row[2]),
    "Open findings": (_open, lambda row: (-row[4], -row[5])),
    "Anything missing": (_gaps, lambda row: row[3]),
}
