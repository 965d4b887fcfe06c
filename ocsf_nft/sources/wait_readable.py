"""Asynchronous wait for a file descriptor that becomes readable."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


async def until_readable(descriptor: int, timeout_s: float | None = None) -> bool:
    """Wait until ``descriptor`` is readable, for at most ``timeout_s`` seconds (None: no limit).

    Return True if it is readable, False after the timeout. A regular file is always readable. The
    event loop watches the descriptor only during the call.
    """
    import asyncio  # noqa: PLC0415 - a reader of files that calls no such wait starts without it

    loop = asyncio.get_running_loop()
    woken: asyncio.Future[bool] = loop.create_future()

    def wake(answer: bool) -> None:
        if not woken.done():
            woken.set_result(answer)

    try:
        loop.add_reader(descriptor, wake, True)
    except PermissionError:  # epoll(7) refuses regular files
        await asyncio.sleep(0)
        return True
    timer = None if timeout_s is None else loop.call_later(timeout_s, wake, False)
    try:
        return await woken
    finally:
        loop.remove_reader(descriptor)
        if timer is not None:
            timer.cancel()
