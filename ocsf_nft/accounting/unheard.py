"""Counters of which nothing has been told: a record that leads elsewhere may be of one of them.

It does where a header is cut short, or its sender says of a frame what it is not. There may be
thousands of such records and of such counters, so each counter is looked at once, and not for each
record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocsf_nft.flow import user_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocsf_nft.accounting.counted import Counted
    from ocsf_nft.flow import Key


class Unheard:
    """Counters of which nothing has been told, by user."""

    def __init__(self, counters: Iterable[tuple[Key, Counted]]) -> None:
        self._of_user: dict[int | None, list[tuple[Key, Counted]]] = {}
        for key, counted in counters:
            self._of_user.setdefault(user_of(key), []).append((key, counted))

    def owing(self, packets: int, user: int | None) -> list[tuple[Key, Counted]]:
        """One that owes so many packets of a user, or none; those that owe less are passed over."""
        found = self._of_user.get(user, [])
        while found and found[-1][1].owed_packets < packets:
            found.pop()
        return found[-1:]
