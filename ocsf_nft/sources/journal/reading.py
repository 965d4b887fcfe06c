"""Interface of the two journal readers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ocsf_nft.sources.journal.kernel import KernelEntry


@dataclass(frozen=True, slots=True)
class Chunk:
    """Relevant entries of one read, and the position after all entries that were read.

    ``cursor`` is None if there was no entry. ``cursor_is_missing`` is true if the journal no longer
    has the entry to resume after; then later entries may be missing too.
    """

    entries: tuple[KernelEntry, ...] = ()
    cursor: str | None = None
    cursor_is_missing: bool = False


class JournalReader(Protocol):
    """Reader of one open journal."""

    async def open(self, cursor: str | None) -> str | None:
        """Seek to the entry after ``cursor`` (None: to the end); return the position, if any."""

    async def close(self) -> None:
        """Release all resources."""

    async def read(self, timeout_s: float | None) -> Chunk:
        """Wait for entries, at most ``timeout_s`` seconds; return a bounded number of them."""
