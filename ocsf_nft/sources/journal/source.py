"""Source that reads the kernel's packet log records from the systemd journal.

Reading the journal needs no CAP_SYSLOG: membership in the group systemd-journal is enough. The
source can resume after a restart of this program, and after a reboot.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, Self

from ocsf_nft.errors import SourceError
from ocsf_nft.record import Batch, Gap, Record, Reject
from ocsf_nft.sources.boot import boottime_ns
from ocsf_nft.sources.journal import library as journal_library
from ocsf_nft.sources.journal.command import CommandReader
from ocsf_nft.sources.journal.kernel import KernelEntryParser
from ocsf_nft.sources.journal.library import LibraryReader
from ocsf_nft.sources.kernel_message import PrefixFilter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from ocsf_nft.log_prefixes import Prefixes
    from ocsf_nft.sources.journal.kernel import Chunk

#: Minimum time between batches that have only a new cursor.
_CURSOR_INTERVAL_S: Final = 1.0
#: Upper bound of the error in the conversion of the kernel's stamps (``boot.py``), without
#: the part of it that is not proven.
_STAMP_NS: Final = 1_000_000_000


class Journal:
    """Source of the packet log records in the systemd journal.

    ``sandboxes`` selects the records of these sandboxes; None selects those of all sandboxes.
    ``foreign`` adds records with the log prefixes of other firewalls. Reading begins after
    ``cursor``; if ``cursor`` is None, with new entries. If ``directory`` is None, this machine's
    journal is read.
    """

    #: journald may need this long for one record.
    quiet_seconds = 0.6

    def __init__(
        self,
        sandboxes: frozenset[str] | None = None,
        cursor: str | None = None,
        directory: Path | None = None,
        *,
        foreign: Prefixes | None = None,
    ) -> None:
        self._filter = PrefixFilter(sandboxes, foreign)
        self._cursor = cursor
        self._directory = directory
        self._reader: LibraryReader | CommandReader | None = None
        self._parser = KernelEntryParser(self._filter)

    async def __aenter__(self) -> Self:
        """Open the journal.

        Raises AbsentError if there is no journal. Raises UnsupportedError if reading is not
        permitted or not possible. Raises SourceError if the cursor is invalid.
        """
        library = await asyncio.to_thread(journal_library.available, self._directory)
        reader_class = LibraryReader if library else CommandReader
        reader: LibraryReader | CommandReader = reader_class(self._directory, self._filter)
        try:
            self._cursor = await reader.open(self._cursor)
        except BaseException:
            await reader.close()
            raise
        self._reader = reader
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Close the journal."""
        if self._reader is not None:
            await self._reader.close()
            self._reader = None

    async def batches(self) -> AsyncIterator[Batch]:
        """Yield batches of records, in the journal's order; raises SourceError if reading fails.

        The first batch comes at once, and has only a cursor. If the journal is empty when it is
        opened, there is no such batch.
        """
        reader = self._reader
        if reader is None:
            raise SourceError("the journal source is not open: enter its context first")
        if self._cursor is not None:
            yield Batch(cursor=self._cursor)
        yielded_s = time.monotonic()
        pending_cursor: str | None = None
        while True:
            due_s = yielded_s + _CURSOR_INTERVAL_S - time.monotonic()
            chunk = await reader.read(None if pending_cursor is None else max(due_s, 0.0))
            batch = self._batch(chunk)
            pending_cursor = batch.cursor or pending_cursor
            due = pending_cursor is not None and time.monotonic() - yielded_s >= _CURSOR_INTERVAL_S
            if batch.records or batch.gaps or batch.rejected:
                yield batch
            elif due:
                yield Batch(cursor=pending_cursor)
            else:
                continue
            yielded_s, pending_cursor = time.monotonic(), None

    def _batch(self, chunk: Chunk) -> Batch:
        items: list[Record | Gap | Reject] = []
        received_ns = earliest_ns = time.time_ns()
        if chunk.cursor_is_missing:
            items.append(_missing_cursor_gap(received_ns))
        for entry in chunk.entries:
            found = self._parser.parse(entry, received_ns)
            if isinstance(found, Record):
                earliest_ns = min(earliest_ns, found.time_ns - self._parser.clock.unproven_ns)
            if found is not None:
                items.append(found)
        since_ns = max(0, earliest_ns - time.time_ns() + boottime_ns() - _STAMP_NS)
        return Batch.of(items, chunk.cursor, since_ns)


def _missing_cursor_gap(now_ns: int) -> Gap:
    return Gap(
        transport="journal",
        reason="the journal no longer has the entry to resume after, "
        "and may lack entries that followed it",
        dropped=None,
        since_ns=now_ns,
        until_ns=now_ns,
    )
