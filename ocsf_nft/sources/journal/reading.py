"""Interface of the two journal readers (libsystemd and journalctl)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ocsf_nft.sources.journal.kernel import KernelEntry


@dataclass(frozen=True, slots=True)
class Chunk:
    """Result of one read of the journal: the selected entries, and the position after the read.

    ``cursor`` is the cursor of the last entry that was read, even if that entry was not selected.
    It is None if no entry was read. ``cursor_is_missing`` is true if the reader was opened with a
    cursor, but the journal no longer has that entry. Then some entries after it may be missing too.
    """

    entries: tuple[KernelEntry, ...] = ()
    cursor: str | None = None
    cursor_is_missing: bool = False


class JournalReader(Protocol):
    """Interface of a reader of the systemd journal."""

    async def open(self, cursor: str | None) -> str | None:
        """Open the journal, to read the entries that come after the entry with this ``cursor``.

        If ``cursor`` is None, read the entries that come after the present newest entry. Returns
        the cursor of the entry after which reading begins; None if the journal has no entry yet.
        """

    async def close(self) -> None:
        """Close the journal, and release all resources."""

    async def read(self, timeout_s: float | None) -> Chunk:
        """Wait for new entries, at most ``timeout_s`` seconds (None: no limit), and return them.

        One call returns a limited number of entries; the next call returns the others. If no entry
        arrives in time, the chunk is empty.
        """
