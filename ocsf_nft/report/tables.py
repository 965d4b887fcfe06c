"""Tables and lists with a maximum size: the largest counts, and the most severe entries."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

K = TypeVar("K", bound="Hashable")
T = TypeVar("T")


class Counts(NamedTuple):
    """Packets of some Network Activity events, and the times of the first and the last one."""

    events: int
    blocked: int
    allowed: int
    #: Times in ms since the epoch.
    first_ms: int
    last_ms: int

    @property
    def packets(self) -> int:
        """Return the number of packets, blocked or not."""
        return self.blocked + self.allowed

    def plus(self, other: Counts | None) -> Counts:
        """Return the sum of two counts; None counts as nothing."""
        if other is None:
            return self
        return Counts(
            self.events + other.events,
            self.blocked + other.blocked,
            self.allowed + other.allowed,
            min(self.first_ms, other.first_ms),
            max(self.last_ms, other.last_ms),
        )


class Row(NamedTuple, Generic[T]):
    """Row of a table."""

    facts: T
    counts: Counts


@dataclass(frozen=True, slots=True)
class Top(Generic[T]):
    """Rows with the most packets, and the sum of all others."""

    rows: tuple[Row[T], ...]
    #: Number of other rows: a lower bound if ``is_bounded``.
    more: int
    is_bounded: bool
    rest: Counts | None


class TopCounts(Generic[K]):
    """Counts by key; above twice ``most`` keys, those with the fewest packets are summed up."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._rows: dict[K, Counts] = {}
        self._rest: Counts | None = None

    def add(self, key: K, counts: Counts) -> None:
        """Add counts to those of a key."""
        self._rows[key] = counts.plus(self._rows.get(key))
        if len(self._rows) > 2 * self._most:
            rows = self._sorted()
            self._rows = dict(rows[: self._most])
            for _, small in rows[self._most :]:
                self._rest = small.plus(self._rest)

    def top(self, number: int) -> Top[K]:
        """Return the ``number`` keys with the most packets."""
        rows, rest = self._sorted(), self._rest
        for _, small in rows[number:]:
            rest = small.plus(rest)
        return Top(
            tuple(Row(*row) for row in rows[:number]),
            max(0, len(rows) - number),
            self._rest is not None,
            rest,
        )

    def _sorted(self) -> list[tuple[K, Counts]]:
        return sorted(self._rows.items(), key=lambda row: (-row[1].packets, row[1].first_ms))


@dataclass(frozen=True, slots=True)
class Shortlist(Generic[T]):
    """Entries of a list in the order of their times, and the number of omitted ones."""

    entries: tuple[T, ...] = ()
    more: int = 0


class MostSevere(Generic[T]):
    """List of the ``most`` most severe entries; of equal ones, the earliest."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._heap: list[tuple[int, int, int, T]] = []
        self._number = 0

    def add(self, severity: int, time_ms: int, entry: T) -> None:
        """Add an entry with a severity_id, and a time in ms since the epoch."""
        self._number += 1
        # The number makes items comparable without their entries.
        item = (severity, -time_ms, -self._number, entry)
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, item)
        else:
            heapq.heappushpop(self._heap, item)

    def shortlist(self) -> Shortlist[T]:
        """Return the entries in the order of their times."""
        entries = sorted(self._heap, key=lambda item: (-item[1], -item[2]))
        return Shortlist(tuple(item[3] for item in entries), self._number - len(entries))
