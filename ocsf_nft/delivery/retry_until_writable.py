"""Patience with a disk that won't have what is to be kept: full, or read-only for now."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Final, TypeVar

import structlog

from ocsf_nft.errors import ClosedError, DeliveryError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

_log = structlog.get_logger()

_AGAIN_SECONDS: Final = 0.5
_CLOSING_SECONDS: Final = 3.0


class Patience:
    """Does work again and again until the disk has it.

    Nothing is lost meanwhile: who waits takes in nothing new, and what the kernel then has no room
    for it counts. Once ``stop`` is set there are some seconds left, then the work's DeliveryError
    is raised.
    """

    def __init__(self, stop: asyncio.Event) -> None:
        #: What the disk says now, None when it takes everything.
        self.fault: str | None = None
        self._stop = stop
        self._ends: float | None = None
        self._waiting = 0

    async def __call__(self, work: Callable[[], Awaitable[T]]) -> T:
        """What the work gives; raises DeliveryError when there is no more time, ClosedError."""
        is_waiting = False
        try:
            while True:
                try:
                    found = await work()
                except ClosedError:
                    raise
                except DeliveryError as error:
                    self._waiting += not is_waiting
                    is_waiting = True
                    self._tell(str(error))
                    if self._is_over():
                        raise
                    await self._wait()
                else:
                    if self.fault is not None and is_waiting:
                        _log.warning("the disk takes what is to be kept again")
                        self.fault = None
                    return found
        finally:
            self._waiting -= is_waiting
            if is_waiting and not self._waiting:  # who waited last was told to wait no longer
                self.fault = None

    def _tell(self, fault: str) -> None:
        if self.fault is None:
            _log.error("nothing can be kept: waiting, and reading no more records", reason=fault)
        self.fault = fault

    def _is_over(self) -> bool:
        if not self._stop.is_set():
            return False
        if self._ends is None:
            self._ends = time.monotonic() + _CLOSING_SECONDS
        return time.monotonic() >= self._ends

    async def _wait(self) -> None:
        if self._stop.is_set():
            await asyncio.sleep(_AGAIN_SECONDS)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_AGAIN_SECONDS):
                await self._stop.wait()
