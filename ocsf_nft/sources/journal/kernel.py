"""Parser of kernel messages in the systemd journal, read with libsystemd or with journalctl."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ocsf_nft.record import Gap, Origin
from ocsf_nft.sources import text
from ocsf_nft.sources.boot import JOURNAL_LAG_NS, JOURNAL_SLACK_NS, KernelClock
from ocsf_nft.sources.kernel_message import author_of_facility, reject_forged
from ocsf_nft.sources.packet_fields import readable

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocsf_nft.record import Record, Reject
    from ocsf_nft.sources.kernel_message import PrefixFilter

#: journald's notice that it missed kernel messages (SD_MESSAGE_JOURNAL_MISSED, sd-messages.h).
MISSED_ID: Final = "e9bf28e6e834481bb6f48f548ad13606"
_MISSED: Final = re.compile(rb"Missed ([0-9]{1,19}) kernel messages")
_MISSED_START: Final = b"Missed "
_STAMP: Final = re.compile(rb"[0-9]{1,16}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelEntry:
    """Fields of a systemd journal entry: a kernel message, or a notice of missed messages."""

    cursor: str
    boot: str
    #: Times at which journald received the message (CLOCK_REALTIME, CLOCK_MONOTONIC).
    realtime_us: int
    monotonic_us: int
    message: bytes
    #: Only journald sets ``transport`` and ``source_us``, so no program can forge them.
    transport: bytes | None
    #: Field SYSLOG_FACILITY.
    facility: bytes | None
    #: Kernel's (printk) timestamp.
    source_us: bytes | None


@dataclass(frozen=True, slots=True)
class Chunk:
    """Result of one read of the journal: entries that match a filter, and the new position."""

    entries: tuple[KernelEntry, ...] = ()
    #: Cursor of the last entry that was read, even if it does not match; None if none was read.
    cursor: str | None = None
    #: True if the journal has deleted the entry at the cursor that the reader's ``open``
    #: returned. Entries after it may also have been deleted before they were read.
    cursor_is_missing: bool = False


def message_filter(prefix_filter: PrefixFilter) -> Callable[[bytes], bool]:
    """Return a function that selects journal entries by their field MESSAGE.

    The function selects messages with a log prefix that ``prefix_filter`` selects. It also selects
    messages that begin like journald's notice of missed kernel messages.
    """
    return lambda message: (
        message.startswith(_MISSED_START) or prefix_filter.matches(readable(message))
    )


class KernelEntryParser:
    """Parser that converts systemd journal entries to packet log records.

    The caller must pass the entries in the journal's order.
    """

    def __init__(self, prefix_filter: PrefixFilter) -> None:
        self._filter = prefix_filter
        self._boot = ""
        #: Clock that converts the timestamp of the latest record.
        self.clock = KernelClock(JOURNAL_SLACK_NS, JOURNAL_LAG_NS)
        self._previous_ns: int | None = None

    def parse(self, entry: KernelEntry, received_ns: int) -> Record | Reject | Gap | None:
        """Convert a journal entry to a packet's Record.

        Return a Gap for missed messages, a Reject for an invalid or forged entry, and None for any
        other entry. ``received_ns`` is the time of reading, since the epoch.
        """
        realtime_ns = entry.realtime_us * 1000
        since_ns = realtime_ns if self._previous_ns is None else min(self._previous_ns, realtime_ns)
        self._previous_ns = realtime_ns
        if entry.transport == b"driver":
            return _missed_messages_gap(entry, since_ns)
        message = readable(entry.message)
        if entry.transport != b"kernel" or not self._filter.matches(message):
            return None
        author = author_of_facility(readable(entry.facility or b"unknown"), kernel="0")
        if author is not None:
            return reject_forged(author, message)
        origin = Origin(
            transport="journal",
            identity=f"journal:{entry.cursor}",
            log_source="systemd-journald",
            log_format="nf_log_syslog",
            raw=message,
            original_time=None if entry.source_us is None else readable(entry.source_us),
        )
        time_ns = self._time_ns(entry)
        found = text.read(message, origin=origin, time_ns=time_ns, received_ns=received_ns)
        return self._filter.select(found)

    def _time_ns(self, entry: KernelEntry) -> int:
        realtime_ns = entry.realtime_us * 1000
        if entry.source_us is None or not _STAMP.fullmatch(entry.source_us):
            return realtime_ns
        if entry.boot != self._boot:
            self._boot = entry.boot
            self.clock = KernelClock(JOURNAL_SLACK_NS, JOURNAL_LAG_NS)
        journald_ns = entry.monotonic_us * 1000
        printk_ns = self.clock.monotonic_ns(int(entry.source_us) * 1000, journald_ns, waited=True)
        # The result is when the kernel logged the packet, before journald received the message.
        return realtime_ns - (journald_ns - printk_ns)


def _missed_messages_gap(entry: KernelEntry, since_ns: int) -> Gap | None:
    found = _MISSED.match(entry.message)
    if found is None:
        return None
    return Gap(
        transport="journal",
        reason="journald missed kernel messages (of any kind)",
        dropped=int(found[1]),
        since_ns=since_ns,
        until_ns=entry.realtime_us * 1000,
    )
