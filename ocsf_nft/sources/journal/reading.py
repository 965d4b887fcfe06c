"""Interface of the two journal readers (libsystemd and journalctl)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ocsf_nft.sources.journal.kernel import KernelEntry


@dataclass(frozen=True, slots=True)
class Chunk:
    """Result of one read of the journal: entries that match a filter, and the new position.

    ``cursor`` is the position of the last entry that was read, even if it does not match; None
    if no entry was read. ``cursor_is_missing`` is not about ``cursor``, but about the cursor that
    :meth:`JournalReader.open` returned. The flag is true if the journal has deleted the entry at
    that cursor. Entries after the deleted entry may also have been deleted before they were read.
    """

    entries: tuple[KernelEntry, ...] = ()
    cursor: str | None = None
    cursor_is_missing: bool = False


class JournalReader(Protocol):
    """Interface of a reader of the systemd journal."""

    async def open(self, cursor: str | None) -> str | None:
        """Open the journal, to read the entries that come after the entry with this ``cursor``.

        If ``cursor`` is None, read the entries that come after the present newest entry.
        Returns the cursor of the entry after which reading begins; None if the journal is
        empty.
        """

    async def close(self) -> None:
        """Close the journal."""

    async def read(self, timeout_s: float | None) -> Chunk:
        """Wait for new entries, at most ``timeout_s`` seconds (None: no limit), and return them.

        One call returns a limited number of entries; the next call returns the others. If
        no entry arrives in time, the result has no entries.
        """
