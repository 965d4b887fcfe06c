"""What becomes of a fence and its surroundings, for who awaits it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Final

from ocsf_nft.fence.tamper_guard import Alteration, Sentry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ocsf_nft.fence.state import Installed, StateDirectory

#: Changes come in bursts (a veth pair, its address, its state): one look at the end of each, and no
#: more than some looks a second for whoever makes them in a loop.
_SETTLE_SECONDS: Final = 0.05
_REST_SECONDS: Final = 0.2
_LOOK_SECONDS: Final = 5.0
#: Of more that wait, the first go untold: how the fence stands is told all the same.
_MOST_WAITING: Final = 64


class Watch:
    """A sentry (:mod:`ocsf_nft.fence.tamper_guard`) at an installed fence, and when a look is due.

    Needs CAP_NET_ADMIN over the namespaces that the fence is in, CAP_SYS_ADMIN to enter what is not
    the process's own. With ``heals`` the sentry puts the fence back.
    """

    def __init__(self, installed: Installed, state: StateDirectory, *, heals: bool) -> None:
        self._installed = installed
        self._state = state
        self._heals = heals
        self._news = asyncio.Event()
        self._waiting: deque[Alteration] = deque(maxlen=_MOST_WAITING)
        self._error: Exception | None = None
        self._sentry: Sentry | None = None

    @property
    def sentry(self) -> Sentry:
        """The sentry of a watch that has begun."""
        if self._sentry is None:
            raise RuntimeError("begin the watch first")
        return self._sentry

    async def begin(self) -> None:
        """Post the sentry; raises SourceError, and what :meth:`Namespace.call` does."""
        loop = asyncio.get_running_loop()

        def tell(news: Alteration | Exception | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._take, news)

        self._sentry = await asyncio.to_thread(
            lambda: Sentry(self._installed, self._state, tell, heals=self._heals)
        )
        self._sentry.begin()

    async def end(self) -> None:
        """Withdraw the sentry, when it has done what it is at."""
        await asyncio.to_thread(self.sentry.end)

    async def changes(self) -> AsyncIterator[tuple[Alteration, ...]]:
        """What others did to the fence, as often as a look at it is due.

        That is at once, every five seconds, and after each burst of changes to the fence, to links
        or to routes. What happens while the consumer is busy is not lost. Raises what ended the
        sentry.
        """
        while True:
            yield self.left()
            await asyncio.sleep(_REST_SECONDS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._news.wait()
                await asyncio.sleep(_SETTLE_SECONDS)
            self._news.clear()
            if self._error is not None:
                raise self._error

    def left(self) -> tuple[Alteration, ...]:
        """What has not been told yet."""
        found = tuple(self._waiting)
        self._waiting.clear()
        return found

    def _take(self, news: Alteration | Exception | None) -> None:
        if isinstance(news, Alteration):
            self._waiting.append(news)
        elif news is not None:
            self._error = news
        self._news.set()
