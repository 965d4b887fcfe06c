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
_CONNECT, _REFUSED, _MORE = 1, 2, 4
#: kind, family, protocol, flags, ports; time, socket, netns; the caller; two addresses.
_CALL_FORM: Final = struct.Struct("=BBBBHHQQQIIQQIIII16s16s16s")
_CLOSED_FORM: Final = struct.Struct("=B7xQQ")
_PROCESS_FORM: Final = struct.Struct("=BB2xIIIQQIIQQIIQ16sHHHH")


class Image(NamedTuple):
    """A program that a process runs: after an exec, the same process is another image.

    ``started_ns`` is of CLOCK_BOOTTIME. Both it and ``execs`` are 0 where the kernel doesn't say.
    """

    pid: int
    started_ns: int
    execs: int


class Call(NamedTuple):
    """A process sends something, or connects.

    Addresses are packed, an address of IPv4 in 4 bytes, empty where none is known; ports are 0
    where they are not known. ``socket`` is the kernel's cookie, 0 where it has none. ``uid`` and
    ``gid`` are the process's real ones; ``fsuid`` is whose a socket is that it makes now.

    ``is_frame``: it sends by a packet socket. ``is_connect``: it connects a socket that sends
    nothing by that. ``is_refused``: its packet was refused just before ``time_ns``
    (CLOCK_BOOTTIME); any other one's follows. ``has_more``: more of the same may follow that is not
    told.
    """

    time_ns: int
    socket: int
    netns: int
    is_frame: bool
    protocol: int
    is_connect: bool
    is_refused: bool
    has_more: bool
    source: bytes
    source_port: int
    destination: bytes
    destination_port: int
    image: Image
    tid: int
    uid: int
    gid: int
    fsuid: int
    comm: bytes


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
        pid, _, started_ns, execs, tid, uid, gid, fsuid, comm, source, destination,
    ) = _CALL_FORM.unpack_from(sample)  # fmt: skip
    return Call(
        time_ns=time_ns,
        socket=socket,
        netns=netns,
        is_frame=family == _AF_PACKET,
        protocol=protocol,
        is_connect=bool(flags & _CONNECT),
        is_refused=bool(flags & _REFUSED),
        has_more=bool(flags & _MORE),
        source=_address(family, source),
        source_port=source_port,
        destination=_address(family, destination),
        destination_port=destination_port,
        image=Image(pid, started_ns, execs),
        tid=tid,
        uid=uid,
        gid=gid,
        fsuid=fsuid,
        comm=_text(comm),
    )


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
