"""Store of the process details that the BPF programs report, such as path and command line.

The kernel reads them while the process runs, so they never belong to a later process with the same
pid.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final, TypeVar

from ocsf_nft import clocks, redaction
from ocsf_nft.attribution import containers
from ocsf_nft.process import Process

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ocsf_nft.attribution.bpf_capture import Call, ProcessImage, ProcessSnapshot
    from ocsf_nft.attribution.containers import Placement
    from ocsf_nft.attribution.user_names import UserNames
    from ocsf_nft.redaction import Redactor

_K = TypeVar("_K")
_V = TypeVar("_V")

#: Maximum number of images, some megabytes. Forks at the highest rate replace all in a second.
_MOST_IMAGES: Final = 4096
_MOST_ANCESTORS: Final = 16
#: Maximum number of bytes of arguments (``process.h``): a text of this length was cut.
_MOST_ARGUMENTS: Final = 1024
#: Another process or thread can't have the same id so soon.
_ID_REUSE_NS: Final = 2_000_000_000
#: Start times of one process differ less: one of them is counted in ticks of the kernel's clock.
_TICKS_NS: Final = 100_000_000
_ROOT: Final = b"/"
_IN_MEMORY: Final = b"memfd:"


class ProcessSnapshots:
    """Store of the process details that the BPF programs report."""

    def __init__(
        self, names: UserNames, describe_again: Callable[[int], None] = lambda _pid: None
    ) -> None:
        """Create an empty store.

        ``describe_again`` is called with the pid of each process with evicted or possibly outdated
        details: the BPF programs report a process only once.
        """
        self._names = names
        self._describe_again = describe_again
        #: Read once, so that the start time of a process is the same in all events.
        self._booted_ns = clocks.epoch_of(time.CLOCK_BOOTTIME)
        #: Also the details of exited processes, until the store is full.
        self._known: OrderedDict[ProcessImage, ProcessSnapshot] = OrderedDict()
        #: Results since the last new snapshot, by image, tid, uid, gid and name of the caller.
        self._made: OrderedDict[tuple[ProcessImage, int, int, int, bytes], Process] = OrderedDict()
        #: The latest image of each process, by its id.
        self._latest: OrderedDict[int, ProcessImage] = OrderedDict()

    def add(self, snapshot: ProcessSnapshot) -> None:
        """Store the details of one process, as the BPF programs have reported them."""
        image = snapshot.image
        before = self._known.get(image)
        if before is not None and before.arguments:
            # The process may have changed them since its exec.
            snapshot = snapshot._replace(arguments=before.arguments)
        self._known[image] = snapshot
        self._move_to_end(image)
        _store(self._latest, image.pid, image)
        self._made.clear()
        for pid in (*(each.pid for each in _evicted(self._known)), *_evicted(self._latest)):
            self._describe_again(pid)

    def _move_to_end(self, image: ProcessImage) -> None:
        """Evict a process and its ancestors last, and an ancestor never before its descendants."""
        # A process that is reported again is reported with its evicted ancestors.
        for _ in range(_MOST_ANCESTORS + 1):
            snapshot = self._look_up(image)
            if snapshot is None:
                return
            image = snapshot.parent

    def note_dropped(self) -> None:
        """Mark all stored details as possibly outdated.

        Call this if the kernel dropped newer details. :meth:`is_latest` then returns False for a
        process, until :meth:`add` stores new details of the process.
        """
        self._latest.clear()
        self._made.clear()

    def is_latest(self, image: ProcessImage) -> bool:
        """Return True if ``image`` is certainly the latest image of its process."""
        return self._latest.get(image.pid) == image

    def process(self, call: Call) -> Process:
        """Return the process that ``call`` (a captured system call or refused packet) comes from.

        The result has the process's ancestors, and the details that :meth:`add` has stored. Other
        details are None.
        """
        by = (call.image, call.tid, call.uid, call.gid, call.comm)
        found = self._made.get(by)
        if found is None:
            found = self._process(call)
            if not self._names.missing:
                _store(self._made, by, found)
                _evicted(self._made)
        return found

    def described(self, process: Process, at_ns: int) -> Process:
        """Return a process with its stored details and its ancestors.

        ``at_ns`` is a time at which it existed (ns since the epoch, UTC). Return it unchanged if
        the details may be those of another process or program.
        """
        image = self._latest.get(process.pid)
        snapshot = None if image is None else self._known.get(image)
        if image is None or snapshot is None:
            return process
        found = self._facts(image, snapshot)
        started_ns = found.created_ns or 0
        if process.created_ns is None:
            is_same = started_ns <= at_ns < started_ns + _ID_REUSE_NS
        else:
            is_same = abs(process.created_ns - started_ns) < _TICKS_NS
        if not is_same or found.name != process.name or process.path not in {None, found.path}:
            return process
        return replace(
            found, cmd_line=self._cmd_line(snapshot), ancestors=self._ancestors(snapshot)
        )

    def _process(self, call: Call) -> Process:
        if not self.is_latest(call.image):
            self._describe_again(call.image.pid)
        snapshot = self._look_up(call.image)
        found = self._facts(call.image, snapshot)
        if call.tid:
            found = replace(found, tid=call.tid, name=_text(call.comm))
        return replace(
            found,
            uid=call.uid,
            user_name=self._names.cached("user", call.uid),
            gid=call.gid,
            group_name=self._names.cached("group", call.gid),
            cmd_line=None if snapshot is None else self._cmd_line(snapshot),
            ancestors=() if snapshot is None else self._ancestors(snapshot),
        )

    def _look_up(self, image: ProcessImage) -> ProcessSnapshot | None:
        found = self._known.get(image)
        if found is not None:  # its children are reported only once: evict it last
            self._known.move_to_end(image)
        return found

    def _ancestors(self, snapshot: ProcessSnapshot) -> tuple[Process, ...]:
        """Return the nearest ancestors of a process (at most 16), beginning with its parent.

        They have no command line: no event has it, and each would have to be redacted.
        """
        found: list[Process] = []
        while len(found) < _MOST_ANCESTORS:
            image = snapshot.parent
            # Not at the first process of a pid namespace: any sandboxed program can start one.
            if image.pid == 0:
                break
            above = self._look_up(image)
            found.append(self._facts(image, above))
            if above is None:
                break
            snapshot = above
        return tuple(found)

    def _arguments(self, snapshot: ProcessSnapshot) -> bytes:
        """Return the command line of a process, as it was at the latest exec.

        If the BPF programs did not see this exec, they read the command line later. The process may
        have changed it by then.
        """
        # After a fork without an exec, use the stored text of the parent. The kernel reported it at
        # the exec, before a process could overwrite it.
        found = snapshot.arguments
        for _ in range(_MOST_ANCESTORS):
            parent = snapshot.parent
            # A child has as many execs as its parent, until its own first exec.
            is_copy = snapshot.is_child and parent.execs == snapshot.image.execs
            above = self._known.get(parent) if is_copy else None
            if above is None or above.inode != snapshot.inode:
                break
            snapshot = above
            # The kernel reports no arguments of a process that another one's packet describes.
            found = snapshot.arguments or found
        return found

    def _cmd_line(self, snapshot: ProcessSnapshot) -> str | None:
        return _command(self._arguments(snapshot), redaction.current())

    def _facts(self, image: ProcessImage, snapshot: ProcessSnapshot | None) -> Process:
        created_ns = self._booted_ns + image.started_ns if image.started_ns else None
        if snapshot is None:
            return Process(pid=image.pid, created_ns=created_ns)
        path = _path(snapshot.path)
        placement = _placement(snapshot.cgroup)
        return Process(
            pid=image.pid,
            name=_text(snapshot.comm),
            path=path,
            is_deleted=None if path is None else snapshot.is_deleted,
            working_directory=_path(snapshot.directory),
            created_ns=created_ns,
            namespace_pid=snapshot.namespace_pid if snapshot.namespace_pid != image.pid else None,
            uid=snapshot.uid,
            user_name=self._names.cached("user", snapshot.uid),
            gid=snapshot.gid,
            group_name=self._names.cached("group", snapshot.gid),
            container=placement.container,
            unit=placement.unit,
        )


def _store(table: OrderedDict[_K, _V], key: _K, value: _V) -> None:
    table[key] = value
    table.move_to_end(key)


def _evicted(table: OrderedDict[_K, _V]) -> list[_K]:
    """Remove the oldest entries if there are too many; return their keys."""
    return [table.popitem(last=False)[0] for _ in range(len(table) - _MOST_IMAGES)]


@lru_cache(maxsize=256)
def _placement(cgroup: tuple[bytes, ...]) -> Placement:
    # The root of the cgroups has no name. If the last name is not empty, there was no room for
    # all names: the path does not begin at the root.
    if not cgroup or cgroup[-1]:
        return containers.Placement()
    return containers.parse_cgroups(f"0::{_path((*cgroup[:-1], _ROOT)) or ''}")


def _path(names: Sequence[bytes]) -> str | None:
    """Return the path with the parts ``names``; None if the first parts of the path are missing.

    ``names`` begins with the last part: ``curl``, ``bin``, ``/`` become ``/bin/curl``. The single
    name ``memfd:NAME`` (a program in memory) is returned unchanged.
    """
    if names and names[-1] == _ROOT:
        return _text(_ROOT + _ROOT.join(reversed(names[:-1])))
    if len(names) == 1 and names[0].startswith(_IN_MEMORY):
        return _text(names[0])
    return None  # it does not begin at the root


# Cached, because children and repeated events have the same arguments.
@lru_cache(maxsize=1024)
def _command(arguments: bytes, redactor: Redactor) -> str | None:
    if not arguments:
        return None
    words = _text(arguments.rstrip(b"\0")).split("\0")
    return redactor.command_line(words, is_cut=len(arguments) == _MOST_ARGUMENTS)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")
