"""Waiting for a descriptor, so that nothing stays registered while nobody waits."""

from __future__ import annotations

import asyncio


async def until_readable(descriptor: int, timeout_s: float | None = None) -> bool:
    """Wait until ``descriptor`` can be read; False when ``timeout_s`` seconds pass first.

    A regular file always can; others get their turn all the same. The event loop watches the
    descriptor only meanwhile: a consumer that is busy is not woken, and a cancelled wait leaves
    nothing behind.
    """
    loop = asyncio.get_running_loop()
    woken: asyncio.Future[bool] = loop.create_future()

    def wake(answer: bool) -> None:
        if not woken.done():
            woken.set_result(answer)

    try:
        loop.add_reader(descriptor, wake, True)
    except PermissionError:  # epoll(7) takes no regular file
        await asyncio.sleep(0)
        return True
    timer = None if timeout_s is None else loop.call_later(timeout_s, wake, False)
    try:
        return await woken
    finally:
        loop.remove_reader(descriptor)
        if timer is not None:
            timer.cancel()
