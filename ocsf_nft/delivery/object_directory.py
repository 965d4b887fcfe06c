"""Directory that stores whole files by key (a relative path), like the objects in an S3 bucket.

A file gets its final name only after its complete content is synced to the disk.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import PurePath
from typing import TYPE_CHECKING, Final

from ocsf_nft.delivery.sinks.line_writer import WriterThread
from ocsf_nft.delivery.sinks.safe_open import DIRECTORY_MODE, MODE, sync_directory
from ocsf_nft.errors import DeliveryError

if TYPE_CHECKING:
    from pathlib import Path

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
        await self._writer.start()
        await self._writer.run(self._try)

    async def close(self) -> None:
        """Close the storage without waiting for a running write, which continues."""
        await self._writer.stop()

    async def put(self, key: str, content: bytes) -> None:
        """Store ``content`` as the file ``key`` (a relative path); replace an existing file.

        Raises DeliveryError if the file can't be written.
        """
        await self._writer.run(lambda: self._put(PurePath(key), content))

    def _try(self) -> None:
        try:
            with contextlib.suppress(FileExistsError):
                self._path.mkdir(mode=DIRECTORY_MODE)
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
            sync_directory(path.parent)
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> DeliveryError:
        return DeliveryError(f"{self._path} can't be written: {error.strerror}")


def _write(path: Path, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    with open(os.open(path, flags, MODE), "wb", buffering=0) as file:  # noqa: PTH123 - a descriptor
        rest = memoryview(content)
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())


def _make_directory(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_directory(folder.parent)
    # The sync makes the new name safe from a power cut.
    folder.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
    sync_directory(folder.parent)
