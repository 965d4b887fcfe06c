"""What was told as begun and not yet as ended: whoever heard of it is to hear of its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.accounting.counter_id import Whose
    from ocsf_nft.attempt import Ended, FanOut
    from ocsf_nft.flow import Key


class OpenStreak(NamedTuple):
    """A streak, as it ends if nothing more comes; which counters it is of, and its key there."""

    whose: Whose
    key: Key
    end: Ended

    @property
    def identity(self) -> str:
        """What all that is told of it has in common."""
        return self.end.streak.identity


class OpenFanOut(NamedTuple):
    """A fan-out, as it ends if nothing more comes, and which counters it is of."""

    whose: Whose
    end: FanOut

    @property
    def identity(self) -> str:
        """What all that is told of it has in common."""
        return self.end.identity


Open: TypeAlias = OpenStreak | OpenFanOut


class Opened:
    """What is open in a sandbox, as far as its file has to know of it."""

    def __init__(self) -> None:
        #: What has changed since it was last kept, by identity; None for what has ended.
        self.changed: dict[str, Open | None] = {}
        #: What was of counters that are no more.
        self._left: list[Open] = []

    def goes_on(self, opened: Open) -> None:
        """It begins, or there is more of it."""
        self.changed[opened.identity] = opened

    def ends(self, identity: str) -> None:
        """Its end is told."""
        self.changed[identity] = None

    def leave(self, opened: Open) -> None:
        """It can't go on: nobody counts it any more."""
        self._left.append(opened)

    def clear(self) -> None:
        """Nothing is open."""
        self.changed.clear()
        self._left.clear()

    def due(self) -> Iterator[Ended | FanOut]:
        """The end of what can't go on."""
        while self._left:
            opened = self._left.pop()
            self.ends(opened.identity)
            yield opened.end
