"""Line of a log file without its header, and the reference times for its timestamp."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.sources.base import MalformedError

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable

    from ocsf_nft.record import LogHost

#: Maximum length of a host name (HOSTNAME in RFC 5424).
HOST_CHARACTERS: Final = 255
#: Maximum by which stamps of this boot may be ahead of the clock (it may have been set since).
_BOOT_AHEAD_NS: Final = 60_000_000_000
_NO_LIMIT: Final = (1 << 63) - 1


class StampReference(NamedTuple):
    """Reference times for log timestamps that lack the date, the year or the time zone."""

    #: Boot time of the log's machine (ns since the epoch), or of this machine if it is unknown.
    boot_ns: int
    now_ns: Callable[[], int]
    #: Zone of timestamps without a time zone; None means this machine's zone.
    zone: dt.tzinfo | None
    #: True if the boot time of the log's machine is unknown.
    is_assumed_boot: bool

    @property
    def latest_ns(self) -> int:
        """Return the latest possible result of :meth:`since_boot`."""
        return self.now_ns() + _BOOT_AHEAD_NS if self.is_assumed_boot else _NO_LIMIT

    def since_boot(self, microseconds: int) -> int:
        """Convert a time since boot, in microseconds, to nanoseconds since the epoch.

        If the boot time of the log's machine is unknown (``is_assumed_boot``), this machine's boot
        time is used. In this case, raises MalformedError if the result is over a minute in the
        future.
        """
        time_ns = self.boot_ns + microseconds * 1000
        if self.is_assumed_boot and time_ns > self.latest_ns:
            raise MalformedError(
                "its stamp counts from boot and is later than now by this machine's boot: "
                "give the boot time of the log's machine (convert --boot TIME)"
            )
        return time_ns


class LoggedLine(NamedTuple):
    """Message of a line in a log file, or of a journal entry, and the content of its header."""

    message: str
    #: ``dmesg``, ``syslog``, ``kmsg`` or ``journal``.
    log_source: str
    #: Name or description of the program that wrote the message; None means the kernel.
    author: str | None = None
    #: Timestamp in ns since the epoch (``stamp`` is its original text); None without a timestamp.
    time_ns: int | None = None
    stamp: str | None = None
    #: Identity and number of the message in its log; None if the log has none.
    identity: str | None = None
    sequence: int | None = None
    #: None if the log does not name the host.
    host: LogHost | None = None
