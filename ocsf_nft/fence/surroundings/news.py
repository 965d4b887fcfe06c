"""News about a fence's surroundings, from the watcher to the reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ocsf_nft.fence.surroundings.changes import SurroundingChange
    from ocsf_nft.process import Process


@dataclass(frozen=True, slots=True, kw_only=True)
class SurroundingsNews:
    """Changes of a fence's surroundings, as the watcher has found them."""

    #: Changes since the last news.
    added: tuple[SurroundingChange, ...]
    #: Those of ``added`` that are undone already.
    undone: tuple[SurroundingChange, ...] = ()
    #: Reasons why others of them could not be undone, such as "Read-only file system".
    failures: tuple[str, ...] = ()
    #: All changes that are left.
    present: tuple[SurroundingChange, ...]
    #: Process that made the changes; None if unknown, or if several did.
    process: Process | None = None
    #: Name that the process gave itself.
    comm: str | None = None
    #: Time of the check (ns since the epoch, UTC), and the time until the changes were undone.
    arrived_ns: int
    undone_after_ns: int | None = None
    #: True if nothing was undone, because too much was undone before.
    is_paused: bool = False
