"""What a call and the record of its packet have in common, and the processes that it may be of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.ip_text import packed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocsf_nft.attribution.bpf_layout import Call
    from ocsf_nft.record import Record

#: Of more processes, that it may have been any of them says nothing.
MOST: Final = 16
#: The rules that refuse frames, which name no socket.
OF_FRAMES: Final = frozenset({"link"})


class Way(NamedTuple):
    """By which protocol and ports, and where to. Ports are 0 where there are none."""

    protocol: int | None
    source_port: int = 0
    destination: bytes = b""
    destination_port: int = 0


#: Of a frame nothing is known.
FRAME: Final = Way(None)


class Logged(NamedTuple):
    """A record, and when it was logged (CLOCK_BOOTTIME).

    That was between ``since_ns`` and ``until_ns``, and about at ``stamp_ns`` as its source says.
    """

    record: Record
    since_ns: int
    until_ns: int
    stamp_ns: int


class Match(NamedTuple):
    """The calls that a packet may be of: the latest of each process.

    ``is_sender``: it is one of them that sent it. Else it may be somebody else as well.
    """

    calls: tuple[Call, ...]
    is_sender: bool


def match(calls: Iterable[Call], *, is_sender: bool) -> Match | None:
    """The same of as many processes as it is of any use to name; None of none, or of more."""
    latest = {each.image: each for each in calls}
    return Match(tuple(latest.values()), is_sender) if 0 < len(latest) <= MOST else None


def way_of(record: Record) -> Way | None:
    """None where no process has sent its packet, or nobody can tell by what socket."""
    if record.uid is None:
        return None
    if record.rule in OF_FRAMES:
        return FRAME
    if record.protocol is None:
        return None
    return Way(
        record.protocol,
        record.source_port or 0,
        packed(record.destination) or b"",
        record.destination_port or 0,
    )


def way_of_call(call: Call) -> Way:
    """The same of a call; a socket gets its port after it was connected."""
    if call.is_frame:
        return FRAME
    return Way(
        call.protocol,
        0 if call.is_connect else call.source_port,
        call.destination,
        call.destination_port,
    )
