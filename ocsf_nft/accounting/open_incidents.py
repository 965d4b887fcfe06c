"""What was told as begun and not yet as ended: whoever heard of it is to hear of its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.accounting.counter_id import CounterId
    from ocsf_nft.attempt import FanOut, IncidentEnd
    from ocsf_nft.flow import Key


class OpenIncident(NamedTuple):
    """A streak, as it ends if nothing more comes; which counters it is of, and its key there."""

    counter_id: CounterId
    key: Key
    end: IncidentEnd

    @property
    def identity(self) -> str:
        """What all that is told of it has in common."""
        return self.end.streak.identity


class OpenFanOut(NamedTuple):
    """A fan-out, as it ends if nothing more comes, and which counters it is of."""

    counter_id: CounterId
    end: FanOut

    @property
    def identity(self) -> str:
        """What all that is told of it has in common."""
        return self.end.identity


OpenEntry: TypeAlias = OpenIncident | OpenFanOut


class OpenIncidents:
    """What is open in a sandbox, as far as its file has to know of it."""

    def __init__(self) -> None:
        #: What has changed since it was last kept, by identity; None for what has ended.
        self.changed: dict[str, OpenEntry | None] = {}
        #: What was of counters that are no more.
        self._orphaned: list[OpenEntry] = []

    def update(self, opened: OpenEntry) -> None:
        """It begins, or there is more of it."""
        self.changed[opened.identity] = opened

    def close(self, identity: str) -> None:
        """Its end is told."""
        self.changed[identity] = None

    def orphan(self, opened: OpenEntry) -> None:
        """It can't go on: nobody counts it any more."""
        self._orphaned.append(opened)

    def clear(self) -> None:
        """Nothing is open."""
        self.changed.clear()
        self._orphaned.clear()

    def due(self) -> Iterator[IncidentEnd | FanOut]:
        """The end of what can't go on."""
        while self._orphaned:
            opened = self._orphaned.pop()
            self.close(opened.identity)
            yield opened.end
