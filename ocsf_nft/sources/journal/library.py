"""Journal reader that uses libsystemd, and the check whether libsystemd can read the journal.

The reader requests the next entry every 10 ms. It does not wait for inotify, because inotify
reports journald's new entries only every 250 ms. libsystemd silently skips a file that it can't
open, so a journal may seem empty. Therefore sample files are checked first.
"""

from __future__ import annotations

import asyncio
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.errors import AbsentError, SourceError, UnsupportedError
from ocsf_nft.quoted import quoted
from ocsf_nft.sources.journal.kernel import MISSED_ID, Chunk, KernelEntry, message_filter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.sources.kernel_message import PrefixFilter

#: Interval of the requests for the next entry; one costs 0.1 us if there is no new entry.
_TICK_S: Final = 0.01
#: Interval at which libsystemd processes the inotify events about new and deleted files.
_FILES_S: Final = 0.25
_CHUNK_ENTRIES: Final = 1024
_CHUNK_NS: Final = 10_000_000
_DEFAULT: Final = (Path("/var/log/journal"), Path("/run/log/journal"))
# The header format is described in systemd's docs/JOURNAL_FILE_FORMAT.md.
_SIGNATURE: Final = b"LPKSHHRH"
_HEADER: Final = struct.Struct("<8sII")  # signature, compatible flags, incompatible flags


def samples(directory: Path | None) -> list[Path]:
    """Return sample files of a journal: if libsystemd can open them, it can open all files.

    If ``directory`` is None, the journal is in journald's default folders. Raises AbsentError if
    ``directory`` does not exist, or if the default folders have no journal. Raises
    UnsupportedError if reading is not permitted.
    """
    if directory is not None and not directory.is_dir():
        raise AbsentError(f"there is no journal folder at {directory}")
    # libsystemd can't open a file with a feature that it lacks. So there is one sample for each
    # combination of features (the header's incompatible flags, such as a compression).
    by_features: dict[int, Path] = {}
    denied: Path | None = None
    for path in _files((directory,) if directory is not None else _DEFAULT):
        try:
            with path.open("rb") as file:
                header = file.read(_HEADER.size)
        except PermissionError:
            denied = path
            continue
        except FileNotFoundError:
            continue  # deleted by rotation meanwhile
        if len(header) == _HEADER.size and header.startswith(_SIGNATURE):
            by_features.setdefault(_HEADER.unpack(header)[2], path)
    if by_features:
        return list(by_features.values())
    if denied is not None:
        raise UnsupportedError(
            f"reading {denied} is not permitted: run as root or in the group systemd-journal"
        )
    if directory is None:
        raise AbsentError("this machine has no journal: start systemd-journald, or read by NFLOG")
    return []  # the given folder exists, but has no journal files


def _files(directories: tuple[Path, ...]) -> Iterator[Path]:
    for directory in directories:
        yield from sorted(directory.glob("*.journal"))
        yield from sorted(directory.glob("*/*.journal"))


def available(directory: Path | None) -> bool:
    """Return True if systemd-python is installed and can read the journal.

    If ``directory`` is None, the default folders are read. Blocks for some milliseconds. Raises
    AbsentError if there is no journal, UnsupportedError if reading is not permitted.
    """
    found = samples(directory)
    try:
        from systemd import journal  # noqa: PLC0415 - an extra, imported only when it is used
    except ImportError:
        return False
    for sample in found:
        try:
            journal.Reader(files=[str(sample)]).close()
        except OSError:
            return False
    return True


class LibraryReader:
    """Reader of the systemd journal that uses libsystemd through systemd-python."""

    def __init__(self, directory: Path | None, prefix_filter: PrefixFilter) -> None:
        self._directory = directory
        self._is_relevant = message_filter(prefix_filter)
        self._reader: Any = None
        self._resume: str | None = None
        self._files_due = 0.0

    async def open(self, cursor: str | None) -> str | None:
        """Open the journal to read the entries after ``cursor``; None means after the newest entry.

        Return the cursor after which reading begins; None if the journal is empty. Raises
        SourceError if opening fails or ``cursor`` is invalid.
        """
        try:
            self._reader = await asyncio.to_thread(_open_reader, self._directory, cursor)
            if cursor is None:
                return _position(self._reader)
        except ValueError as error:
            raise SourceError(
                f"{quoted(cursor or '')} is no position in the journal: start without one"
            ) from error
        except OSError as error:
            raise _broken(error) from error
        self._resume = cursor
        return cursor

    async def close(self) -> None:
        """Close the journal files."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    async def read(self, timeout_s: float | None) -> Chunk:
        """Return new journal entries that pass this reader's filter of log prefixes.

        Waits at most ``timeout_s`` seconds (None: without limit). The result is empty if no entry
        arrives in time, or if no new entry passes the filter. Raises SourceError if reading fails.
        """
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
        moved = cursor_is_missing = False
        end_ns = time.monotonic_ns() + _CHUNK_NS
        for _ in range(_CHUNK_ENTRIES):
            if not reader._next():  # noqa: SLF001 - the fast part of its API
                break
            moved = True
            if self._resume is not None:
                # Seeking to a cursor finds its own entry or, if that was deleted, the next one.
                cursor_is_missing = not reader.test_cursor(self._resume)
                self._resume = None
                if not cursor_is_missing:
                    continue
            message = _field(reader, "MESSAGE")
            if message is not None and self._is_relevant(message):
                entries.append(_entry(reader, message))
            if time.monotonic_ns() > end_ns:
                break
        cursor = reader._get_cursor() if moved else None  # noqa: SLF001
        return Chunk(tuple(entries), cursor, cursor_is_missing=cursor_is_missing)


def _open_reader(directory: Path | None, cursor: str | None) -> Any:
    from systemd import journal  # noqa: PLC0415 - an extra, imported only when it is used

    reader = journal.Reader(path=None if directory is None else str(directory))
    reader.add_match(_TRANSPORT="kernel")
    reader.add_disjunction()
    reader.add_match(_TRANSPORT="driver")
    reader.add_match(MESSAGE_ID=MISSED_ID)
    # fileno() sets up the inotify watch: files created from now on are found.
    reader.fileno()
    if cursor is not None:
        reader.seek_cursor(cursor)
    else:
        reader.seek_tail()
        if not reader._previous():  # noqa: SLF001
            reader.seek_head()
    return reader


def _position(reader: Any) -> str | None:
    try:
        cursor: str = reader._get_cursor()  # noqa: SLF001
    except OSError:  # EADDRNOTAVAIL: the reader is at no entry (sd_journal_get_cursor(3))
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


def _broken(error: OSError) -> SourceError:
    return SourceError(f"reading the journal failed: {error.strerror or error}")
