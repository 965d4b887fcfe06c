"""What writes JSON Lines to a descriptor: a thread of its own, and whole lines only."""

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


#: Of each place, when who has it has done its last work: another one that began before would write
#: between the parts of its batch.
_HELD: Final[dict[str, Future[None]]] = {}


class Writer:
    """A thread that has a sink's descriptor from when it is opened until it is closed.

    Nothing is written between the parts of a batch, nothing closes under a write, and no other
    slow work stands before it. A write can't be stopped, and a pipe that nobody reads would never
    let go: who is cancelled does not wait for it. It is still done to its end, and what waited
    for its turn is not begun.
    """

    def __init__(self, name: str, place: object) -> None:
        """``name`` is the thread's; at one ``place`` one at a time writes."""
        self._name = name
        self._place = f"{name} {place}"
        self._thread: ThreadPoolExecutor | None = None
        self._ended: Future[None]

    async def begin(self, work: Callable[[], None]) -> None:
        """Do the first work in a new thread, once nobody else has the place.

        Whoever has begun, or tried to, has to :meth:`end`.
        """
        while (before := _HELD.get(self._place)) is not None and not before.done():
            await asyncio.wait([asyncio.wrap_future(before)])
        self._ended = _HELD[self._place] = Future()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=self._name)
        await self.do(work)

    async def do(self, work: Callable[[], None]) -> None:
        """Do work after what was begun before."""
        # Not shielded: a thread that has begun can't be stopped, and what has not must not be.
        await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def end(self, close: Callable[[], None], *, is_waited_for: bool) -> None:
        """Do the last work; raises its error where it is waited for."""
        if self._thread is None:
            return
        ended = self._thread.submit(close)
        ended.add_done_callback(partial(_leave, self._ended))
        self._thread.shutdown(wait=False)
        self._thread = None
        if is_waited_for:
            await _wait(ended)


def lines_of(messages: Sequence[Message]) -> bytes:
    """Messages as JSON Lines."""
    return b"".join(part for message in messages for part in (message.line, b"\n"))


def write_lines(descriptor: int, lines: bytes, *, sync: bool = False) -> None:
    """Write lines, to a file at its end; raises OSError.

    What a full disk cut short is taken back, so that who follows the file reads no half event.
    With ``sync`` the lines of a file are on the disk then, a power cut included.
    """
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        _write_all(descriptor, lines)
        return
    # A file that somebody emptied, and that was not opened for appending, would get a hole.
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
        # logrotate's copytruncate: the lines may have gone with what it had copied before.
        raise OSError(errno.EIO, "somebody emptied it just now")


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            # A named pipe, or standard output that whoever gave us it made so, for themselves too.
            select.select((), (descriptor,), ())


def _leave(held: Future[None], _: Future[None]) -> None:
    held.set_result(None)


async def _wait(work: Future[None]) -> None:
    """Wait for work that goes on when the waiting is cancelled; raises its error."""
    waiting = asyncio.wrap_future(work)
    await asyncio.wait((waiting,))
    waiting.result()
