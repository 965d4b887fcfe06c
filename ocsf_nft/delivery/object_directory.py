"""A directory that whole files are put into, by keys as in a bucket.

A file has its name only once all of it is on the disk, a power cut included. Until then it has
one that begins with a dot and ends otherwise, which no reader of a lake looks at: Hive and Athena
skip what is hidden, others read ``*.parquet``. What a crash leaves of it is written over when the
same file is put again.

The library that puts objects into a bucket could do this too, but acknowledges what is not on the
disk yet, and leaves another file after each crash.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import PurePath
from typing import TYPE_CHECKING, Final

from ocsf_nft.delivery.sinks.line_writer import Writer
from ocsf_nft.errors import DeliveryError

if TYPE_CHECKING:
    from pathlib import Path

#: Events name who did what: for their owner and a group of readers, nobody else.
_MODE: Final = 0o640
_DIRECTORY_MODE: Final = 0o750
#: What a directory is tried with.
_PROBE: Final = ".ocsf-nft.part"


class Directory:
    """Puts files below ``path``, which it makes where its parent is there."""

    def __init__(self, *, path: Path) -> None:
        self._path = path
        self._writer = Writer("directory", path)

    async def open(self, prefix: str) -> None:
        """Find out whether files can be written, not only below ``prefix``; raises DeliveryError.

        What was being put when it was left is waited for.
        """
        del prefix
        await self._writer.begin(self._try)

    async def close(self) -> None:
        """Leave it; what is being put is still put, without being waited for."""
        await self._writer.end(_nothing, is_waited_for=False)

    async def put(self, key: str, content: bytes) -> None:
        """Put a file, in place of one that has its key; raises DeliveryError."""
        await self._writer.do(lambda: self._put(PurePath(key), content))

    def _try(self) -> None:
        try:
            with contextlib.suppress(FileExistsError):
                self._path.mkdir(mode=_DIRECTORY_MODE)
            probe = self._path / _PROBE
            _write(probe, b"")
            probe.unlink()
        except OSError as error:
            raise self._failure(error) from error

    def _put(self, key: PurePath, content: bytes) -> None:
        path = self._path / key
        part = path.with_name(f".{path.name}.part")
        try:
            _make(path.parent)
            try:
                _write(part, content)
                part.replace(path)
            except OSError:
                part.unlink(missing_ok=True)
                raise
            _sync(path.parent)
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> DeliveryError:
        return DeliveryError(f"{self._path} can't be written: {error.strerror}")


def _nothing() -> None:
    """Nothing is held open between two files."""


def _write(path: Path, content: bytes) -> None:
    """Write a file to the disk; raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    with open(os.open(path, flags, _MODE), "wb", buffering=0) as file:  # noqa: PTH123 - a descriptor
        rest = memoryview(content)
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())


def _make(folder: Path) -> None:
    """Make a directory and those above it, to stay after a power cut; raises OSError."""
    if folder.is_dir():
        return
    _make(folder.parent)
    folder.mkdir(mode=_DIRECTORY_MODE, exist_ok=True)
    _sync(folder.parent)


def _sync(folder: Path) -> None:
    """Have the names in a directory written to the disk; raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
