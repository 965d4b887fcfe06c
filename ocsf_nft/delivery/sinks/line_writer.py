"""Writer of JSON Lines to a file descriptor, in a separate thread."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import stat
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from ocsf_nft.errors import DeliveryError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ocsf_nft.delivery.sinks.base import Message


#: Ends of the writers of each destination for which a new writer waits. If it started before one of
#: these ends, it could write between the parts of the earlier one's batch.
_ENDS: Final[dict[tuple[str, str], list[Future[None]]]] = {}


class WriterThread:
    """Thread that does all work on one output's file descriptor, one job after another.

    If the caller of a job is cancelled before the job has begun, the job is dropped. A job that has
    begun continues.
    """

    def __init__(self, name: str, destination: object, *, is_shared: bool = False) -> None:
        """Create a writer; :meth:`start` starts its thread, which is called ``name``.

        ``destination`` is the output's name in errors, for example the path of the file. If another
        writer with the same name and destination still runs, :meth:`start` waits for its end. With
        ``is_shared``, it only waits if that writer was stopped already: other sinks may use the
        destination at the same time.
        """
        self._name = name
        self._destination = destination
        self._is_shared = is_shared
        self._key = name, str(destination)
        self._thread: ThreadPoolExecutor | None = None
        self._ended: Future[None]

    async def start(self) -> None:
        """Start the thread.

        First wait until an earlier writer with the same name and destination has ended. The caller
        must call :meth:`stop` later.
        """
        while before := [each for each in _ENDS.get(self._key, ()) if not each.done()]:
            await asyncio.wait(map(asyncio.wrap_future, before))
        _ENDS[self._key] = []
        self._ended = Future()
        if not self._is_shared:
            _ENDS[self._key].append(self._ended)
        # One thread: no other job writes between the parts of a batch, or closes the descriptor.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=self._name)

    async def run(self, job: Callable[[], None]) -> None:
        """Run a job after all earlier jobs, and wait for its end.

        Raises DeliveryError for an OSError of the job, or the job's other error.
        """
        # Not shielded: a running job can't be stopped, and a waiting one must not start. A write
        # never ends, for example, if no process reads from a full pipe.
        with self._delivery_errors():
            await asyncio.get_running_loop().run_in_executor(self._thread, job)

    async def stop(
        self, close: Callable[[], None] = lambda: None, *, is_waited_for: bool = False
    ) -> None:
        """Run ``close`` as the last job, and end the thread.

        If ``is_waited_for`` is true, wait for the end of ``close``, and raise its error as
        :meth:`run` does. Otherwise return at once. If no thread was started, do nothing.
        """
        if self._thread is None:
            return
        ended = self._thread.submit(close)
        all_ended = self._ended
        if self._is_shared:
            _ENDS[self._key].append(all_ended)
        ended.add_done_callback(lambda _: all_ended.set_result(None))
        self._thread.shutdown(wait=False)
        self._thread = None
        if is_waited_for:
            # If the waiting task is cancelled, asyncio.wait lets the job continue.
            waiting = asyncio.wrap_future(ended)
            await asyncio.wait((waiting,))
            with self._delivery_errors():
                waiting.result()

    @contextlib.contextmanager
    def _delivery_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DeliveryError(
                f"{self._destination} can't be written: {error.strerror}"
            ) from error


def lines_of(messages: Sequence[Message]) -> bytes:
    """Return messages as JSON Lines: the JSON of each message, followed by a line end."""
    return b"".join(part for message in messages for part in (message.line, b"\n"))


def write_lines(descriptor: int, lines: bytes, *, sync: bool = False) -> None:
    """Append lines to a regular file, or write them to a pipe or another stream.

    A failed write to a regular file is undone. With ``sync``, a regular file's lines are on the
    disk afterwards. Raises OSError.
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
    except OSError:  # for example, a full disk after a part of the lines
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
