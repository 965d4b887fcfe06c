"""Identity of a process that called the control API, for the audit events of its changes."""

from __future__ import annotations

from typing import NamedTuple


class Caller(NamedTuple):
    """Process that called the control API, as the kernel identified it when it connected."""

    uid: int
    gid: int
    #: Process id as this process sees it; 0 if the caller is in an invisible pid namespace.
    pid: int
    #: Path of the caller's program, or else its name; None if neither can be read.
    program: str | None
