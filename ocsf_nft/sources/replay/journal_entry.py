"""Parser of exported journal entries: ``journalctl -o json`` and ``-o export``.

systemd's "Journal Export Formats" describes both formats.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import orjson

from ocsf_nft.record import LogHost
from ocsf_nft.sources.kernel_message import author_of_facility
from ocsf_nft.sources.packet_fields import readable
from ocsf_nft.sources.replay.logged_line import HOST_CHARACTERS, LoggedLine

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The fields that the parser reads.
FIELDS: Final = frozenset({
    "__CURSOR", "__MONOTONIC_TIMESTAMP", "__REALTIME_TIMESTAMP", "_BOOT_ID", "_COMM", "_HOSTNAME",
    "_MACHINE_ID", "_SOURCE_MONOTONIC_TIMESTAMP", "_TRANSPORT", "MESSAGE", "SYSLOG_FACILITY",
    "SYSLOG_IDENTIFIER",
})  # fmt: skip
_MICROSECONDS_LIMIT: Final = 1 << 53
_ID128: Final = re.compile(rb"[0-9a-f]{32}")


def from_json(line: bytes) -> LoggedLine | None:
    """Parse a line of ``journalctl -o json``; return None if the line has no readable message."""
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(fields, dict):
        return None
    return from_export(
        {name: octets for name in fields if (octets := _octets(fields[name])) is not None}
    )


def from_export(fields: Mapping[str, bytes]) -> LoggedLine | None:
    """Parse the fields of ``journalctl -o export``; return None if MESSAGE is absent."""
    message = fields.get("MESSAGE")
    if message is None:
        return None
    cursor, stamp = fields.get("__CURSOR"), fields.get("__REALTIME_TIMESTAMP")
    return LoggedLine(
        readable(message),
        "journal",
        _author(fields),
        # When the kernel logged the message, or else when journald received it.
        _time_ns(fields),
        None if stamp is None else readable(stamp),
        None if cursor is None else f"journal:{readable(cursor)}",
        host=_host(fields.get("_HOSTNAME"), fields.get("_BOOT_ID"), fields.get("_MACHINE_ID")),
    )


@lru_cache(maxsize=256)
def _host(name: bytes | None, boot_id: bytes | None, machine_id: bytes | None) -> LogHost | None:
    if not name:
        return None
    shown = readable(name[:HOST_CHARACTERS])
    return LogHost(name=shown, boot_id=_id128(boot_id), machine_id=_id128(machine_id))


def _id128(value: bytes | None) -> str | None:
    """Return an id of systemd (sd-id128) as text; None if the value is no such id."""
    return value.decode() if value is not None and _ID128.fullmatch(value) else None


def _octets(value: object) -> bytes | None:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, list):  # a value that is not UTF-8, or several values of one field
        try:
            return bytes(value)
        except (TypeError, ValueError):
            return None
    return None


def _author(fields: Mapping[str, bytes]) -> str | None:
    """Return a name or description of the program that wrote the entry; None for the kernel."""
    transport = readable(fields.get("_TRANSPORT", b"an unknown transport"))
    if transport != "kernel":
        return readable(fields.get("_COMM", fields.get("SYSLOG_IDENTIFIER", transport.encode())))
    # A message that a program writes to /dev/kmsg has the kernel's transport, but not its facility.
    return author_of_facility(readable(fields.get("SYSLOG_FACILITY", b"unknown")), kernel="0")


def _time_ns(fields: Mapping[str, bytes]) -> int | None:
    """Return the wall-clock time at which the kernel logged a message, in ns since the epoch.

    If the kernel's timestamp is missing, return journald's timestamp. If journald's timestamp is
    missing, return None.
    """
    realtime = _microseconds(fields.get("__REALTIME_TIMESTAMP"))
    if realtime is None:
        return None
    monotonic = _microseconds(fields.get("__MONOTONIC_TIMESTAMP"))
    kernel = _microseconds(fields.get("_SOURCE_MONOTONIC_TIMESTAMP"))
    # The difference of journald's two clocks converts the kernel's monotonic timestamp.
    if monotonic is not None and kernel is not None and kernel < monotonic:
        realtime -= monotonic - kernel
    return realtime * 1000


def _microseconds(value: bytes | None) -> int | None:
    if value is None or not value.isdigit() or len(value) > 16:
        return None
    number = int(value)
    return number if number < _MICROSECONDS_LIMIT else None
