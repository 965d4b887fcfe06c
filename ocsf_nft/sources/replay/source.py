"""Source that reads packet records from log files.

The format is detected for each line. Formats are /dev/kmsg, ``dmesg``, syslog, ``journalctl``
(short, json and export), and NFLOG lines that ocsf-nft wrote (``NFLOG group=…``).
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from ocsf_nft.errors import AbsentError, SourceError
from ocsf_nft.record import PREFIX_ROOT, Batch, Origin, Record, Reject
from ocsf_nft.sources import boot, kmsg_line, text
from ocsf_nft.sources.base import NFLOG_LINE_START, MalformedError
from ocsf_nft.sources.kernel_message import author_of_facility, reject_forged
from ocsf_nft.sources.packet_fields import readable
from ocsf_nft.sources.replay import journal_entry
from ocsf_nft.sources.replay.line_numbers import LineNumbers, is_counted
from ocsf_nft.sources.replay.logged_line import LoggedLine, StampReference
from ocsf_nft.sources.replay.splitter import OverlongLine, Splitter
from ocsf_nft.sources.wait_readable import until_readable

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from ocsf_nft.sources.kmsg_line import KmsgLine
    from ocsf_nft.sources.replay.splitter import Piece

_CHUNK_BYTES: Final = 1 << 16
_STDIN: Final = "-"
#: Second or later line of a kmsg record.
_DICTIONARY: Final = re.compile(rb" [A-Z_]+=")
_CANDIDATE_PARTS: Final = (b"IN=", PREFIX_ROOT.encode())
_NFLOG: Final = NFLOG_LINE_START.encode()


@dataclass(slots=True)
class LineTally:
    """Numbers of lines that were read from log files; a journal export entry counts as one line."""

    #: Total.
    lines: int = 0
    #: Lines with a valid packet record.
    records: int = 0
    #: Lines that are no packet record.
    skipped: int = 0
    #: Lines that may be a packet record but are not valid, by ``Reject.kind``.
    rejected: Counter[str] = field(default_factory=Counter)

    def add(self, other: LineTally) -> None:
        """Add the numbers of other lines."""
        self.lines += other.lines
        self.records += other.records
        self.skipped += other.skipped
        self.rejected += other.rejected


class Reader:
    """Converter of bytes from a log file to batches of packet log records.

    ``boot_ns`` is the boot time, from which kernel timestamps count. ``unstamped_ns`` is the time
    for lines without a timestamp; None means the time of reading. Both are since the epoch.
    ``zone`` is the time zone of timestamps that state no zone. ``number_of`` returns the number of
    a line among all equal ones, from 1; by default, of those that this reader has read.
    """

    def __init__(  # noqa: PLR0913 - a log lacks facts, which are arguments
        self,
        *,
        boot_ns: int | None = None,
        unstamped_ns: int | None = None,
        now_ns: Callable[[], int] = time.time_ns,
        zone: dt.tzinfo | None = None,
        tally: LineTally | None = None,
        number_of: Callable[[bytes], int] | None = None,
    ) -> None:
        self.tally = LineTally() if tally is None else tally
        #: True if the line before was one of /dev/kmsg: the next lines may belong to it.
        self.is_after_kmsg = False
        self._now_ns = now_ns
        self._unstamped_ns = unstamped_ns
        # A kernel timestamp counts from boot. Without ``boot_ns``, this machine's last boot is
        # assumed: so a log of another machine or of an earlier boot needs ``boot_ns``.
        self._stamp_reference = StampReference(
            _this_boot_ns() if boot_ns is None else boot_ns, now_ns, zone, boot_ns is None
        )
        self._number_of = LineNumbers().count_line if number_of is None else number_of
        #: Present line; None at a journal export entry. Its number among all equal ones; None if it
        #: is not counted.
        self._line: bytes | None = None
        self._number: int | None = None
        self._splitter = Splitter(journal_entry.FIELDS)

    def batches(self, chunks: Iterable[bytes]) -> Iterator[Batch]:
        """Yield the records in all ``chunks`` of a file, in batches."""
        for chunk in chunks:
            yield from self.feed(chunk)
        yield from self.finish()

    @property
    def is_inside(self) -> bool:
        """Return True if the last chunk ended inside a line or a journal export entry."""
        return self._splitter.is_inside

    @property
    def boot_ns(self) -> int:
        """Boot time from which kernel timestamps count, in ns since the epoch."""
        return self._stamp_reference.boot_ns

    @property
    def latest_ns(self) -> int:
        """Return the latest time (ns since the epoch) of a timestamp that counts from boot."""
        return self._stamp_reference.latest_ns

    def feed(self, chunk: bytes) -> Iterator[Batch]:
        """Yield at most one batch: the records of the lines that ``chunk`` completes.

        An incomplete last line waits for the next call.
        """
        return self._batch(self._splitter.feed(chunk))

    def finish(self) -> Iterator[Batch]:
        """Yield at most one batch: the record of a last line without a line break."""
        return self._batch(self._splitter.finish())

    def _batch(self, pieces: Iterable[Piece]) -> Iterator[Batch]:
        records: list[Record] = []
        rejected: list[Reject] = []
        received_ns = self._now_ns()
        tally = self.tally
        for piece in pieces:
            tally.lines += 1
            read = self._read(piece, received_ns)
            if read is None:
                tally.skipped += 1
            elif isinstance(read, Record):
                tally.records += 1
                records.append(read)
            else:
                tally.rejected[read.kind] += 1
                rejected.append(read)
        if records or rejected:
            yield Batch(records=tuple(records), rejected=tuple(rejected))

    def _read(self, piece: Piece, received_ns: int) -> Record | Reject | None:
        self._line = self._number = None
        if isinstance(piece, Reject):
            return piece
        if isinstance(piece, OverlongLine):
            if not any(part in piece.start for part in _CANDIDATE_PARTS):
                return None
            return _malformed("the line is longer than a log line can be", readable(piece.start))
        if isinstance(piece, dict):
            entry = journal_entry.from_export(piece)
            return self._to_record(entry, entry.message if entry else "", received_ns)
        line = self._line = piece.rstrip(b"\r")
        if is_counted(line):
            self._number = self._number_of(line)
        if line.startswith(b"{"):
            return self._to_record(journal_entry.from_json(line), readable(line), received_ns)
        if line.startswith(_NFLOG):
            return self._nflog(readable(line))
        return self._text(line, received_ns)

    def _text(self, line: bytes, received_ns: int) -> Record | Reject | None:
        after_kmsg, self.is_after_kmsg = self.is_after_kmsg, False
        if after_kmsg and _DICTIONARY.match(line):
            self.is_after_kmsg = True
            return None
        if line.startswith((b" ", b"\t")):
            return self._indented(line)
        record = kmsg_line.parse(line)
        self.is_after_kmsg = record is not None
        if not any(part in line for part in _CANDIDATE_PARTS):
            return None
        raw = readable(line)
        try:
            logged = self._of_header(raw) if record is None else self._of_kmsg(record)
        except MalformedError as error:
            return _malformed(str(error), raw) if _is_candidate(raw) else None
        return self._to_record(logged, raw, received_ns)

    def _indented(self, line: bytes) -> Reject | None:
        # The kernel never indents a packet record. But dmesg and journalctl indent the later lines
        # of a message, and a program can forge a packet record there.
        raw = readable(line)
        if not _is_candidate(raw):
            return None
        return _malformed("it is indented: it belongs to the message above it", raw)

    def _of_header(self, raw: str) -> LoggedLine:
        # Lines of /dev/kmsg have no header, and its patterns take long to compile.
        from ocsf_nft.sources.replay import log_header  # noqa: PLC0415

        return log_header.parse(raw, self._stamp_reference)

    def _of_kmsg(self, record: KmsgLine) -> LoggedLine:
        return LoggedLine(
            readable(record.message),
            "kmsg",
            author_of_facility(record.facility, kernel=0),
            self._stamp_reference.since_boot(record.stamp_us),
            str(record.stamp_us),
            record.identity,
            record.sequence,
        )

    def _to_record(
        self, logged: LoggedLine | None, raw: str, received_ns: int
    ) -> Record | Reject | None:
        if logged is None or not text.is_candidate(logged.message):
            return None
        if logged.author is not None:
            return reject_forged(logged.author, raw)
        unstamped_ns = received_ns if self._unstamped_ns is None else self._unstamped_ns
        origin = Origin(
            transport="replay",
            identity=logged.identity or self._line_identity(raw),
            log_source=logged.log_source,
            log_format="nf_log_syslog",
            raw=raw,
            sequence=logged.sequence,
            original_time=logged.stamp,
            host=logged.host,
        )
        return text.read(
            logged.message,
            origin=origin,
            time_ns=unstamped_ns if logged.time_ns is None else logged.time_ns,
            received_ns=received_ns,
        )

    def _nflog(self, line: str) -> Record | Reject:
        # Few files have such lines, and netlink and the decoder are slow to import.
        from ocsf_nft.sources.nflog import datagram as nflog_datagram  # noqa: PLC0415
        from ocsf_nft.sources.nflog import line as nflog_line  # noqa: PLC0415

        parsed = nflog_line.parse(line)
        if parsed is None:
            return _malformed("it begins like an NFLOG line of ours but is not one", line)
        datagram, identity = parsed
        return nflog_datagram.record(
            datagram,
            transport="replay",
            identity=identity or self._line_identity(line),
            log_source="nflog",
            raw=line,
        )

    def _line_identity(self, line: str) -> str:
        # A record gets the same identity each time its file is read: from its cursor (journal), its
        # sequence number, timestamp and text (kmsg), or from its ``id`` (NFLOG line). For any
        # other line, it is made of the bytes and of the number of equal lines before it: lines with
        # other bytes may have the same text.
        octets = line.encode() if self._line is None else self._line
        number = self._number_of(octets) if self._number is None else self._number
        return f"line:{hashlib.blake2b(octets, digest_size=12).hexdigest()}:{number}"


class Replay:
    """Source of the packet log records in the files ``paths``; ``-`` is standard input.

    The files are read one after the other; the source ends after the last file.
    """

    quiet_seconds = 0.2

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    async def __aenter__(self) -> Self:
        """Return the source; raises AbsentError if a file does not exist."""
        for path in self._paths:
            if str(path) != _STDIN and not path.exists():
                raise AbsentError(f"there is no file {path} to read records from")
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Do nothing, because :meth:`batches` closes each file."""

    async def batches(self) -> AsyncIterator[Batch]:
        """Yield the records file by file, in batches.

        Raises SourceError if a file can't be read.
        """
        for path in self._paths:
            descriptor = _open(path)
            try:
                reader = Reader(unstamped_ns=modification_ns(descriptor))
                async for chunk in _read_chunks(path, descriptor):
                    for batch in reader.feed(chunk):
                        yield batch
                for batch in reader.finish():
                    yield batch
            finally:
                if str(path) != _STDIN:
                    os.close(descriptor)


def modification_ns(descriptor: int) -> int | None:
    """Return a file's modification time in ns since the epoch; None for a pipe or socket."""
    status = os.fstat(descriptor)
    return status.st_mtime_ns if stat.S_ISREG(status.st_mode) else None


def _open(path: Path) -> int:
    if str(path) == _STDIN:
        return sys.stdin.fileno()
    # Non-blocking, so that opening a named pipe does not wait for a writer.
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise _unreadable(path, error) from error


async def _read_chunks(path: Path, descriptor: int) -> AsyncIterator[bytes]:
    while True:
        await until_readable(descriptor)
        try:
            chunk = os.read(descriptor, _CHUNK_BYTES)
        except BlockingIOError:
            continue
        except OSError as error:
            raise _unreadable(path, error) from error
        if not chunk:
            return
        yield chunk


def _unreadable(path: Path, error: OSError) -> SourceError:
    return SourceError(f"{path} can't be read: {error.strerror}")


def _this_boot_ns() -> int:
    """Return the boot time of this machine, in nanoseconds since the epoch, rounded to 10 ms."""
    # Two clocks are read one after the other: without rounding, each call gives other last digits.
    return round(boot.wall_ns(0), -7)


def _malformed(reason: str, line: str) -> Reject:
    return Reject(kind="malformed", reason=reason, line=line)


def _is_candidate(line: str) -> bool:
    return PREFIX_ROOT in line or text.is_candidate(line)
