"""Comparison of log records with calls: which calls may have sent the packet of a record.

A call is a capture event of the BPF programs: a system call that sends, or a refused packet with
its sender. For the comparison, a call and a record each get a key (:class:`PacketKey`).
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
    """Key to compare a call with a log record: protocol, ports and destination of the packet.

    An absent port is 0. ``destination`` is the address in 4 bytes (IPv4) or 16 bytes (IPv6), or
    empty. In the key of a link-layer frame, ``protocol`` is None, and all other values are absent
    too.
    """

    protocol: int | None
    source_port: int = 0
    destination: bytes = b""
    destination_port: int = 0


#: Key of every frame: its record has no protocol or address to compare.
FRAME_KEY: Final = PacketKey(None)


class LoggedRecord(NamedTuple):
    """Kernel log record, with the time range in which the kernel logged it.

    The range is from ``since_ns`` to ``until_ns``. ``stamp_ns`` is the timestamp that the source
    gave the record; it may be inexact. All times are of CLOCK_BOOTTIME.
    """

    record: Record
    since_ns: int
    until_ns: int
    stamp_ns: int


class Match(NamedTuple):
    """Calls that may have sent the packet of one log record.

    ``calls`` has the latest call of each process. ``is_sender`` is true if one of these processes
    certainly sent the packet. If it is false, another process may have sent the packet.
    """

    calls: tuple[Call, ...]
    is_sender: bool


def make_match(calls: Iterable[Call], *, is_sender: bool) -> Match | None:
    """Return a match that has the latest call of each process.

    ``calls`` are all calls that may have sent one packet, oldest first. ``is_sender`` is true if
    one of the processes certainly sent the packet. Return None if there is no call, or if more than
    16 processes made the calls.
    """
    latest = {each.image: each for each in calls}
    return Match(tuple(latest.values()), is_sender) if 0 < len(latest) <= MOST else None


def key_of_record(record: Record) -> PacketKey | None:
    """Return the key of a log record, to compare the record with calls.

    Return None if no process can be found for the record. This is the case without a user id (no
    known socket sent the packet) or without a protocol. All link-layer frames have the same key.
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
    """Return the key of a call, to compare the call with log records.

    The key of a connect call has source port 0, because the socket gets its port only after the
    call.
    """
    if call.is_frame:
        return FRAME_KEY
    return PacketKey(
        call.protocol,
        0 if call.is_connect else call.source_port,
        call.destination,
        call.destination_port,
    )
