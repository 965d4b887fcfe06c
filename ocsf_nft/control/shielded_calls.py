"""Calls that change a sandbox, and are completed even if their client or the server ends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog

from ocsf_nft.errors import OcsfNftError

if TYPE_CHECKING:
    from collections.abc import Awaitable

T = TypeVar("T")

_log = structlog.get_logger()

#: Time for the calls to finish when the server stops. Loading a fence takes at most as long.
_FINISH_SECONDS: Final = 10.0


class ShieldedCalls:
    """Calls of an engine in tasks of their own: a cancelled handler does not cancel its call."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    async def run(self, call: Awaitable[T]) -> T:
        """Return the result of a call, or raise its error.

        If the calling task is cancelled, the call continues.
        """
        task = asyncio.ensure_future(_awaited(call))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_log_failure)
            raise

    async def finish(self) -> None:
        """Wait until all calls are done; cancel those that take more than 10 s."""
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=_FINISH_SECONDS)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)


async def _awaited(call: Awaitable[T]) -> T:
    return await call


def _log_failure(task: asyncio.Task[Any]) -> None:
    error = None if task.cancelled() else task.exception()
    if isinstance(error, OcsfNftError):
        _log.warning("a call of the control API failed without its client", reason=str(error))
    elif error is not None:
        _log.error("a call of the control API failed without its client", exc_info=error)
