"""What stands before a kernel message in a log file: a stamp, a host, a program's name.

Recognised are ``dmesg`` in each of its time formats and with ``--decode`` or ``--raw``, syslog in
the forms of RFC 3164 (with busybox's and the ISO 8601 variants) and RFC 5424, and ``journalctl``'s
short forms, which look like syslog. A line of another form is taken for a bare message.

Only the kernel's own lines count. A priority's facility (the number shifted right by 3) must be 0,
and in syslog the program must be ``kernel``. A flat file can't tell more: whoever may send syslog
messages under that name is believed, which is why the live sources read better places.
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ocsf_nft.sources.kmsg_origin import author_of_facility

if TYPE_CHECKING:
    from collections.abc import Callable

_MONTHS: Final = (
    "Jan",
    "Feb",
    "Mar",
    "Apr",
    "May",
    "Jun",
    "Jul",
    "Aug",
    "Sep",
    "Oct",
    "Nov",
    "Dec",
)
_MONTH: Final = rf"(?P<month>{'|'.join(_MONTHS)})"
_DAY: Final = "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_CLOCK: Final = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_ISO: Final = (
    r"(?P<iso>(?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2})T(?P<time>[0-9]{2}:[0-9]{2}:[0-9]{2})"
    r"(?:[.,](?P<fraction>[0-9]{1,9}))?(?P<zone>Z|[+-][0-9]{2}:?[0-9]{2})?)"
)

_PRIORITY: Final = re.compile(r"<(?P<priority>[0-9]{1,3})>", re.ASCII)
_DECODED: Final = re.compile(
    r"(?P<facility>[a-z0-9]+) *:(?:emerg|alert|crit|err|warn|notice|info|debug) *: ", re.ASCII
)
_MONOTONIC: Final = re.compile(
    r"(?P<stamp>\[ *(?P<seconds>[0-9]{1,10})\.(?P<microseconds>[0-9]{6})\])"
    r"(?:\[ *[TC][0-9]+\])? ?",
    re.ASCII,
)
_HUMAN: Final = re.compile(
    rf"(?P<stamp>\[{_DAY} {_MONTH} +(?P<day>[0-9]{{1,2}}) {_CLOCK} (?P<year>[0-9]{{4}})\]) ?",
    re.ASCII,
)
_RFC3164: Final = re.compile(
    rf"(?P<stamp>{_MONTH} +(?P<day>[0-9]{{1,2}}) {_CLOCK}(?:\.(?P<fraction>[0-9]{{1,9}}))?) ",
    re.ASCII,
)
_RFC5424: Final = re.compile(
    rf"1 {_ISO} [^ ]+ (?P<tag>[^ ]+) [^ ]+ [^ ]+"
    r' (?:-|(?:\[[^ =\]"]+(?: [^ =\]"]+="(?:[^"\\\]]|\\.)*+")*+\])++)(?: (?:\ufeff)?|$)',
    re.ASCII,
)
_DMESG_ISO: Final = re.compile(
    r"(?P<iso>(?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2})T(?P<time>[0-9]{2}:[0-9]{2}:[0-9]{2})"
    r",(?P<fraction>[0-9]{6})(?P<zone>[+-][0-9]{2}:[0-9]{2})) ",
    re.ASCII,
)
_ISO_SYSLOG: Final = re.compile(rf"{_ISO} ", re.ASCII)
_TAG: Final = re.compile(
    r"(?:[^ ]*[^ :] )?(?:(?P<facility>[a-z]+[0-7]?)\.[a-z]+ )?"
    r"(?P<tag>[^ :\[]+)(?:\[[0-9]+\])?:(?: |(?=\[))",
    re.ASCII,
)
#: A log may be of a machine whose clock is ahead, and of a zone that is.
_AHEAD_NS: Final = 86_400_000_000_000
#: What this boot's stamps may be ahead of its clock (the wall clock may have been set since).
_BOOT_AHEAD_NS: Final = 60_000_000_000
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_NOBODY: Final = "nobody who is named"


class StampError(Exception):
    """The stamp is no time; the message says so."""


@dataclass(frozen=True, slots=True)
class Zero:
    """What a stamp without all of its parts is counted from.

    ``boot_ns``: when the kernel's clock was 0, in nanoseconds since the epoch; ``this_boot`` says
    that it is only assumed to be the boot of the log. ``now_ns``: for stamps without a year, which
    are of the latest year that puts them no more than a day into the future. Local times are of
    the zone ``zone``; ``None`` is the machine's.
    """

    boot_ns: int
    now_ns: Callable[[], int]
    zone: dt.tzinfo | None
    this_boot: bool

    def since_boot(self, microseconds: int) -> int:
        """The time of a stamp of the kernel's clock; raises StampError when it is not this boot's.

        Nanoseconds since the epoch.
        """
        time_ns = self.boot_ns + microseconds * 1000
        if self.this_boot and time_ns > self.now_ns() + _BOOT_AHEAD_NS:
            raise StampError(
                "its stamp counts from boot and is later than now by this machine's boot: "
                "say when the machine of the log was booted (convert --boot TIME)"
            )
        return time_ns


@dataclass(frozen=True, slots=True)
class Stamped:
    """A line taken apart.

    ``author`` is who wrote it, ``None`` for the kernel. ``time_ns`` is ``None`` when the line has
    no stamp; ``stamp`` is the stamp as it stands there.
    """

    message: str
    log_source: str
    author: str | None = None
    time_ns: int | None = None
    stamp: str | None = None


def take(line: str, zero: Zero) -> Stamped:
    """Take a line apart; raises StampError when its stamp is no time."""
    priority = _PRIORITY.match(line)
    author = None
    if priority is not None:
        line = line[priority.end() :]
        author = author_of_facility(int(priority["priority"]) >> 3, kernel=0)
        structured = _RFC5424.match(line)
        if structured is not None:
            writer = structured["tag"]
            return Stamped(
                line[structured.end() :],
                "syslog",
                author or (None if writer == "kernel" else writer),
                _iso_ns(structured, zero),
                structured["iso"],
            )
    decoded = _DECODED.match(line)
    if decoded is not None:
        line = line[decoded.end() :]
        author = author or author_of_facility(decoded["facility"], kernel="kern")
    return (
        _dmesg(line, zero, author) or _syslog(line, zero, author) or Stamped(line, "dmesg", author)
    )


def _dmesg(line: str, zero: Zero, author: str | None) -> Stamped | None:
    match = _MONOTONIC.match(line)
    if match is not None:
        since = int(match["seconds"]) * 1_000_000 + int(match["microseconds"])
        return Stamped(line[match.end() :], "dmesg", author, zero.since_boot(since), match["stamp"])
    match = _HUMAN.match(line)
    if match is not None:
        time_ns = _local_ns(match, int(match["year"]), zero)
        return Stamped(line[match.end() :], "dmesg", author, time_ns, match["stamp"])
    # dmesg writes a comma before the fraction, rsyslog and journalctl a point.
    match = _DMESG_ISO.match(line)
    if match is not None:
        return Stamped(line[match.end() :], "dmesg", author, _iso_ns(match, zero), match["iso"])
    return None


def _syslog(line: str, zero: Zero, author: str | None) -> Stamped | None:
    match = _RFC3164.match(line)
    if match is not None:
        time_ns, stamp = _yearless_ns(match, zero), match["stamp"]
    else:
        match = _ISO_SYSLOG.match(line)
        if match is None:
            return None
        time_ns, stamp = _iso_ns(match, zero), match["iso"]
    rest = line[match.end() :]
    tag = _TAG.match(rest)
    if tag is None:
        return Stamped(rest, "syslog", author or _NOBODY, time_ns, stamp)
    message = rest[tag.end() :]
    author = author or author_of_facility(tag["facility"] or "kern", kernel="kern")
    if tag["tag"] != "kernel":
        author = author or tag["tag"]
    if author is not None:
        return Stamped(message, "syslog", author, time_ns, stamp)
    inner = _MONOTONIC.match(message)
    if inner is not None:
        message = message[inner.end() :]
    return Stamped(message, "syslog", None, time_ns, stamp)


def _nanoseconds(moment: dt.datetime, fraction: str | None) -> int:
    seconds = (moment - _EPOCH) // dt.timedelta(seconds=1)
    return seconds * 1_000_000_000 + int((fraction or "0").ljust(9, "0"))


def _iso_ns(match: re.Match[str], zero: Zero) -> int:
    zone = match["zone"] or ""
    try:
        moment = dt.datetime.fromisoformat(f"{match['date']}T{match['time']}{zone}")
        return _nanoseconds(_located(moment, zero), match["fraction"])
    except (ValueError, OverflowError) as error:
        raise StampError(f"the stamp {match['iso']} is no time") from error


def _located(moment: dt.datetime, zero: Zero) -> dt.datetime:
    if moment.tzinfo is not None:
        return moment
    return moment.astimezone() if zero.zone is None else moment.replace(tzinfo=zero.zone)


def _local_ns(match: re.Match[str], year: int, zero: Zero) -> int:
    try:
        moment = dt.datetime(  # noqa: DTZ001 - the stamp has no zone; it gets one below
            year,
            _MONTHS.index(match["month"]) + 1,
            int(match["day"]),
            int(match["hour"]),
            int(match["minute"]),
            int(match["second"]),
        )
        return _nanoseconds(_located(moment, zero), match.groupdict().get("fraction"))
    except (ValueError, OverflowError, OSError) as error:
        raise StampError(f"the stamp {match['stamp']} is no time") from error


def _yearless_ns(match: re.Match[str], zero: Zero) -> int:
    """Of the latest year in which the date exists and is not in the future (29 February: of 8).

    A day ahead is not the future: who takes it for last year is wrong by a year.
    """
    latest_ns = zero.now_ns() + _AHEAD_NS
    year = dt.datetime.fromtimestamp(latest_ns // 1_000_000_000, zero.zone).year
    for candidate in range(year, year - 9, -1):
        try:
            time_ns = _local_ns(match, candidate, zero)
        except StampError:
            continue
        if time_ns <= latest_ns:
            return time_ns
    raise StampError(f"the stamp {match['stamp']} is no time")
