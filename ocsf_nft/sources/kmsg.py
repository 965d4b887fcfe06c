"""Source of packet log records: the kernel log, /dev/kmsg.

The kernel overwrites the oldest messages, even if they are unread. The source returns each gap in
the sequence numbers with the number of missing messages. Documentation/ABI/testing/dev-kmsg
describes the format.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import time
from typing import TYPE_CHECKING, Final, Self

from ocsf_nft.errors import SourceError, UnsupportedError
from ocsf_nft.quoted import quoted
from ocsf_nft.record import Batch, Gap, Origin, Record, Reject
from ocsf_nft.sources import text
from ocsf_nft.sources.boot import KMSG_SLACK_NS, KernelClock, boot_id, boottime_ns, wall_ns
from ocsf_nft.sources.kernel_message import PrefixFilter, author_of_facility, reject_forged
from ocsf_nft.sources.kmsg_line import KmsgLine, parse
from ocsf_nft.sources.packet_fields import readable
from ocsf_nft.sources.wait_readable import until_readable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ocsf_nft.log_prefixes import Prefixes

__all__ = ["Kmsg", "parse"]

_DEVICE: Final = "/dev/kmsg"
#: Twice the maximum size of a record (CONSOLE_EXT_LOG_MAX, PRINTK_MESSAGE_MAX).
_RECORD_BYTES: Final = 16384
#: A batch ends after this number of kernel records of any kind, or after this time, so that other
#: tasks of the event loop can run.
_BATCH_RECORDS: Final = 1024
_BATCH_NS: Final = 10_000_000
#: Another writer may still be writing a record although a later record is complete.
_WRITING_NS: Final = 1_000_000
#: Minimum time between batches that have only a new cursor.
_CURSOR_INTERVAL_NS: Final = 1_000_000_000
#: Time limit of the search for the end of a ring that is being written.
_SCAN_NS: Final = 1_000_000_000

_CURSOR: Final = re.compile(r"kmsg:([0-9a-f]{32}):([0-9]{1,19})", re.ASCII)


class Kmsg:
    """Source of the packet log records in the kernel log.

    ``sandboxes`` selects the records of these sandboxes; None selects those of all sandboxes.
    ``foreign`` adds records with the log prefixes of other firewalls. Reading begins after the log
    position ``cursor``; if ``cursor`` is None, with new messages.
    """

    quiet_seconds = 0.2

    def __init__(
        self,
        sandboxes: frozenset[str] | None = None,
        cursor: str | None = None,
        *,
        foreign: Prefixes | None = None,
    ) -> None:
        self._filter = PrefixFilter(sandboxes, foreign)
        self._resume = cursor
        self._descriptor: int | None = None
        self._boot = ""
        self._next: int = 0
        self._clock = KernelClock(KMSG_SLACK_NS)
        self._seen_ns = 0
        #: Last time without a record to read (CLOCK_BOOTTIME).
        self._empty_ns = 0
        # Both begin at 0: so the first batch comes at once, even without log records.
        self._yielded_ns = 0
        self._yielded_next = 0

    async def __aenter__(self) -> Self:
        """Open /dev/kmsg and find the message to begin with (see ``cursor`` of :class:`Kmsg`).

        Raises UnsupportedError if /dev/kmsg is missing, or if reading is not permitted. Raises
        SourceError if ``cursor`` is invalid.
        """
        self._boot = boot_id()
        position = None if self._resume is None else self._position(self._resume)
        self._descriptor = _open_device()
        try:
            end = await self._scan(self._descriptor)
            if position is not None:
                # A position after the end was saved before this boot was restored from a snapshot.
                self._next = position if position <= end else 0
                os.lseek(self._descriptor, 0, os.SEEK_SET)
        except BaseException:
            self._close()
            raise
        self._seen_ns = time.time_ns()
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Close /dev/kmsg."""
        self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _position(self, cursor: str) -> int:
        found = _CURSOR.fullmatch(cursor)
        if found is None:
            raise SourceError(
                f"{quoted(cursor)} is no position in the kernel log: start without one"
            )
        # After a cursor of an earlier boot, begin with the oldest message.
        return int(found[2]) + 1 if found[1] == self._boot else 0

    async def _scan(self, descriptor: int) -> int:
        """Read to the end of the kernel log; return the sequence number after the last message.

        If new messages arrive all the time, this method returns after a second.
        """
        until = time.monotonic_ns() + _SCAN_NS
        while time.monotonic_ns() < until:
            for _ in range(_BATCH_RECORDS):
                raw = _read(descriptor)
                if raw is None:
                    return self._next
                line = parse(raw)
                if line is not None:
                    self._next = line.sequence + 1
            await asyncio.sleep(0)
        return self._next

    async def batches(self) -> AsyncIterator[Batch]:
        """Yield batches of log records in the kernel's order, without end.

        Raises SourceError if /dev/kmsg can't be read.
        """
        descriptor = self._descriptor
        if descriptor is None:
            raise SourceError("the kernel log source is not open: enter its context first")
        waited = False
        while True:
            batch, drained = self._drain(descriptor, waited=waited)
            now = time.monotonic_ns()
            moved = self._next != self._yielded_next
            due_ns = self._yielded_ns + _CURSOR_INTERVAL_NS - now
            if batch.records or batch.gaps or batch.rejected or (moved and due_ns <= 0):
                self._yielded_next, self._yielded_ns = self._next, now
                waited = False
                yield batch
            elif drained:
                # The ring was empty, so the next record arrives during this wait.
                waited = await until_readable(descriptor, max(due_ns, 0) / 1e9 if moved else None)
                continue
            await asyncio.sleep(0)

    def _drain(self, descriptor: int, *, waited: bool) -> tuple[Batch, bool]:
        """Read the available messages of the kernel log into a batch, for at most 10 ms.

        Return the batch, and True if no message is left. If ``waited`` is true, the first message
        has just been logged. Then its timestamp shows the drift of the log's clock.
        """
        items: list[Record | Gap | Reject] = []
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
            line = parse(raw)
            if line is None:
                items.append(_malformed(raw))
            elif line.sequence >= self._next:
                if missed := line.sequence - self._next:
                    items.append(self._gap(missed, now_ns))
                self._next = line.sequence + 1
                self._seen_ns = now_ns
                monotonic = self._clock.monotonic_ns(line.stamp_us * 1000, read_ns, waited=waited)
                found = self._read_line(line, raw, wall_ns(monotonic), now_ns)
                if found is not None:
                    items.append(found)
            waited = False
            if read_ns > end_ns:
                break
        cursor = f"kmsg:{self._boot}:{self._next - 1}" if self._next else None
        return Batch.of(items, cursor, since_ns), drained

    def _read_line(
        self, line: KmsgLine, raw: bytes, time_ns: int, received_ns: int
    ) -> Record | Reject | None:
        message = readable(line.message)
        if not self._filter.matches(message):
            return None
        whole = readable(raw).rstrip("\n")
        author = author_of_facility(line.facility, kernel=0)
        if author is not None:
            return reject_forged(author, whole)
        origin = Origin(
            transport="kmsg",
            identity=line.identity,
            log_source=_DEVICE,
            log_format="nf_log_syslog",
            raw=whole,
            sequence=line.sequence,
            original_time=str(line.stamp_us),
        )
        found = text.read(message, origin=origin, time_ns=time_ns, received_ns=received_ns)
        return self._filter.select(found)

    def _gap(self, missed: int, now_ns: int) -> Gap:
        return Gap(
            transport="kmsg",
            reason="the kernel log's ring was overwritten before it was read "
            "(kernel messages of any kind)",
            dropped=missed,
            since_ns=min(self._seen_ns, now_ns),
            until_ns=now_ns,
        )


def _open_device() -> int:
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
    """Return the next message of /dev/kmsg; None if there is none yet.

    Raises SourceError if reading fails.
    """
    while True:
        try:
            raw = os.read(descriptor, _RECORD_BYTES)
        except BlockingIOError:
            return None
        except OSError as error:
            # EPIPE: the kernel has overwritten this position of the ring. EINVAL: the message is
            # longer than the buffer. Both leave a gap in the sequence numbers.
            if error.errno in {errno.EPIPE, errno.EINVAL}:
                continue
            raise SourceError(f"reading {_DEVICE} failed: {error.strerror}") from error
        if not raw:
            raise SourceError(f"{_DEVICE} ended: it is not the kernel's log")
        return raw


def _malformed(raw: bytes) -> Reject:
    return Reject(
        kind="malformed", reason=f"not in the form of {_DEVICE}", line=readable(raw)[:1024]
    )
