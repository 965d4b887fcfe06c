"""Incidents and fan-outs with an emitted Create event and no Close event yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.accounting.counter_id import CounterId
    from ocsf_nft.attempt import FanOut, IncidentEnd
    from ocsf_nft.flow import Key


class OpenIncident(NamedTuple):
    """An open incident: its counters, its key there, and its end if nothing more follows."""

    counter_id: CounterId
    key: Key
    end: IncidentEnd

    @property
    def identity(self) -> str:
        """Return the identity that all events of the incident share."""
        return self.end.incident.identity


class OpenFanOut(NamedTuple):
    """An open fan-out: its counters, and its end if nothing more follows."""

    counter_id: CounterId
    end: FanOut

    @property
    def identity(self) -> str:
        """Return the identity that all events of the fan-out share."""
        return self.end.identity


OpenEntry: TypeAlias = OpenIncident | OpenFanOut


class OpenIncidents:
    """Open incidents and fan-outs of a sandbox, as far as the state database needs them."""

    def __init__(self) -> None:
        #: Changes since the last commit, by identity; None marks an end.
        self.changed: dict[str, OpenEntry | None] = {}
        #: Open entries of counters that no longer exist.
        self._orphaned: list[OpenEntry] = []

    def update(self, opened: OpenEntry) -> None:
        """Note the beginning or the growth of an entry."""
        self.changed[opened.identity] = opened

    def close(self, identity: str) -> None:
        """Note that the end of an entry is reported."""
        self.changed[identity] = None

    def orphan(self, opened: OpenEntry) -> None:
        """Note that an entry can't continue, because its counters no longer exist."""
        self._orphaned.append(opened)

    def clear(self) -> None:
        """Remove all entries."""
        self.changed.clear()
        self._orphaned.clear()

    def due(self) -> Iterator[IncidentEnd | FanOut]:
        """Yield the ends of the entries that can't continue."""
        while self._orphaned:
            opened = self._orphaned.pop()
            self.close(opened.identity)
            yield opened.end
