"""Comparison of log records with calls, to find the process that sent a logged packet.

A call is an event that the BPF programs report. It is a system call by which a process sends or
connects, or a packet that the kernel refused. Each call and each log record gets a
:class:`PacketKey`, and these keys are compared.
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
    """Protocol, ports and destination of a packet, to compare a log record with a BPF event.

    ``destination`` is the address in 4 bytes (IPv4) or 16 bytes (IPv6), or empty. A missing port is
    0. For a link-layer frame, ``protocol`` is None, ``destination`` is empty, and both ports are 0.
    """

    protocol: int | None
    source_port: int = 0
    destination: bytes = b""
    destination_port: int = 0


#: Key of every frame: its record has no protocol or address to compare.
FRAME_KEY: Final = PacketKey(None)


class LoggedRecord(NamedTuple):
    """Log record that the kernel logged between ``since_ns`` and ``until_ns``.

    ``stamp_ns`` is the log record's timestamp, which may be inexact. All three are in ns of
    CLOCK_BOOTTIME.
    """

    record: Record
    since_ns: int
    until_ns: int
    stamp_ns: int


class Match(NamedTuple):
    """Captured calls that may belong to the packet of one log record.

    BPF programs capture a call with its process. A call is a system call that sends or connects, or
    the refusal of a packet. ``calls`` has the latest call of each process. If ``is_sender`` is
    true, one of these processes certainly sent the packet.
    """

    calls: tuple[Call, ...]
    is_sender: bool


def make_match(calls: Iterable[Call], *, is_sender: bool) -> Match | None:
    """Return the possible senders of one packet: a match with the latest call of each process.

    ``calls`` are all calls that may have sent the packet, oldest first. ``is_sender`` is true if
    one of these calls certainly sent the packet. Return None if there is no call, or if more than
    16 processes made the calls.
    """
    latest = {each.image: each for each in calls}
    return Match(tuple(latest.values()), is_sender) if 0 < len(latest) <= MOST else None


def key_of_record(record: Record) -> PacketKey | None:
    """Return the key to compare a log record with calls; None if the record lacks a value.

    A call is a system call or refused packet that the BPF programs reported. Each record needs the
    user id, which is missing if no socket sent the packet. The record of an IP packet also needs
    the protocol. All link-layer frames have the same key, which has no protocol.
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
    """Return the key of a call: a system call or refused packet that the BPF programs reported.

    The source port of a connect call is 0, because the socket gets its port only after the call.
    """
    if call.is_frame:
        return FRAME_KEY
    return PacketKey(
        call.protocol,
        0 if call.is_connect else call.source_port,
        call.destination,
        call.destination_port,
    )
