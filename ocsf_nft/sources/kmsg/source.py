"""The kernel log source: /dev/kmsg.

Reads the kernel's ring from a position that survives a restart of this program. The ring is shared
with everything else that the kernel logs and holds about a thousand records, so a slow consumer
loses some; the sequence numbers tell how many. A record's time is the kernel's own stamp, see
``clock``.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import time
from typing import TYPE_CHECKING, Final, Self

from ocsf_nft.errors import SourceError, UnsupportedError
from ocsf_nft.record import Batch, Gap, Origin, Record, Reject
from ocsf_nft.sources import text
from ocsf_nft.sources.boot_clock import KMSG_SLACK_NS, KernelClock, boottime_ns, wall_ns
from ocsf_nft.sources.boot_id import boot_id
from ocsf_nft.sources.kmsg import line as kmsg_line
from ocsf_nft.sources.kmsg_origin import author_of_facility, forged
from ocsf_nft.sources.packet_fields import readable
from ocsf_nft.sources.prefix_filter import Wanted
from ocsf_nft.sources.wait_readable import until_readable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

    from ocsf_nft.log_prefixes import Prefixes

_DEVICE: Final = "/dev/kmsg"
#: The longest record there can be (CONSOLE_EXT_LOG_MAX, PRINTK_MESSAGE_MAX) fits twice.
_RECORD_BYTES: Final = 16384
#: A batch ends after so many kernel records, ours or not, or this time: the loop stays lively.
_BATCH_RECORDS: Final = 1024
_BATCH_NS: Final = 10_000_000
#: Others may be writing a record while one behind it is complete.
_WRITING_NS: Final = 1_000_000
#: How often a position without records is worth a batch.
_CURSOR_INTERVAL_NS: Final = 1_000_000_000
#: How long to look for the end of a ring that is being written.
_SCAN_NS: Final = 1_000_000_000

_CURSOR: Final = re.compile(r"kmsg:([0-9a-f]{32}):([0-9]{1,19})", re.ASCII)


class Kmsg:
    """Reads the records of the named sandboxes, or of all, from the kernel log.

    With ``foreign`` those of other firewalls too, whose prefix is known there.
    Without a cursor it begins with what is logged after entering. With one it begins behind it; a
    cursor of an earlier boot means everything that this boot has logged. The first batch comes at
    once, so that there is a cursor from the start.
    """

    def __init__(
        self,
        sandboxes: frozenset[str] | None = None,
        cursor: str | None = None,
        *,
        foreign: Prefixes | None = None,
    ) -> None:
        self._wanted = Wanted(sandboxes, foreign)
        self._resume = cursor
        self._descriptor: int | None = None
        self._boot = ""
        self._next: int = 0
        self._clock = KernelClock(KMSG_SLACK_NS)
        self._seen_ns = 0
        #: When there was nothing to be read (CLOCK_BOOTTIME).
        self._empty_ns = 0
        self._told_ns = 0
        self._told = 0

    async def __aenter__(self) -> Self:
        """Open the device and find the position.

        Raises UnsupportedError when the device is missing or the privilege is, SourceError for a
        cursor that is none.
        """
        self._boot = boot_id()
        position = None if self._resume is None else self._position(self._resume)
        self._descriptor = _opened()
        try:
            end = await self._scan(self._descriptor)
            if position is not None:
                # A position beyond the end is of another past of this boot: a restored snapshot.
                self._next = position if position <= end else 0
                os.lseek(self._descriptor, 0, os.SEEK_SET)
        except BaseException:
            self._close()
            raise
        self._seen_ns = time.time_ns()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the device."""
        self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _position(self, cursor: str) -> int:
        """The sequence number to go on with."""
        found = _CURSOR.fullmatch(cursor)
        if found is None:
            raise SourceError(f"{cursor!r} is no position in the kernel log: start without one")
        return int(found[2]) + 1 if found[1] == self._boot else 0

    async def _scan(self, descriptor: int) -> int:
        """Read to the end of the ring; the number that the next record will have.

        Only so is it known from the start which numbers are missing.
        """
        until = time.monotonic_ns() + _SCAN_NS
        while time.monotonic_ns() < until:
            for _ in range(_BATCH_RECORDS):
                raw = _read(descriptor)
                if raw is None:
                    return self._next
                line = kmsg_line.parse(raw)
                if line is not None:
                    self._next = line.sequence + 1
            await asyncio.sleep(0)
        return self._next

    async def batches(self) -> AsyncIterator[Batch]:
        """What the kernel logged, in its order; raises SourceError when it can't go on."""
        descriptor = self._descriptor
        if descriptor is None:
            raise SourceError("the kernel log source is not open: enter its context first")
        waited = False
        while True:
            batch, drained = self._drain(descriptor, waited=waited)
            now = time.monotonic_ns()
            moved = self._next != self._told
            due_ns = self._told_ns + _CURSOR_INTERVAL_NS - now
            if batch.records or batch.gaps or batch.rejects or (moved and due_ns <= 0):
                self._told, self._told_ns = self._next, now
                waited = False
                yield batch
            elif drained:
                # Nothing was there: what comes now comes while this waits for it.
                waited = await until_readable(descriptor, max(due_ns, 0) / 1e9 if moved else None)
                continue
            await asyncio.sleep(0)

    def _drain(self, descriptor: int, *, waited: bool) -> tuple[Batch, bool]:
        """Read what there is, in bounds; whether nothing was left."""
        records: list[Record] = []
        gaps: list[Gap] = []
        rejects: list[Reject] = []
        drained = False
        since_ns = max(0, self._empty_ns - _WRITING_NS)
        end_ns = time.monotonic_ns() + _BATCH_NS
        for _ in range(_BATCH_RECORDS):
            asked_ns = boottime_ns()
            raw = _read(descriptor)
            if raw is None:
                drained = True
                self._empty_ns = asked_ns
                break
            read_ns, now_ns = time.monotonic_ns(), time.time_ns()
            line = kmsg_line.parse(raw)
            if line is None:
                rejects.append(_malformed(raw))
            elif line.sequence >= self._next:
                if lost := line.sequence - self._next:
                    gaps.append(self._gap(lost, now_ns))
                self._next = line.sequence + 1
                self._seen_ns = now_ns
                monotonic = self._clock.monotonic_ns(line.stamp_us * 1000, read_ns, waited=waited)
                found = self._read_line(line, raw, wall_ns(monotonic), now_ns)
                if isinstance(found, Record):
                    records.append(found)
                elif found is not None:
                    rejects.append(found)
            waited = False
            if read_ns > end_ns:
                break
        batch = Batch(
            records=tuple(records),
            gaps=tuple(gaps),
            rejects=tuple(rejects),
            cursor=f"kmsg:{self._boot}:{self._next - 1}" if self._next else None,
            since_ns=since_ns,
        )
        return batch, drained

    def _read_line(
        self, line: kmsg_line.KmsgLine, raw: bytes, time_ns: int, received_ns: int
    ) -> Record | Reject | None:
        message = readable(line.message)
        if not self._wanted.claims(message):
            return None
        whole = readable(raw).rstrip("\n")
        author = author_of_facility(line.facility, kernel=0)
        if author is not None:
            return forged(author, whole)
        origin = Origin(
            transport="kmsg",
            identity=kmsg_line.identity(line),
            log_source=_DEVICE,
            log_format="nf_log_syslog",
            raw=whole,
            sequence=line.sequence,
            original_time=str(line.stamp_us),
        )
        found = text.read(message, origin=origin, time_ns=time_ns, received_ns=received_ns)
        return self._wanted.taken(found)

    def _gap(self, lost: int, now_ns: int) -> Gap:
        return Gap(
            transport="kmsg",
            reason="the kernel log's ring was overwritten before it was read "
            "(kernel messages of any kind)",
            lost=lost,
            since_ns=min(self._seen_ns, now_ns),
            until_ns=now_ns,
        )


def _opened() -> int:
    try:
        return os.open(_DEVICE, os.O_RDONLY | os.O_NONBLOCK)
    except PermissionError as error:
        raise UnsupportedError(
            f"reading {_DEVICE} is not permitted: it needs CAP_SYSLOG "
            "where kernel.dmesg_restrict is 1, and root's access to the device"
        ) from error
    except FileNotFoundError as error:
        raise UnsupportedError(
            f"there is no {_DEVICE}: give the container the device, or read by NFLOG"
        ) from error
    except OSError as error:
        raise SourceError(f"{_DEVICE} can't be opened: {error.strerror}") from error


def _read(descriptor: int) -> bytes | None:
    """The next record, None when there is none yet; raises SourceError.

    Passes over what is no record: EPIPE, the ring was overwritten and the position is now its
    oldest record; EINVAL, the record was longer than the buffer. Both leave a gap in the numbers.
    """
    while True:
        try:
            raw = os.read(descriptor, _RECORD_BYTES)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in {errno.EPIPE, errno.EINVAL}:
                continue
            raise SourceError(f"reading {_DEVICE} failed: {error.strerror}") from error
        if not raw:
            raise SourceError(f"{_DEVICE} ended: it is not the kernel's log")
        return raw


def _malformed(raw: bytes) -> Reject:
    return Reject(
        kind="malformed",
        reason=f"not in the form of {_DEVICE}",
        line=readable(raw)[:1024],
    )
