"""Interface of the two journal readers (libsystemd and journalctl)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ocsf_nft.sources.journal.kernel import KernelEntry


@dataclass(frozen=True, slots=True)
class Chunk:
    """Result of one read of the journal: entries that match a filter, and the new position."""

    entries: tuple[KernelEntry, ...] = ()
    #: Cursor of the last entry that was read, even if it does not match; None if none was read.
    cursor: str | None = None
    #: True if the journal has deleted the entry at the cursor that :meth:`JournalReader.open`
    #: returned. Entries after it may also have been deleted before they were read.
    cursor_is_missing: bool = False


class JournalReader(Protocol):
    """Interface of a reader of the systemd journal."""

    async def open(self, cursor: str | None) -> str | None:
        """Open the journal to read the entries after ``cursor``; None means after the newest entry.

        Returns the cursor after which reading begins; None if the journal is empty.
        """

    async def close(self) -> None:
        """Close the journal."""

    async def read(self, timeout_s: float | None) -> Chunk:
        """Wait for new entries, at most ``timeout_s`` seconds (None: no limit), and return them.

        One call returns a limited number of entries; the next call returns the others. If
        no entry arrives in time, the result has no entries.
        """
