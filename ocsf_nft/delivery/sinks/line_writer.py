"""Writer of JSON Lines to a descriptor: it has its own thread and writes whole lines only."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import stat
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ocsf_nft.delivery.envelope import Message


#: End of the latest writer of each destination. A second writer that starts before that end could
#: write between the parts of the first one's batch.
_ENDS: Final[dict[str, Future[None]]] = {}


class WriterThread:
    """Thread that uses a sink's descriptor from its opening to its closing.

    So no other job writes between the parts of a batch, or closes the descriptor during a write. No
    slow job of another sink delays a write. A write can't be stopped, and a write to a pipe
    without a reader never returns. So a cancelled caller does not wait for it. The write still runs
    to its end. The waiting job of a cancelled caller is not started.
    """

    def __init__(self, name: str, destination: object) -> None:
        """Create a writer; ``name`` is the thread's, and a ``destination`` has one at a time."""
        self._name = name
        self._destination = f"{name} {destination}"
        self._thread: ThreadPoolExecutor | None = None
        self._ended: Future[None]

    async def start(self, job: Callable[[], None]) -> None:
        """Run the first job in a new thread, after the end of another writer of the destination.

        The caller must call :meth:`stop`, also if this fails.
        """
        while (before := _ENDS.get(self._destination)) is not None and not before.done():
            await asyncio.wait([asyncio.wrap_future(before)])
        self._ended = _ENDS[self._destination] = Future()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=self._name)
        await self.run(job)

    async def run(self, job: Callable[[], None]) -> None:
        """Run a job after all earlier ones; raises its error."""
        # Not shielded: a running job can't be stopped, and a waiting one must not start.
        await asyncio.get_running_loop().run_in_executor(self._thread, job)

    async def stop(self, close: Callable[[], None], *, is_waited_for: bool) -> None:
        """Run the last job; if it is waited for, raise its error."""
        if self._thread is None:
            return
        ended = self._thread.submit(close)
        ended.add_done_callback(partial(_set_ended, self._ended))
        self._thread.shutdown(wait=False)
        self._thread = None
        if is_waited_for:
            await _wait(ended)


def lines_of(messages: Sequence[Message]) -> bytes:
    """Return messages as JSON Lines."""
    return b"".join(part for message in messages for part in (message.line, b"\n"))


def write_lines(descriptor: int, lines: bytes, *, sync: bool = False) -> None:
    """Write lines; a regular file gets them at its end. Raises OSError.

    If a full disk cuts them short, they are removed again. So a reader of the file gets no half
    event. With ``sync`` the lines of a file survive a power cut when this returns.
    """
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        _write_all(descriptor, lines)
        return
    # Without O_APPEND, a file that another process truncated would get a hole.
    size = os.lseek(descriptor, 0, os.SEEK_END)
    try:
        _write_all(descriptor, lines)
        if sync:
            os.fdatasync(descriptor)
    except OSError:
        if os.fstat(descriptor).st_size > size:
            os.ftruncate(descriptor, size)
        raise
    if os.fstat(descriptor).st_size < size + len(lines):
        # logrotate's copytruncate: its copy may lack the lines that it truncated.
        raise OSError(errno.EIO, "another process truncated it during the write")


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            # A named pipe, or standard output that the parent process set to non-blocking.
            select.select((), (descriptor,), ())


def _set_ended(ended: Future[None], _: Future[None]) -> None:
    ended.set_result(None)


async def _wait(job: Future[None]) -> None:
    """Wait for a job, which continues if the waiting is cancelled; raises its error."""
    waiting = asyncio.wrap_future(job)
    await asyncio.wait((waiting,))
    waiting.result()
