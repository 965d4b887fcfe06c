"""Removal of a monitored fence."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING

import structlog

from ocsf_nft.errors import OcsfNftError
from ocsf_nft.fence import table_query, turn_off
from ocsf_nft.service import fences
from ocsf_nft.service.shielded import run_shielded

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.nfnetlink import Generation
    from ocsf_nft.service.fence_reports import FenceReports

_log = structlog.get_logger()


class FenceRemoval:
    """Removal of a fence that is monitored no more: it is turned off first, for the last reading.

    ``has_ended`` returns True if the sandbox's network namespace exists no more.
    """

    def __init__(
        self, reports: FenceReports, state: StateDirectory, has_ended: Callable[[], bool]
    ) -> None:
        self._reports = reports
        self._name = reports.sandbox.name
        self._state = state
        self._has_ended = has_ended
        #: Generation of the ruleset after the fence was turned off; None if it is not.
        self._off: Generation | None = None
        #: True if a removed fence was off since :meth:`turn_off`, or if its namespace has ended.
        self.was_off = True

    async def turn_off(self) -> None:
        """Turn off the fence before its removal, so that no packet comes after the last reading."""
        try:
            work = partial(turn_off.turn_off, self._name, self._state)
            self._off = await run_shielded(asyncio.to_thread(work))
        except OcsfNftError as error:  # it is removed without
            _log.warning("fence not turned off", sandbox=self._name, reason=str(error))

    async def turn_on(self) -> None:
        """Undo :meth:`turn_off`, since the fence can't be removed; a failure is only logged."""
        try:
            work = partial(turn_off.turn_on, self._name, self._state)
            await run_shielded(asyncio.to_thread(work))
        except OcsfNftError as error:
            if self._has_ended():
                return
            _log.error("fence not turned on", sandbox=self._name, reason=str(error))

    async def remove(self) -> bool:
        """Remove the fence; return false if another process has already removed it.

        An event reports such a removal by another process. A fence that has ended with its network
        namespace was there. Raises the errors of :func:`installer.remove`; the fence is on then.
        """
        try:
            was_there = await run_shielded(asyncio.to_thread(self._remove))
        except OcsfNftError:
            await self.turn_on()
            raise
        if was_there or self._has_ended():
            return True
        await self._reports.report_removed_before()
        return False

    def _remove(self) -> bool:
        installed = self._reports.installed
        was_there = fences.remove(installed, self._state)
        with contextlib.suppress(OcsfNftError):  # its namespace has ended
            now = table_query.generation(installed.namespace)
            # Other processes may have turned it on again, if not only the deletion was made since.
            was_off = self._off is not None and now == self._off.after_one()
            # Another namespace may have the name by now.
            self.was_off = was_off or self._has_ended()
        return was_there
