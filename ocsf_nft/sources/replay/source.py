"""Records out of files: kernel log text of any usual kind, and our own NFLOG lines.

Each line is recognised for itself, so kinds may be mixed: records of /dev/kmsg, ``dmesg``, syslog,
``journalctl`` in its short, json and export forms (see ``kmsg_line``, ``stamps``,
``journal_entry``, ``nflog_line``).

**Time.** A stamp with a date is taken as it is. A kernel stamp counts from boot: it becomes a time
by ``boot_ns``, which is this machine's boot unless it is given, so for a log of another machine or
an earlier boot it must be; a stamp that is later than now by this machine's boot is rejected. A
line without a stamp gets the last modification of a regular file, also when that is standard input,
and of a stream the moment it was read.

**Identity.** A kmsg record is its sequence number, stamp and text; a journal entry its cursor; an
NFLOG line the identity that it names; any other line its text and how many equal lines stood before
it in the same file. So a line has the same identity whenever and from wherever the file is read
again. (Equal lines are counted over the last :data:`REMEMBERED` different ones.)
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import sys
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from ocsf_nft.errors import AbsentError, SourceError
from ocsf_nft.record import PREFIX_ROOT, Batch, Origin, Record, Reject
from ocsf_nft.sources import boot_clock, text
from ocsf_nft.sources.journal import entry as journal_entry
from ocsf_nft.sources.kmsg import line as kmsg_line
from ocsf_nft.sources.kmsg_origin import author_of_facility, forged
from ocsf_nft.sources.nflog import datagram as nflog_datagram
from ocsf_nft.sources.nflog import line as nflog_line
from ocsf_nft.sources.packet_fields import readable
from ocsf_nft.sources.replay import log_header
from ocsf_nft.sources.replay.splitter import Broken, Export, Overlong, Splitter
from ocsf_nft.sources.wait_readable import until_readable

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from ocsf_nft.sources.journal.entry import Entry
    from ocsf_nft.sources.kmsg.line import KmsgLine
    from ocsf_nft.sources.replay.splitter import Piece

#: Different lines whose number of occurrences is remembered.
REMEMBERED: Final = 65_536
_CHUNK_BYTES: Final = 1 << 16
_STDIN: Final = "-"
#: A further line of a kmsg record.
_DICTIONARY: Final = re.compile(rb" [A-Z_]+=")
_CLAIMS: Final = (b"IN=", PREFIX_ROOT.encode())
_NFLOG: Final = nflog_line.START.encode()


@dataclass(slots=True)
class Tally:
    """What became of the lines: each one is a record, a reject or skipped.

    A journal export entry counts as one line.
    """

    lines: int = 0
    records: int = 0
    skipped: int = 0
    rejects: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Found:
    """A message, and what its line says about it."""

    message: str
    raw: str
    log_source: str
    author: str | None
    time_ns: int | None
    stamp: str | None
    identity: str | None = None
    sequence: int | None = None


class Reader:
    """Reads one file's bytes; pure but for the clock that it is given.

    ``boot_ns`` and ``unstamped_ns`` (the time of lines without stamp) are nanoseconds since the
    epoch; ``zone`` is that of local stamps, the machine's by default.
    """

    def __init__(
        self,
        *,
        boot_ns: int | None = None,
        unstamped_ns: int | None = None,
        now_ns: Callable[[], int] = time.time_ns,
        zone: dt.tzinfo | None = None,
        tally: Tally | None = None,
    ) -> None:
        self.tally = Tally() if tally is None else tally
        self._now_ns = now_ns
        self._unstamped_ns = unstamped_ns
        self._zero = log_header.Zero(
            _this_boot_ns() if boot_ns is None else boot_ns, now_ns, zone, boot_ns is None
        )
        self._seen: OrderedDict[bytes, int] = OrderedDict()
        self._splitter = Splitter(journal_entry.FIELDS)
        self._after_kmsg = False

    @classmethod
    def of_file(
        cls,
        descriptor: int,
        *,
        boot_ns: int | None = None,
        now_ns: Callable[[], int] = time.time_ns,
        tally: Tally | None = None,
    ) -> Self:
        """The reader for an open file: a line without stamp is as old as that, or as its reading.

        Only a regular file's last modification tells when its lines were written.
        """
        status = os.fstat(descriptor)
        unstamped_ns = status.st_mtime_ns if stat.S_ISREG(status.st_mode) else None
        return cls(boot_ns=boot_ns, unstamped_ns=unstamped_ns, now_ns=now_ns, tally=tally)

    def batches(self, chunks: Iterable[bytes]) -> Iterator[Batch]:
        """What the chunks of a file hold: at most one batch for each, and one for the end."""
        for chunk in chunks:
            yield from self.feed(chunk)
        yield from self.finish()

    def feed(self, chunk: bytes) -> Iterator[Batch]:
        """What ends in this chunk: one batch, or none."""
        return self._batch(self._splitter.feed(chunk))

    def finish(self) -> Iterator[Batch]:
        """What the end of the file ends."""
        return self._batch(self._splitter.finish())

    def _batch(self, pieces: Iterable[Piece]) -> Iterator[Batch]:
        records: list[Record] = []
        rejects: list[Reject] = []
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
                tally.rejects[read.kind] = tally.rejects.get(read.kind, 0) + 1
                rejects.append(read)
        if records or rejects:
            yield Batch(records=tuple(records), rejects=tuple(rejects))

    def _read(self, piece: Piece, received_ns: int) -> Record | Reject | None:
        if isinstance(piece, Overlong):
            if not any(claim in piece.start for claim in _CLAIMS):
                return None
            return _malformed("the line is longer than any log's", readable(piece.start))
        if isinstance(piece, Broken):
            return _malformed(piece.reason, "")
        if isinstance(piece, Export):
            entry = journal_entry.of_export(piece.fields)
            return (
                None if entry is None else self._judge(_of_entry(entry, entry.message), received_ns)
            )
        line = piece.rstrip(b"\r")
        if line.startswith(b"{"):
            entry = journal_entry.of_json(line)
            raw = readable(line)
            return None if entry is None else self._judge(_of_entry(entry, raw), received_ns)
        if line.startswith(_NFLOG):
            return self._nflog(readable(line))
        return self._text(line, received_ns)

    def _text(self, line: bytes, received_ns: int) -> Record | Reject | None:
        after_kmsg, self._after_kmsg = self._after_kmsg, False
        if after_kmsg and _DICTIONARY.match(line):
            self._after_kmsg = True
            return None
        if line.startswith((b" ", b"\t")):
            return self._indented(line)
        record = kmsg_line.parse(line)
        self._after_kmsg = record is not None
        if not any(claim in line for claim in _CLAIMS):
            return None
        raw = readable(line)
        try:
            found = self._stamped(raw) if record is None else self._kmsg(record, raw)
        except log_header.StampError as error:
            return _malformed(str(error), raw) if _claims(raw) else None
        return self._judge(found, received_ns)

    def _indented(self, line: bytes) -> Reject | None:
        """Dmesg and journalctl print the further lines of one message so.

        A program can write a message of several lines; the kernel's records are one line each, and
        every form that they are printed in begins with something else.
        """
        raw = readable(line)
        if not _claims(raw):
            return None
        return _malformed("it is indented: a further line of the message above it", raw)

    def _kmsg(self, record: KmsgLine, raw: str) -> _Found:
        """Raises StampError."""
        return _Found(
            message=readable(record.message),
            raw=raw,
            log_source="kmsg",
            author=author_of_facility(record.facility, kernel=0),
            time_ns=self._zero.since_boot(record.stamp_us),
            stamp=str(record.stamp_us),
            identity=kmsg_line.identity(record),
            sequence=record.sequence,
        )

    def _stamped(self, raw: str) -> _Found:
        """Raises StampError."""
        stamped = log_header.take(raw, self._zero)
        return _Found(
            message=stamped.message,
            raw=raw,
            log_source=stamped.log_source,
            author=stamped.author,
            time_ns=stamped.time_ns,
            stamp=stamped.stamp,
        )

    def _judge(self, found: _Found, received_ns: int) -> Record | Reject | None:
        if not text.claims(found.message):
            return None
        if found.author is not None:
            return forged(found.author, found.raw)
        unstamped_ns = received_ns if self._unstamped_ns is None else self._unstamped_ns
        origin = Origin(
            transport="replay",
            identity=found.identity or self._occurrence(found.raw),
            log_source=found.log_source,
            log_format="nf_log_syslog",
            raw=found.raw,
            sequence=found.sequence,
            original_time=found.stamp,
        )
        return text.read(
            found.message,
            origin=origin,
            time_ns=unstamped_ns if found.time_ns is None else found.time_ns,
            received_ns=received_ns,
        )

    def _nflog(self, line: str) -> Record | Reject:
        parsed = nflog_line.parse(line)
        if parsed is None:
            return _malformed("it begins like an NFLOG line of ours and is none", line)
        datagram, identity = parsed
        origin = Origin(
            transport="replay",
            identity=identity or self._occurrence(line),
            log_source="nflog",
            log_format="nfnetlink_log",
            raw=line,
            sequence=datagram.sequence,
            original_time=nflog_line.stamp(datagram),
        )
        return nflog_datagram.record(datagram, origin)

    def _occurrence(self, line: str) -> str:
        digest = _digest(line.encode())
        number = self._seen.pop(digest, 0) + 1
        self._seen[digest] = number
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return f"line:{digest.hex()}:{number}"


class Replay:
    """Files as a source that ends.

    ``paths`` are read one after the other, each as if alone; ``-`` is standard input. ``tally``
    adds up over all of them. Entering raises AbsentError for a file that is not there; a file that
    can't be read raises SourceError when its turn comes.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        boot_ns: int | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.tally = Tally()
        self._paths = paths
        self._boot_ns = boot_ns
        self._now_ns = now_ns

    async def __aenter__(self) -> Self:
        """See that every file is there."""
        for path in self._paths:
            if str(path) != _STDIN and not path.exists():
                raise AbsentError(f"there is no file {path} to read records from")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Nothing is held open here: each file closes with its end."""

    async def batches(self) -> AsyncIterator[Batch]:
        """The records, file by file."""
        for path in self._paths:
            descriptor = _opened(path)
            try:
                reader = Reader.of_file(
                    descriptor, boot_ns=self._boot_ns, now_ns=self._now_ns, tally=self.tally
                )
                async for chunk in _chunks(path, descriptor):
                    for batch in reader.feed(chunk):
                        yield batch
                for batch in reader.finish():
                    yield batch
            finally:
                if str(path) != _STDIN:
                    os.close(descriptor)


def _opened(path: Path) -> int:
    """Raises SourceError; a pipe that nobody writes to yet is not waited for here."""
    if str(path) == _STDIN:
        return sys.stdin.fileno()
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise _unreadable(path, error) from error


async def _chunks(path: Path, descriptor: int) -> AsyncIterator[bytes]:
    """A file's bytes; waits for a pipe without holding up the loop."""
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
    """To 10 ms: the two clocks are read one after the other, so the last digits are by chance."""
    return round(boot_clock.wall_ns(0), -7)


def _malformed(reason: str, line: str) -> Reject:
    return Reject(kind="malformed", reason=reason, line=line)


def _claims(line: str) -> bool:
    return PREFIX_ROOT in line or text.claims(line)


def _digest(octets: bytes) -> bytes:
    return hashlib.blake2b(octets, digest_size=12).digest()


def _of_entry(entry: Entry, raw: str) -> _Found:
    return _Found(
        message=entry.message,
        raw=raw,
        log_source="journal",
        author=entry.author,
        time_ns=entry.time_ns,
        stamp=entry.stamp,
        identity=None if entry.cursor is None else f"journal:{entry.cursor}",
    )
