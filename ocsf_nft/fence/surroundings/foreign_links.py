"""Judgement of new interfaces that lead into another namespace: who can have made them.

The kernel's notice about a new link does not name its maker (:mod:`link_makers`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocsf_nft.fence.surroundings import changes
from ocsf_nft.fence.surroundings.link_makers import LinkMakers
from ocsf_nft.fence.surroundings.read_snapshot import link_fact

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocsf_nft.fence.surroundings.changes import SurroundingChange
    from ocsf_nft.fence.surroundings.facts import Snapshot
    from ocsf_nft.fence.surroundings.notices import Move

#: Moves and ends of pairs that are remembered.
_MOST: Final = 1_000


class ForeignLinks:
    """Foreign links of one fence's namespace. Each is judged once, when it is found first."""

    def __init__(self, identity: str) -> None:
        """Create the judgement for the namespace with this identity."""
        self._makers = LinkMakers(identity)
        #: Whether a process inside can have made the link.
        self._answers: dict[SurroundingChange, bool | None] = {}
        #: Indexes of the ends of pairs whose other end was moved away from here to the host.
        self._split: set[int] = set()
        #: Links to the host that were moved on. They stay changes: nobody knows when they end.
        self._moved_on: dict[SurroundingChange, None] = {}

    def begin(self) -> None:
        """Search for possible makers before the first change."""
        self._makers.begin()

    def take(self, moves: Iterable[Move], baseline: Snapshot) -> None:
        """Note links that were moved away; ``baseline`` are the accepted surroundings."""
        outside = changes.outer_numbers(baseline)
        known = {each.ifindex for each in baseline.links}
        for move in moves:
            link = move.link
            if link.peer_nsid is None:
                is_pair = link.kind in changes.PAIRS and link.peer_ifindex is not None
                if is_pair and move.target in outside and len(self._split) < _MOST:
                    self._split.add(link.peer_ifindex or 0)
            elif (
                link.peer_nsid in outside
                and move.target not in outside
                and link.ifindex not in known
                and len(self._moved_on) < _MOST
            ):
                self._moved_on[changes.moved_on(link_fact(link), move.target)] = None

    def judged(self, found: Iterable[SurroundingChange]) -> tuple[SurroundingChange, ...]:
        """Return the changes, with the judgement of those that are foreign links.

        The result has no pair that an engine can have attached, and links that were moved on.
        """
        every = (*found, *self._moved_on)
        foreign = [each for each in every if each.kind in changes.FOREIGN]
        if any(each not in self._answers for each in foreign):
            answer = self._makers.exist()
            self._answers = {each: self._answers.get(each, answer) for each in foreign}
        elif len(foreign) < len(self._answers):
            self._answers = {each: self._answers[each] for each in foreign}
        judged = (self._judged(each) if each.kind in changes.FOREIGN else each for each in every)
        return tuple(each for each in judged if each is not None)

    def _judged(self, change: SurroundingChange) -> SurroundingChange | None:
        answer = self._answers[change]
        if change.kind == "foreign link":
            return change.by(inside=answer)
        # An engine attaches a pair from outside, and takes it back.
        if change.fact is None or getattr(change.fact, "ifindex", None) in self._split:
            return None if answer is False else change.by(inside=answer)
        return change.by(inside=None) if answer else None
