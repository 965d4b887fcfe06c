"""Who did it, where somebody looked: a process, and where it comes from.

Texts are as the system has them: a process chooses its name, its arguments and the paths that it
has, and may put anything into them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """What a sandbox is, or a process runs in, by the names that its runtime gives it."""

    uid: str | None = None
    name: str | None = None
    runtime: str | None = None
    image_uid: str | None = None
    image_name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process. Ids are this host's; what is not known is None.

    ``name`` is what the process calls itself, ``path`` the program that it runs and
    ``is_deleted`` whether that file is gone. ``created_ns`` is since the epoch, UTC.
    ``namespace_pid`` is its id inside the sandbox. ``ancestors`` are the processes that it was
    started by, its parent first; theirs are not filled.
    """

    pid: int
    name: str | None = None
    path: str | None = None
    is_deleted: bool | None = None
    cmd_line: str | None = None
    working_directory: str | None = None
    created_ns: int | None = None
    namespace_pid: int | None = None
    uid: int | None = None
    user_name: str | None = None
    container: Container | None = None
    ancestors: tuple[Process, ...] = ()
