"""Sink that writes JSON Lines to a file.

The sink continues if another program, such as logrotate, renames, removes or truncates the file.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from ocsf_nft.delivery.sinks.base import DELIVERED, BatchResult, Message, Sink
from ocsf_nft.delivery.sinks.line_writer import WriterThread, lines_of, write_lines
from ocsf_nft.delivery.sinks.rotation import OldFiles, Rotation
from ocsf_nft.delivery.sinks.safe_open import open_to_append

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


_TAIL_BYTES: Final = 1 << 16


class File(Sink):
    """Sink that appends events to a file; no other process may append to it.

    If ``sync`` is false, a power cut may delete delivered events. With ``rotation``, a full file is
    renamed, and a new one is created.
    """

    def __init__(self, *, path: Path, sync: bool = True, rotation: Rotation | None = None) -> None:
        self._path = path
        self._sync = sync
        self._rotation = rotation
        self._descriptor = -1
        self._old_files: OldFiles | None = None
        self._writer = WriterThread("file", path)

    async def open(self) -> None:
        """Open the file; create the file and its directory if they are missing.

        Raises DeliveryError if the file can't be written.
        """
        try:
            await self._writer.start()
            await self._writer.run(self._open)
        except BaseException:
            await self._abandon()
            raise

    async def close(self) -> None:
        """Wait until a write in progress has ended, then close the file.

        Raises DeliveryError if the closing fails.
        """
        await self._writer.stop(self._close, is_waited_for=True)

    async def __aexit__(self, kind: object, *_: object) -> None:
        """Close the file.

        After an exception in the ``with`` body, the sink does not wait for a running write, which
        may never end.
        """
        if kind is None:
            await self.close()
        else:
            await self._abandon()

    async def _abandon(self) -> None:
        await self._writer.stop(self._close)

    async def deliver(self, messages: Sequence[Message]) -> BatchResult:
        """Append events to the file, one line each; raises DeliveryError if that fails."""
        lines = lines_of(messages)
        await self._writer.run(lambda: self._write(lines))
        return DELIVERED

    def _open(self) -> None:
        descriptor, path = open_to_append(self._path)
        try:
            is_file = _is_file(descriptor)
            if is_file:
                # This process may have crashed during a write of the last line.
                _truncate_torn_line(descriptor)
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        if is_file and self._rotation is not None:
            self._start_rotation(path, self._rotation)

    def _start_rotation(self, path: Path, rotation: Rotation) -> None:
        if self._old_files is not None:
            if self._old_files.path == path:
                return
            self._old_files.stop()  # the symbolic link has another target now
        self._old_files = OldFiles(path, rotation)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        old_files, self._old_files = self._old_files, None
        if old_files is not None:
            old_files.stop()
        if descriptor >= 0:
            os.close(descriptor)

    def _write(self, lines: bytes) -> None:
        if _is_file(self._descriptor):
            self._replace_file(len(lines))
        write_lines(self._descriptor, lines, sync=self._sync)

    def _replace_file(self, added_bytes: int) -> None:
        """Open a new file if the current file was renamed, was removed, or is full."""
        if self._is_at_path():
            if self._rotation is None or self._old_files is None:
                return
            if not self._rotation.is_full(os.fstat(self._descriptor), added_bytes):
                return
            self._old_files.add()
        previous = self._descriptor
        self._open()
        os.close(previous)

    def _is_at_path(self) -> bool:
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False


def _is_file(descriptor: int) -> bool:
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def _truncate_torn_line(descriptor: int) -> None:
    size = end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - _TAIL_BYTES)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    # Only if necessary: truncation changes the modification time, which rotation uses.
    if end < size:
        os.ftruncate(descriptor, end)
