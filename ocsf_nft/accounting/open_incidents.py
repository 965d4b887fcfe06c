"""Incidents and scans (fan-outs) with an emitted Create event and no Close event yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.accounting.counter_id import CounterId
    from ocsf_nft.attempt import FanOut, IncidentEnd
    from ocsf_nft.flow import Key


class OpenIncident(NamedTuple):
    """Incident with an emitted Create event and no Close event yet.

    ``key`` is the key of the incident's flow. ``counter_id`` identifies the counters of the
    firewall rule that refused the packets. ``end`` describes the incident up to its latest attempt.
    If no attempt follows, ``end`` is the report of the incident's end.
    """

    counter_id: CounterId
    key: Key
    end: IncidentEnd

    @property
    def identity(self) -> str:
        """Return the identity that all events of the incident share."""
        return self.end.incident.identity


class OpenFanOut(NamedTuple):
    """Scan (fan-out) with an emitted Create event and no Close event yet.

    ``counter_id`` identifies the counters of the firewall rule that refused the packets. ``end``
    describes the scan up to its latest flow. If no flow follows, ``end`` is the report of the
    scan's end.
    """

    counter_id: CounterId
    end: FanOut

    @property
    def identity(self) -> str:
        """Return the identity that all events of the fan-out share."""
        return self.end.identity


OpenEntry: TypeAlias = OpenIncident | OpenFanOut


class OpenIncidents:
    """Changes of a sandbox's open incidents and scans, for the next commit to the state database.

    Open means that the Create event is emitted and the Close event is not.
    """

    def __init__(self) -> None:
        #: Changes since the last commit, by identity; None marks an end.
        self.changed: dict[str, OpenEntry | None] = {}
        #: Open entries of counters that no longer exist.
        self._orphaned: list[OpenEntry] = []

    def update(self, opened: OpenEntry) -> None:
        """Add the present state of an open incident or scan to the changes for the next commit.

        Call this method when an incident or a scan has begun, and when it has grown.
        """
        self.changed[opened.identity] = opened

    def close(self, identity: str) -> None:
        """Add the end of an incident or scan to the changes for the next commit.

        The commit then deletes it from the state database.
        """
        self.changed[identity] = None

    def orphan(self, opened: OpenEntry) -> None:
        """Mark an incident or a scan as ended, because the counters of its rule no longer exist.

        The next call of :meth:`due` yields its end.
        """
        self._orphaned.append(opened)

    def clear(self) -> None:
        """Discard the changes that the next commit would store.

        Also forget which incidents and scans :meth:`orphan` has marked as ended.
        """
        self.changed.clear()
        self._orphaned.clear()

    def due(self) -> Iterator[IncidentEnd | FanOut]:
        """Yield the end of each incident or scan that :meth:`orphan` has marked.

        Each one is also passed to :meth:`close`, so it is yielded only once.
        """
        while self._orphaned:
            opened = self._orphaned.pop()
            self.close(opened.identity)
            yield opened.end
