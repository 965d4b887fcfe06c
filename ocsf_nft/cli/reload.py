"""Reload of the configuration file of a run, by SIGHUP or by a call of the control API."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import structlog

from ocsf_nft import sd_notify
from ocsf_nft.cli import options
from ocsf_nft.errors import OcsfNftError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from ocsf_nft.service.run import Service

_log = structlog.get_logger()


class Reload:
    """Function that reads a configuration file again, and applies it to a running service.

    Only one call at a time reads the file.
    """

    def __init__(self, running: Service, path: Path) -> None:
        self._running = running
        self._path = path
        self._lock = asyncio.Lock()

    async def __call__(self) -> None:
        """Reload the file; raises OcsfNftError if the present configuration stays in use."""
        async with self._lock:
            sd_notify.notify_reloading()
            try:
                config = await asyncio.to_thread(options.configuration, self._path)
                await self._running.reload(config)
            finally:
                if not _is_stopping():
                    sd_notify.notify(READY="1")
            _log.warning("reloaded", path=str(self._path))


async def reload_on_hangup(reload: Callable[[], Awaitable[None]]) -> None:
    """Call ``reload`` after each SIGHUP, until the calling task is cancelled."""
    hung_up = asyncio.Event()
    loop = asyncio.get_running_loop()
    # Not by asyncio, which sets the default action when it removes a handler: a signal at that time
    # would end the run. asyncio's handlers for other signals wake the loop for this one too.
    signal.signal(signal.SIGHUP, lambda *_: loop.call_soon_threadsafe(hung_up.set))
    signal.siginterrupt(signal.SIGHUP, False)  # as asyncio does
    try:
        while True:
            await hung_up.wait()
            hung_up.clear()
            try:
                await reload()
            except OcsfNftError as error:
                # The run continues with the configuration that was read last.
                _log.error("not reloaded", reason=str(error))
                if _is_stopping():
                    return
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _is_stopping() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
