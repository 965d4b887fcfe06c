"""Match of system calls and kernel log records: which calls may have sent a record's packet.

A call and the record of its packet have a common key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.ip_text import packed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocsf_nft.attribution.bpf_layout import Call
    from ocsf_nft.record import Record

#: With more candidate processes, an attribution has no value.
MOST: Final = 16
#: The rules that refuse frames, which name no socket.
FRAME_RULES: Final = frozenset({"link"})


class PacketKey(NamedTuple):
    """Protocol, ports and destination, which a call and its packet share; an absent port is 0."""

    protocol: int | None
    source_port: int = 0
    destination: bytes = b""
    destination_port: int = 0


#: Key of every frame: its record has no protocol or address to compare.
FRAME_KEY: Final = PacketKey(None)


class LoggedRecord(NamedTuple):
    """Kernel log record, with the time range in which the kernel logged it (CLOCK_BOOTTIME).

    The kernel logged the record between ``since_ns`` and ``until_ns``. ``stamp_ns`` is the
    timestamp that the source gave the record; it may be inexact.
    """

    record: Record
    since_ns: int
    until_ns: int
    stamp_ns: int


class Match(NamedTuple):
    """Calls that may have sent the packet of a log record: the latest call of each process.

    ``is_sender`` is true if one of these processes certainly sent the packet. Otherwise the sender
    may be another process.
    """

    calls: tuple[Call, ...]
    is_sender: bool


def make_match(calls: Iterable[Call], *, is_sender: bool) -> Match | None:
    """Return a match with the latest call of each process that may have sent a packet.

    ``is_sender`` is true if one of these processes certainly sent the packet. Return None if there
    is no call, or if the calls are of more than :data:`MOST` processes.
    """
    latest = {each.image: each for each in calls}
    return Match(tuple(latest.values()), is_sender) if 0 < len(latest) <= MOST else None


def key_of_record(record: Record) -> PacketKey | None:
    """Return the key of a log record's packet, to compare it with the keys of calls.

    Return None if no process sent the packet, or if the packet's socket is unknown.
    """
    if record.uid is None:
        return None
    if record.rule in FRAME_RULES:
        return FRAME_KEY
    if record.protocol is None:
        return None
    return PacketKey(
        record.protocol,
        record.source_port or 0,
        packed(record.destination) or b"",
        record.destination_port or 0,
    )


def key_of_call(call: Call) -> PacketKey:
    """Return the key of a call, to compare it with the keys of log records.

    The key of a connect call has source port 0, because the socket gets its port later.
    """
    if call.is_frame:
        return FRAME_KEY
    return PacketKey(
        call.protocol,
        0 if call.is_connect else call.source_port,
        call.destination,
        call.destination_port,
    )
