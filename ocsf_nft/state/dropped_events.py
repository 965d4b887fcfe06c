"""Table with the numbers of events that were deleted before a sink had received them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

#: The table of a database that deletes events or dead letters.
SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS dropped_event (sink TEXT PRIMARY KEY, events INTEGER) WITHOUT ROWID;
"""


class DroppedEvents(NamedTuple):
    """Name of a sink, and the number of events that were deleted without having been delivered."""

    sink: str
    events: int


def add(connection: sqlite3.Connection, dropped: DroppedEvents) -> None:
    """Add dropped events to the table, in an open transaction."""
    connection.execute(
        "INSERT INTO dropped_event VALUES (?, ?) "
        "ON CONFLICT DO UPDATE SET events = events + excluded.events",
        dropped,
    )


def read(connection: sqlite3.Connection) -> tuple[DroppedEvents, ...]:
    """Read the dropped events that are not reported yet, from an open transaction."""
    rows = connection.execute("SELECT sink, events FROM dropped_event WHERE events > 0")
    return tuple(DroppedEvents(*row) for row in rows)


def confirm_reported(connection: sqlite3.Connection, dropped: Sequence[DroppedEvents]) -> None:
    """Subtract reported events from the table, in an open transaction.

    ``dropped`` is an earlier result of :func:`read`.
    """
    connection.executemany(
        "UPDATE dropped_event SET events = events - ? WHERE sink = ?",
        [(each.events, each.sink) for each in dropped],
    )
