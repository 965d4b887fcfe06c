"""Retry of storage operations while the disk is full or read-only."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Final, TypeVar

import structlog

from ocsf_nft.errors import ClosedError, DeliveryError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_log = structlog.get_logger()

_RETRY_SECONDS: Final = 0.5
#: Time for retries after shutdown was requested.
_SHUTDOWN_GRACE_SECONDS: Final = 3.0


class UnfinishedError(Exception):
    """Error: a storage operation has done a part of its work, and must be called again."""


class StorageRetrier:
    """Retry of storage operations until the disk accepts them.

    The caller waits meanwhile. When ``stop`` is set because the service shuts down, retries
    continue for 3 s. After that, the error of the operation is raised.
    """

    def __init__(
        self, stop: asyncio.Event, *, consequence: str = "no records are read meanwhile"
    ) -> None:
        """Create a retrier; its log states the ``consequence`` of an outage."""
        self._consequence = consequence
        #: Reason for the current outage; None while storage works.
        self.fault: str | None = None
        self._stop = stop
        self._deadline: float | None = None
        self._waiting = 0

    async def __call__(self, operation: Callable[[], T]) -> T:
        """Run ``operation`` until it succeeds, at once after an UnfinishedError; return its result.

        Raises DeliveryError if the operation still fails 3 s after ``stop`` was set. A ClosedError
        (an output that is closed permanently) is raised at once, without a retry.
        """
        is_waiting = False
        try:
            while True:
                try:
                    result = operation()
                except UnfinishedError:
                    await asyncio.sleep(0)  # other tasks get a turn
                except ClosedError:
                    raise
                except DeliveryError as error:
                    self._waiting += not is_waiting
                    is_waiting = True
                    if self.fault is None:
                        _log.error(
                            f"the state can't be stored: {self._consequence}", reason=f"{error}"
                        )
                    self.fault = str(error)
                    if self._is_past_deadline():
                        raise
                    await self._wait()
                else:
                    if self.fault is not None and is_waiting:
                        _log.warning("the state can be stored again")
                        self.fault = None
                    return result
        finally:
            self._waiting -= is_waiting
            if is_waiting and not self._waiting:  # the last waiting caller was cancelled
                self.fault = None

    def _is_past_deadline(self) -> bool:
        if not self._stop.is_set():
            return False
        if self._deadline is None:
            self._deadline = time.monotonic() + _SHUTDOWN_GRACE_SECONDS
        return time.monotonic() >= self._deadline

    async def _wait(self) -> None:
        # The caller waits too, so the service reads no log records: the kernel buffers new records,
        # and counts those that it drops.
        if self._stop.is_set():
            await asyncio.sleep(_RETRY_SECONDS)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_RETRY_SECONDS):
                await self._stop.wait()
