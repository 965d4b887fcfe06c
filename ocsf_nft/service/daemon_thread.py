"""Work in threads that the end of the program does not wait for."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def run_in_daemon_thread(job: Callable[[], T], name: str) -> asyncio.Future[T]:
    """Run ``job`` in a new thread with a name, and return the future of its result.

    Use it for work that may block for ever, such as on a file system that does not answer. A
    cancelled future does not stop ``job``, whose result is then ignored.
    """
    made: Future[T] = Future()
    made.set_running_or_notify_cancel()  # it can't be cancelled any more

    def run() -> None:
        try:
            result = job()
        except BaseException as error:  # noqa: BLE001 - the future has it
            made.set_exception(error)
        else:
            made.set_result(result)

    found = asyncio.wrap_future(made)
    threading.Thread(target=run, name=name, daemon=True).start()
    return found
