"""Limit of the number of flows that are reported separately for each user.

The total number of separate reports is limited. Without a limit for each user, one user with many
flows could use up all separate reports. Then the flows of other users could not be reported
separately.
"""

from __future__ import annotations

from typing import Final

_BURST: Final = 1000
_NS_PER_FLOW: Final = 100_000_000  # ten a second after the burst
#: Users with a quota of their own. A process with a namespace may have thousands of user ids.
_MAX_USERS: Final = 256


class Quota:
    """Limit of separately reported flows of each user: 1,000 at once, then ten more a second.

    At most 256 users can have a partly used quota at the same time. Any other user has no quota
    then.
    """

    def __init__(self) -> None:
        # For each user, the time at which all granted flows will have been earned.
        self._earned_ns: dict[int | None, int] = {}

    def grants(self, uid: int | None, now_ns: int) -> bool:
        """Return True, and count the flow, if a user may have one more separately reported flow.

        Return False if the user's quota is used up, or if too many other users have a partly used
        quota. Then the caller reports the flow together with other flows. ``uid`` is None for
        packets that no socket sent. ``now_ns`` is from a clock that never goes back.
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
        full = now_ns - _BURST * _NS_PER_FLOW
        self._earned_ns = {uid: at for uid, at in self._earned_ns.items() if at > full}
