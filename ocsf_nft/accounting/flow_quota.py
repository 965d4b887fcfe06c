"""How many flows are told one by one: a bound for each user, so that none can hide another."""

from __future__ import annotations

from typing import Final

_BURST: Final = 1000
_NS_PER_FLOW: Final = 100_000_000  # ten a second once the burst is spent
#: Users that have a bound of their own; whoever has a namespace may have thousands.
_MAX_USERS: Final = 256


class Quota:
    """Grants a user 1,000 flows at once and ten a second after that."""

    def __init__(self) -> None:
        # Per user: the moment from which all that was granted would have been earned.
        self._earned_ns: dict[int | None, int] = {}

    def grants(self, uid: int | None, now_ns: int) -> bool:
        """Whether one more flow of a user is told by itself; ``now_ns`` never goes back."""
        if uid not in self._earned_ns and len(self._earned_ns) >= _MAX_USERS:
            self._evict_unused(now_ns)
            if len(self._earned_ns) >= _MAX_USERS:
                return False
        full = now_ns - _BURST * _NS_PER_FLOW
        earned_ns = max(self._earned_ns.get(uid, full), full)
        if earned_ns + _NS_PER_FLOW > now_ns:
            return False
        self._earned_ns[uid] = earned_ns + _NS_PER_FLOW
        return True

    def _evict_unused(self, now_ns: int) -> None:
        full = now_ns - _BURST * _NS_PER_FLOW
        self._earned_ns = {uid: at for uid, at in self._earned_ns.items() if at > full}
