"""Eviction from a table that all users of a sandbox fill: a flood of one evicts no other user's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sized

#: A user with more than this part of a table is heavy, so there are fewer heavy users than this.
_PARTS: Final = 64


class HeavyUsers:
    """Users who fill more than a 64th of a table of at most ``most`` entries.

    Only they are compared when an entry must be evicted: a sandbox may have thousands of users.
    """

    def __init__(self, most: int) -> None:
        self._least = most // _PARTS
        self._users: set[int] = set()

    def note(self, user: int, entries: Sized) -> None:
        """Note the entries of a user to whom one was added."""
        if len(entries) > self._least:
            self._users.add(user)

    def evicted(self, entries: Mapping[int, Sized]) -> int:
        """Return the user whose oldest entry must be evicted: the one with the most entries.

        ``entries`` has the entries of each user, the least recently updated first. That one is
        returned if no user is heavy.
        """
        self._users = {user for user in self._users if len(entries.get(user, ())) > self._least}
        if not self._users:
            return next(iter(entries))
        return max(self._users, key=lambda user: len(entries[user]))
