"""Lookup of the names of users and groups on this host, by their ids.

A lookup may block, because the host's name service may ask a server on the network (LDAP). Answers
are cached for 5 minutes.
"""

from __future__ import annotations

import contextlib
import grp
import pwd
import threading
import time
from functools import cached_property
from pathlib import Path
from typing import Final, Literal, TypeAlias

Kind: TypeAlias = Literal["user", "group"]

_NAMESPACE: Final = Path("/proc/self/ns/user")
#: include/uapi/linux/nsfs.h, USER_NS_INIT_INO: the initial user namespace has this inode.
_INITIAL: Final = "user:[4026531837]"
#: kernel.overflowuid: /proc shows this number for an id that has none in the user namespace.
_UNMAPPED: Final = 65534
_CACHE_SECONDS: Final = 300.0
_MOST_CACHED: Final = 1024


class UserNames:
    """Cached lookup of user and group names, for the ids that /proc shows.

    If this process is outside the initial user namespace, every lookup returns None, because /proc
    then does not show the host's ids. Threads may share an instance.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cache: dict[tuple[Kind, int], tuple[float, str | None]] = {}
        #: Ids for which :meth:`cached` found no valid answer.
        self.missing: set[tuple[Kind, int]] = set()

    def look_up(self, kind: Kind, number: int | None) -> str | None:
        """Return the name of a user or group, or None; may block for the name service."""
        if number is None or not self._is_initial:
            return None
        now, key = time.monotonic(), (kind, number)
        with self._lock:
            until, name = self._cache.get(key, (now, None))
        if now < until:
            return name
        with contextlib.suppress(KeyError):  # the id has no name
            name = pwd.getpwuid(number).pw_name if kind == "user" else grp.getgrgid(number).gr_name
        with self._lock:
            self._cache.pop(key, None)
            while len(self._cache) >= _MOST_CACHED:
                del self._cache[next(iter(self._cache))]
            self._cache[key] = now + _CACHE_SECONDS, name
        return name

    def cached(self, kind: Kind, number: int) -> str | None:
        """Return the cached name, even if it is too old; None if no name is cached.

        An id without a valid cached answer is added to ``missing``. This method never blocks.
        """
        if not self._is_initial:
            return None
        key = (kind, number)
        with self._lock:
            until, name = self._cache.get(key, (0.0, None))
        if time.monotonic() >= until:
            self.missing.add(key)
        return name

    def resolve(self) -> None:
        """Look up the names of all ids in ``missing``; may block for the name service."""
        while self.missing:
            self.look_up(*self.missing.pop())

    def mapped_id(self, number: int) -> int | None:
        """Return ``number``, a user or group id from /proc; None if it is only a placeholder.

        The placeholder 65534 stands for ids that this process's user namespace does not map.
        """
        # In the initial user namespace, 65534 is a real id.
        return number if number != _UNMAPPED or self._is_initial else None

    @cached_property
    def _is_initial(self) -> bool:
        # In another user namespace, /proc shows ids that differ from the host's ids.
        try:
            return str(_NAMESPACE.readlink()) == _INITIAL
        except OSError:  # without /proc no id is known
            return False
