"""Limit for each user: how many of the user's flows are reported separately.

All users together get a limited number of separate reports. Without a limit for each user, one user
with many flows could use up this number.
"""

from __future__ import annotations

from typing import Final

_BURST: Final = 1000
_NS_PER_FLOW: Final = 100_000_000  # ten a second after the burst
#: Users with a quota of their own. A process with a namespace may have thousands of user ids.
_MAX_USERS: Final = 256


class Quota:
    """Limit of separately reported flows per user: 1,000 flows at once, then ten flows a second.

    At most 256 users at a time have such a limit. Flows of all other users are not reported
    separately.
    """

    def __init__(self) -> None:
        # A token bucket for each user: the time at which all granted flows will have been earned.
        self._earned_ns: dict[int | None, int] = {}

    def grants(self, uid: int | None, now_ns: int) -> bool:
        """Return True if one more flow of a user may be reported separately; then count the flow.

        ``uid`` is None for packets that no socket sent. ``now_ns`` is from a monotonic clock.
        """
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
        # A user needs no entry when the user's bucket is full again.
        full = now_ns - _BURST * _NS_PER_FLOW
        self._earned_ns = {uid: at for uid, at in self._earned_ns.items() if at > full}
