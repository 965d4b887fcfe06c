"""Host names in the policies of all sandboxes: each is resolved once for all of them."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, Self

from ocsf_nft.service.name_state import NameState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from ocsf_nft.service.delivery_answers import NameAnswer


class SharedName:
    """Host name that one or more sandboxes follow, and its state."""

    def __init__(self, now: float) -> None:
        self.state: Final = NameState(now)
        #: Called after each answer, and after addresses have expired.
        self.followers: list[Callable[[], None]] = []

    def notify(self) -> None:
        """Call all followers."""
        for each in tuple(self.followers):
            each()


class SharedNames:
    """Host names that sandboxes of a service follow; it resolves them between enter and exit."""

    def __init__(
        self,
        resolve: Callable[[str], Awaitable[NameAnswer]],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Create the collection; ``resolve`` asks for the addresses of a name, and never fails.

        ``clock`` and ``sleep`` are for tests.
        """
        self._resolve = resolve
        self._clock = clock
        self._sleep = sleep
        self._names: dict[str, tuple[SharedName, asyncio.Task[None]]] = {}
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        """Allow names to be followed."""
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End all lookups."""
        for _, task in self._names.values():
            task.cancel()
        await self._group.__aexit__(kind, error, traceback)

    def follow(self, name: str, follower: Callable[[], None]) -> SharedName:
        """Begin to resolve a name, or join others; call ``follower`` after each change."""
        if name not in self._names:
            shared = SharedName(self._clock())
            self._names[name] = shared, self._group.create_task(self._resolve_again(name, shared))
        shared, _ = self._names[name]
        shared.followers.append(follower)
        return shared

    def leave(self, name: str, follower: Callable[[], None]) -> None:
        """End a :meth:`follow`; after the last one, the name is not resolved any more."""
        shared, task = self._names[name]
        shared.followers.remove(follower)
        if not shared.followers:
            del self._names[name]
            task.cancel()

    async def _resolve_again(self, name: str, shared: SharedName) -> None:
        state = shared.state
        while True:
            state.take(await self._resolve(name), self._clock())
            shared.notify()
            await self._sleep(max(0.0, state.next_at - self._clock()))
            state.expire(self._clock())
            shared.notify()
