"""Open incidents (repeated refused packets of a flow) and scans (one user, many destinations).

"Open" means that the Create event was emitted, but the Close event was not emitted yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.accounting.counter_id import CounterId
    from ocsf_nft.attempt import FanOut, IncidentEnd
    from ocsf_nft.flow import Key


class OpenIncident(NamedTuple):
    """Incident (series of a flow's refused packets) with a Create event and no Close event yet."""

    #: Counters of the firewall rule that refused the packets.
    counter_id: CounterId
    #: User, protocol, destination and port of the packets.
    key: Key
    #: Content of the Close event, unless more packets follow. Then a new object replaces this one.
    end: IncidentEnd

    @property
    def identity(self) -> str:
        """Return the identity that all events of the incident share."""
        return self.end.incident.identity


class OpenFanOut(NamedTuple):
    """Scan (one user, many destinations) with a Create event and no Close event yet."""

    #: Counters of the firewall rule that refused the packets.
    counter_id: CounterId
    #: Content of the Close event, unless more packets follow. Then a new object replaces this one.
    end: FanOut

    @property
    def identity(self) -> str:
        """Return the identity that all events of this scan (fan-out) share."""
        return self.end.identity


OpenEntry: TypeAlias = OpenIncident | OpenFanOut


class OpenIncidents:
    """Changes of a sandbox's open incidents and scans, for the next commit to the state database.

    An incident or scan is open from its Create event to its Close event.
    """

    def __init__(self) -> None:
        #: Changes since the last commit, by identity; None marks an end.
        self.changed: dict[str, OpenEntry | None] = {}
        #: Open entries of counters that no longer exist.
        self._orphaned: list[OpenEntry] = []

    def update(self, opened: OpenEntry) -> None:
        """Store a new or grown incident or scan in the state database at the next commit."""
        self.changed[opened.identity] = opened

    def close(self, identity: str) -> None:
        """Delete an ended incident or scan from the state database at the next commit."""
        self.changed[identity] = None

    def orphan(self, opened: OpenEntry) -> None:
        """Mark an incident or a scan as ended, because the counters of its rule no longer exist.

        The next call of :meth:`due` yields the content of the Close event.
        """
        self._orphaned.append(opened)

    def clear(self) -> None:
        """Discard all changes for the next commit, and all Close events prepared for :meth:`due`.

        :meth:`StateDatabase.load` calls this method if the database file is damaged.
        """
        self.changed.clear()
        self._orphaned.clear()

    def due(self) -> Iterator[IncidentEnd | FanOut]:
        """Yield the content of the Close event of each incident and scan passed to :meth:`orphan`.

        Each content is yielded only once. The next commit deletes these incidents and scans from
        the state database.
        """
        while self._orphaned:
            opened = self._orphaned.pop()
            self.close(opened.identity)
            yield opened.end
