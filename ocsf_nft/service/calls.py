"""Calls that change sandboxes, in order for each sandbox."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from ocsf_nft.errors import SourceError
from ocsf_nft.service.keyed_locks import KeyedLocks

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_log = structlog.get_logger()
T = TypeVar("T")


class Calls:
    """Calls by the name of their sandbox.

    Those for the same name run one after the other, those for different names at the same time.
    """

    def __init__(self) -> None:
        self._locks = KeyedLocks[str]()
        self._running: set[asyncio.Task[Any]] = set()
        self._is_stopping = False

    async def run(self, name: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a call for a sandbox after the calls before; a caller that leaves does not end it.

        Raises SourceError after :meth:`stop`, and the errors of ``work``.
        """

        async def run() -> T:
            async with self._locks.hold(name):
                if self._is_stopping:
                    raise SourceError("the service is stopping: call it again when it runs")
                return await work()

        task = asyncio.create_task(run())
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            task.add_done_callback(_log_error)
            raise
        return task.result()

    async def stop(self) -> None:
        """Wait for the running calls; all later ones fail."""
        self._is_stopping = True
        if self._running:
            await asyncio.wait(self._running)


def _log_error(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.warning("a call has failed, and its caller has left", reason=str(error))
