"""Rotation of an event file: the names, the compression and the removal of old files.

A full ``events.jsonl`` is renamed to ``events-20261125T204400.123456Z.jsonl`` (UTC). If compression
is on, ``….jsonl.gz`` replaces the renamed file.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import gzip
import os
import re
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from ocsf_nft.delivery.sinks.safe_open import MODE, sync_directory
from ocsf_nft.errors import DeliveryError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_log = structlog.get_logger()

#: The names of old files sort in the order of their rotations.
_STAMP: Final = "%Y%m%dT%H%M%S.%fZ"
_TICK: Final = dt.timedelta(microseconds=1)
_COMPRESSED: Final = ".gz"
_PART: Final = ".gz.part"
#: About ten milliseconds of compression.
_CHUNK_BYTES: Final = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """Settings of a file rotation: when a file is full, and which old files remain.

    A limit that is None does not apply.
    """

    #: A file is full if the next write would exceed this size.
    full_bytes: int | None = None
    #: A file is full if a new period of this length has begun, in UTC: 86400 means each midnight.
    full_seconds: int | None = None
    #: Maximum number of old files. The newest remain.
    keep_files: int | None = None
    #: Maximum total size of old files. The oldest are removed.
    keep_bytes: int | None = None
    #: Old files are compressed.
    compress: bool = False

    def is_full(self, status: os.stat_result, added_bytes: int) -> bool:
        """Return True if a file must be rotated before ``added_bytes`` more bytes are written.

        ``status`` is the result of :func:`os.stat` for the file. An empty file is never full.
        """
        if status.st_size == 0:
            return False
        if self.full_bytes is not None and status.st_size + added_bytes > self.full_bytes:
            return True
        # The modification time is known after a restart too.
        return self.full_seconds is not None and (
            int(status.st_mtime) // self.full_seconds != int(time.time()) // self.full_seconds
        )

    def is_above_limits(self, files: int, size: int) -> bool:
        """Return True if ``files`` old files with a total size of ``size`` bytes exceed a limit."""
        return (self.keep_files is not None and files > self.keep_files) or (
            self.keep_bytes is not None and size > self.keep_bytes
        )


class _OldFile(NamedTuple):
    """Old (rotated) file: ``stamp`` is the time of its rotation, ``size`` its size in bytes.

    ``suffix`` is empty for an uncompressed file, ``.gz`` for a compressed file, and ``.gz.part``
    for an unfinished compression.
    """

    stamp: str
    suffix: str
    path: Path
    size: int


class _StoppedError(Exception):
    """Signal that a stop was requested during a compression."""


class OldFiles:
    """Old (rotated) files of the event file ``path``, and the thread that maintains them.

    The thread compresses old files. The thread also removes the oldest files if a limit of
    ``rotation`` is exceeded.
    """

    def __init__(self, path: Path, rotation: Rotation) -> None:
        self.path = path
        self._rotation = rotation
        self._name = re.compile(
            rf"\.?{re.escape(path.stem)}-(\d{{8}}T\d{{6}}\.\d{{6}}Z){re.escape(path.suffix)}"
            rf"({re.escape(_COMPRESSED)}|{re.escape(_PART)})?",
            re.ASCII,
        )
        self._stop_requested = Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="old-files")
        self._thread.submit(self._maintain_and_log)

    def add(self) -> None:
        """Rename the full event file, so that it becomes an old file.

        Raises DeliveryError if the renaming fails.
        """
        try:
            self.path.rename(self._path_of(self._next_stamp()))
            sync_directory(self.path.parent)
        except OSError as error:
            raise DeliveryError(
                f"{self.path} can't be renamed now that it is full: {error.strerror}"
            ) from error
        self._thread.submit(self._maintain_and_log)

    def stop(self) -> None:
        """Stop the thread that maintains the old files, and wait for its end.

        The remaining work is done when the event file is opened next.
        """
        self._stop_requested.set()
        self._thread.shutdown(cancel_futures=True)

    def _maintain_and_log(self) -> None:
        # If a compression is stopped, the next opening starts it again.
        with self._logged_errors(), contextlib.suppress(_StoppedError):
            self._maintain()

    @contextlib.contextmanager
    def _logged_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # The next rotation tries all old files again.
            _log.warning(
                "an old file could not be compressed or removed",
                path=str(self.path),
                reason=error.strerror,
            )

    def _maintain(self) -> None:
        found = self._list()
        compressed = {old.stamp for old in found if old.suffix == _COMPRESSED}
        plain = [old for old in found if not old.suffix and old.stamp not in compressed]
        # Files that an interrupted compression left behind.
        for old in found:
            if old.suffix == _PART or (not old.suffix and old.stamp in compressed):
                old.path.unlink()
        for old in plain if self._rotation.compress else ():
            with self._logged_errors():
                self._replace_with_compressed(old)
        # A file that was added meanwhile counts the next time: compression makes it smaller.
        known = {old.stamp for old in found}
        self._remove_excess([old for old in self._list() if old.stamp in known])

    def _remove_excess(self, found: Sequence[_OldFile]) -> None:
        size = 0
        for number, old in enumerate(reversed(found), 1):
            size += old.size
            if self._rotation.is_above_limits(number, size):
                old.path.unlink()

    def _replace_with_compressed(self, old: _OldFile) -> None:
        part = self._path_of(old.stamp, _PART)
        try:
            self._compress(old.path, part)
            part.rename(self._path_of(old.stamp, _COMPRESSED))
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        # Before the removal of the plain file: even after a kill or a power cut, each event is in a
        # complete file.
        sync_directory(self.path.parent)
        old.path.unlink()

    def _compress(self, source: Path, target: Path) -> None:
        reading = os.open(source, os.O_RDONLY | os.O_NOFOLLOW)
        with open(reading, "rb", buffering=0) as plain:  # noqa: PTH123 - a descriptor
            writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE)
            with open(writing, "wb") as file:  # noqa: PTH123 - the same
                with gzip.GzipFile(source.name, "wb", fileobj=file, mtime=0) as compressed:
                    while chunk := plain.read(_CHUNK_BYTES):
                        self._write(compressed, chunk)
                file.flush()
                os.fsync(writing)

    def _write(self, compressed: gzip.GzipFile, chunk: bytes) -> None:
        started = time.monotonic()
        compressed.write(chunk)
        # Compression takes half of the time at most. A low priority would not do: a thread that
        # waits for the processor may hold Python's lock, and then all other threads wait too.
        if self._stop_requested.wait(time.monotonic() - started):
            raise _StoppedError

    def _next_stamp(self) -> str:
        stamp = dt.datetime.now(dt.UTC).strftime(_STAMP)
        last = max((old.stamp for old in self._list()), default="")
        if stamp > last:
            return stamp
        # The clock was set back: the new name must still sort after the others.
        return (dt.datetime.strptime(last, _STAMP).replace(tzinfo=dt.UTC) + _TICK).strftime(_STAMP)

    def _path_of(self, stamp: str, suffix: str = "") -> Path:
        # Hidden until it is complete, so that no reader takes it for an old file.
        dot = "." if suffix == _PART else ""
        return self.path.with_name(f"{dot}{self.path.stem}-{stamp}{self.path.suffix}{suffix}")

    def _list(self) -> list[_OldFile]:
        found: list[_OldFile] = []
        for path in self.path.parent.iterdir():
            match = self._name.fullmatch(path.name)
            if match is None or not _is_timestamp(match[1]):
                continue
            try:
                status = path.lstat()
            except FileNotFoundError:  # compressed or removed meanwhile
                continue
            # Files of other users, links and directories are no old files.
            if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
                found.append(_OldFile(match[1], match[2] or "", path, status.st_size))
        return sorted(found)


def _is_timestamp(stamp: str) -> bool:
    try:
        dt.datetime.strptime(stamp, _STAMP).replace(tzinfo=dt.UTC)
    except ValueError:
        return False
    return True
