"""Matching of log records with reports of BPF programs, to find who sent a logged packet.

Each report is a :class:`Call`: a system call that sends or connects, or a packet that the kernel
refused. A BPF program reports a refused packet after the kernel has logged it. In a flood, the
kernel logs only some of the packets, so many reports have no log record. All times are of
CLOCK_BOOTTIME, in ns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.ip_text import packed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocsf_nft.attribution.bpf_capture import Call
    from ocsf_nft.record import Record

#: With more candidate processes, an attribution has no value.
MOST_PROCESSES: Final = 16
#: The BPF programs report no call or similar packet of a process for so long after its budget is
#: spent (``capture.bpf.c``: PAUSE_NS).
SILENCE_NS: Final = 500_000_000
#: The rules that refuse frames, which name no socket.
_FRAME_RULES: Final = frozenset({"link"})
_TCP: Final = 6
_SYN: Final = 0x02
_ACK: Final = 0x10


class PacketKey(NamedTuple):
    """Protocol, ports and destination of a packet, to compare a log record with a BPF event.

    A missing port is 0.
    """

    #: None for a link-layer frame.
    protocol: int | None
    source_port: int = 0
    #: Address in 4 bytes (IPv4) or 16 bytes (IPv6), or empty.
    destination: bytes = b""
    destination_port: int = 0


#: Key of every frame: its record has no protocol or address to compare.
_FRAME_KEY: Final = PacketKey(None)


class LoggedRecord(NamedTuple):
    """Log record that the kernel logged between ``since_ns`` and ``until_ns``.

    ``stamp_ns`` is the log record's timestamp, which may be inexact.
    """

    record: Record
    since_ns: int
    until_ns: int
    stamp_ns: int


class Match(NamedTuple):
    """Possible senders of a logged packet, found among the reports of BPF programs."""

    #: Latest call of each process.
    calls: tuple[Call, ...]
    #: True if one of these processes certainly sent the packet.
    is_sender: bool


def make_match(calls: Iterable[Call], *, is_sender: bool) -> Match | None:
    """Return the possible senders of one packet, with the latest BPF report of each process.

    ``calls`` has the oldest report first. ``is_sender`` is true if one of these processes certainly
    sent the packet. Return None if there is no process, or more than 16.
    """
    latest = {each.image: each for each in calls}
    return Match(tuple(latest.values()), is_sender) if 0 < len(latest) <= MOST_PROCESSES else None


def key_of_record(record: Record) -> PacketKey | None:
    """Return the key to compare the packet of a log record with reports of BPF programs.

    Return None if no comparison is possible: no socket sent the packet (the record has no user id),
    or the protocol of an IP packet is unknown.
    """
    if record.uid is None:  # no socket sent the packet
        return None
    if record.rule in _FRAME_RULES:
        return _FRAME_KEY
    if record.protocol is None:
        return None
    return PacketKey(
        record.protocol,
        record.source_port or 0,
        packed(record.destination) or b"",
        record.destination_port or 0,
    )


def begins_connection(record: Record) -> bool:
    """Return True if the packet of a log record is the first of a TCP connection."""
    return record.protocol == _TCP and (record.tcp_flags or 0) & (_SYN | _ACK) == _SYN


def key_of_call(call: Call) -> PacketKey:
    """Return the key to compare a report of BPF programs with log records.

    ``call`` is the report of a refused packet or of a system call. For the system call ``connect``,
    the key has source port 0, because the socket gets its port later.
    """
    if call.is_frame:
        return _FRAME_KEY
    return PacketKey(
        call.protocol,
        0 if call.is_connect else call.source_port,
        call.destination,
        call.destination_port,
    )
