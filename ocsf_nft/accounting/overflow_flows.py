"""The flows of a user that has too many: they are told together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocsf_nft.accounting.flow_counter import Counted
from ocsf_nft.accounting.flow_report import Pot
from ocsf_nft.flow import Count, flow

if TYPE_CHECKING:
    from ocsf_nft.flow import Key

#: Users whose flows are told together by user; those of all others are told as nobody's.
_POTS: Final = 256


class Folded:
    """Which flows are told with others, and whose they are; what they owe is in ``pots``."""

    def __init__(self, pots: dict[int | None, Pot]) -> None:
        self._pots = pots
        self._users: dict[Key, int | None] = {}

    def __contains__(self, key: Key) -> bool:
        """Whether a flow is told with others from now on."""
        return key in self._users

    def add(self, key: Key, counted: Counted) -> None:
        """Owe what a flow owes together with the other flows of its user."""
        what = None if key in self._users else flow(key)
        uid = self._users[key] if what is None else what.uid
        uid = uid if uid in self._pots or len(self._pots) < _POTS else None
        self._users[key] = uid
        pot = self._pots.get(uid)
        if pot is None:
            pot = self._pots[uid] = Pot(Counted(since_ns=counted.since_ns))
        owed = Count(counted.owed_packets, counted.owed_bytes)
        pot.counted.grow_by(owed, counted.last_ns)
        pot.telling.grew()
        counted.told(*owed)
        counted.since_ns = counted.last_ns
        if what is not None:
            pot.add(what)

    def forget(self, key: Key) -> None:
        """A flow is no more."""
        self._users.pop(key, None)
