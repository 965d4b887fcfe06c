"""Reading a journal with libsystemd.

journald appends through a memory map, of which inotify tells only every 250 ms; an entry is seen
much sooner by asking for the next one, which costs 0.1 us when there is none. So this asks every
10 ms, and four times a second has libsystemd look at its inotify for files that come and go.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.errors import SourceError
from ocsf_nft.sources.journal import files as journal_files
from ocsf_nft.sources.journal.kernel import MISSED_ID, KernelEntry, worth_reading
from ocsf_nft.sources.journal.reading import Chunk

if TYPE_CHECKING:
    from pathlib import Path

    from ocsf_nft.sources.prefix_filter import Wanted

_TICK_S: Final = 0.01
_FILES_S: Final = 0.25
_CHUNK_ENTRIES: Final = 1024
_CHUNK_NS: Final = 10_000_000


def available(directory: Path | None) -> bool:
    """Whether systemd-python is there and its libsystemd opens the journal's files.

    Blocks for some milliseconds. Raises as ``journal_files.samples`` does.
    """
    samples = journal_files.samples(directory)
    try:
        from systemd import journal  # noqa: PLC0415 - an extra, imported only when it is used
    except ImportError:
        return False
    for sample in samples:
        try:
            journal.Reader(files=[str(sample)]).close()
        except OSError:
            return False
    return True


class LibraryReading:
    """A journal through systemd-python's Reader."""

    def __init__(self, directory: Path | None, wanted: Wanted) -> None:
        self._directory = directory
        self._is_worth_it = worth_reading(wanted)
        self._reader: Any = None
        self._resume: str | None = None
        self._files_due = 0.0

    async def open(self, cursor: str | None) -> str | None:
        """Open and seek, which may take long in a big journal: in a thread.

        Raises SourceError. When cancelled, the thread's Reader closes with its last reference.
        """
        try:
            self._reader = await asyncio.to_thread(_opened, self._directory, cursor)
            if cursor is None:
                return _position(self._reader)
        except ValueError as error:
            raise _bad_cursor(cursor) from error
        except OSError as error:
            raise _broken(error) from error
        self._resume = cursor
        return cursor

    async def close(self) -> None:
        """Close the files."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    async def read(self, timeout_s: float | None) -> Chunk:
        """Wait for entries; raises SourceError when the journal can't be read on."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            now = time.monotonic()
            try:
                if now >= self._files_due:
                    self._files_due = now + _FILES_S
                    self._reader.process()
                chunk = self._take()
            except OSError as error:
                raise _broken(error) from error
            if chunk.cursor is not None or (end is not None and now >= end):
                await asyncio.sleep(0)
                return chunk
            await asyncio.sleep(_TICK_S)

    def _take(self) -> Chunk:
        reader = self._reader
        entries: list[KernelEntry] = []
        moved = lost = False
        end_ns = time.monotonic_ns() + _CHUNK_NS
        for _ in range(_CHUNK_ENTRIES):
            if not reader._next():  # noqa: SLF001 - the quick half of its API
                break
            moved = True
            if self._resume is not None:
                # Seeking a cursor leads to its own entry or, when that is gone, to the next one.
                lost = not reader.test_cursor(self._resume)
                self._resume = None
                if not lost:
                    continue
            message = _field(reader, "MESSAGE")
            if message is not None and self._is_worth_it(message):
                entries.append(_entry(reader, message))
            if time.monotonic_ns() > end_ns:
                break
        cursor = reader._get_cursor() if moved else None  # noqa: SLF001
        return Chunk(tuple(entries), cursor, lost=lost)


def _opened(directory: Path | None, cursor: str | None) -> Any:
    from systemd import journal  # noqa: PLC0415 - an extra, imported only when it is used

    reader = journal.Reader(path=None if directory is None else str(directory))
    reader.add_match(_TRANSPORT="kernel")
    reader.add_disjunction()
    reader.add_match(_TRANSPORT="driver")
    reader.add_match(MESSAGE_ID=MISSED_ID)
    # Asking for it sets the watch up: files made from now on are not overlooked.
    reader.fileno()
    if cursor is not None:
        reader.seek_cursor(cursor)
    else:
        reader.seek_tail()
        if not reader._previous():  # noqa: SLF001
            reader.seek_head()
    return reader


def _position(reader: Any) -> str | None:
    """The cursor of the entry that the reader stands on, None when it stands on none."""
    try:
        cursor: str = reader._get_cursor()  # noqa: SLF001
    except OSError:  # EADDRNOTAVAIL, sd_journal_get_cursor(3)
        return None
    return cursor


def _field(reader: Any, name: str) -> bytes | None:
    try:
        value: bytes = reader._get(name)  # noqa: SLF001
    except KeyError:
        return None
    return value


def _entry(reader: Any, message: bytes) -> KernelEntry:
    monotonic_us, boot = reader._get_monotonic()  # noqa: SLF001
    return KernelEntry(
        cursor=reader._get_cursor(),  # noqa: SLF001
        boot=bytes(boot).hex(),
        realtime_us=reader._get_realtime(),  # noqa: SLF001
        monotonic_us=monotonic_us,
        message=message,
        transport=_field(reader, "_TRANSPORT"),
        facility=_field(reader, "SYSLOG_FACILITY"),
        source_us=_field(reader, "_SOURCE_MONOTONIC_TIMESTAMP"),
    )


def _bad_cursor(cursor: str | None) -> SourceError:
    return SourceError(f"{cursor!r} is no position in the journal: start without one")


def _broken(error: OSError) -> SourceError:
    return SourceError(f"reading the journal failed: {error.strerror or error}")
