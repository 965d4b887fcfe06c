"""Old files beside the one that is written to: their names, their compression, their end.

``events.jsonl`` becomes ``events-20261125T204400.123456Z.jsonl`` by its name alone, when it was
full (UTC), and ``….jsonl.gz`` once all of that is on the disk. At each moment between, and after
a kill or a power cut, an event is in one file that is whole; what is left half done is finished or
removed when the file is opened the next time. A name is later than all that are there, also
where a clock was set back, so that they sort by time.
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

from ocsf_nft.delivery.sinks.safe_open import MODE, sync_names
from ocsf_nft.errors import DeliveryError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_log = structlog.get_logger()

_STAMP: Final = "%Y%m%dT%H%M%S.%fZ"
_TICK: Final = dt.timedelta(microseconds=1)
_PACKED: Final = ".gz"
_PART: Final = ".gz.part"
#: About ten milliseconds of compression.
_CHUNK_BYTES: Final = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """When a file is full, and what becomes of it.

    A file is full at ``full_bytes``, and when the next ``full_seconds`` of UTC begin: with 86400 at
    midnight. Of old files the ``keep_files`` last are kept, and of those what is within
    ``keep_bytes``; ``compress`` them. None is no limit.
    """

    full_bytes: int | None = None
    full_seconds: int | None = None
    keep_files: int | None = None
    keep_bytes: int | None = None
    compress: bool = False

    def is_full(self, found: os.stat_result, more: int) -> bool:
        """Whether a file is, before ``more`` bytes are written to it; an empty one never is."""
        if found.st_size == 0:
            return False
        if self.full_bytes is not None and found.st_size + more > self.full_bytes:
            return True
        # By when it was last written to: known after a restart too.
        return self.full_seconds is not None and (
            int(found.st_mtime) // self.full_seconds != int(time.time()) // self.full_seconds
        )

    def is_too_much(self, files: int, size: int) -> bool:
        """Whether so many old files, or bytes of them, are more than is kept."""
        return (self.keep_files is not None and files > self.keep_files) or (
            self.keep_bytes is not None and size > self.keep_bytes
        )


class _Old(NamedTuple):
    """An old file, by when it was set aside; ``form`` is how its name goes on."""

    stamp: str
    form: str
    path: Path
    size: int


class _StoppedError(Exception):
    """A compression was told to end."""


class OldFiles:
    """The old files of ``path``, which a thread of its own keeps as a rotation says.

    Only files that are our own count as old ones, whatever somebody else put there.
    """

    def __init__(self, path: Path, rotation: Rotation) -> None:
        self.path = path
        self._rotation = rotation
        self._name = re.compile(
            rf"\.?{re.escape(path.stem)}-(2\d{{7}}T\d{{6}}\.\d{{6}}Z){re.escape(path.suffix)}"
            rf"({re.escape(_PACKED)}|{re.escape(_PART)})?"
        )
        self._stop = Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="old-files")
        self._thread.submit(self._keep_or_tell)

    def add(self) -> None:
        """Make the file an old one, by its name; raises DeliveryError."""
        try:
            self.path.rename(self._beside(self._next_stamp()))
            sync_names(self.path.parent)
        except OSError as error:
            raise DeliveryError(
                f"{self.path} can't be renamed now that it is full: {error.strerror}"
            ) from error
        self._thread.submit(self._keep_or_tell)

    def end(self) -> None:
        """Leave them as they are; returns when nothing is done to them any more."""
        self._stop.set()
        self._thread.shutdown(cancel_futures=True)

    def _keep_or_tell(self) -> None:
        # To be compressed after the next opening, where that is stopped.
        with self._telling(), contextlib.suppress(_StoppedError):
            self._keep()

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Go on after an OSError: all of them are looked at again when the next one comes."""
        try:
            yield
        except OSError as error:
            _log.warning(
                "an old file could not be compressed or removed",
                path=str(self.path),
                reason=error.strerror,
            )

    def _keep(self) -> None:
        """Finish what a crash left, compress, and remove what is too much."""
        found = self._found()
        packed = {old.stamp for old in found if old.form == _PACKED}
        plain = [old for old in found if not old.form and old.stamp not in packed]
        for old in found:
            if old.form == _PART or (not old.form and old.stamp in packed):
                old.path.unlink()
        for old in plain if self._rotation.compress else ():
            with self._telling():
                self._pack(old)
        # One that came meanwhile has its turn: it will be smaller.
        known = {old.stamp for old in found}
        self._thin([old for old in self._found() if old.stamp in known])

    def _thin(self, found: Sequence[_Old]) -> None:
        size = 0
        for number, old in enumerate(reversed(found), 1):
            size += old.size
            if self._rotation.is_too_much(number, size):
                old.path.unlink()

    def _pack(self, old: _Old) -> None:
        part = self._beside(old.stamp, _PART)
        try:
            self._compress(old.path, part)
            part.rename(self._beside(old.stamp, _PACKED))
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        sync_names(self.path.parent)  # before the other one is gone
        old.path.unlink()

    def _compress(self, source: Path, target: Path) -> None:
        """Write a compressed file to the disk; raises OSError, _StoppedError."""
        reading = os.open(source, os.O_RDONLY | os.O_NOFOLLOW)
        with open(reading, "rb", buffering=0) as plain:  # noqa: PTH123 - a descriptor
            writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE)
            with open(writing, "wb") as file:  # noqa: PTH123 - the same
                with gzip.GzipFile(source.name, "wb", fileobj=file, mtime=0) as packed:
                    while chunk := plain.read(_CHUNK_BYTES):
                        self._write(packed, chunk)
                file.flush()
                os.fsync(writing)

    def _write(self, packed: gzip.GzipFile, chunk: bytes) -> None:
        begun = time.monotonic()
        packed.write(chunk)
        # Half of the time at most. Not at a low priority: a thread that the system lets wait may
        # hold Python's lock, and then all others wait too.
        if self._stop.wait(time.monotonic() - begun):
            raise _StoppedError

    def _next_stamp(self) -> str:
        stamp = dt.datetime.now(dt.UTC).strftime(_STAMP)
        last = max((old.stamp for old in self._found()), default="")
        if stamp > last:
            return stamp
        return (dt.datetime.strptime(last, _STAMP).replace(tzinfo=dt.UTC) + _TICK).strftime(_STAMP)

    def _beside(self, stamp: str, form: str = "") -> Path:
        # Hidden until it is whole: nobody who looks for old files takes it for one.
        hidden = "." if form == _PART else ""
        return self.path.with_name(f"{hidden}{self.path.stem}-{stamp}{self.path.suffix}{form}")

    def _found(self) -> list[_Old]:
        """Those that are there, the oldest first; raises OSError."""
        found: list[_Old] = []
        for path in self.path.parent.iterdir():
            match = self._name.fullmatch(path.name)
            if match is None or not _is_moment(match[1]):
                continue
            try:
                seen = path.lstat()
            except FileNotFoundError:  # compressed by now, or removed
                continue
            if stat.S_ISREG(seen.st_mode) and seen.st_uid == os.geteuid():
                found.append(_Old(match[1], match[2] or "", path, seen.st_size))
        return sorted(found)


def _is_moment(stamp: str) -> bool:
    try:
        dt.datetime.strptime(stamp, _STAMP).replace(tzinfo=dt.UTC)
    except ValueError:
        return False
    return True
