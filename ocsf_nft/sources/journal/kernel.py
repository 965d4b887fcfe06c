"""What a live journal entry of the kernel's says; the same whichever way it was read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ocsf_nft.record import Gap, Origin
from ocsf_nft.sources import text
from ocsf_nft.sources.boot_clock import JOURNAL_LAG_NS, JOURNAL_SLACK_NS, KernelClock
from ocsf_nft.sources.kmsg_origin import author_of_facility, forged
from ocsf_nft.sources.packet_fields import readable

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocsf_nft.record import Record, Reject
    from ocsf_nft.sources.prefix_filter import Wanted

#: journald's own notice that it lost kernel messages (SD_MESSAGE_JOURNAL_MISSED, sd-messages.h).
MISSED_ID: Final = "e9bf28e6e834481bb6f48f548ad13606"
_MISSED: Final = re.compile(rb"Missed ([0-9]{1,19}) kernel messages")
_MISSED_START: Final = b"Missed "
_STAMP: Final = re.compile(rb"[0-9]{1,16}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelEntry:
    """The fields of an entry that are read; times are journald's own, when it got the entry.

    ``source_us`` is printk's stamp. Fields with an underscore in front are journald's word;
    SYSLOG_FACILITY of a kernel entry is the kernel's.
    """

    cursor: str
    boot: str
    realtime_us: int
    monotonic_us: int
    message: bytes
    transport: bytes | None
    facility: bytes | None
    source_us: bytes | None


def worth_reading(wanted: Wanted) -> Callable[[bytes], bool]:
    """Whether an entry with this MESSAGE is worth reading whole."""
    return lambda message: message.startswith(_MISSED_START) or wanted.claims(readable(message))


class KernelEntries:
    """Reads entries one after the other.

    The kernel's time of a record is journald's wall-clock time of the entry less the time that the
    record took to reach it, which is known from printk's stamp (see ``clock``).
    """

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._boot = ""
        self._clock = KernelClock(JOURNAL_SLACK_NS, JOURNAL_LAG_NS)
        self._seen_ns: int | None = None

    def read(self, entry: KernelEntry, received_ns: int) -> Record | Reject | Gap | None:
        """What the entry says; None when it is nothing that is wanted."""
        realtime_ns = entry.realtime_us * 1000
        since_ns = realtime_ns if self._seen_ns is None else min(self._seen_ns, realtime_ns)
        self._seen_ns = realtime_ns
        if entry.transport == b"driver":
            return _missed(entry, since_ns)
        message = readable(entry.message)
        if entry.transport != b"kernel" or not self._wanted.claims(message):
            return None
        author = author_of_facility(readable(entry.facility or b"unknown"), kernel="0")
        if author is not None:
            return forged(author, message)
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
        return self._wanted.taken(found)

    def _time_ns(self, entry: KernelEntry) -> int:
        realtime_ns = entry.realtime_us * 1000
        if entry.source_us is None or not _STAMP.fullmatch(entry.source_us):
            return realtime_ns
        if entry.boot != self._boot:
            self._boot = entry.boot
            self._clock = KernelClock(JOURNAL_SLACK_NS, JOURNAL_LAG_NS)
        got_ns = entry.monotonic_us * 1000
        made_ns = self._clock.monotonic_ns(int(entry.source_us) * 1000, got_ns, waited=True)
        return realtime_ns - (got_ns - made_ns)


def _missed(entry: KernelEntry, since_ns: int) -> Gap | None:
    found = _MISSED.match(entry.message)
    if found is None:
        return None
    return Gap(
        transport="journal",
        reason="journald missed kernel messages (of any kind)",
        lost=int(found[1]),
        since_ns=since_ns,
        until_ns=entry.realtime_us * 1000,
    )
