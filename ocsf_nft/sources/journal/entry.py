"""Parser of exported journal entries: ``journalctl -o json`` and ``-o export``.

Both formats are described in systemd's "Journal Export Formats". In JSON, a value that is not UTF-8
is an array of byte values. Several values of one field are an array too. A value that is too large
is ``null``. The export format has a line ``NAME=value`` for a value that is text. Any other value
has a line with the name only. A 64-bit little-endian length and that many bytes follow the line.
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
    """Message of a journal entry, with its author, cursor and times.

    ``author`` describes the program that wrote the message; ``None`` is the kernel. ``time_ns`` is
    when the kernel logged the message (nanoseconds since the epoch). If that is unknown, it is when
    journald received the message. If that is unknown too, it is ``None``. ``stamp`` is the text of
    journald's timestamp, unchanged.
    """

    message: str
    author: str | None
    cursor: str | None
    time_ns: int | None
    stamp: str | None


def from_json(line: bytes) -> Entry | None:
    """Parse a line of ``journalctl -o json`` to an entry.

    Return ``None`` if the line is not a JSON object, or if the field ``MESSAGE`` is missing or
    unreadable, such as ``null``.
    """
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
    """Parse an entry of ``journalctl -o export``; return ``None`` if it has no message.

    ``fields`` has the values of the entry by field name.
    """
    return _entry(fields) if _MESSAGE in fields else None


def _octets(value: object) -> bytes | None:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, list):
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
    """Return a name or description of the program that wrote the entry; None for the kernel.

    If the field ``_TRANSPORT`` is not ``kernel``, a program wrote the entry. A message that a
    program writes to /dev/kmsg also has the transport ``kernel``. But the kernel's own messages
    have the facility 0, and messages of programs have another facility.
    """
    transport = readable(fields.get(_TRANSPORT, b"an unknown transport"))
    if transport != "kernel":
        return readable(fields.get(_COMMAND, fields.get(_IDENTIFIER, transport.encode())))
    return author_of_facility(readable(fields.get(_FACILITY, b"unknown")), kernel="0")


def _time_ns(fields: Mapping[str, bytes]) -> int | None:
    """Return the time at which the kernel logged an entry's message, in ns since the epoch, UTC.

    The kernel's timestamp is monotonic. journald adds its own monotonic and wall-clock timestamps
    to the message. The difference of journald's timestamps converts the kernel's timestamp to
    wall-clock time. Without a kernel timestamp, return journald's wall-clock time. Without
    journald's wall-clock time, return None.
    """
    realtime = _microseconds(fields.get(_REALTIME))
    if realtime is None:
        return None
    monotonic = _microseconds(fields.get(_MONOTONIC))
    kernel = _microseconds(fields.get(_KERNEL_MONOTONIC))
    if monotonic is not None and kernel is not None and kernel < monotonic:
        realtime -= monotonic - kernel
    return realtime * 1000


def _microseconds(value: bytes | None) -> int | None:
    if value is None or not value.isdigit() or len(value) > 16:
        return None
    number = int(value)
    return number if number < _MICROSECONDS_LIMIT else None
