"""Who did it, where somebody looked: a process, where it comes from, and how that is known.

Texts are as the system has them: a process chooses its name, its arguments and the paths that it
has, and may put anything into them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

#: How somebody found out who did it, best first. ``capture``: the kernel told who sent it.
#: ``socket``: whoever had the socket when the record arrived. ``user``: the kernel's record names
#: the user, and nobody knows more. ``none``: not even that.
Method: TypeAlias = Literal["capture", "socket", "user", "none"]
#: How sure that is.
ConfidenceLevel: TypeAlias = Literal["high", "medium", "low"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """What a sandbox is, or a process runs in, by the names that its runtime gives it.

    ``pod_uid`` is that of the Kubernetes pod that it is in.
    """

    uid: str | None = None
    name: str | None = None
    runtime: str | None = None
    image_uid: str | None = None
    image_name: str | None = None
    pod_uid: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process. Ids are this host's; what is not known is None.

    ``tid`` is the thread of it that acted. ``name`` is what the process calls itself, ``path`` the
    program that it runs (``memfd:NAME`` where that never was a file on a disk) and ``is_deleted``
    whether that file is gone; ``sha256`` is of its content, in hexadecimal. ``created_ns`` is since
    the epoch, UTC. ``namespace_pid`` is its id inside the sandbox. ``unit`` is the systemd unit
    that it runs in. ``ancestors`` are the processes that it was started by, its parent first;
    theirs are not filled.
    """

    pid: int
    tid: int | None = None
    name: str | None = None
    path: str | None = None
    is_deleted: bool | None = None
    sha256: str | None = None
    cmd_line: str | None = None
    working_directory: str | None = None
    created_ns: int | None = None
    namespace_pid: int | None = None
    uid: int | None = None
    user_name: str | None = None
    gid: int | None = None
    group_name: str | None = None
    container: Container | None = None
    unit: str | None = None
    ancestors: tuple[Process, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One of several processes that it was, or may have been.

    ``calls`` is how often it was seen to try, at least; None where it was not.
    """

    process: Process
    calls: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """Who did it, which method of the ladder says so, and how sure that is.

    ``process`` is the one; None where it is not known or, of several, not which. ``seen`` are all
    of several, as many as are told, and ``unnamed`` is how many more there were, at least.
    ``reason`` says in a sentence how it is known, or why it is not. ``confidence`` is None where
    nothing is said.
    ``user_name`` and ``group_name`` are those of the record's user and group.
    ``sent_ns`` is when the kernel saw the process send the packet (ns since the epoch, UTC). It is
    None if only calls or sockets are known.
    """

    method: Method
    confidence: ConfidenceLevel | None = None
    reason: str
    process: Process | None = None
    seen: tuple[Seen, ...] = ()
    unnamed: int = 0
    user_name: str | None = None
    group_name: str | None = None
    sent_ns: int | None = field(default=None, compare=False)

    @property
    def names_nobody(self) -> bool:
        """Whether it says no more than why no process is known: one for all of many attempts."""
        return self.process is None and not self.seen and not self.unnamed
