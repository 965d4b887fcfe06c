"""What the processes are that the capture tells of, by image, and whom they descend from.

One that is gone is still known here, if it was told of, as long as there is room for it. All was
read by the kernel while the process ran, so that it can't be another one's; what was not told stays
unknown.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from ocsf_nft import clocks
from ocsf_nft.attribution import containers
from ocsf_nft.process import Process

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.attribution.bpf_layout import Call, Image, Portrait
    from ocsf_nft.attribution.containers import Placed
    from ocsf_nft.attribution.user_names import KeptNames

_K = TypeVar("_K")
_V = TypeVar("_V")

#: Images that are kept, some megabytes: who forks as fast as he can replaces all in a second.
_KEPT: Final = 4096
_MOST_ANCESTORS: Final = 16
#: As many bytes of arguments are read (``process.h``): a text that is so long had more.
_MOST_ARGUMENTS: Final = 1024
_ROOT: Final = b"/"
_IN_MEMORY: Final = b"memfd:"


class _Caller(NamedTuple):
    """What a process is told by."""

    image: Image
    tid: int
    uid: int
    gid: int
    comm: bytes


class Images:
    """The portraits of processes, and what is made of them."""

    def __init__(self, names: KeptNames) -> None:
        self._names = names
        #: The same for all: so a process that is told again began when it did before.
        self._booted_ns = clocks.epoch_of(time.CLOCK_BOOTTIME)
        self._known: OrderedDict[Image, Portrait] = OrderedDict()
        #: Those that were asked for, as long as nothing new was learnt.
        self._made: OrderedDict[_Caller, Process] = OrderedDict()
        #: What each process ran last, by its id.
        self._latest: OrderedDict[int, Image] = OrderedDict()

    def learn(self, portrait: Portrait) -> None:
        """Take in what a process is."""
        image = portrait.image
        _keep(self._known, image, portrait)
        _keep(self._latest, image.pid, image)
        self._made.clear()

    def lose(self) -> None:
        """Some were not told: who has run nothing else since is not known."""
        self._latest.clear()

    def is_latest(self, image: Image) -> bool:
        """Whether a process is known to have run nothing else since."""
        return self._latest.get(image.pid) == image

    def process(self, call: Call) -> Process:
        """Who made a call, with all that is known of it."""
        by = _Caller(call.image, call.tid, call.uid, call.gid, call.comm)
        found = self._made.get(by)
        if found is None:
            found = self._process(call)
            if not self._names.wanted:
                _keep(self._made, by, found)
        return found

    def _process(self, call: Call) -> Process:
        portrait = self._look_up(call.image)
        found = self._facts(call.image, portrait)
        if call.tid:
            found = replace(found, tid=call.tid, name=_text(call.comm))
        return replace(
            found,
            uid=call.uid,
            user_name=self._names.user(call.uid),
            gid=call.gid,
            group_name=self._names.group(call.gid),
            ancestors=() if portrait is None else self._ancestors(portrait),
        )

    def _look_up(self, image: Image) -> Portrait | None:
        found = self._known.get(image)
        if found is not None:  # whose children call is told of only once
            self._known.move_to_end(image)
        return found

    def _ancestors(self, portrait: Portrait) -> tuple[Process, ...]:
        """Those that it was forked by, up to the init of its sandbox."""
        found: list[Process] = []
        while len(found) < _MOST_ANCESTORS and portrait.namespace_pid != 1:
            image = portrait.parent
            if image.pid == 0:
                break
            above = self._look_up(image)
            found.append(self._facts(image, above))
            if above is None:
                break
            portrait = above
        return tuple(found)

    def _arguments(self, portrait: Portrait) -> bytes:
        """What its program was begun with, as it was before it could be overwritten."""
        for _ in range(_MOST_ANCESTORS):
            parent = portrait.parent
            # A child has as many programs behind it as its parent, until it runs one itself.
            above = self._known.get(parent) if parent.execs == portrait.image.execs else None
            if above is None or above.inode != portrait.inode:
                break
            portrait = above
        return portrait.arguments

    def _facts(self, image: Image, portrait: Portrait | None) -> Process:
        created_ns = self._booted_ns + image.started_ns if image.started_ns else None
        if portrait is None:
            return Process(pid=image.pid, created_ns=created_ns)
        path = _path(portrait.path)
        placed = _placed(portrait.cgroup)
        return Process(
            pid=image.pid,
            name=_text(portrait.comm),
            path=path,
            is_deleted=None if path is None else portrait.is_deleted,
            cmd_line=_command(self._arguments(portrait)),
            working_directory=_path(portrait.directory),
            created_ns=created_ns,
            namespace_pid=portrait.namespace_pid if portrait.namespace_pid != image.pid else None,
            uid=portrait.uid,
            user_name=self._names.user(portrait.uid),
            gid=portrait.gid,
            group_name=self._names.group(portrait.gid),
            container=placed.container,
            unit=placed.unit,
        )


def _keep(table: OrderedDict[_K, _V], key: _K, value: _V) -> None:
    table[key] = value
    table.move_to_end(key)
    while len(table) > _KEPT:
        table.popitem(last=False)


@lru_cache(maxsize=256)
def _placed(cgroup: tuple[bytes, ...]) -> Placed:
    # The root of cgroups has no name. Where that is not told there was no room for all names, and
    # what seems to be at the top is not.
    if not cgroup or cgroup[-1]:
        return containers.Placed()
    return containers.whose(f"0::{_path((*cgroup[:-1], _ROOT)) or ''}")


def _path(names: Sequence[bytes]) -> str | None:
    """A path by its names, innermost first; None where they don't lead up to a root."""
    if names and names[-1] == _ROOT:
        return _text(_ROOT + _ROOT.join(reversed(names[:-1])))
    if len(names) == 1 and names[0].startswith(_IN_MEMORY):
        return _text(names[0])
    return None


def _command(arguments: bytes) -> str | None:
    if not arguments:
        return None
    words = _text(arguments.rstrip(b"\0").replace(b"\0", b" "))
    return f"{words}…" if len(arguments) == _MOST_ARGUMENTS else words


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")
