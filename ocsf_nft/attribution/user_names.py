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
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

Kind: TypeAlias = Literal["user", "group"]

_NAMESPACE: Final = Path("/proc/self/ns/user")
#: include/uapi/linux/nsfs.h, USER_NS_INIT_INO: the initial user namespace has this inode.
_INITIAL: Final = "user:[4026531837]"
#: kernel.overflowuid: /proc shows this number for an id that has none in the user namespace.
_UNMAPPED: Final = 65534
_CACHE_SECONDS: Final = 300.0


class UserNames:
    """Cached lookup of user and group names, for the ids that /proc shows.

    If this process is outside the initial user namespace, every lookup returns None, because /proc
    then does not show the host's ids. ``most`` limits the number of cached answers. Threads may
    share an instance.
    """

    def __init__(self, *, most: int = 1024) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._cache: dict[tuple[Kind, int], tuple[float, str | None]] = {}
        #: In another user namespace, /proc shows ids that differ from the host's ids.
        self._is_initial: bool | None = None

    def user(self, uid: int | None) -> str | None:
        """Return a user's name; None if the id has no name. May block for the name service."""
        return self._name("user", uid, lambda number: pwd.getpwuid(number).pw_name)

    def group(self, gid: int | None) -> str | None:
        """Return a group's name; None if the id has no name. May block for the name service."""
        return self._name("group", gid, lambda number: grp.getgrgid(number).gr_name)

    def cached(self, kind: Kind, number: int) -> tuple[bool, str | None]:
        """Return whether the cache has a valid answer for an id, and the cached name.

        ``(True, None)`` means that the id has no name. ``(False, "root")`` means that the cached
        name is too old. ``(False, None)`` means that no name is cached. This method never blocks.
        """
        if not self._is_in_initial_namespace():
            return True, None
        with self._lock:
            until, name = self._cache.get((kind, number), (0.0, None))
        return time.monotonic() < until, name

    def mapped_id(self, number: int) -> int | None:
        """Return ``number``, a user or group id from /proc; None if it is only a placeholder.

        The placeholder 65534 stands for ids that this process's user namespace does not map.
        """
        # In the initial user namespace, 65534 is a real id.
        return number if number != _UNMAPPED or self._is_in_initial_namespace() else None

    def _name(self, kind: Kind, number: int | None, ask: Callable[[int], str]) -> str | None:
        if number is None or not self._is_in_initial_namespace():
            return None
        now, key = time.monotonic(), (kind, number)
        with self._lock:
            until, name = self._cache.get(key, (now, None))
        if now < until:
            return name
        with contextlib.suppress(KeyError):  # the id has no name
            name = ask(number)
        with self._lock:
            self._cache.pop(key, None)
            while len(self._cache) >= self._most:
                del self._cache[next(iter(self._cache))]
            self._cache[key] = now + _CACHE_SECONDS, name
        return name

    def _is_in_initial_namespace(self) -> bool:
        if self._is_initial is None:
            try:
                self._is_initial = str(_NAMESPACE.readlink()) == _INITIAL
            except OSError:  # without /proc no id is known
                self._is_initial = False
        return self._is_initial


class CachedNames:
    """Lookup of user and group names in the cache ``names``; the lookup never blocks.

    An id without a valid cached answer is added to ``missing``. :meth:`resolve` asks the name
    service about the ids in ``missing``, and may block.
    """

    def __init__(self, names: UserNames) -> None:
        self._names = names
        self.missing: set[tuple[Kind, int]] = set()

    def user(self, uid: int) -> str | None:
        """Return the cached name of a user, even if it is too old; None if no name is cached."""
        return self._name("user", uid)

    def group(self, gid: int) -> str | None:
        """Return the cached name of a group, even if it is too old; None if no name is cached."""
        return self._name("group", gid)

    def resolve(self) -> None:
        """Ask the name service for the names of all ids in ``missing``, and cache the answers.

        May block for the name service.
        """
        while self.missing:
            kind, number = self.missing.pop()
            (self._names.user if kind == "user" else self._names.group)(number)

    def _name(self, kind: Kind, number: int) -> str | None:
        is_cached, name = self._names.cached(kind, number)
        if not is_cached:
            self.missing.add((kind, number))
        return name
