"""The journal source: the kernel's records as journald keeps them.

For machines where the kernel log belongs to journald and this program has no CAP_SYSLOG: being in
the group systemd-journal is enough. It resumes across restarts and boots by the journal's own
cursor.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, Self

from ocsf_nft.errors import SourceError
from ocsf_nft.record import Batch, Gap, Record, Reject
from ocsf_nft.sources.boot_clock import boottime_ns
from ocsf_nft.sources.journal import library as journal_library
from ocsf_nft.sources.journal.command import CommandReading
from ocsf_nft.sources.journal.kernel import KernelEntries
from ocsf_nft.sources.journal.library import LibraryReading
from ocsf_nft.sources.prefix_filter import Wanted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path
    from types import TracebackType

    from ocsf_nft.log_prefixes import Prefixes
    from ocsf_nft.sources.journal.reading import Chunk, Reading

#: How often a position without records is worth a batch.
_CURSOR_INTERVAL_S: Final = 1.0
#: The kernel's stamps are turned into the time of day more exactly than that (``clock.py``).
_STAMP_NS: Final = 1_000_000_000


class Journal:
    """Reads the records of the named sandboxes, or of all, from the journal.

    With ``foreign`` those of other firewalls too, whose prefix is known there.
    ``directory`` is a folder of journal files, None for the machine's own journal. Without a
    cursor it begins with what is logged after entering, with one behind it. The first batch comes
    at once, so that there is a cursor from the start.
    """

    def __init__(
        self,
        sandboxes: frozenset[str] | None = None,
        cursor: str | None = None,
        directory: Path | None = None,
        *,
        foreign: Prefixes | None = None,
    ) -> None:
        self._wanted = Wanted(sandboxes, foreign)
        self._cursor = cursor
        self._directory = directory
        self._reading: Reading | None = None
        self._entries = KernelEntries(self._wanted)

    async def __aenter__(self) -> Self:
        """Open the journal.

        Raises AbsentError when there is none, UnsupportedError when it may not or can't be read,
        SourceError for a cursor that is none.
        """
        library = await asyncio.to_thread(journal_library.available, self._directory)
        kind = LibraryReading if library else CommandReading
        reading: Reading = kind(self._directory, self._wanted)
        try:
            self._cursor = await reading.open(self._cursor)
        except BaseException:
            await reading.close()
            raise
        self._reading = reading
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        if self._reading is not None:
            await self._reading.close()
            self._reading = None

    async def batches(self) -> AsyncIterator[Batch]:
        """What the journal got, in its order; raises SourceError when it can't go on."""
        reading = self._reading
        if reading is None:
            raise SourceError("the journal source is not open: enter its context first")
        if self._cursor is not None:
            yield Batch(cursor=self._cursor)
        told = time.monotonic()
        untold: str | None = None
        while True:
            due_s = told + _CURSOR_INTERVAL_S - time.monotonic()
            chunk = await reading.read(None if untold is None else max(due_s, 0.0))
            batch = self._batch(chunk)
            untold = batch.cursor or untold
            due = untold is not None and time.monotonic() - told >= _CURSOR_INTERVAL_S
            if batch.records or batch.gaps or batch.rejects:
                yield batch
            elif due:
                yield Batch(cursor=untold)
            else:
                continue
            told, untold = time.monotonic(), None

    def _batch(self, chunk: Chunk) -> Batch:
        records: list[Record] = []
        gaps: list[Gap] = []
        rejects: list[Reject] = []
        received_ns = time.time_ns()
        if chunk.lost:
            gaps.append(_position_lost(received_ns))
        for entry in chunk.entries:
            found = self._entries.read(entry, received_ns)
            if isinstance(found, Record):
                records.append(found)
            elif isinstance(found, Gap):
                gaps.append(found)
            elif found is not None:
                rejects.append(found)
        earliest_ns = min((each.time_ns for each in records), default=0)
        return Batch(
            records=tuple(records),
            gaps=tuple(gaps),
            rejects=tuple(rejects),
            cursor=chunk.cursor,
            since_ns=max(0, earliest_ns - time.time_ns() + boottime_ns() - _STAMP_NS),
        )


def _position_lost(now_ns: int) -> Gap:
    return Gap(
        transport="journal",
        reason="the journal no longer holds the position to go on from, "
        "nor perhaps entries after it",
        lost=None,
        since_ns=now_ns,
        until_ns=now_ns,
    )
