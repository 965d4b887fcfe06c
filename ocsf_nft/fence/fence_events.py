"""Asynchronous stream of the changes to a fence and its surroundings."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Final

from ocsf_nft.fence.tamper_guard import FenceChange, TamperGuard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ocsf_nft.fence.state import InstalledFence, StateDirectory

#: Changes come in bursts (a veth pair, its address, its state). One check at the end of each burst
#: is enough. The minimum interval limits the checks if a process makes changes in a loop.
_SETTLE_SECONDS: Final = 0.05
_MIN_INTERVAL_SECONDS: Final = 0.2
_CHECK_SECONDS: Final = 5.0
#: Changes that wait for the consumer. Older ones are dropped; the state of the fence is reported
#: anyway.
_MAX_PENDING: Final = 64


class FenceEvents:
    """Stream of changes to an installed fence, with its tamper guard and a schedule for checks.

    Needs CAP_NET_ADMIN over the namespaces of the fence, and CAP_SYS_ADMIN to enter a namespace
    that is not the process's own. With ``self_heal`` the tamper guard restores the fence.
    """

    def __init__(
        self, installed: InstalledFence, state: StateDirectory, *, self_heal: bool
    ) -> None:
        self._installed = installed
        self._state = state
        self._self_heal = self_heal
        self._has_news = asyncio.Event()
        self._pending: deque[FenceChange] = deque(maxlen=_MAX_PENDING)
        self._error: Exception | None = None
        self._tamper_guard: TamperGuard | None = None

    @property
    def tamper_guard(self) -> TamperGuard:
        """Return the tamper guard; it exists after :meth:`start`."""
        if self._tamper_guard is None:
            raise RuntimeError("start the monitoring first")
        return self._tamper_guard

    async def start(self) -> None:
        """Start the tamper guard; raises SourceError, and the errors of :meth:`Namespace.call`."""
        loop = asyncio.get_running_loop()

        def notify(news: FenceChange | Exception | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._receive, news)

        self._tamper_guard = await asyncio.to_thread(
            lambda: TamperGuard(self._installed, self._state, notify, self_heal=self._self_heal)
        )
        self._tamper_guard.start()

    async def stop(self) -> None:
        """Stop the tamper guard after its current action."""
        await asyncio.to_thread(self.tamper_guard.stop)

    async def changes(self) -> AsyncIterator[tuple[FenceChange, ...]]:
        """Yield the changes of other processes whenever a check of the fence is due.

        A check is due at once, every five seconds, and after each burst of changes to the fence, to
        links or to routes. Nothing that happens while the consumer is busy is missed. Raises the
        error that ended the tamper guard.
        """
        while True:
            yield self.take_pending()
            await asyncio.sleep(_MIN_INTERVAL_SECONDS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CHECK_SECONDS):
                    await self._has_news.wait()
                await asyncio.sleep(_SETTLE_SECONDS)
            self._has_news.clear()
            if self._error is not None:
                raise self._error

    def take_pending(self) -> tuple[FenceChange, ...]:
        """Return the changes that have not been returned yet, and clear them."""
        found = tuple(self._pending)
        self._pending.clear()
        return found

    def _receive(self, news: FenceChange | Exception | None) -> None:
        if isinstance(news, FenceChange):
            self._pending.append(news)
        elif news is not None:
            self._error = news
        self._has_news.set()
