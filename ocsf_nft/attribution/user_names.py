"""What users and groups are called on this host.

The name service may ask a directory on the network and wait for it: whoever calls this does so in
a thread that may be kept waiting. What it answered is good for some minutes.
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
#: kernel.overflowuid: who has no number in a user namespace is shown there by this one.
_UNMAPPED: Final = 65534
_KEPT_SECONDS: Final = 300.0


class Names:
    """Names by the ids that /proc shows, which are those of this process's user namespace.

    In the initial one these are the host's ids, whichever namespace the process shown is in. In
    another one they are not, and the names that the host has for them are others' names: nobody has
    one there. ``most`` is how many names are kept. Safe to share by threads.
    """

    def __init__(self, *, most: int = 1024) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._kept: dict[tuple[Kind, int], tuple[float, str | None]] = {}
        self._is_initial: bool | None = None

    def user(self, uid: int | None) -> str | None:
        """The name of a user, None where there is none."""
        return self._name("user", uid, lambda number: pwd.getpwuid(number).pw_name)

    def group(self, gid: int | None) -> str | None:
        """The name of a group, None where there is none."""
        return self._name("group", gid, lambda number: grp.getgrgid(number).gr_name)

    def kept(self, kind: Kind, number: int) -> tuple[bool, str | None]:
        """A name that was asked for before, and whether it was: never waits for anybody."""
        if not self._are_the_hosts():
            return True, None
        with self._lock:
            until, name = self._kept.get((kind, number), (0.0, None))
        return time.monotonic() < until, name

    def known(self, number: int) -> int | None:
        """The id itself, None where it may stand for anybody who has none here."""
        return number if number != _UNMAPPED or self._are_the_hosts() else None

    def _name(self, kind: Kind, number: int | None, ask: Callable[[int], str]) -> str | None:
        if number is None or not self._are_the_hosts():
            return None
        now, key = time.monotonic(), (kind, number)
        with self._lock:
            until, name = self._kept.get(key, (now, None))
        if now < until:
            return name
        with contextlib.suppress(KeyError):  # nobody is called so
            name = ask(number)
        with self._lock:
            self._kept.pop(key, None)
            while len(self._kept) >= self._most:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = now + _KEPT_SECONDS, name
        return name

    def _are_the_hosts(self) -> bool:
        if self._is_initial is None:
            try:
                self._is_initial = str(_NAMESPACE.readlink()) == _INITIAL
            except OSError:  # no /proc: nothing is known of anybody
                self._is_initial = False
        return self._is_initial


class KeptNames:
    """The names that are known without asking anybody; ``wanted`` are those that are not."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self.wanted: set[tuple[Kind, int]] = set()

    def user(self, uid: int) -> str | None:
        """The name of a user, as far as it is known."""
        return self._name("user", uid)

    def group(self, gid: int) -> str | None:
        """The name of a group, as far as it is known."""
        return self._name("group", gid)

    def ask(self) -> None:
        """Ask for those that are wanted; may take as long as the name service does."""
        while self.wanted:
            kind, number = self.wanted.pop()
            (self._names.user if kind == "user" else self._names.group)(number)

    def _name(self, kind: Kind, number: int) -> str | None:
        is_known, name = self._names.kept(kind, number)
        if not is_known:
            self.wanted.add((kind, number))
        return name
