"""What the BPF programs tell, byte by byte: the structures of ``bpf/*.h`` in native order."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple, TypeAlias

_AF_INET: Final = 2
_AF_INET6: Final = 10
_AF_PACKET: Final = 17
#: ::ffff:0.0.0.0/96: an address of IPv4 in a socket of IPv6.
_MAPPED: Final = bytes(10) + b"\xff\xff"

#: What a call is: the flags of ``capture.bpf.c``.
_CONNECT, _MORE, _SYN, _ANY = 1, 2, 4, 8
#: kind, family, protocol, flags, ports; time, socket, netns; the caller; owner; addresses; sum.
_CALL_FORM: Final = struct.Struct("=BBBBHHQQQIIQQIII4x16sI16s16sI")
_CLOSED_FORM: Final = struct.Struct("=B7xQQ")
_PROCESS_FORM: Final = struct.Struct("=BB2xIIIQQIIQQIIQ16sHHHH")


class Image(NamedTuple):
    """A program that a process runs: after an exec, the same process is another image.

    ``started_ns`` is of CLOCK_BOOTTIME. Both it and ``execs`` are 0 where the kernel doesn't say.
    """

    pid: int
    started_ns: int
    execs: int


#: Who did what is told without a process.
NOBODY: Final = Image(0, 0, 0)


class Call(NamedTuple):
    """A process sends something or connects; or a packet was refused, just before ``time_ns``.

    Which of the two is told of a network namespace, :class:`Capture` is told. Times are of
    CLOCK_BOOTTIME. Addresses are packed, an address of IPv4 in 4 bytes, empty where none is known;
    ports are 0 where they are not known. ``uid`` and ``gid`` are the process's real ones, ``owner``
    is the user that the socket is of, whom a record of it names (of a call: who would get a socket
    that is made now). ``tid`` is 0 where it is one of several threads.

    Of a call, ``socket`` is the kernel's number of the socket. Of a packet, ``image`` is
    :data:`NOBODY` where it is not known who sent it; ``sum`` is that of its first bytes, as
    :attr:`Record.captured_sum` is, 0 where they could not be read.

    ``is_frame``: it is sent by a packet socket. ``is_connect``: it connects a socket that sends
    nothing by that. ``is_syn``: a connection of TCP begins with it. ``is_any``: what it is was not
    told. ``has_more``: more of the same may follow that is not told.
    """

    time_ns: int
    socket: int
    netns: int
    is_frame: bool
    protocol: int
    is_connect: bool
    is_syn: bool
    is_any: bool
    has_more: bool
    source: bytes
    source_port: int
    destination: bytes
    destination_port: int
    image: Image
    tid: int
    uid: int
    gid: int
    owner: int
    comm: bytes
    sum: int


class Closed(NamedTuple):
    """Nobody has a socket any more that a call was made by."""

    time_ns: int
    socket: int


class Portrait(NamedTuple):
    """What a process is; texts as the kernel has them.

    ``path``, ``directory`` and ``cgroup`` are names, innermost first; one that leads up to a root
    ends with ``/``, or for a cgroup with an empty name. ``arguments`` has an end after each.
    """

    image: Image
    parent: Image
    namespace_pid: int
    is_deleted: bool
    uid: int
    gid: int
    inode: int
    comm: bytes
    path: tuple[bytes, ...]
    directory: tuple[bytes, ...]
    cgroup: tuple[bytes, ...]
    arguments: bytes


Told: TypeAlias = Call | Closed | Portrait


def told(sample: bytes) -> Told:
    """One event of a ring; raises ValueError or struct.error when it is none."""
    match sample[0] if sample else 0:
        case 1:
            return _call(sample)
        case 2:
            return Closed._make(_CLOSED_FORM.unpack_from(sample)[1:])
        case 3:
            return _portrait(sample)
        case kind:
            raise ValueError(f"an event of an unknown kind, {kind}")


def _call(sample: bytes) -> Call:
    (
        _, family, protocol, flags, source_port, destination_port, time_ns, socket, netns,
        pid, _, started_ns, execs, tid, uid, gid, comm, owner, source, destination, check,
    ) = _CALL_FORM.unpack_from(sample)  # fmt: skip
    # By place: thousands a second take half as long so.
    return Call(
        time_ns, socket, netns, family == _AF_PACKET, protocol,
        bool(flags & _CONNECT), bool(flags & _SYN), bool(flags & _ANY), bool(flags & _MORE),
        _address(family, source), source_port, _address(family, destination), destination_port,
        Image(pid, started_ns, execs), tid, uid, gid, owner, _text(comm), check,
    )  # fmt: skip


def _portrait(sample: bytes) -> Portrait:
    (
        _, is_deleted, namespace_pid, pid, _, started_ns, execs,
        parent_pid, _, parent_started_ns, parent_execs,
        uid, gid, inode, comm, path, directory, cgroup, arguments,
    ) = _PROCESS_FORM.unpack_from(sample)  # fmt: skip
    texts = []
    at = _PROCESS_FORM.size
    for size in (path, directory, cgroup, arguments):
        texts.append(sample[at : at + size])
        at += size
    if at > len(sample):
        raise ValueError("texts of a process that end too soon")
    return Portrait(
        image=Image(pid, started_ns, execs),
        parent=Image(parent_pid, parent_started_ns, parent_execs),
        namespace_pid=namespace_pid,
        is_deleted=bool(is_deleted),
        uid=uid,
        gid=gid,
        inode=inode,
        comm=_text(comm),
        path=_names(texts[0]),
        directory=_names(texts[1]),
        cgroup=_names(texts[2]),
        arguments=texts[3],
    )


def _address(family: int, packed: bytes) -> bytes:
    if family == _AF_INET:
        return packed[:4]
    if family != _AF_INET6:
        return b""
    return packed[12:] if packed.startswith(_MAPPED) else packed


def _text(padded: bytes) -> bytes:
    return padded.partition(b"\0")[0]


def _names(texts: bytes) -> tuple[bytes, ...]:
    return tuple(texts.split(b"\0")[:-1])
