"""Asynchronous stream of the changes that other processes make to an installed fence."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Final, Self

from ocsf_nft.fence.fence_change import FenceChange
from ocsf_nft.fence.surroundings.news import SurroundingsNews
from ocsf_nft.fence.tamper_guard import News, TamperGuard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ocsf_nft.fence.guard_thread import GuardThread
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
    """Stream of the changes that other processes make to a fence's nftables tables.

    With ``self_heal``, a guard also reverts the changes. Needs CAP_NET_ADMIN over the
    fence's network namespaces, and CAP_SYS_ADMIN to enter another namespace.
    """

    tamper_guard: TamperGuard

    def __init__(self) -> None:
        self._has_news = asyncio.Event()
        self._has_changes = False
        self._pending: deque[FenceChange] = deque(maxlen=_MAX_PENDING)
        self._surroundings: deque[SurroundingsNews] = deque(maxlen=_MAX_PENDING)
        self._error: Exception | None = None

    @classmethod
    async def started(
        cls,
        installed: InstalledFence,
        state: StateDirectory,
        thread: GuardThread,
        *,
        self_heal: bool,
    ) -> Self:
        """Start a tamper guard, and return the stream of the changes that it detects.

        Raises SourceError if the fence can't be monitored, and the errors of
        :meth:`Namespace.call`.
        """
        events, loop = cls(), asyncio.get_running_loop()

        def notify(news: News) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(events._receive, news)

        events.tamper_guard = await asyncio.to_thread(
            TamperGuard, installed, state, notify, thread, self_heal=self_heal
        )
        events.tamper_guard.start()
        return events

    async def stop(self) -> None:
        """Stop the tamper guard, and wait for its end."""
        await asyncio.to_thread(self.tamper_guard.stop)

    async def changes(self) -> AsyncIterator[tuple[FenceChange, ...] | None]:
        """Yield tuples of other processes' changes to the fence.

        A tuple comes soon after a change, and the caller should check the fence after it. Without
        changes, None comes first, and then about every 5 s. Raises any error of the guard.
        """
        # A tuple also comes early after a change of a network interface or a route. The tuple does
        # not contain that change, so the caller has to check the fence.
        yield self.take_pending() or None
        while True:
            await asyncio.sleep(_MIN_INTERVAL_SECONDS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CHECK_SECONDS):
                    await self._has_news.wait()
                await asyncio.sleep(_SETTLE_SECONDS)
            # Also if it was set at the end of the time. Changed surroundings need no check.
            has_changes, self._has_changes = self._has_changes, False
            self._has_news.clear()
            if self._error is not None:
                raise self._error
            yield self.take_pending() if has_changes else None

    def take_pending(self) -> tuple[FenceChange, ...]:
        """Return the changes that the caller has not received yet, without waiting for new ones."""
        found = tuple(self._pending)
        self._pending.clear()
        return found

    def take_surroundings(self) -> tuple[SurroundingsNews, ...]:
        """Return the changes of the fence's surroundings that the caller has not received yet."""
        found = tuple(self._surroundings)
        self._surroundings.clear()
        return found

    def _receive(self, news: News) -> None:
        if isinstance(news, SurroundingsNews):
            self._surroundings.append(news)
        else:
            self._has_changes = True
        if isinstance(news, FenceChange):
            self._pending.append(news)
        elif isinstance(news, Exception):
            self._error = news
        self._has_news.set()
