"""Parser of the header before a kernel message in a log file: timestamp, host, program name.

The formats are ``dmesg``, syslog (RFC 3164, RFC 5424) and short ``journalctl``. Any other line
counts as a message.
"""

from __future__ import annotations

import datetime as dt
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final, TypeAlias

from ocsf_nft.record import LogHost
from ocsf_nft.sources.base import MalformedError
from ocsf_nft.sources.kernel_message import author_of_facility
from ocsf_nft.sources.replay.logged_line import HOST_CHARACTERS, LoggedLine

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocsf_nft.sources.replay.logged_line import StampReference

    _TimeOf: TypeAlias = "Callable[[re.Match[str], StampReference], int]"

_MONTHS: Final = (
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
)  # fmt: skip
_MONTH: Final = rf"(?P<month>{'|'.join(_MONTHS)})"
_DAY: Final = "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_CLOCK: Final = "(?P<time>[0-9]{2}:[0-9]{2}:[0-9]{2})"
_DATE_CLOCK: Final = rf"(?P<date>[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}})T{_CLOCK}"
_ISO: Final = (
    rf"(?P<stamp>{_DATE_CLOCK}(?:[.,](?P<fraction>[0-9]{{1,9}}))?"
    r"(?P<zone>Z|[+-][0-9]{2}:?[0-9]{2})?)"
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
    rf"1 {_ISO} (?P<host>[^ ]+) (?P<tag>[^ ]+) [^ ]+ [^ ]+"
    r' (?:-|(?:\[[^ =\]"]+(?: [^ =\]"]+="(?:[^"\\\]]|\\.)*+")*+\])++)(?: (?:\ufeff)?|$)',
    re.ASCII,
)
_DMESG_ISO: Final = re.compile(
    rf"(?P<stamp>{_DATE_CLOCK},(?P<fraction>[0-9]{{6}})(?P<zone>[+-][0-9]{{2}}:[0-9]{{2}})) ",
    re.ASCII,
)
_ISO_SYSLOG: Final = re.compile(rf"{_ISO} ", re.ASCII)
#: Facility and level, as busybox writes them: ``kern.warn``. Such a word is no host.
_SELECTOR: Final = (
    r"(?:kern|user|mail|daemon|auth|syslog|lpr|news|uucp|cron|authpriv|ftp|local[0-7])"
    r"\.(?:emerg|panic|alert|crit|err|error|warn|warning|notice|info|debug) "
)
_TAG: Final = re.compile(
    rf"(?:(?!{_SELECTOR})(?P<host>[^ ]*[^ :]) )?(?:(?P<facility>[a-z]+[0-7]?)\.[a-z]+ )?"
    r"(?P<tag>[^ :\[]+)(?:\[[0-9]+\])?:(?: |(?=\[))",
    re.ASCII,
)
#: A log may come from a machine whose clock or time zone is ahead.
_AHEAD_NS: Final = 86_400_000_000_000
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_UNKNOWN_AUTHOR: Final = "an unknown program"


def parse(line: str, reference: StampReference) -> LoggedLine:
    """Split a line of a log file into its header and its message.

    Raises MalformedError if the line's timestamp is not a valid time.
    """
    # The kernel wrote the message only if the facility, if present, is ``kern``. In syslog, the
    # program name must also be ``kernel``, which any process that can send to syslog can forge.
    priority = _PRIORITY.match(line)
    author = None
    if priority is not None:
        line = line[priority.end() :]
        author = author_of_facility(int(priority["priority"]) >> 3, kernel=0)
        structured = _RFC5424.match(line)
        if structured is not None:
            program = structured["tag"]
            return LoggedLine(
                line[structured.end() :],
                "syslog",
                author or (None if program == "kernel" else program),
                _iso_ns(structured, reference),
                structured["stamp"],
                host=_host(structured["host"]),
            )
    decoded = _DECODED.match(line)
    if decoded is not None:
        line = line[decoded.end() :]
        author = author or author_of_facility(decoded["facility"], kernel="kern")
    return (
        _dmesg(line, reference, author)
        or _syslog(line, reference, author)
        or LoggedLine(line, "dmesg", author)
    )


def _dmesg(line: str, reference: StampReference, author: str | None) -> LoggedLine | None:
    for form, time_of in _DMESG_FORMS:
        match = form.match(line)
        if match is not None:
            time_ns = time_of(match, reference)
            return LoggedLine(line[match.end() :], "dmesg", author, time_ns, match["stamp"])
    return None


def _syslog(line: str, reference: StampReference, author: str | None) -> LoggedLine | None:
    match = _RFC3164.match(line)
    if match is not None:
        time_ns = _yearless_ns(match, reference)
    else:
        match = _ISO_SYSLOG.match(line)
        if match is None:
            return None
        time_ns = _iso_ns(match, reference)
    stamp = match["stamp"]
    rest = line[match.end() :]
    tag = _TAG.match(rest)
    if tag is None:
        return LoggedLine(rest, "syslog", author or _UNKNOWN_AUTHOR, time_ns, stamp)
    message = rest[tag.end() :]
    author = author or author_of_facility(tag["facility"] or "kern", kernel="kern")
    if tag["tag"] != "kernel":
        author = author or tag["tag"]
    if author is not None:
        return LoggedLine(message, "syslog", author, time_ns, stamp)
    inner = _MONOTONIC.match(message)
    if inner is not None:
        message = message[inner.end() :]
    return LoggedLine(message, "syslog", None, time_ns, stamp, host=_host(tag["host"]))


@lru_cache(maxsize=256)
def _host(name: str | None) -> LogHost | None:
    # RFC 5424 has a hyphen in place of an unknown host.
    return None if name in {None, "-"} else LogHost(name=name[:HOST_CHARACTERS])


def _since_boot_ns(match: re.Match[str], reference: StampReference) -> int:
    return reference.since_boot(int(match["seconds"]) * 1_000_000 + int(match["microseconds"]))


def _iso_ns(match: re.Match[str], reference: StampReference) -> int:
    return _time_ns(match, reference, match["date"], match["zone"] or "")


def _local_ns(match: re.Match[str], reference: StampReference, year: int | None = None) -> int:
    year = int(match["year"]) if year is None else year
    month, day = _MONTHS.index(match["month"]) + 1, int(match["day"])
    return _time_ns(match, reference, f"{year:04}-{month:02}-{day:02}")


def _time_ns(match: re.Match[str], reference: StampReference, date: str, zone: str = "") -> int:
    try:
        time = dt.datetime.fromisoformat(f"{date}T{match['time']}{zone}")
        if time.tzinfo is None:
            time = time.replace(tzinfo=reference.zone) if reference.zone else time.astimezone()
        seconds = (time - _EPOCH) // dt.timedelta(seconds=1)
    except (ValueError, OverflowError, OSError) as error:
        raise MalformedError(f"the stamp {match['stamp']} is not a valid time") from error
    fraction = match.groupdict().get("fraction") or "0"
    return seconds * 1_000_000_000 + int(fraction.ljust(9, "0"))


def _yearless_ns(match: re.Match[str], reference: StampReference) -> int:
    """Complete a timestamp without a year; return it in nanoseconds since the epoch.

    The year is the latest one for which the result is at most one day after the present time
    (``reference.now_ns()``). Raises MalformedError if no year gives a valid time.
    """
    latest_ns = reference.now_ns() + _AHEAD_NS
    year = dt.datetime.fromtimestamp(latest_ns // 1_000_000_000, reference.zone).year
    # At least one of 8 successive years has a 29 February.
    for candidate in range(year, year - 9, -1):
        try:
            time_ns = _local_ns(match, reference, candidate)
        except MalformedError:
            continue
        if time_ns <= latest_ns:
            return time_ns
    raise MalformedError(f"the stamp {match['stamp']} is not a valid time")


#: dmesg writes a comma before the fraction; rsyslog and journalctl write a point.
_DMESG_FORMS: Final[tuple[tuple[re.Pattern[str], _TimeOf], ...]] = (
    (_MONOTONIC, _since_boot_ns),
    (_HUMAN, _local_ns),
    (_DMESG_ISO, _iso_ns),
)
