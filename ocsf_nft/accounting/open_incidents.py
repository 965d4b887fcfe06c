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
    firewall rule that refused the packets. ``end`` is the IncidentEnd to report later if no further
    attempt follows.
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

    ``counter_id`` identifies the counters of the firewall rule that refused the packets. ``end`` is
    the final report to make later if no further flow follows.
    """

    counter_id: CounterId
    end: FanOut

    @property
    def identity(self) -> str:
        """Return the identity that all events of the fan-out share."""
        return self.end.identity


OpenEntry: TypeAlias = OpenIncident | OpenFanOut


class OpenIncidents:
    """Changes of a sandbox's open incidents and scans that the state database must store."""

    def __init__(self) -> None:
        #: Changes since the last commit, by identity; None marks an end.
        self.changed: dict[str, OpenEntry | None] = {}
        #: Open entries of counters that no longer exist.
        self._orphaned: list[OpenEntry] = []

    def update(self, opened: OpenEntry) -> None:
        """Note for the next commit that an incident or a scan has begun or has grown."""
        self.changed[opened.identity] = opened

    def close(self, identity: str) -> None:
        """Note for the next commit that the end of an incident or a scan is reported."""
        self.changed[identity] = None

    def orphan(self, opened: OpenEntry) -> None:
        """Note that an incident or a scan can't continue, because its counters no longer exist.

        The next call of :meth:`due` yields the end of this incident or scan.
        """
        self._orphaned.append(opened)

    def clear(self) -> None:
        """Discard all noted changes, and all ends that are due."""
        self.changed.clear()
        self._orphaned.clear()

    def due(self) -> Iterator[IncidentEnd | FanOut]:
        """Yield, only once, the end of each incident or scan whose counters no longer exist."""
        while self._orphaned:
            opened = self._orphaned.pop()
            self.close(opened.identity)
            yield opened.end
