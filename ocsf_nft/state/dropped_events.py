"""Databases that count the events that they delete before a sink has received them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.state.database import Database

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


class DroppingDatabase(Database):
    """Database with the table of :data:`SCHEMA`."""

    def dropped_events(self) -> tuple[DroppedEvents, ...]:
        """Return for each sink how many events were removed before that sink had received them.

        Events that were passed to :meth:`confirm_reported` are not counted.
        """
        with self.transaction() as connection:
            rows = connection.execute("SELECT sink, events FROM dropped_event WHERE events > 0")
            return tuple(DroppedEvents(*row) for row in rows)

    def confirm_reported(self, dropped: Sequence[DroppedEvents]) -> None:
        """Mark dropped events as reported: :meth:`dropped_events` no longer counts them.

        ``dropped`` is an earlier result of :meth:`dropped_events`.
        """
        with self.transaction() as connection:
            subtract(connection, dropped)


def add(connection: sqlite3.Connection, dropped: DroppedEvents) -> None:
    """Add dropped events to the table, in an open transaction."""
    connection.execute(
        "INSERT INTO dropped_event VALUES (?, ?) "
        "ON CONFLICT DO UPDATE SET events = events + excluded.events",
        dropped,
    )


def subtract(connection: sqlite3.Connection, reported: Sequence[DroppedEvents]) -> None:
    """Subtract reported dropped events from the table, in an open transaction."""
    connection.executemany(
        "UPDATE dropped_event SET events = events - ? WHERE sink = ?",
        [(each.events, each.sink) for each in reported],
    )
