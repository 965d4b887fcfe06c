"""Removal of a fence that no run watches, with the number of packets that no event reports."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import structlog

from ocsf_nft.errors import OcsfNftError
from ocsf_nft.fence import table_query, turn_off
from ocsf_nft.service.status import unreported_packets

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.nfnetlink import Generation

_log = structlog.get_logger()


def remove(
    installed: InstalledFence, state: StateDirectory, work: Callable[[], object]
) -> int | None:
    """Remove a fence by ``work``; return how many of its packets no event has reported.

    Return None if no run has watched the sandbox, if one watches it now, or if the number is not
    known. If the number is 0, also remove the sandbox's counts: the counters of a later fence are
    no replacement of these. Raises the errors of ``work``; the fence is on then. Blocks.
    """
    sandbox = installed.spec.sandbox
    try:
        has_counts = state.account_place(sandbox) is not None and not state.is_watched(sandbox)
    except OcsfNftError:
        has_counts = False
    if not has_counts:
        work()
        return None
    off = None
    with contextlib.suppress(OcsfNftError):  # then its counts stay, and a later run reports a gap
        off = turn_off.turn_off(sandbox, state)  # so that no packet comes after the reading
    try:
        unreported = unreported_packets(installed, state)
        work()
    except BaseException:
        _turn_on(sandbox, state)
        raise
    if unreported == 0 and _was_off(installed, off):
        state.delete_account_place(sandbox)
    return unreported


def _turn_on(sandbox: str, state: StateDirectory) -> None:
    try:
        remaining = state.read(sandbox)
        if remaining is not None and remaining.is_ending:
            turn_off.turn_on(sandbox, state)
    except OcsfNftError as error:
        _log.error("fence not turned on", sandbox=sandbox, reason=str(error))


def _was_off(installed: InstalledFence, off: Generation | None) -> bool:
    """Return True if only the removal has changed the ruleset since the fence was turned off."""
    with contextlib.suppress(OcsfNftError):  # its namespace has ended
        return off is not None and table_query.generation(installed.namespace) == off.after_one()
    return False
