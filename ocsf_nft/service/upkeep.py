"""What a run looks after besides: the store, and what of it can't be kept."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import structlog

from ocsf_nft.ocsf import notices

if TYPE_CHECKING:
    from ocsf_nft.service.outlets import Outlets
    from ocsf_nft.service.reporter import Reporter

_log = structlog.get_logger()

_SECONDS: Final = 10.0


async def upkeep(kept: Outlets, reporter: Reporter) -> None:
    """Remove what is too old again and again, and tell of what sinks will never have."""
    while True:
        if fault := kept.store.fault():
            await _tell(reporter, fault, None)
        for sink, number in await kept.sweep():
            reason = f"the store could not keep them until sink {sink} had them"
            await _tell(reporter, reason, number)
        await asyncio.sleep(_SECONDS)


async def _tell(reporter: Reporter, reason: str, number: int | None) -> None:
    # The event first: standard error may be a pipe that nobody reads.
    now_ns = time.time_ns()
    await reporter.emit(
        notices.events_lost(reporter.context(), reason=reason, number=number, time_ns=now_ns)
    )
    _log.error("events lost", reason=reason, number=number)
