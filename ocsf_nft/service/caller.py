"""Identity of a process that called the control API, for the audit events of its changes."""

from __future__ import annotations

from typing import NamedTuple

from ocsf_nft.process import Process


class Caller(NamedTuple):
    """Process that called the control API, as the kernel identified it when it connected."""

    uid: int
    gid: int
    #: Process id as this process sees it; 0 if the caller is in an invisible pid namespace.
    pid: int
    #: Path of the caller's program, or else its name; None if neither can be read.
    program: str | None

    @property
    def process(self) -> Process:
        """Return the process, for an event."""
        name = None if self.program is None else self.program.rpartition("/")[2]
        path = self.program if self.program and "/" in self.program else None
        return Process(pid=self.pid, name=name, path=path, uid=self.uid, gid=self.gid)
