"""JSON Lines in a file.

It is appended to with whole lines only: what a full disk or a crash cut short is taken back,
so that a forwarder that follows the file never reads half an event. A file that was renamed
or removed (logrotate) is left to whoever did so, and a new one of the name is begun; one that was
emptied in its place (copytruncate) is gone on with.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from ocsf_nft.delivery.sinks.base import DELIVERED, Outcome, Sink
from ocsf_nft.delivery.sinks.line_writer import Writer, lines_of, write_lines
from ocsf_nft.delivery.sinks.rotation import OldFiles, Rotation
from ocsf_nft.delivery.sinks.safe_open import open_to_append
from ocsf_nft.errors import DeliveryError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ocsf_nft.delivery.envelope import Message

_TAIL_BYTES: Final = 1 << 16


class File(Sink):
    """Appends events to a file, of which this process is the only writer.

    With ``sync`` a batch is on the disk when it counts as delivered. With a ``rotation`` a full
    file becomes an old one; a batch is never parted for it.
    """

    def __init__(self, *, path: Path, sync: bool = True, rotation: Rotation | None = None) -> None:
        self._path = path
        self._sync = sync
        self._rotation = rotation
        self._descriptor = -1
        self._old_files: OldFiles | None = None
        self._writer = Writer("file", path)

    async def open(self) -> None:
        """Open the file, and make its directory; raises DeliveryError when it can't be written."""
        try:
            await self._writer.begin(self._told(self._open))
        except BaseException:
            await self._leave()
            raise

    async def close(self) -> None:
        """Close the file; raises DeliveryError when the system says only now what it lost."""
        await self._writer.end(self._told(self._close), is_waited_for=True)

    async def __aexit__(self, kind: object, *_: object) -> None:
        """Close it; who leaves by a failure does not wait for a write that may never end."""
        if kind is None:
            await self.close()
        else:
            await self._leave()

    async def _leave(self) -> None:
        await self._writer.end(self._told(self._close), is_waited_for=False)

    async def deliver(self, messages: Sequence[Message]) -> Outcome:
        """Append events, one line each."""
        lines = lines_of(messages)
        await self._writer.do(self._told(lambda: self._write(lines)))
        return DELIVERED

    def _told(self, work: Callable[[], None]) -> Callable[[], None]:
        """Work whose OSError is told as a DeliveryError."""

        def do() -> None:
            try:
                work()
            except OSError as error:
                raise DeliveryError(f"{self._path} can't be written: {error.strerror}") from error

        return do

    def _open(self) -> None:
        descriptor, path = open_to_append(self._path)
        try:
            is_file = _is_file(descriptor)
            if is_file:
                _take_back_torn(descriptor)
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        if is_file and self._rotation is not None:
            self._keep_old_files(path, self._rotation)

    def _keep_old_files(self, path: Path, rotation: Rotation) -> None:
        if self._old_files is not None:
            if self._old_files.path == path:
                return
            self._old_files.end()  # a link leads elsewhere now
        self._old_files = OldFiles(path, rotation)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        old_files, self._old_files = self._old_files, None
        if old_files is not None:
            old_files.end()
        if descriptor >= 0:
            os.close(descriptor)

    def _write(self, lines: bytes) -> None:
        if _is_file(self._descriptor):
            self._follow(len(lines))
        write_lines(self._descriptor, lines, sync=self._sync)

    def _follow(self, more: int) -> None:
        """Begin a new file where the one that is open has lost its name, or is full."""
        if self._has_its_name():
            if self._rotation is None or self._old_files is None:
                return
            if not self._rotation.is_full(os.fstat(self._descriptor), more):
                return
            self._old_files.add()
        left = self._descriptor
        self._open()
        os.close(left)

    def _has_its_name(self) -> bool:
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False


def _is_file(descriptor: int) -> bool:
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def _take_back_torn(descriptor: int) -> None:
    """Cut a file after its last whole line; raises OSError."""
    size = end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - _TAIL_BYTES)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    # Only where there is something: the time when it was last written to stays.
    if end < size:
        os.ftruncate(descriptor, end)
