"""What the two ways of reading a journal have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ocsf_nft.sources.journal.kernel import KernelEntry


@dataclass(frozen=True, slots=True)
class Chunk:
    """Entries worth reading, and the position behind everything that was passed to find them.

    ``cursor`` is None when there was nothing at all; ``lost`` says that the position to go on from
    was not there any more, so that entries behind it may be gone too.
    """

    entries: tuple[KernelEntry, ...] = ()
    cursor: str | None = None
    lost: bool = False


class Reading(Protocol):
    """One open journal."""

    async def open(self, cursor: str | None) -> str | None:
        """Go behind ``cursor``, or to the end when it is None; the position, if there is one."""

    async def close(self) -> None:
        """Let everything go."""

    async def read(self, timeout_s: float | None) -> Chunk:
        """Wait for entries, at most so long; reads a bounded number."""
