"""Directory that stores whole files by key (a relative path), like the objects in an S3 bucket.

A file gets its final name only after its complete content is synced to the disk.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import PurePath
from typing import TYPE_CHECKING, Final

from ocsf_nft.delivery.sinks.line_writer import WriterThread
from ocsf_nft.errors import DeliveryError

if TYPE_CHECKING:
    from pathlib import Path

#: Events name users and processes: only the owner and a group of readers may read them.
_MODE: Final = 0o640
_DIRECTORY_MODE: Final = 0o750
#: File that is written to test a directory.
_PROBE: Final = ".ocsf-nft.part"


# Not obstore's: it acknowledges files that are not on the disk yet, and leaves partial files.
class Directory:
    """Storage of whole files below the directory ``path``.

    If ``path`` is missing, :meth:`open` creates it. Its parent directory must exist.
    """

    def __init__(self, *, path: Path) -> None:
        self._path = path
        self._writer = WriterThread("directory", path)

    async def open(self, prefix: str) -> None:
        """Create the directory if it is missing, and check that files can be written in it.

        If :meth:`close` left a write running, first wait until that write has ended. Raises
        DeliveryError if no file can be written. ``prefix`` is ignored.
        """
        del prefix
        await self._writer.start(self._try)

    async def close(self) -> None:
        """Close the storage without waiting for a running write, which continues."""
        await self._writer.stop(_nothing, is_waited_for=False)

    async def put(self, key: str, content: bytes) -> None:
        """Store ``content`` as the file ``key`` (a relative path); replace an existing file.

        Raises DeliveryError if the file can't be written.
        """
        await self._writer.run(lambda: self._put(PurePath(key), content))

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
        # Readers of a data lake ignore this name: Hive and Athena skip hidden files, others only
        # read ``*.parquet``.
        part = path.with_name(f".{path.name}.part")
        try:
            _make_directory(path.parent)
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
    """Do nothing; the writer thread calls this when it stops, because it has no file to close."""


def _write(path: Path, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    with open(os.open(path, flags, _MODE), "wb", buffering=0) as file:  # noqa: PTH123 - a descriptor
        rest = memoryview(content)
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())


def _make_directory(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_directory(folder.parent)
    # The sync makes the new name safe from a power cut.
    folder.mkdir(mode=_DIRECTORY_MODE, exist_ok=True)
    _sync(folder.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
