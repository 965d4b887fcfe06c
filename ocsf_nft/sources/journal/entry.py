"""Parser of exported journal entries: ``journalctl -o json`` and ``-o export``.

systemd's "Journal Export Formats" describes both formats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import orjson

from ocsf_nft.sources.kmsg_origin import author_of_facility
from ocsf_nft.sources.packet_fields import readable

if TYPE_CHECKING:
    from collections.abc import Mapping

CURSOR: Final = "__CURSOR"
_MESSAGE: Final = "MESSAGE"
_TRANSPORT: Final = "_TRANSPORT"
_FACILITY: Final = "SYSLOG_FACILITY"
_COMMAND: Final = "_COMM"
_IDENTIFIER: Final = "SYSLOG_IDENTIFIER"
_REALTIME: Final = "__REALTIME_TIMESTAMP"
_MONOTONIC: Final = "__MONOTONIC_TIMESTAMP"
_KERNEL_MONOTONIC: Final = "_SOURCE_MONOTONIC_TIMESTAMP"
#: The fields that the parser reads.
FIELDS: Final = frozenset(
    {
        CURSOR,
        _MESSAGE,
        _TRANSPORT,
        _FACILITY,
        _COMMAND,
        _IDENTIFIER,
        _REALTIME,
        _MONOTONIC,
        _KERNEL_MONOTONIC,
    }
)
_MICROSECONDS_LIMIT: Final = 1 << 53


@dataclass(frozen=True, slots=True)
class Entry:
    """Message of a journal entry, with its cursor, its time, and the program that wrote it."""

    message: str
    #: Name or description of the program that wrote the message; None means the kernel.
    author: str | None
    cursor: str | None
    #: When the kernel logged the message, or else when journald received it (ns since the epoch).
    #: None if unknown.
    time_ns: int | None
    #: Unchanged text of journald's timestamp.
    stamp: str | None


def from_json(line: bytes) -> Entry | None:
    """Parse a line of ``journalctl -o json``; return None if the line has no readable message."""
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(fields, dict) or _MESSAGE not in fields:
        return None
    return _entry(
        {name: octets for name in fields if (octets := _octets(fields[name])) is not None}
    )


def from_export(fields: Mapping[str, bytes]) -> Entry | None:
    """Make an entry from fields of ``journalctl -o export``; return None if MESSAGE is absent."""
    return _entry(fields) if _MESSAGE in fields else None


def _octets(value: object) -> bytes | None:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, list):  # a value that is not UTF-8, or several values of one field
        try:
            return bytes(value)
        except (TypeError, ValueError):
            return None
    return None


def _entry(fields: Mapping[str, bytes]) -> Entry | None:
    message = fields.get(_MESSAGE)
    if message is None:
        return None
    cursor, stamp = fields.get(CURSOR), fields.get(_REALTIME)
    return Entry(
        message=readable(message),
        author=_author(fields),
        cursor=None if cursor is None else readable(cursor),
        time_ns=_time_ns(fields),
        stamp=None if stamp is None else readable(stamp),
    )


def _author(fields: Mapping[str, bytes]) -> str | None:
    """Return a name or description of the program that wrote the entry; None for the kernel."""
    transport = readable(fields.get(_TRANSPORT, b"an unknown transport"))
    if transport != "kernel":
        return readable(fields.get(_COMMAND, fields.get(_IDENTIFIER, transport.encode())))
    # A message that a program writes to /dev/kmsg has the kernel's transport, but not its facility.
    return author_of_facility(readable(fields.get(_FACILITY, b"unknown")), kernel="0")


def _time_ns(fields: Mapping[str, bytes]) -> int | None:
    """Return the wall-clock time at which the kernel logged a message, in ns since the epoch.

    If the kernel's timestamp is missing, return journald's timestamp. If journald's timestamp is
    missing, return None.
    """
    realtime = _microseconds(fields.get(_REALTIME))
    if realtime is None:
        return None
    monotonic = _microseconds(fields.get(_MONOTONIC))
    kernel = _microseconds(fields.get(_KERNEL_MONOTONIC))
    # The difference of journald's two clocks converts the kernel's monotonic timestamp.
    if monotonic is not None and kernel is not None and kernel < monotonic:
        realtime -= monotonic - kernel
    return realtime * 1000


def _microseconds(value: bytes | None) -> int | None:
    if value is None or not value.isdigit() or len(value) > 16:
        return None
    number = int(value)
    return number if number < _MICROSECONDS_LIMIT else None
