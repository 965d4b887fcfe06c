"""The usual attribution: the socket of an established connection, and the process that has it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocsf_nft.process import Attribution, Process

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.netns import Namespace
    from ocsf_nft.record import Record

_TCP: Final = 6
_ESTABLISHED: Final = "01"


class UsualLookup:
    """Lookup in one network namespace; misses exited processes and refused connections."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace

    async def attributions(
        self, _: object, records: Sequence[Record], _since_ns: int
    ) -> list[Attribution]:
        """Return the current process of each record's socket, in the form of a fallback chain."""
        return [
            Attribution(method="none", reason="", process=self._process(record))
            for record in records
        ]

    def _process(self, record: Record) -> Process | None:
        if record.protocol != _TCP:
            return None
        inode = self._namespace.call(lambda: _inode(record.source_port))
        return None if inode is None else _owner(f"socket:[{inode}]")


def _inode(port: int | None) -> int | None:
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/thread-self/net", table).read_text("ascii").splitlines()[1:]:
            fields = line.split()
            if fields[3] == _ESTABLISHED and int(fields[1].rpartition(":")[2], 16) == port:
                return int(fields[9])
    return None


def _owner(link: str) -> Process | None:
    for each in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if str(each.readlink()) == link:
                pid = int(each.parts[2])
                return Process(pid=pid, path=str(Path(f"/proc/{pid}/exe").readlink()))
    return None
